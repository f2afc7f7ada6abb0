// Linear and Glu: which way of products.h multiplies, and what is left around the library's.
#include <vector>

#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/library_gemm.h"
#include "kernels/cuda/products.h"

namespace baton::cuda {
namespace {

constexpr int kThreads = 256;

unsigned Blocks(int64_t n) { return static_cast<unsigned>((n + kThreads - 1) / kThreads); }

__global__ void AddBias(float* y, const float* bias, int64_t out, int64_t n) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i < n) y[i] += bias[i % out];
}

__global__ void ActivateGate(const float* gate, const float* up, GluActivation activation, float* y,
                             int64_t n) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i < n) y[i] = Activate(activation, gate[i]) * up[i];
}

}  // namespace

void CudaOps::DoLinear(const LinearParams& p) {
  Recorder::Operation operation(recorder_);
  std::vector<FewRowsOut> few;
  std::vector<const LinearParams::Out*> many;
  for (const LinearParams::Out& o : p.outs) {
    if (!p.fine && library_ && LibraryGemm::Takes(o.w->rows)) {
      many.push_back(&o);
    } else {
      few.push_back({&Cast(o.w), nullptr, o.bias, o.y.data()});
    }
  }
  FewRows(recorder_, {p.x, p.norm_weight, p.norm_eps, few, p.accumulate, {}});
  if (many.empty()) return;
  const int64_t tokens = p.x.dim(0), padded = Padded(p.x.dim(1));
  auto* x = scratch_.Get<__nv_bfloat16>(Scratch::kInput, tokens * padded);
  PrepareInput(recorder_, {p.x, p.norm_weight, p.norm_eps}, x);
  for (const LinearParams::Out* o : many) {
    library_->Multiply(
        recorder_, scratch_,
        {x, Cast(o->w).data(), o->y.data(), tokens, o->w->rows, padded, p.accumulate});
    if (o->bias) {
      recorder_.Launch(AddBias, Blocks(o->y.size()), kThreads, 0, o->y.data(), o->bias, o->w->rows,
                       o->y.size());
    }
  }
}

void CudaOps::DoGlu(const GluParams& p) {
  Recorder::Operation operation(recorder_);
  const int64_t tokens = p.x.dim(0), padded = Padded(p.x.dim(1)), out = p.gate->rows;
  if (p.fine || !library_ || !LibraryGemm::Takes(out)) {
    const FewRowsOut o{&Cast(p.gate), &Cast(p.up), nullptr, p.y.data()};
    return FewRows(recorder_,
                   {p.x, p.norm_weight, p.norm_eps, std::span(&o, 1), false, p.activation});
  }
  auto* x = scratch_.Get<__nv_bfloat16>(Scratch::kInput, tokens * padded);
  PrepareInput(recorder_, {p.x, p.norm_weight, p.norm_eps}, x);
  float* products = scratch_.Get<float>(Scratch::kProduct, 2 * tokens * out);
  const CudaMatrix* const matrices[] = {&Cast(p.gate), &Cast(p.up)};
  for (int i = 0; i < 2; ++i) {
    library_->Multiply(
        recorder_, scratch_,
        {x, matrices[i]->data(), products + i * tokens * out, tokens, out, padded, false});
  }
  recorder_.Launch(ActivateGate, Blocks(tokens * out), kThreads, 0, products,
                   products + tokens * out, p.activation, p.y.data(), tokens * out);
}

}  // namespace baton::cuda
