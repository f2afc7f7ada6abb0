// The inputs of products: rows normed, rounded and padded.
#include "kernels/cuda/products.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/weights.cuh"

namespace baton::cuda {
namespace {

constexpr int kThreads = 512;

struct Row {
  const float* x;
  const float* weight;  // null: no norm
  float scale;          // 1 / rms
  int32_t cols;

  __device__ float at(int i) const {
    return i >= cols ? 0.0f : weight ? x[i] * scale * weight[i] : x[i];
  }
};

// The row of this block. The order of the sum depends on its length alone.
__device__ Row NormedRow(const float* x, const float* weight, float eps, int cols, float* warps) {
  Row row{x, weight, 1.0f, cols};
  if (weight) {
    float sum = 0;
    for (int i = threadIdx.x; i < cols; i += kThreads) sum += x[i] * x[i];
    row.scale = 1.0f / sqrtf(BlockSum(sum, warps) / static_cast<float>(cols) + eps);
  }
  return row;
}

__global__ void __launch_bounds__(kThreads)
    RoundInput(const float* x, int64_t x_stride, const float* weight, float eps, int cols,
               int padded, __nv_bfloat16* to) {
  __shared__ float warps[kThreads / kWarp];
  LetNextBegin();
  AwaitPrevious();
  const Row row = NormedRow(x + blockIdx.x * x_stride, weight, eps, cols, warps);
  to += blockIdx.x * int64_t{padded};
  for (int i = threadIdx.x; i < padded; i += kThreads) to[i] = __float2bfloat16_rn(row.at(i));
}

// A thread converts the columns that a lane of FewRows multiplies at a time: eight.
__global__ void __launch_bounds__(kThreads)
    SplitRows(const float* x, int64_t x_stride, const float* weight, float eps, int cols, int slabs,
              int halves, uint4* to, float* sums) {
  __shared__ float warps[kThreads / kWarp];
  LetNextBegin();
  AwaitPrevious();
  const Row row = NormedRow(x + blockIdx.x * x_stride, weight, eps, cols, warps);
  to += blockIdx.x * int64_t{slabs} * 8;
  sums += blockIdx.x * int64_t{slabs};
  // Whole warps take part in every round: the four threads of a slab add their sums.
  for (int c = threadIdx.x; c < (slabs * 4 + kWarp - 1) / kWarp * kWarp; c += kThreads) {
    const int slab = c / 4, quad = c % 4;
    const int first = slab * kSlab + quad * (halves ? 4 : 8), second = first + (halves ? 16 : 4);
    float v[8], sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      v[i] = row.at(i < 4 ? first + i : second + i - 4);
      sum += v[i];
    }
    uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
      high[i] = Bits(pair);
      low[i] = Bits(
          __floats2bfloat162_rn(v[2 * i] - __low2float(pair), v[2 * i + 1] - __high2float(pair)));
    }
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    if (slab >= slabs) continue;
    to[c * 2] = make_uint4(high[0], high[1], high[2], high[3]);
    to[c * 2 + 1] = make_uint4(low[0], low[1], low[2], low[3]);
    if (quad == 0) sums[slab] = sum;
  }
}

Recorder::Shape BlockPerRow(int64_t rows) {
  return {.grid = static_cast<unsigned>(rows), .block = kThreads, .overlapped = true};
}

}  // namespace

void PrepareInput(Recorder& recorder, const InputParams& p, __nv_bfloat16* to) {
  const int64_t n = p.x.dim(1);
  recorder.Launch(RoundInput, BlockPerRow(p.x.dim(0)), p.x.data(), p.x.stride(0), p.norm_weight,
                  p.norm_eps, n, Padded(n), to);
}

SplitInput PrepareSplitInput(Recorder& recorder, Scratch& scratch, const InputParams& p,
                             bool halves) {
  const int64_t tokens = p.x.dim(0), n = p.x.dim(1);
  const int64_t slabs = (n + 4 * kSlab - 1) / (4 * kSlab) * 4;
  auto* x = scratch.Get<std::byte>(halves ? Scratch::kSplitHalves : Scratch::kSplit,
                                   tokens * slabs * (kSlab * 4 + 4));
  auto* sums = reinterpret_cast<float*>(x + tokens * slabs * kSlab * 4);
  recorder.Launch(SplitRows, BlockPerRow(tokens), p.x.data(), p.x.stride(0), p.norm_weight,
                  p.norm_eps, n, slabs, int{halves}, reinterpret_cast<uint4*>(x), sums);
  return {reinterpret_cast<const __nv_bfloat16*>(x), sums, slabs};
}

}  // namespace baton::cuda
