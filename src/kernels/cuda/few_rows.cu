// Products of few rows, bound by reading the weights once.
//
// A block computes some rows of W for 16 tokens. Its eight warps share the columns: warp w takes
// slabs w, w + 8, ... of 32 columns, so that the block reads each row in stretches of 512 bytes. A
// lane loads 16 bytes: eight columns of one row. The order of columns within a slab is free as long
// as x and W have the same, so those eight are what the lane holds of two mma.m16n8k16 (x: 16
// tokens, W: 8 rows), and no data is exchanged.
//
// Tensor cores add in f32 but round towards zero: a chain of many would drift. So a slab's four
// products (two of 16 columns, high and low half of x) are summed there, and slabs in f32.
#include "kernels/cuda/products.h"
#include "kernels/cuda/reduce.cuh"

namespace baton::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kTokens = 16;
constexpr int kTileRows = 8;  // of W in one product
constexpr int kMaxOuts = 8;
constexpr int kAhead = 2;  // slabs of a warp in flight beyond those being multiplied

struct OutArgs {
  const __nv_bfloat16 *w, *up;
  const float* bias;
  float* y;
  int32_t rows, first_block;
};

struct Args {
  OutArgs outs[kMaxOuts];
  const uint4* x;
  int32_t count, tokens, slabs, accumulate;
  int32_t activation, unused;
};

// c += a b: a 16 x 16 (tokens by columns), b 16 x 8 (columns by rows of W).
__device__ inline void Mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                           uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Weights are read once: they need no place in the first-level cache.
__device__ inline uint4 LoadWeights(const uint4* p) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p));
  return v;
}

template <int kTiles>
struct Weights {
  uint4 slab[kAhead][kTiles];
};

template <int kTiles>
__device__ inline void Load(Weights<kTiles>& to, const uint4* const (&rows)[kTiles], int slab,
                            int slabs) {
#pragma unroll
  for (int a = 0; a < kAhead; ++a) {
    const int s = slab + a * kWarps;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
      to.slab[a][n] = s < slabs ? LoadWeights(rows[n] + s * 4) : uint4{};
  }
}

// Products of kAhead slabs; x of the lane's two tokens, null where there is none.
template <int kTiles>
__device__ inline void Multiply(const Weights<kTiles>& w, const uint4* low_token,
                                const uint4* high_token, int slab, int slabs,
                                float (&sum)[kTiles][4]) {
#pragma unroll
  for (int a = 0; a < kAhead; ++a) {
    const int s = slab + a * kWarps;
    if (s >= slabs) break;
    uint4 x[2] = {}, y[2] = {};  // high and low halves of the two tokens
    if (low_token) x[0] = low_token[s * 8], x[1] = low_token[s * 8 + 1];
    if (high_token) y[0] = high_token[s * 8], y[1] = high_token[s * 8 + 1];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const uint4& b = w.slab[a][n];
      float part[4] = {};
#pragma unroll
      for (int half = 1; half >= 0; --half) {
        Mma(part, x[half].x, y[half].x, x[half].y, y[half].y, b.x, b.y);
        Mma(part, x[half].z, y[half].z, x[half].w, y[half].w, b.z, b.w);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[n][i] += part[i];
    }
  }
}

// kGlu: tiles alternate between gate and up.
template <int kTiles, bool kGlu>
__global__ void __launch_bounds__(kThreads) FewRowsKernel(const __grid_constant__ Args args) {
  constexpr int kRows = kTiles * kTileRows;  // sums per token
  constexpr int kOutputs = kGlu ? kRows / 2 : kRows;
  __shared__ float sums[kWarps][kTokens][kRows];
  LetNextBegin();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int group = lane / 4, quad = lane % 4;
  int o = 0;
  while (o + 1 < args.count && static_cast<int>(blockIdx.x) >= args.outs[o + 1].first_block) ++o;
  const OutArgs& out = args.outs[o];
  const int first_row = (static_cast<int>(blockIdx.x) - out.first_block) * kOutputs;
  const uint4* rows[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    // Rows beyond the last repeat it; their sums are not written.
    const int row = min(first_row + (kGlu ? n / 2 : n) * kTileRows + group, out.rows - 1);
    const __nv_bfloat16* w = kGlu && n % 2 == 1 ? out.up : out.w;
    rows[n] = reinterpret_cast<const uint4*>(w) + int64_t{row} * args.slabs * 4 + quad;
  }
  const int first_token = blockIdx.y * kTokens;
  const int64_t x_stride = int64_t{args.slabs} * 8;
  const auto token = [&](int i) -> const uint4* {
    return first_token + i < args.tokens ? args.x + (first_token + i) * x_stride + quad * 2
                                         : nullptr;
  };
  const uint4 *low_token = token(group), *high_token = token(group + 8);

  float sum[kTiles][4] = {};
  Weights<kTiles> now, next;
  Load<kTiles>(now, rows, warp, args.slabs);
  AwaitPrevious();
  for (int slab = warp; slab < args.slabs; slab += kAhead * kWarps) {
    Load<kTiles>(next, rows, slab + kAhead * kWarps, args.slabs);
    Multiply<kTiles>(now, low_token, high_token, slab, args.slabs, sum);
    now = next;
  }

#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sums[warp][group + i / 2 * 8][n * kTileRows + quad * 2 + i % 2] = sum[n][i];
  }
  __syncthreads();
  const auto total = [&](int t, int column) {
    float all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) all += sums[w][t][column];
    return all;
  };
  for (int i = threadIdx.x; i < kTokens * kOutputs; i += kThreads) {
    const int t = i / kOutputs, r = i % kOutputs;
    if (first_token + t >= args.tokens || first_row + r >= out.rows) continue;
    float& y = out.y[int64_t{first_token + t} * out.rows + first_row + r];
    if constexpr (kGlu) {
      const int column = r / kTileRows * 2 * kTileRows + r % kTileRows;
      y = Activate(static_cast<GluActivation>(args.activation), total(t, column)) *
          total(t, column + kTileRows);
    } else {
      const float value = total(t, r) + (out.bias ? out.bias[first_row + r] : 0.0f);
      y = args.accumulate ? y + value : value;
    }
  }
}

// A block per row. Threads own chunks of eight columns.
constexpr int kInputThreads = 512;
template <bool kSplit>
__global__ void __launch_bounds__(kInputThreads)
    InputKernel(const float* x, int64_t x_stride, const float* weight, float eps, int64_t n,
                int64_t padded, __nv_bfloat16* to) {
  __shared__ float warps[kInputThreads / kWarp];
  LetNextBegin();
  AwaitPrevious();
  x += blockIdx.x * x_stride;
  to += blockIdx.x * padded * (kSplit ? 2 : 1);
  float scale = 1;
  if (weight) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += kInputThreads) sum += x[i] * x[i];
    scale = 1.0f / sqrtf(BlockSum(sum, warps) / static_cast<float>(n) + eps);
  }
  for (int64_t i = threadIdx.x; i < padded; i += kInputThreads) {
    float value = i < n ? x[i] : 0.0f;
    if (weight && i < n) value = value * scale * weight[i];
    const __nv_bfloat16 high = __float2bfloat16_rn(value);
    if constexpr (kSplit) {
      __nv_bfloat16* chunk = to + i / 8 * 16 + i % 8;
      chunk[0] = high;
      chunk[8] = __float2bfloat16_rn(value - __bfloat162float(high));
    } else {
      to[i] = high;
    }
  }
}

template <int kTiles, bool kGlu>
void Start(Recorder& recorder, Args args, std::span<const FewRowsOut> outs) {
  constexpr int kOutputs = kTiles * kTileRows / (kGlu ? 2 : 1);
  int blocks = 0;
  for (size_t o = 0; o < outs.size(); ++o) {
    args.outs[o].first_block = blocks;
    blocks += static_cast<int>((outs[o].w->rows + kOutputs - 1) / kOutputs);
  }
  const auto groups = static_cast<unsigned>((args.tokens + kTokens - 1) / kTokens);
  recorder.Launch(
      FewRowsKernel<kTiles, kGlu>,
      {.grid = dim3(static_cast<unsigned>(blocks), groups), .block = kThreads, .overlapped = true},
      args);
}

}  // namespace

void PrepareInput(Recorder& recorder, const InputParams& p, bool split, __nv_bfloat16* to) {
  const Recorder::Shape shape{
      .grid = static_cast<unsigned>(p.x.dim(0)), .block = kInputThreads, .overlapped = true};
  const int64_t n = p.x.dim(1);
  recorder.Launch(split ? InputKernel<true> : InputKernel<false>, shape, p.x.data(), p.x.stride(0),
                  p.norm_weight, p.norm_eps, n, Padded(n), to);
}

void FewRows(Recorder& recorder, const FewRowsParams& p) {
  for (size_t first = 0; first < p.outs.size(); first += kMaxOuts) {
    const auto outs = p.outs.subspan(first, std::min<size_t>(kMaxOuts, p.outs.size() - first));
    Args args = {};
    args.x = reinterpret_cast<const uint4*>(p.x);
    args.count = static_cast<int32_t>(outs.size());
    args.tokens = static_cast<int32_t>(p.tokens);
    args.slabs = static_cast<int32_t>(outs[0].w->stride / kSlab);
    args.accumulate = p.accumulate;
    args.activation = static_cast<int32_t>(p.activation);
    for (size_t o = 0; o < outs.size(); ++o) {
      args.outs[o] = {outs[o].w->data(), outs[o].up ? outs[o].up->data() : nullptr, outs[o].bias,
                      outs[o].y,         static_cast<int32_t>(outs[o].w->rows),     0};
    }
    // More rows to a block read x less often; fewer give every multiprocessor some. The sums are
    // the same.
    if (outs[0].up) {
      p.tokens > 4 ? Start<4, true>(recorder, args, outs) : Start<2, true>(recorder, args, outs);
    } else {
      p.tokens > 4 ? Start<4, false>(recorder, args, outs) : Start<2, false>(recorder, args, outs);
    }
  }
}

}  // namespace baton::cuda
