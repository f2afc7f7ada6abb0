// What a library's product multiplies with.
#include "kernels/cuda/products.h"
#include "kernels/cuda/reduce.cuh"

namespace baton::cuda {
namespace {

constexpr int kThreads = 256;

// A block per row.
__global__ void __launch_bounds__(kThreads)
    InputKernel(const float* x, int64_t x_stride, const float* weight, float eps, int64_t n,
                int64_t padded, __nv_bfloat16* to) {
  __shared__ float warps[kThreads / kWarp];
  LetNextBegin();
  AwaitPrevious();
  x += blockIdx.x * x_stride;
  to += blockIdx.x * padded;
  float scale = 1;
  if (weight) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += x[i] * x[i];
    scale = 1.0f / sqrtf(BlockSum(sum, warps) / static_cast<float>(n) + eps);
  }
  for (int64_t i = threadIdx.x; i < padded; i += kThreads) {
    const float value = i >= n ? 0.0f : weight ? x[i] * scale * weight[i] : x[i];
    to[i] = __float2bfloat16_rn(value);
  }
}

}  // namespace

void PrepareInput(Recorder& recorder, const InputParams& p, __nv_bfloat16* to) {
  const int64_t n = p.x.dim(1);
  recorder.Launch(InputKernel,
                  {.grid = static_cast<unsigned>(p.x.dim(0)), .block = kThreads, .overlapped = true},
                  p.x.data(), p.x.stride(0), p.norm_weight, p.norm_eps, n, Padded(n), to);
}

}  // namespace baton::cuda
