// The layer router: the mean query and five small products, sums in double.
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/reduce.cuh"

namespace baton::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

// mean[d] = mean of q[., ., d]: a block for 32 dimensions, its warps share the rows and heads.
__global__ void __launch_bounds__(kThreads)
    MeanQuery(const float* q, int64_t row_stride, int64_t head_stride, int64_t rows, int64_t heads,
              int64_t dim, float* mean) {
  __shared__ double sums[kWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t d = blockIdx.x * int64_t{kWarp} + lane;
  double sum = 0;
  for (int64_t i = warp; d < dim && i < rows * heads; i += kWarps)
    sum += q[i / heads * row_stride + i % heads * head_stride + d];
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || d >= dim) return;
  double total = 0;
  for (int w = 0; w < kWarps; ++w) total += sums[w][lane];
  mean[d] = static_cast<float>(total / static_cast<double>(rows * heads));
}

// A warp per output.
__global__ void __launch_bounds__(kThreads)
    RouterLayer(const float* weight, int64_t stride, const float* bias, const float* x, int64_t out,
                int64_t in, int silu, float* y) {
  const int lane = threadIdx.x % kWarp;
  const int64_t r = blockIdx.x * int64_t{kWarps} + threadIdx.x / kWarp;
  if (r >= out) return;
  double sum = 0;
  for (int64_t i = lane; i < in; i += kWarp)
    sum += static_cast<double>(weight[r * stride + i]) * static_cast<double>(x[i]);
  sum = WarpSum(sum);
  if (lane > 0) return;
  const double v = static_cast<float>(sum + static_cast<double>(bias[r]));
  y[r] = static_cast<float>(silu ? v / (1 + exp(-v)) : v);
}

}  // namespace

void CudaOps::DoRoute(const RouteParams& p) {
  const RouterWeights& w = *p.weights;
  const RouterWeights::Layer* layers[] = {&w.encoder[0], &w.encoder[1], &w.head[0], &w.head[1],
                                          &w.head[2]};
  constexpr bool kSilu[] = {true, false, true, true, false};
  const int64_t dim = p.q.dim(2);
  int64_t widest = dim;
  for (const auto* l : layers) widest = std::max(widest, l->weight.dim(0));
  Recorder::Operation operation(recorder_);
  float* x = scratch_.Get<float>(Scratch::kRouter, 2 * widest);
  float* y = x + widest;
  recorder_.Launch(MeanQuery, static_cast<unsigned>((dim + kWarp - 1) / kWarp), kThreads, 0,
                   p.q.data(), p.q.stride(0), p.q.stride(1), p.q.dim(0), p.q.dim(1), dim, x);
  for (size_t i = 0; i < std::size(layers); ++i) {
    const RouterWeights::Layer& l = *layers[i];
    const int64_t out = l.weight.dim(0);
    float* to = i + 1 == std::size(layers) ? p.logits : y;
    recorder_.Launch(RouterLayer, static_cast<unsigned>((out + kWarps - 1) / kWarps), kThreads, 0,
                     l.weight.data(), l.weight.stride(0), l.bias, x, out, l.weight.dim(1),
                     int{kSilu[i]}, to);
    std::swap(x, y);
  }
}

}  // namespace baton::cuda
