// The kernel of FewRows, compiled for one format per .cu file.
//
// A block computes some tiles of W (8 rows each) for 16 tokens. Its eight warps share the columns:
// warp w takes groups w, w + 8, ... and copies them to shared memory some stages ahead, the first
// ones before the preceding kernel has ended. A lane multiplies eight columns of a slab and one row
// at a time. The order of columns within a slab is free as long as x and W have the same, so these
// eight are the lane's elements of two mma.m16n8k16 (x: 16 tokens, W: 8 rows).
//
// Tensor cores add in f32 but round towards zero, so the sum of a long chain would drift. Therefore
// they sum only a slab's four products (two of 16 columns, high and low half of x), and the slabs'
// sums, times their scales, are added in f32.
//
// Measured on an H200 (14336 x 4096, bf16, one row): splitting x here, in every block, takes 208
// instructions per warp and slab and 48 us, bound by instruction latency.
#pragma once

#include <algorithm>

#include "kernels/cuda/few_rows.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/weights.cuh"

namespace baton::cuda {

constexpr int kFewWarps = 8;
constexpr int kFewThreads = kFewWarps * kWarp;
constexpr int kFewTokens = 16;

// Shared memory of one tile's group, and stages of a block: two blocks to a multiprocessor.
template <Format kFormat>
constexpr int kTileBytes = QuantBytes(kFormat) +
                           ScaleBytes(kFormat) * (kFormat == Format::kQ8Halves ? 1 : 2);
template <Format kFormat, int kTiles>
constexpr int kStagesThatFit = (kTiles > 2 ? 96 : 64) * 1024 / kFewWarps /
                               (kTiles * kTileBytes<kFormat>);
template <Format kFormat, int kTiles>
constexpr int kStages = kStagesThatFit<kFormat, kTiles> > 8 ? 8 : kStagesThatFit<kFormat, kTiles>;

// c += a b: a 16 x 16 (tokens by columns), b 16 x 8 (columns by rows of W).
__device__ inline void Mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                           uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ inline void CopyAsync(std::byte* to, const std::byte* from) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ inline void AwaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Copies tiles' groups to shared memory, in the order in which lanes read them.
template <Format kFormat, int kTiles>
struct Tiles {
  const std::byte* from[kTiles][kFormat == Format::kBf16 ? 2 : 1];  // this lane's, of group 0

  // Tiles and rows beyond the last repeat it; their sums are not written.
  __device__ void Point(int n, const std::byte* w, int tile, int rows, int groups, int block_bytes,
                        int lane) {
    if constexpr (kFormat == Format::kBf16) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // four rows each, whole cache lines
        const int row = min(tile * kTileRows + i * 4 + lane / 8, rows - 1);
        from[n][i] = w + int64_t{row} * groups * 128 + lane % 8 * 16;
      }
    } else {
      tile = min(tile, (rows - 1) / kTileRows);
      from[n][0] = w + int64_t{tile} * groups * block_bytes + lane * 16;
    }
  }
  __device__ void Fetch(std::byte* stage, int group, int block_bytes, int lane) const {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      std::byte* to = stage + n * kTileBytes<kFormat>;
      if constexpr (kFormat == Format::kBf16) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int chunk = lane % 8, row = i * 4 + lane / 8;
          CopyAsync(to + chunk / 4 * 512 + (row * 4 + chunk % 4) * 16,
                    from[n][i] + int64_t{group} * 128);
        }
      } else {
        const std::byte* block = from[n][0] + int64_t{group} * block_bytes;
        CopyAsync(to + lane * 16, block);
        if (lane * 16 < block_bytes - 512) CopyAsync(to + 512 + lane * 16, block + 512);
      }
    }
  }
};

// A slab of x: a lane's columns of tokens `group` and `group + 8`.
struct SlabOfX {
  uint4 high[2], low[2];
  float sum[2];
};

struct PairOfX {
  SlabOfX slab[2];
};

// Adds the products of one slab with one tile; `tile` points to the tile in shared memory.
template <Format kFormat, bool kMin>
__device__ inline void MultiplySlab(const SlabOfX& x, const std::byte* tile, int j, int lane,
                                    const FewRowsArgs& args, float (&sum)[4]) {
  const auto product = [&](float(&part)[4], const uint32_t(&w)[4], int half) {
    const auto pick = [half](const uint4& v, int i) {
      return half == 0 ? (i == 0 ? v.x : v.y) : (i == 0 ? v.z : v.w);
    };
    Mma(part, pick(x.low[0], 0), pick(x.low[1], 0), pick(x.low[0], 1), pick(x.low[1], 1),
        w[half * 2], w[half * 2 + 1]);
    Mma(part, pick(x.high[0], 0), pick(x.high[1], 0), pick(x.high[0], 1), pick(x.high[1], 1),
        w[half * 2], w[half * 2 + 1]);
  };
  float part[2][4] = {};
  uint32_t w[4];
  if constexpr (kFormat == Format::kBf16) {
    const uint4 words = reinterpret_cast<const uint4*>(tile)[j * kWarp + lane];
    w[0] = words.x, w[1] = words.y, w[2] = words.z, w[3] = words.w;
    product(part[0], w, 0);
    product(part[0], w, 1);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += part[0][i];
  } else {
    constexpr int kParts = kFormat == Format::kQ8Halves ? 2 : 1;
    ExpandSlab<kFormat>(reinterpret_cast<const uint4*>(tile)[lane], j, args.zero, w);
    product(part[0], w, 0);
    product(part[kParts - 1], w, 1);
    // Scales of rows 2 quad and 2 quad + 1.
    const auto* scales = reinterpret_cast<const __half2*>(tile + QuantBytes(kFormat)) +
                         lane % 4 * SlabsOf(kFormat) * kParts;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const float2 scale = __half22float2(scales[j * kParts + p]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] += part[p][i] * (i % 2 == 0 ? scale.x : scale.y);
    }
    if constexpr (kMin) {
      const float2 minimum = __half22float2(scales[ScaleBytes(kFormat) / 4 + j]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] += x.sum[i / 2] * (i % 2 == 0 ? minimum.x : minimum.y);
    }
  }
}

// kMin: the type has minima (a branch on this would keep the tiles' products from overlapping).
// kGlu: tiles alternate between gate and up.
template <Format kFormat, bool kMin, int kTiles, bool kGlu>
__global__ void __launch_bounds__(kFewThreads, 2)
    FewRowsKernel(const __grid_constant__ FewRowsArgs args) {
  constexpr int kRows = kTiles * kTileRows;  // sums per token
  constexpr int kOutputs = kGlu ? kRows / 2 : kRows;
  constexpr int kSlabs = SlabsOf(kFormat);
  constexpr int kDepth = kStages<kFormat, kTiles>;
  constexpr int kStageBytes = kTiles * kTileBytes<kFormat>;
  extern __shared__ __align__(16) std::byte shared[];  // [warp][stage][tile]
  LetNextBegin();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  // Blocks with the same rows and different tokens are neighbours: they read the weights together.
  const int block = static_cast<int>(blockIdx.x) / args.token_groups;
  const int first_token = static_cast<int>(blockIdx.x) % args.token_groups * kFewTokens;
  int o = 0;
  while (o + 1 < args.count && block >= args.outs[o + 1].first_block) ++o;
  const FewRowsArgs::Out& out = args.outs[o];
  const int first_row = (block - out.first_block) * kOutputs;
  Tiles<kFormat, kTiles> tiles;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    tiles.Point(n, kGlu && n % 2 == 1 ? out.up : out.w, first_row / kTileRows + (kGlu ? n / 2 : n),
                out.rows, args.groups, args.block_bytes, lane);
  }
  std::byte* const mine = shared + warp * kDepth * kStageBytes;
  const auto fetch = [&](int group, int stage) {
    if (group < args.groups) tiles.Fetch(mine + stage * kStageBytes, group, args.block_bytes, lane);
    CommitCopies();
  };
#pragma unroll
  for (int s = 0; s < kDepth; ++s) fetch(warp + s * kFewWarps, s);
  AwaitPrevious();

  // Lanes without a token repeat the last one; their sums are not written.
  const uint4* x[2];
  const float* sums[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = min(first_token + lane / 4 + 8 * i, args.tokens - 1);
    x[i] = args.x + t * args.x_slabs * 8 + lane % 4 * 2;
    sums[i] = args.x_sums + t * args.x_slabs;
  }
  const bool second = first_token + 8 < args.tokens;  // tokens beyond the first eight
  const int last_pair = static_cast<int>(args.x_slabs) - 2;
  const auto load = [&](int slab) {
    PairOfX p = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i == 1 && !second) break;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        p.slab[j].high[i] = x[i][(slab + j) * 8];
        p.slab[j].low[i] = x[i][(slab + j) * 8 + 1];
        if constexpr (kMin) p.slab[j].sum[i] = sums[i][slab + j];
      }
    }
    return p;
  };
  float sum[kTiles][4] = {};
  PairOfX next = load(min(warp * kSlabs, last_pair));
  int stage = 0;
  for (int group = warp; group < args.groups; group += kFewWarps) {
    const std::byte* tile = mine + stage * kStageBytes;
    AwaitCopies<kDepth - 1>();
    __syncwarp();
#pragma unroll
    for (int pair = 0; pair < kSlabs; pair += 2) {
      const PairOfX now = next;
      // Loads one pair ahead: a load from the second-level cache takes as long as a slab's
      // arithmetic.
      next = load(min(pair + 2 < kSlabs ? group * kSlabs + pair + 2 : (group + kFewWarps) * kSlabs,
                      last_pair));
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
          MultiplySlab<kFormat, kMin>(now.slab[j], tile + n * kTileBytes<kFormat>, pair + j, lane,
                                      args, sum[n]);
      }
    }
    __syncwarp();
    fetch(group + kDepth * kFewWarps, stage);
    stage = stage + 1 == kDepth ? 0 : stage + 1;
  }

  // [warp][token][row]; reuses the shared memory of the weights.
  __syncthreads();
  auto* partial = reinterpret_cast<float(*)[kFewTokens][kRows]>(shared);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      partial[warp][lane / 4 + i / 2 * 8][n * kTileRows + lane % 4 * 2 + i % 2] = sum[n][i];
  }
  __syncthreads();
  const auto total = [&](int token, int row) {
    float all = 0;
#pragma unroll
    for (int w = 0; w < kFewWarps; ++w) all += partial[w][token][row];
    return all;
  };
  for (int i = threadIdx.x; i < kFewTokens * kOutputs; i += kFewThreads) {
    const int t = i / kOutputs, r = i % kOutputs;
    if (first_token + t >= args.tokens || first_row + r >= out.rows) continue;
    float& y = out.y[int64_t{first_token + t} * out.rows + first_row + r];
    if constexpr (kGlu) {
      const int gate = r / kTileRows * 2 * kTileRows + r % kTileRows;
      y = Activate(static_cast<GluActivation>(args.activation), total(t, gate)) *
          total(t, gate + kTileRows);
    } else {
      const float value = total(t, r) + (out.bias ? out.bias[first_row + r] : 0.0f);
      y = args.accumulate ? y + value : value;
    }
  }
}

template <Format kFormat, bool kMin, int kTiles, bool kGlu>
void StartTiles(Recorder& recorder, FewRowsArgs args) {
  constexpr int kRows = kTiles * kTileRows, kOutputs = kRows / (kGlu ? 2 : 1);
  constexpr size_t kStageBytes =
      size_t{kFewWarps} * kStages<kFormat, kTiles> * kTiles * kTileBytes<kFormat>;
  int blocks = 0;
  for (int o = 0; o < args.count; ++o) {
    args.outs[o].first_block = blocks;
    blocks += (args.outs[o].rows + kOutputs - 1) / kOutputs;
  }
  args.token_groups = (args.tokens + kFewTokens - 1) / kFewTokens;
  recorder.Launch(
      FewRowsKernel<kFormat, kMin, kTiles, kGlu>,
      {.grid = static_cast<unsigned>(blocks * args.token_groups),
       .block = kFewThreads,
       .shared_bytes = std::max(kStageBytes, size_t{kFewWarps} * kFewTokens * kRows * 4),
       .overlapped = true},
      args);
}

// More rows per block read x less often; fewer rows give every multiprocessor some blocks. The sums
// are the same.
template <Format kFormat, bool kMin>
void StartFormat(Recorder& recorder, const FewRowsArgs& args) {
  constexpr int64_t kBlocks = 264;  // two to a multiprocessor of an H200
  int64_t rows = 0;
  for (int o = 0; o < args.count; ++o) rows += args.outs[o].rows * (args.outs[o].up ? 2 : 1);
  const bool many = args.tokens > 8 && rows >= 4 * kTileRows * kBlocks;
  if (args.outs[0].up) {
    many ? StartTiles<kFormat, kMin, 4, true>(recorder, args)
         : StartTiles<kFormat, kMin, 2, true>(recorder, args);
  } else if (rows < kTileRows * kBlocks) {
    StartTiles<kFormat, kMin, 1, false>(recorder, args);
  } else {
    many ? StartTiles<kFormat, kMin, 4, false>(recorder, args)
         : StartTiles<kFormat, kMin, 2, false>(recorder, args);
  }
}

}  // namespace baton::cuda
