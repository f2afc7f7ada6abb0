#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/reduce.cuh"

namespace baton::cuda {
namespace {

constexpr int kThreads = 256;

// One block per row. x and y may be the same memory: a thread reads what it writes.
__global__ void __launch_bounds__(kThreads)
    NormRows(const float* x, int64_t x_stride, const float* weight, float eps, float* y,
             int64_t y_stride, int64_t n, int accumulate) {
  __shared__ float warps[kThreads / kWarp];
  LetNextBegin();
  AwaitPrevious();
  x += blockIdx.x * x_stride;
  y += blockIdx.x * y_stride;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += x[i] * x[i];
  const float scale = 1.0f / sqrtf(BlockSum(sum, warps) / static_cast<float>(n) + eps);
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    const float value = x[i] * scale * weight[i];
    y[i] = accumulate ? y[i] + value : value;
  }
}

}  // namespace

void CudaOps::DoNorm(const NormParams& p) {
  Recorder::Operation operation(recorder_);
  recorder_.Launch(
      NormRows, {.grid = static_cast<unsigned>(p.x.dim(0)), .block = kThreads, .overlapped = true},
      p.x.data(), p.x.stride(0), p.weight, p.eps, p.y.data(), p.y.stride(0), p.x.dim(1),
      int{p.accumulate});
}

}  // namespace baton::cuda
