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

// Eight columns: what a lane of FewRows multiplies at a time.
struct EightColumns {
  int first, second;  // four columns each
  float v[8];

  __device__ EightColumns(int c, int halves) {
    const int quad = c % 4;
    first = c / 4 * kSlab + quad * (halves ? 4 : 8), second = first + (halves ? 16 : 4);
  }
  // `fours`: x begins at a multiple of 16 bytes.
  __device__ void Load(const float* x, int cols, bool fours) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int at = part == 0 ? first : second;
      float* to = v + part * 4;
      if (fours && at + 4 <= cols) {
        const float4 four = *reinterpret_cast<const float4*>(x + at);
        to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i] = at + i < cols ? x[at + i] : 0.0f;
      }
    }
  }
};

// A thread converts some runs of eight columns, kHeld of them with a norm; all blocks of a row do.
// Weights are loaded before the preceding kernel has ended.
template <int kHeld>
__global__ void __launch_bounds__(kThreads)
    SplitRows(const float* x, int64_t x_stride, const float* weight, float eps, int cols, int slabs,
              int halves, int fours, uint4* to, float* sums) {
  __shared__ float warps[kThreads / kWarp];
  LetNextBegin();
  const int base = blockIdx.y * kHeld * kThreads + threadIdx.x;
  float factors[kHeld][8];
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    EightColumns columns(base + h * kThreads, halves);
    if (weight) columns.Load(weight, cols, fours);
#pragma unroll
    for (int i = 0; i < 8; ++i) factors[h][i] = weight ? columns.v[i] : 1.0f;
  }
  AwaitPrevious();
  x += blockIdx.x * x_stride;
  to += blockIdx.x * int64_t{slabs} * 8;
  sums += blockIdx.x * int64_t{slabs};
  float held[kHeld][8], squares = 0;
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    EightColumns columns(base + h * kThreads, halves);
    columns.Load(x, cols, fours);
#pragma unroll
    for (int i = 0; i < 8; ++i) held[h][i] = columns.v[i], squares += columns.v[i] * columns.v[i];
  }
  float scale = 1;
  if (weight) scale = 1.0f / sqrtf(BlockSum(squares, warps) / static_cast<float>(cols) + eps);
    // Whole warps take part: the four threads of a slab add their sums.
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int c = base + h * kThreads;
    float v[8], sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      v[i] = weight ? held[h][i] * scale * factors[h][i] : held[h][i];
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
    if (c / 4 >= slabs) continue;
    to[c * 2] = make_uint4(high[0], high[1], high[2], high[3]);
    to[c * 2 + 1] = make_uint4(low[0], low[1], low[2], low[3]);
    if (c % 4 == 0) sums[c / 4] = sum;
  }
}

// The same for wider rows with a norm: x is read twice.
__global__ void __launch_bounds__(kThreads)
    SplitWideRows(const float* x, int64_t x_stride, const float* weight, float eps, int cols,
                  int slabs, int halves, uint4* to, float* sums) {
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
  auto* to = reinterpret_cast<uint4*>(x);
  const int64_t held = (slabs * 4 + kThreads - 1) / kThreads;  // runs of columns of a thread
  const bool fours =
      p.x.stride(0) % 4 == 0 &&
      (reinterpret_cast<uintptr_t>(p.x.data()) | reinterpret_cast<uintptr_t>(p.norm_weight)) % 16 ==
          0;
  Recorder::Shape shape = BlockPerRow(tokens);
  if (p.norm_weight && held > 4) {
    recorder.Launch(SplitWideRows, shape, p.x.data(), p.x.stride(0), p.norm_weight, p.norm_eps, n,
                    slabs, int{halves}, to, sums);
  } else {
    if (!p.norm_weight) shape.grid.y = static_cast<unsigned>(held);
    recorder.Launch(!p.norm_weight || held == 1 ? SplitRows<1>
                    : held == 2                 ? SplitRows<2>
                                                : SplitRows<4>,
                    shape, p.x.data(), p.x.stride(0), p.norm_weight, p.norm_eps, n, slabs,
                    int{halves}, int{fours}, to, sums);
  }
  return {reinterpret_cast<const __nv_bfloat16*>(x), sums, slabs};
}

}  // namespace baton::cuda
