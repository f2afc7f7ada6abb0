// Mass of prompts: sets of many rows that share a list. A block scores kKeys keys for the rows of a
// set, 64 at a time, head by head, pools probabilities in registers and sums them over the rows, so
// nothing but the mass is written. q is rounded to bf16, and so are the values of the 4-bit copy;
// its denominators come from a run of the same kernel that outputs maxima and sums instead.
#include <cuda_fp16.h>

#include "kernels/cuda/mass.cuh"

namespace baton::cuda {
namespace {

enum class Source { kBf16, kInt8, kLowBit };

template <int kHeadDim, Source kFrom>
struct MassShape {
  static constexpr int kDim = kHeadDim;
  static constexpr Source kSource = kFrom;
  static constexpr int kWarps = 4, kThreads = kWarps * 32, kRows = kWarps * 16;
  static constexpr int kKeys = kDim > 128 ? 64 : 128;
  static constexpr int kStride = kDim * 2 + 16;
  static constexpr int kKeyBytes = kKeys * kStride, kQueryBytes = kRows * kStride;
  // Two buffers each of keys, their scales and queries; slots of the keys.
  static constexpr int kSharedBytes = 2 * (kKeyBytes + kKeys * 4 + kQueryBytes) + kKeys * 4;
};

struct Stat {
  float max, sum;  // in powers of two
};

struct TileCall {
  const __nv_bfloat16* q = nullptr;     // [T, Hq, D]
  const int32_t* first_rows = nullptr;  // [units]: a unit's first row in lse and stats, below
  const float* lse = nullptr;           // natural log: [T, Hq], or of the 4-bit copy [rows, Hq]
  Stat* stats = nullptr;                // [rows, Hq, chunks of kKeys keys]
  int64_t chunks = 0;
};

__global__ void RoundQueriesKernel(const float4* q, uint2* to, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float4 x = q[i];
  to[i] = {PackBf16(x.x, x.y), PackBf16(x.z, x.w)};
}

// Keys [begin, begin + kKeys) of a KV head, as operands.
template <typename Shape>
struct KeyTile {
  std::byte* rows;  // [kKeys][kStride]
  float* scales;    // [kKeys]; int8

  __device__ void Load(const MassSegment& s, int64_t begin, int head, const int32_t* slots) const {
    if constexpr (Shape::kSource == Source::kBf16) {
      constexpr int kChunks = Shape::kDim / 8;
#pragma unroll 4
      for (int i = threadIdx.x; i < Shape::kKeys * kChunks; i += Shape::kThreads) {
        const int key = i / kChunks, chunk = i % kChunks;
        const std::byte* from =
            RowOf(s.kv, max(slots[key], 0)) + head * s.kv.head_bytes + chunk * 16;
        CopyAsync16(SharedAddress(rows) + key * Shape::kStride + chunk * 16, from, slots[key] >= 0);
      }
    } else if constexpr (Shape::kSource == Source::kInt8) {
      LoadInt8(s, head, slots);
    } else {
      LoadLowBit(s, begin, head, slots);
    }
  }
  __device__ void LoadInt8(const MassSegment& s, int head, const int32_t* slots) const {
    constexpr int kChunks = Shape::kDim / 16;
    for (int i = threadIdx.x; i < Shape::kKeys * kChunks; i += Shape::kThreads) {
      const int key = i / kChunks, chunk = i % kChunks;
      uint4 x = {};
      if (slots[key] >= 0) {
        x = *reinterpret_cast<const uint4*>(RowOf(s.kv, slots[key]) + head * s.kv.head_bytes +
                                            chunk * 16);
      }
      const uint32_t in[4] = {x.x ^ 0x80808080u, x.y ^ 0x80808080u, x.z ^ 0x80808080u,
                              x.w ^ 0x80808080u};
      uint32_t out[8];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        out[2 * j] = PackExact(FlippedByte<0>(in[j]), FlippedByte<1>(in[j]));
        out[2 * j + 1] = PackExact(FlippedByte<2>(in[j]), FlippedByte<3>(in[j]));
      }
      auto* to = reinterpret_cast<uint4*>(rows + key * Shape::kStride + chunk * 32);
      to[0] = {out[0], out[1], out[2], out[3]};
      to[1] = {out[4], out[5], out[6], out[7]};
    }
    for (int key = threadIdx.x; key < Shape::kKeys; key += Shape::kThreads)
      scales[key] = slots[key] >= 0 ? *ScaleOf(s.kv, slots[key], head) : 0;
  }
  // A word holds four channels in its low nibbles and those 16 channels further in the high ones.
  __device__ void LoadLowBit(const MassSegment& s, int64_t begin, int head,
                             const int32_t* slots) const {
    constexpr int kWords = Shape::kDim / 8;  // of a key
    for (int i = threadIdx.x; i < Shape::kKeys * kWords; i += Shape::kThreads) {
      // Consecutive threads take consecutive slots of a block, so that reads are contiguous.
      const int slot = i % 16, word = i / 16 % kWords, key = i / 16 / kWords * 16 + slot;
      uint32_t nibbles = 0x88888888u;
      float scale = 0;
      if (slots[key] >= 0) {
        const LowBitBlock& block = *s.kv.low_bit_block(begin + key, head, word / 4);
        nibbles = reinterpret_cast<const uint32_t*>(block.nibbles)[word % 4 * 16 + slot];
        scale = __half2float(*reinterpret_cast<const __half*>(&block.scale[slot]));
      }
      float x[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const uint32_t nibble = nibbles >> (j % 4 * 8 + j / 4 * 4) & 15;
        x[j] = static_cast<float>(static_cast<int>(nibble) - 8) * scale;
      }
      std::byte* to = rows + key * Shape::kStride + (word / 4 * 32 + word % 4 * 4) * 2;
      *reinterpret_cast<uint2*>(to) = {PackBf16(x[0], x[1]), PackBf16(x[2], x[3])};
      *reinterpret_cast<uint2*>(to + 32) = {PackBf16(x[4], x[5]), PackBf16(x[6], x[7])};
    }
  }
};

// 64 rows of one head of the rounded queries; rows from `rows` on are zero.
template <typename Shape>
__device__ __forceinline__ void LoadQueries(const __nv_bfloat16* q, int64_t stride, int rows,
                                            std::byte* to) {
  constexpr int kChunks = Shape::kDim / 8;
#pragma unroll 4
  for (int i = threadIdx.x; i < Shape::kRows * kChunks; i += Shape::kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    CopyAsync16(SharedAddress(to) + row * Shape::kStride + chunk * 16,
                q + (row < rows ? row : 0) * stride + chunk * 8, row < rows);
  }
}

// Scores and sums of a warp's 16 rows and all keys of a block.
template <typename Shape>
struct MassTile {
  static constexpr int kTiles = Shape::kKeys / 8;
  float x[kTiles][4];       // scores, then probabilities
  float pooled[kTiles][4];  // over the heads of the scope
  float sums[kTiles][2];    // over rows

  __device__ __forceinline__ void ClearPooled() {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      pooled[n][0] = pooled[n][1] = pooled[n][2] = pooled[n][3] = 0;
    }
  }
  __device__ __forceinline__ void Score(uint32_t queries, const KeyTile<Shape>& keys, int lane) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) x[n][0] = x[n][1] = x[n][2] = x[n][3] = 0;
    const uint32_t q = queries + (lane & 15) * Shape::kStride + (lane >> 4) * 16;
    const uint32_t k = SharedAddress(keys.rows) + ((lane >> 4) * 8 + (lane & 7)) * Shape::kStride +
                       (lane >> 3 & 1) * 16;
#pragma unroll
    for (int step = 0; step < Shape::kDim / 16; ++step) {
      uint32_t a[4];
      LoadMatrices(a, q + step * 32);
#pragma unroll
      for (int n = 0; n < kTiles / 2; ++n) {
        uint32_t b[4];
        LoadMatrices(b, k + n * 16 * Shape::kStride + step * 32);
        Mma(x[2 * n], a, b[0], b[1]);
        Mma(x[2 * n + 1], a, b[2], b[3]);
      }
    }
    if constexpr (Shape::kSource == Source::kInt8) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const float2 s = *reinterpret_cast<const float2*>(keys.scales + n * 8 + 2 * (lane & 3));
        x[n][0] *= s.x, x[n][1] *= s.y, x[n][2] *= s.x, x[n][3] *= s.y;
      }
    }
  }
};

// One block per unit (a whole set), group of heads and kKeys keys. With kStats the block writes the
// maximum and sum of every row and head instead of pooling.
template <typename Shape, bool kStats>
__global__ void __launch_bounds__(Shape::kThreads) MassTilesKernel(MassCall call, TileCall tile) {
  extern __shared__ __align__(16) std::byte shared[];
  const MassUnit unit = call.units[blockIdx.z];
  if (unit.segment < 0) return;
  const MassSegment& segment = call.segments[unit.segment];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * Shape::kKeys;
  if (begin >= segment.keys) return;
  const int heads = call.heads / call.groups, first_head = blockIdx.y * heads;
  const int per_kv = call.heads / call.kv_heads;
  const int64_t first = segment.position + unit.row;  // position of row 0
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  float* mass = segment.mass +
                (unit.row / segment.rows_per_set * call.groups + blockIdx.y) * segment.mass_stride;

  // No row sees keys past the last row's position; for the 4-bit copy, their stats are not read.
  if (begin >= first + unit.rows) {
    if constexpr (!kStats) {
      for (int i = threadIdx.x; i < Shape::kKeys && begin + i < segment.keys; i += Shape::kThreads)
        mass[begin + i] = 0;
    }
    return;
  }
  const int queries_at = 2 * (Shape::kKeyBytes + Shape::kKeys * 4);
  auto* slots = reinterpret_cast<int32_t*>(shared + queries_at + 2 * Shape::kQueryBytes);
  const auto key_tile = [&](int i) {
    return KeyTile<Shape>{
        shared + (i & 1) * Shape::kKeyBytes,
        reinterpret_cast<float*>(shared + 2 * Shape::kKeyBytes) + (i & 1) * Shape::kKeys};
  };
  const auto query_tile = [&](int i) { return shared + queries_at + (i & 1) * Shape::kQueryBytes; };
  for (int i = threadIdx.x; i < Shape::kKeys; i += Shape::kThreads) {
    const int64_t position = begin + i;
    slots[i] =
        position < first + unit.rows ? SlotOf(segment.kv, static_cast<int32_t>(position)) : -1;
  }
  __syncthreads();

  // The loop goes over 64 rows at a time, and within these over the heads.
  const int row_tiles = (unit.rows + Shape::kRows - 1) / Shape::kRows, steps = row_tiles * heads;
  const int64_t q_row = static_cast<int64_t>(call.heads) * Shape::kDim;
  int key_buffer = 0, kv_head = -1;
  const auto load = [&](int step) {
    if (step < steps) {
      const int head = first_head + step % heads, row = step / heads * Shape::kRows;
      if (head / per_kv != kv_head) {
        kv_head = head / per_kv, ++key_buffer;
        key_tile(key_buffer).Load(segment, begin, kv_head, slots);
      }
      LoadQueries<Shape>(tile.q + (segment.first + unit.row + row) * q_row + head * Shape::kDim,
                         q_row, unit.rows - row, query_tile(step));
    }
    CommitCopies();
  };

  MassTile<Shape> m;
#pragma unroll
  for (int n = 0; n < m.kTiles; ++n) m.sums[n][0] = m.sums[n][1] = 0;
  m.ClearPooled();
  const float scale = call.scale * kLog2E;
  load(0);
  for (int step = 0; step < steps; ++step) {
    AwaitCopies<0>();
    __syncthreads();
    const KeyTile<Shape> keys = key_tile(key_buffer);
    load(step + 1);
    m.Score(SharedAddress(query_tile(step)) + warp * 16 * Shape::kStride, keys, lane);
    const int head = first_head + step % heads;
    const int row = step / heads * Shape::kRows + warp * 16 + g;  // and row + 8
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool there = row + r * 8 < unit.rows;
      const int64_t last = there ? first + row + r * 8 - begin : -1;  // key seen, of the block
      if constexpr (kStats) {
        float most = -INFINITY, sum = 0;
#pragma unroll
        for (int n = 0; n < m.kTiles; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& x = m.x[n][2 * r + c];
            x = n * 8 + 2 * t + c <= last ? x * scale : -INFINITY;
            most = fmaxf(most, x);
          }
        }
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        const float reference = most == -INFINITY ? 0 : most;
#pragma unroll
        for (int n = 0; n < m.kTiles; ++n)
          sum += Exp2(m.x[n][2 * r] - reference) + Exp2(m.x[n][2 * r + 1] - reference);
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (t == 0 && there) {
          const int64_t at =
              (static_cast<int64_t>(tile.first_rows[blockIdx.z]) + row + r * 8) * call.heads + head;
          tile.stats[at * tile.chunks + blockIdx.x] = {most, sum};
        }
      } else {
        const int64_t of_unit = Shape::kSource == Source::kLowBit ? tile.first_rows[blockIdx.z]
                                                                  : segment.first + unit.row;
        const float lse =
            there ? tile.lse[(of_unit + row + r * 8) * call.heads + head] * kLog2E : 0;
#pragma unroll
        for (int n = 0; n < m.kTiles; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const float x = Exp2(m.x[n][2 * r + c] * scale - lse);
            const float p = n * 8 + 2 * t + c <= last ? x : 0;
            float& pooled = m.pooled[n][2 * r + c];
            pooled = call.max ? LargerOrNan(pooled, p) : pooled + p;
          }
        }
      }
    }
    if (!kStats && step % heads == heads - 1) {
#pragma unroll
      for (int n = 0; n < m.kTiles; ++n) {
        m.sums[n][0] += m.pooled[n][0] + m.pooled[n][2];
        m.sums[n][1] += m.pooled[n][1] + m.pooled[n][3];
      }
      m.ClearPooled();
    }
  }
  if constexpr (!kStats) {
    AwaitCopies<0>();
    __syncthreads();
    auto* of_warps = reinterpret_cast<float*>(shared);  // [warps, keys]
#pragma unroll
    for (int n = 0; n < m.kTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float sum = m.sums[n][c];
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) sum += __shfl_xor_sync(~0u, sum, mask);
        if (g == 0) of_warps[warp * Shape::kKeys + n * 8 + 2 * t + c] = sum;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < Shape::kKeys && begin + i < segment.keys; i += Shape::kThreads) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < Shape::kWarps; ++w) sum += of_warps[w * Shape::kKeys + i];
      mass[begin + i] = sum;
    }
  }
}

// The natural log-sum-exp of a row and head over its chunks of keys; one warp each.
template <int kKeys>
__global__ void JoinStatsKernel(MassCall call, TileCall tile, float* lse) {
  const MassUnit unit = call.units[blockIdx.y];
  if (unit.segment < 0) return;
  const int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (warp >= unit.rows * call.heads) return;
  const int row = warp / call.heads;
  const int64_t visible = call.segments[unit.segment].position + unit.row + row + 1;
  const int64_t chunks = (visible + kKeys - 1) / kKeys;
  const int64_t at = static_cast<int64_t>(tile.first_rows[blockIdx.y]) * call.heads + warp;
  const Stat* stats = tile.stats + at * tile.chunks;
  float most = -INFINITY, sum = 0;
  for (int64_t i = lane; i < chunks; i += 32) most = fmaxf(most, stats[i].max);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
  const float reference = most == -INFINITY ? 0 : most;
  for (int64_t i = lane; i < chunks; i += 32) sum += stats[i].sum * Exp2(stats[i].max - reference);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
  if (lane == 0) lse[at] = (reference + log2f(sum)) * kLn2;
}

template <typename Shape, bool kStats>
void LaunchShape(Recorder& recorder, const MassCall& call, const TileCall& tile, int64_t units,
                 int64_t keys, int groups) {
  const auto kernel = MassTilesKernel<Shape, kStats>;
  static const bool kAllowed =
      AllowShared(reinterpret_cast<const void*>(kernel), Shape::kSharedBytes);
  BATON_CHECK(kAllowed);
  MassCall grouped = call;
  grouped.groups = groups;
  recorder.Launch(kernel,
                  dim3(static_cast<unsigned>((keys + Shape::kKeys - 1) / Shape::kKeys),
                       static_cast<unsigned>(groups), static_cast<unsigned>(units)),
                  dim3(Shape::kThreads), Shape::kSharedBytes, grouped, tile);
}

template <typename Shape>
void LaunchAll(Recorder& recorder, MassTileMemory memory, const MassCall& call,
               std::span<const MassUnit> units, int64_t keys) {
  TileCall tile{.q = memory.q, .lse = call.lse};
  const int64_t count = std::ssize(units);
  if constexpr (Shape::kSource == Source::kLowBit) {
    std::vector<int32_t> first_rows;
    int32_t rows = 0, most = 0;
    for (const MassUnit& unit : units) {
      first_rows.push_back(rows);
      rows += unit.rows, most = std::max(most, unit.rows);
    }
    tile.first_rows = TableOf(recorder, first_rows);
    tile.chunks = (keys + Shape::kKeys - 1) / Shape::kKeys;
    tile.stats = reinterpret_cast<Stat*>(memory.low_bit);
    float* lse = reinterpret_cast<float*>(tile.stats + rows * call.heads * tile.chunks);
    tile.lse = lse;
    LaunchShape<Shape, true>(recorder, call, tile, count, keys, call.kv_heads);
    constexpr int kThreads = 256;
    recorder.Launch(JoinStatsKernel<Shape::kKeys>,
                    dim3(static_cast<unsigned>((most * call.heads * 32 + kThreads - 1) / kThreads),
                         static_cast<unsigned>(count)),
                    dim3(kThreads), 0, call, tile, lse);
  }
  LaunchShape<Shape, false>(recorder, call, tile, count, keys, call.groups);
}

template <Source kSource>
bool LaunchSource(Recorder& recorder, MassTileMemory memory, const MassCall& call,
                  std::span<const MassUnit> units, int64_t keys) {
  const auto launch = [&](auto shape) {
    LaunchAll<decltype(shape)>(recorder, memory, call, units, keys);
    return true;
  };
  switch (call.dim) {
    case 64:
      return launch(MassShape<64, kSource>());
    case 128:
      return launch(MassShape<128, kSource>());
    case 256:
      return launch(MassShape<256, kSource>());
    case 96:
      if constexpr (kSource != Source::kInt8) return launch(MassShape<96, kSource>());
      return false;
    default:
      return false;
  }
}

}  // namespace

bool HasMassTiles(DType cache, bool low_bit, int64_t head_dim) {
  int device = 0, most = 0;
  BATON_CUDA(cudaGetDevice(&device));
  BATON_CUDA(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (most < MassShape<256, Source::kBf16>::kSharedBytes) return false;
  if (head_dim == 96) return low_bit || cache == DType::kBF16;
  return (head_dim == 64 || head_dim == 128 || head_dim == 256) &&
         (low_bit || cache == DType::kBF16 || cache == DType::kI8);
}

int64_t MassTileBytes(int64_t heads, int64_t keys) {
  // Stats per 64 keys at least, and an lse.
  return heads * ((keys + 63) / 64 * static_cast<int64_t>(sizeof(Stat)) + 4);
}

void RoundQueries(Recorder& recorder, const float* q, __nv_bfloat16* to, int64_t count) {
  constexpr int64_t kThreads = 256;
  recorder.Launch(RoundQueriesKernel,
                  dim3(static_cast<unsigned>((count / 4 + kThreads - 1) / kThreads)),
                  dim3(kThreads), 0, reinterpret_cast<const float4*>(q),
                  reinterpret_cast<uint2*>(to), count / 4);
}

void LaunchMassTiles(Recorder& recorder, MassTileMemory memory, const MassCall& call, DType cache,
                     bool low_bit, std::span<const MassUnit> units, int64_t keys) {
  const bool launched = low_bit ? LaunchSource<Source::kLowBit>(recorder, memory, call, units, keys)
                        : cache == DType::kI8
                            ? LaunchSource<Source::kInt8>(recorder, memory, call, units, keys)
                            : LaunchSource<Source::kBf16>(recorder, memory, call, units, keys);
  BATON_CHECK(launched);
}

}  // namespace baton::cuda
