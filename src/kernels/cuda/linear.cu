// Linear and Glu: the choice among the methods of products.h, and the steps around the library's
// products.
#include <vector>

#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/library_gemm.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/weights.cuh"

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

// The library's operand: the matrix itself, or its quants expanded.
const __nv_bfloat16* AsBf16(Recorder& recorder, Scratch& scratch, const CudaMatrix& m) {
  if (m.format == Format::kBf16) return m.memory.as<__nv_bfloat16>();
  auto* to = scratch.Get<__nv_bfloat16>(Scratch::kExpanded, m.rows * Padded(m.cols));
  ExpandMatrix(recorder, m, to);
  return to;
}

}  // namespace

void CudaOps::DoLinear(const LinearParams& p) {
  Recorder::Operation operation(recorder_);
  const InputParams input{p.x, p.norm_weight, p.norm_eps};
  std::vector<FewRowsOut> few;
  std::vector<const LinearParams::Out*> many;
  for (const LinearParams::Out& o : p.outs) {
    if (!p.fine && library_ && LibraryGemm::Takes(o.w->rows)) {
      many.push_back(&o);
    } else {
      few.push_back({&Cast(o.w), nullptr, o.bias, o.y.data()});
    }
  }
  FewRows(recorder_, scratch_, {input, few, p.accumulate, {}});
  if (many.empty()) return;
  const int64_t tokens = p.x.dim(0), padded = Padded(p.x.dim(1));
  auto* x = scratch_.Get<__nv_bfloat16>(Scratch::kInput, tokens * padded);
  PrepareInput(recorder_, input, x);
  for (const LinearParams::Out* o : many) {
    const __nv_bfloat16* w = AsBf16(recorder_, scratch_, Cast(o->w));
    library_->Multiply(recorder_, scratch_,
                       {x, w, o->y.data(), tokens, o->w->rows, padded, p.accumulate});
    if (o->bias) {
      recorder_.Launch(AddBias, Blocks(o->y.size()), kThreads, 0, o->y.data(), o->bias, o->w->rows,
                       o->y.size());
    }
  }
}

// One kernel where gate and up are of one format and the library is not used; else two products,
// then the activation.
void CudaOps::DoGlu(const GluParams& p) {
  Recorder::Operation operation(recorder_);
  const InputParams input{p.x, p.norm_weight, p.norm_eps};
  const CudaMatrix* const matrices[] = {&Cast(p.gate), &Cast(p.up)};
  const int64_t tokens = p.x.dim(0), padded = Padded(p.x.dim(1)), out = p.gate->rows;
  const bool library = !p.fine && library_ && LibraryGemm::Takes(out);
  if (!library && SameFormat(*matrices[0], *matrices[1])) {
    const FewRowsOut o{matrices[0], matrices[1], nullptr, p.y.data()};
    return FewRows(recorder_, scratch_, {input, std::span(&o, 1), false, p.activation});
  }
  float* products = scratch_.Get<float>(Scratch::kProduct, 2 * tokens * out);
  float* const of[] = {products, products + tokens * out};
  if (library) {
    auto* x = scratch_.Get<__nv_bfloat16>(Scratch::kInput, tokens * padded);
    PrepareInput(recorder_, input, x);
    for (int i = 0; i < 2; ++i) {
      const __nv_bfloat16* w = AsBf16(recorder_, scratch_, *matrices[i]);
      library_->Multiply(recorder_, scratch_, {x, w, of[i], tokens, out, padded, false});
    }
  } else {
    const FewRowsOut outs[] = {{matrices[0], nullptr, nullptr, of[0]},
                               {matrices[1], nullptr, nullptr, of[1]}};
    FewRows(recorder_, scratch_, {input, outs, false, {}});
  }
  recorder_.Launch(ActivateGate, Blocks(tokens * out), kThreads, 0, of[0], of[1], p.activation,
                   p.y.data(), tokens * out);
}

}  // namespace baton::cuda
