// The kernel of FewRows, compiled for one format per .cu file.
//
// A block computes some tiles of W (8 rows each) for 8, 16 or 32 tokens. Its eight warps share the
// columns: warp w takes groups w, w + 8, ... and copies them to shared memory some stages ahead,
// the first ones before the preceding kernel has ended. A lane multiplies eight columns of a slab,
// of one row of each tile and one token of eight. The order of columns within a slab is free as
// long as x and W have the same, so these eight are the lane's elements of two mma.m16n8k16 (W: the
// 16 rows of two tiles, x: 8 tokens): the x of a lane is the operand as it was loaded, and one
// instruction takes in two tiles. With W as the 8 columns and x as 16 rows a slab and tile took 57
// instructions, a quarter of them moves.
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

// Warps of a multiprocessor: as many as their registers allow.
template <int kOctets>  // of tokens
constexpr int kResidentWarps = kOctets == 1   ? 24
                               : kOctets == 2 ? 16
                                              : 8;

// Shared memory of one tile's group, and stages of a warp: 8 KB, or 12 for more than two tiles.
template <Format kFormat>
constexpr int kTileBytes = QuantBytes(kFormat) +
                           ScaleBytes(kFormat) * (kFormat == Format::kQ8Halves ? 1 : 2);
template <Format kFormat, int kTiles>
constexpr int kStagesThatFit = (kTiles > 2 ? 12 : 8) * 1024 / (kTiles * kTileBytes<kFormat>);
template <Format kFormat, int kTiles>
constexpr int kStages = kStagesThatFit<kFormat, kTiles> > 8 ? 8 : kStagesThatFit<kFormat, kTiles>;

// c += w x: w 16 x 16 (rows by columns), x 16 x 8 (columns by tokens).
__device__ inline void Mma(float (&c)[4], uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3,
                           uint32_t x0, uint32_t x1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(w0), "r"(w1), "r"(w2), "r"(w3), "r"(x0), "r"(x1));
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

// A slab of x: a lane's columns of tokens lane / 4 (and lane / 4 + 8), and what the columns of
// tokens 2 quad and 2 quad + 1 (and of those + 8) come to.
template <int kOctets>
struct SlabOfX {
  uint4 high[kOctets], low[kOctets];
  float sum[kOctets][2];
};

// Slabs of x that are loaded while as many are multiplied: a load from the second-level cache takes
// as long as the arithmetic of two slabs, or of one where that has four octets.
template <int kOctets>
constexpr int kAhead = kOctets > 2 ? 1 : 2;
template <int kOctets>
struct RunOfX {
  SlabOfX<kOctets> slab[kAhead<kOctets>];
};

// The scales (or minima) of a lane's row in one group of a tile.
template <Format kFormat>
struct RowScales {
  static constexpr int kParts = kFormat == Format::kQ8Halves ? 2 : 1;
  static constexpr int kWords = SlabsOf(kFormat) * kParts / 2;
  __half2 words[kWords];

  __device__ void Load(const std::byte* of_tile, int row) {
    const auto* from = reinterpret_cast<const __half2*>(of_tile) + row * kWords;
    if constexpr (kWords == 2) {
      *reinterpret_cast<uint2*>(words) = *reinterpret_cast<const uint2*>(from);
    } else {
      words[0] = from[0];
    }
  }
  __device__ float at(int slab, int part) const {
    const int i = slab * kParts + part;
    return i % 2 == 0 ? __low2float(words[i / 2]) : __high2float(words[i / 2]);
  }
};

// Two tiles' rows in one group: what a lane has read of them beside the quants.
template <Format kFormat, bool kMin>
struct PairScales {
  RowScales<kFormat> scale[2], minimum[2];

  __device__ void Load(const std::byte* const (&tiles)[2], int lane) {
    if constexpr (kFormat != Format::kBf16) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        scale[n].Load(tiles[n] + QuantBytes(kFormat), lane / 4);
        if constexpr (kMin)
          minimum[n].Load(tiles[n] + QuantBytes(kFormat) + ScaleBytes(kFormat), lane / 4);
      }
    }
  }
};

// Adds the products of slab j of x with a pair of tiles in shared memory. sum: rows lane / 4 of the
// first tile and of the second, tokens 2 quad and 2 quad + 1 of each.
template <Format kFormat, bool kMin, int kOctets>
__device__ inline void MultiplySlab(const SlabOfX<kOctets>& x, const std::byte* const (&tiles)[2],
                                    const PairScales<kFormat, kMin>& scales, int j, int lane,
                                    float zero, float (&sum)[kOctets][4]) {
  constexpr int kParts = kFormat == Format::kQ8Halves ? 2 : 1;
  uint32_t w[2][4];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    if constexpr (kFormat == Format::kBf16) {
      const uint4 words = reinterpret_cast<const uint4*>(tiles[n])[j * kWarp + lane];
      w[n][0] = words.x, w[n][1] = words.y, w[n][2] = words.z, w[n][3] = words.w;
    } else {
      ExpandSlab<kFormat>(reinterpret_cast<const uint4*>(tiles[n])[lane], j, zero, w[n]);
    }
  }
#pragma unroll
  for (int o = 0; o < kOctets; ++o) {
    float part[kParts][4] = {};
    const auto product = [&](const uint4& columns, int half, float(&to)[4]) {
      Mma(to, w[0][half * 2], w[1][half * 2], w[0][half * 2 + 1], w[1][half * 2 + 1],
          half == 0 ? columns.x : columns.z, half == 0 ? columns.y : columns.w);
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      product(x.low[o], half, part[half * (kParts - 1)]);
      product(x.high[o], half, part[half * (kParts - 1)]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kFormat == Format::kBf16) {
        sum[o][i] += part[0][i];
      } else {
#pragma unroll
        for (int p = 0; p < kParts; ++p) sum[o][i] += part[p][i] * scales.scale[i / 2].at(j, p);
        if constexpr (kMin) sum[o][i] += x.sum[o][i % 2] * scales.minimum[i / 2].at(j, 0);
      }
    }
  }
}

// kMin: the type has minima (a branch on this would keep the tiles' products from overlapping).
// kOctets: of tokens; a row's sums do not depend on it. kGlu: tiles alternate between gate and up.
template <Format kFormat, bool kMin, int kTiles, int kOctets, bool kGlu>
__global__ void __launch_bounds__(kFewThreads, kResidentWarps<kOctets> / kFewWarps)
    FewRowsKernel(const __grid_constant__ FewRowsArgs args) {
  constexpr int kRows = kTiles * kTileRows;  // sums per token
  constexpr int kPairs = (kTiles + 1) / 2;   // a single tile is multiplied twice
  constexpr int kTokens = kOctets * 8;
  constexpr int kOutputs = kGlu ? kRows / 2 : kRows;
  constexpr int kSlabs = SlabsOf(kFormat);
  constexpr int kDepth = kStages<kFormat, kTiles>;
  constexpr int kStageBytes = kTiles * kTileBytes<kFormat>;
  extern __shared__ __align__(16) std::byte shared[];  // [warp][stage][tile]
  LetNextBegin();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  // Blocks with the same rows and different tokens are neighbours: they read the weights together.
  const int block = static_cast<int>(blockIdx.x) / args.token_groups;
  const int first_token = static_cast<int>(blockIdx.x) % args.token_groups * kTokens;
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
  int32_t x_row[kOctets], sum_row[kOctets][2];
#pragma unroll
  for (int i = 0; i < kOctets; ++i) {
    const int first = first_token + 8 * i;
    const auto row = [&](int token) {
      return min(first + token, args.tokens - 1) * static_cast<int32_t>(args.x_slabs);
    };
    x_row[i] = row(lane / 4) * 8 + lane % 4 * 2;
#pragma unroll
    for (int t = 0; t < 2; ++t) sum_row[i][t] = row(lane % 4 * 2 + t);
  }
  constexpr int kRun = kAhead<kOctets>;
  static_assert(kSlabs % kRun == 0);
  const int last = static_cast<int>(args.x_slabs) - kRun;
  const auto load = [&](int slab) {
    RunOfX<kOctets> p;
#pragma unroll
    for (int i = 0; i < kOctets; ++i) {
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        p.slab[j].high[i] = args.x[x_row[i] + (slab + j) * 8];
        p.slab[j].low[i] = args.x[x_row[i] + (slab + j) * 8 + 1];
        if constexpr (kMin) {
          p.slab[j].sum[i][0] = args.x_sums[sum_row[i][0] + slab + j];
          p.slab[j].sum[i][1] = args.x_sums[sum_row[i][1] + slab + j];
        }
      }
    }
    return p;
  };
  float sum[kPairs][kOctets][4] = {};
  RunOfX<kOctets> next = load(min(warp * kSlabs, last));
  int stage = 0;
  for (int group = warp; group < args.groups; group += kFewWarps) {
    const std::byte* tile = mine + stage * kStageBytes;
    AwaitCopies<kDepth - 1>();
    __syncwarp();
    const std::byte* pairs[kPairs][2];
    PairScales<kFormat, kMin> scales[kPairs];
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      pairs[n][0] = tile + 2 * n * kTileBytes<kFormat>;
      pairs[n][1] = tile + min(2 * n + 1, kTiles - 1) * kTileBytes<kFormat>;
      scales[n].Load(pairs[n], lane);
    }
#pragma unroll
    for (int slab = 0; slab < kSlabs; slab += kRun) {
      const RunOfX<kOctets> now = next;
      next = load(
          min(slab + kRun < kSlabs ? group * kSlabs + slab + kRun : (group + kFewWarps) * kSlabs,
              last));
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
#pragma unroll
        for (int n = 0; n < kPairs; ++n)
          MultiplySlab<kFormat, kMin>(now.slab[j], pairs[n], scales[n], slab + j, lane, args.zero,
                                      sum[n]);
      }
    }
    __syncwarp();
    fetch(group + kDepth * kFewWarps, stage);
    stage = stage + 1 == kDepth ? 0 : stage + 1;
  }

  // [warp][token][row]; reuses the shared memory of the weights.
  __syncthreads();
  auto* partial = reinterpret_cast<float(*)[kTokens][kRows]>(shared);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < kTokens / 4; ++i) {  // two of an octet
      partial[warp][i / 2 * 8 + lane % 4 * 2 + i % 2][n * kTileRows + lane / 4] =
          sum[n / 2][i / 2][n % 2 * 2 + i % 2];
    }
  }
  __syncthreads();
  const auto total = [&](int token, int row) {
    float all = 0;
#pragma unroll
    for (int w = 0; w < kFewWarps; ++w) all += partial[w][token][row];
    return all;
  };
  for (int i = threadIdx.x; i < kTokens * kOutputs; i += kFewThreads) {
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

template <Format kFormat, bool kMin, int kTiles, int kOctets, bool kGlu>
void StartTiles(Recorder& recorder, FewRowsArgs args) {
  constexpr int kRows = kTiles * kTileRows, kOutputs = kRows / (kGlu ? 2 : 1);
  constexpr int kTokens = kOctets * 8;
  constexpr size_t kStageBytes =
      size_t{kFewWarps} * kStages<kFormat, kTiles> * kTiles * kTileBytes<kFormat>;
  int blocks = 0;
  for (int o = 0; o < args.count; ++o) {
    args.outs[o].first_block = blocks;
    blocks += (args.outs[o].rows + kOutputs - 1) / kOutputs;
  }
  args.token_groups = (args.tokens + kTokens - 1) / kTokens;
  recorder.Launch(FewRowsKernel<kFormat, kMin, kTiles, kOctets, kGlu>,
                  {.grid = static_cast<unsigned>(blocks * args.token_groups),
                   .block = kFewThreads,
                   .shared_bytes = std::max(kStageBytes, size_t{kFewWarps} * kTokens * kRows * 4),
                   .overlapped = true},
                  args);
}

// Blocks with more rows and tokens read x and W less often; smaller ones give every multiprocessor
// some. The sums are the same.
template <Format kFormat, bool kMin, bool kGlu>
void StartOuts(Recorder& recorder, const FewRowsArgs& args) {
  constexpr int64_t kMultiprocessors = 128;  // about those of an H200, which has 132
  int64_t tiles = 0;
  for (int o = 0; o < args.count; ++o) tiles += args.outs[o].rows * (kGlu ? 2 : 1) / kTileRows;
  const int64_t token_groups = (args.tokens + 31) / 32;
  if (args.tokens > 16 && tiles / 4 * token_groups >= kMultiprocessors)
    return StartTiles<kFormat, kMin, 4, 4, kGlu>(recorder, args);
  if (args.tokens > 8 && tiles / 4 >= 2 * kMultiprocessors)
    return StartTiles<kFormat, kMin, 4, 2, kGlu>(recorder, args);
  if constexpr (!kGlu) {
    if (tiles < 2 * kMultiprocessors)
      return args.tokens <= 8 ? StartTiles<kFormat, kMin, 1, 1, false>(recorder, args)
                              : StartTiles<kFormat, kMin, 1, 2, false>(recorder, args);
  }
  args.tokens <= 8 ? StartTiles<kFormat, kMin, 2, 1, kGlu>(recorder, args)
                   : StartTiles<kFormat, kMin, 2, 2, kGlu>(recorder, args);
}

template <Format kFormat, bool kMin>
void StartFormat(Recorder& recorder, const FewRowsArgs& args) {
  args.outs[0].up ? StartOuts<kFormat, kMin, true>(recorder, args)
                  : StartOuts<kFormat, kMin, false>(recorder, args);
}

}  // namespace baton::cuda
