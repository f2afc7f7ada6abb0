// Products of few rows, bound by reading the weights once.
//
// A block computes some rows of W for 16 tokens. Its eight warps share the columns: warp w takes
// slabs w, w + 8, ... of 32 columns, so that the block reads each row in stretches of 512 bytes. A
// lane holds 16 bytes of a slab: eight columns of one row. The order of columns within a slab is
// free as long as x and W have the same, so those eight are what the lane holds of two
// mma.m16n8k16 (x: 16 tokens, W: 8 rows), and lanes exchange no data. Weights travel to the lane's
// own place in shared memory, several slabs ahead, and start before the kernel in front has ended.
//
// The norm is part of the product: columns are multiplied by its weights on the way in, and sums by
// 1 / rms on the way out.
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

// Slabs of a warp in flight: 64 KB of a block, and of two to three blocks on a multiprocessor.
template <int kTiles>
constexpr int kStagesOf = kTiles > 2 ? 4 : 8;

struct OutArgs {
  const __nv_bfloat16 *w, *up;
  const float* bias;
  float* y;
  int32_t rows, first_block;
};

struct Args {
  OutArgs outs[kMaxOuts];
  const float *x, *norm;
  int64_t x_stride;
  int32_t count, tokens, token_groups, slabs, cols, accumulate;
  float eps;
  int32_t activation;
  int32_t vectors, unused;  // vectors: x and norm can be read 16 bytes at a time
};

// c += a b: a 16 x 16 (tokens by columns), b 16 x 8 (columns by rows of W).
__device__ inline void Mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                           uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline void CopyAsync(uint4* to, const uint4* from) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ inline void AwaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

struct Eight {
  float v[8];
};

// Eight columns, zeros beyond the last.
__device__ inline Eight LoadEight(const float* row, int column, const Args& args) {
  Eight e = {};
  if (args.vectors) {
    if (column < args.cols) {
      const float4 a = reinterpret_cast<const float4*>(row + column)[0];
      const float4 b = reinterpret_cast<const float4*>(row + column)[1];
      e = {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (column + i < args.cols) e.v[i] = row[column + i];
  }
  return e;
}

// What a lane has of a slab of x: its columns of tokens `group` and `group + 8`, and of the norm.
struct Input {
  Eight x[2];
  Eight norm;
};

__device__ inline Input LoadInput(const float* const (&tokens)[2], int column, const Args& args) {
  Input in = {};
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (tokens[i]) in.x[i] = LoadEight(tokens[i], column, args);
  if (args.norm) in.norm = LoadEight(args.norm, column, args);
  return in;
}

__device__ inline uint32_t Bits(__nv_bfloat162 x) { return *reinterpret_cast<uint32_t*>(&x); }

// x = high + low in bf16, pairs of columns.
struct Halves {
  uint32_t high[4], low[4];
};

__device__ inline Halves Split(const Eight& x) {
  Halves h;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float a = x.v[2 * i], b = x.v[2 * i + 1];
    const __nv_bfloat162 high = __floats2bfloat162_rn(a, b);
    h.high[i] = Bits(high);
    h.low[i] = Bits(__floats2bfloat162_rn(a - __low2float(high), b - __high2float(high)));
  }
  return h;
}

// Adds the squares of x, and multiplies it by the norm's weights.
__device__ inline void ApplyNorm(Input& in, float (&squares)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      squares[i] += in.x[i].v[c] * in.x[i].v[c];
      in.x[i].v[c] *= in.norm.v[c];
    }
  }
}

__device__ inline void MultiplySlab(const Halves (&x)[2], const uint4& w, float (&sum)[4]) {
  float part[4] = {};
  Mma(part, x[0].low[0], x[1].low[0], x[0].low[1], x[1].low[1], w.x, w.y);
  Mma(part, x[0].low[2], x[1].low[2], x[0].low[3], x[1].low[3], w.z, w.w);
  Mma(part, x[0].high[0], x[1].high[0], x[0].high[1], x[1].high[1], w.x, w.y);
  Mma(part, x[0].high[2], x[1].high[2], x[0].high[3], x[1].high[3], w.z, w.w);
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] += part[i];
}

// What the warps of a block found, in the memory of their weights.
template <int kRows>
struct Partial {
  float sums[kWarps][kTokens][kRows];
  float squares[kWarps][kTokens];

  __device__ float Sum(int token, int row) const {
    float all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) all += sums[w][token][row];
    return all;
  }
  // 1 / rms of a token.
  __device__ float Scale(int token, const Args& args) const {
    if (args.norm == nullptr) return 1;
    float all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) all += squares[w][token];
    return 1.0f / sqrtf(all / static_cast<float>(args.cols) + args.eps);
  }
};

// kGlu: tiles alternate between gate and up.
template <int kTiles, bool kGlu>
__global__ void __launch_bounds__(kThreads, 2) FewRowsKernel(const __grid_constant__ Args args) {
  constexpr int kRows = kTiles * kTileRows;  // sums per token
  constexpr int kOutputs = kGlu ? kRows / 2 : kRows;
  constexpr int kStages = kStagesOf<kTiles>;
  extern __shared__ uint4 stages[];  // [warp][stage][tile][lane]
  LetNextBegin();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int group = lane / 4, quad = lane % 4;
  // Blocks of the same rows and other tokens are neighbours: they read the weights together.
  const int block = static_cast<int>(blockIdx.x) / args.token_groups;
  const int first_token = static_cast<int>(blockIdx.x) % args.token_groups * kTokens;
  int o = 0;
  while (o + 1 < args.count && block >= args.outs[o + 1].first_block) ++o;
  const OutArgs& out = args.outs[o];
  const int first_row = (block - out.first_block) * kOutputs;
  const uint4* rows[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    // Rows beyond the last repeat it; their sums are not written.
    const int row = min(first_row + (kGlu ? n / 2 : n) * kTileRows + group, out.rows - 1);
    const __nv_bfloat16* w = kGlu && n % 2 == 1 ? out.up : out.w;
    rows[n] = reinterpret_cast<const uint4*>(w) + int64_t{row} * args.slabs * 4 + quad;
  }
  uint4* const mine = stages + warp * kStages * kTiles * kWarp + lane;
  const auto fetch = [&](int slab, int stage) {
    if (slab < args.slabs) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
        CopyAsync(mine + (stage * kTiles + n) * kWarp, rows[n] + slab * 4);
    }
    CommitCopies();
  };
#pragma unroll
  for (int s = 0; s < kStages; ++s) fetch(warp + s * kWarps, s);
  AwaitPrevious();

  const float* tokens[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = first_token + group + 8 * i;
    tokens[i] = t < args.tokens ? args.x + t * args.x_stride : nullptr;
  }
  float sum[kTiles][4] = {}, squares[2] = {};
  Input next = LoadInput(tokens, warp * 32 + quad * 8, args);
  int stage = 0;
  for (int slab = warp; slab < args.slabs; slab += kWarps) {
    Input in = next;
    next = LoadInput(tokens, (slab + kWarps) * 32 + quad * 8, args);
    if (args.norm) ApplyNorm(in, squares);
    const Halves x[2] = {Split(in.x[0]), Split(in.x[1])};
    AwaitCopies<kStages - 1>();
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
      MultiplySlab(x, mine[(stage * kTiles + n) * kWarp], sum[n]);
    fetch(slab + kStages * kWarps, stage);
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }

  __syncthreads();
  auto& partial = *reinterpret_cast<Partial<kRows>*>(stages);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      partial.sums[warp][group + i / 2 * 8][n * kTileRows + quad * 2 + i % 2] = sum[n][i];
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float all = squares[i] + __shfl_xor_sync(kAllLanes, squares[i], 1);
    all += __shfl_xor_sync(kAllLanes, all, 2);
    if (quad == 0) partial.squares[warp][group + 8 * i] = all;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTokens * kOutputs; i += kThreads) {
    const int t = i / kOutputs, r = i % kOutputs;
    if (first_token + t >= args.tokens || first_row + r >= out.rows) continue;
    float& y = out.y[int64_t{first_token + t} * out.rows + first_row + r];
    const float scale = partial.Scale(t, args);
    if constexpr (kGlu) {
      const int gate = r / kTileRows * 2 * kTileRows + r % kTileRows;
      y = Activate(static_cast<GluActivation>(args.activation), partial.Sum(t, gate) * scale) *
          (partial.Sum(t, gate + kTileRows) * scale);
    } else {
      const float value =
          partial.Sum(t, r) * scale + (out.bias ? out.bias[first_row + r] : 0.0f);
      y = args.accumulate ? y + value : value;
    }
  }
}

template <int kTiles, bool kGlu>
void Start(Recorder& recorder, Args args, std::span<const FewRowsOut> outs) {
  constexpr int kRows = kTiles * kTileRows, kOutputs = kRows / (kGlu ? 2 : 1);
  constexpr size_t kStageBytes = size_t{kStagesOf<kTiles>} * kTiles * kThreads * sizeof(uint4);
  int blocks = 0;
  for (size_t o = 0; o < outs.size(); ++o) {
    args.outs[o].first_block = blocks;
    blocks += static_cast<int>((outs[o].w->rows + kOutputs - 1) / kOutputs);
  }
  args.token_groups = (args.tokens + kTokens - 1) / kTokens;
  recorder.Launch(FewRowsKernel<kTiles, kGlu>,
                  {.grid = static_cast<unsigned>(blocks * args.token_groups),
                   .block = kThreads,
                   .shared_bytes = std::max(kStageBytes, sizeof(Partial<kRows>)),
                   .overlapped = true},
                  args);
}

bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

void FewRows(Recorder& recorder, const FewRowsParams& p) {
  for (size_t first = 0; first < p.outs.size(); first += kMaxOuts) {
    const auto outs = p.outs.subspan(first, std::min<size_t>(kMaxOuts, p.outs.size() - first));
    Args args = {};
    args.x = p.x.data();
    args.x_stride = p.x.stride(0);
    args.norm = p.norm_weight;
    args.eps = p.norm_eps;
    args.count = static_cast<int32_t>(outs.size());
    args.tokens = static_cast<int32_t>(p.x.dim(0));
    args.cols = static_cast<int32_t>(p.x.dim(1));
    args.slabs = static_cast<int32_t>(outs[0].w->stride / kSlab);
    args.accumulate = p.accumulate;
    args.activation = static_cast<int32_t>(p.activation);
    args.vectors = args.cols % 8 == 0 && args.x_stride % 4 == 0 && Aligned(args.x) &&
                   Aligned(args.norm);
    int64_t rows = 0;
    for (size_t o = 0; o < outs.size(); ++o) {
      args.outs[o] = {outs[o].w->data(), outs[o].up ? outs[o].up->data() : nullptr, outs[o].bias,
                      outs[o].y, static_cast<int32_t>(outs[o].w->rows), 0};
      rows += outs[o].w->rows * (outs[o].up ? 2 : 1);
    }
    // More rows to a block read x less often; fewer give every multiprocessor two blocks. The sums
    // are the same.
    constexpr int64_t kBlocks = 264;
    const bool many = args.tokens > 4 && rows >= 4 * kTileRows * kBlocks;
    if (outs[0].up) {
      many ? Start<4, true>(recorder, args, outs) : Start<2, true>(recorder, args, outs);
    } else if (rows < 2 * kTileRows * kBlocks / 2) {
      Start<1, false>(recorder, args, outs);
    } else {
      many ? Start<4, false>(recorder, args, outs) : Start<2, false>(recorder, args, outs);
    }
  }
}

}  // namespace baton::cuda
