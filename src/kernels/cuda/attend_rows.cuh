// Decode rows on tensor cores: flash decoding over the splits of a row's keys.
//
// A warp is a unit: one split of one row and one KV head. It streams tiles of 16 keys through its
// own ring in shared memory and waits for no other warp. Neighbouring warps have neighbouring
// heads, so that the cache rows that they read are adjacent. The products are transposed, S^T = K
// Q^T and O^T = V^T P^T: keys and channels fill the 16 rows of the instruction and 8 query heads
// its 8 columns, so one load of K and V serves all heads of a group. q and the weights are split
// into two bf16 values each (16 bits of mantissa): the loop is bound by memory, so the second
// product is free.
#pragma once

#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/reduce.cuh"

namespace baton::cuda {

constexpr int kRowWarps = 4, kTileKeys = 16, kGroupHeads = 8;

// The layout of a bf16 cache in shared memory, and its conversion to operands.
template <int kHeadDim>
struct Bf16Tile {
  static constexpr int kDim = kHeadDim, kStride = kDim * 2 + 16;
  static constexpr int kStages = 3;
  static constexpr int kKeyBytes = kTileKeys * kStride;
  static constexpr int kBytes = 2 * kKeyBytes;

  // Starts copies of the rows of 16 tokens, K and with kValues V; lanes i and i + 16 hold the slot
  // of token i, -1 for none. `head` is the KV head.
  template <bool kValues>
  static __device__ __forceinline__ void Copy(const KvAccess& kv, int head, int32_t slot, int lane,
                                              uint32_t to) {
    constexpr int kChunks = kDim * 2 / 16;
#pragma unroll
    for (int i = 0; i < kTileKeys * kChunks / 32; ++i) {
      const int token = (i * 32 + lane) / kChunks, chunk = (i * 32 + lane) % kChunks;
      const int32_t of_token = __shfl_sync(~0u, slot, token);
      const std::byte* from = RowOf(kv, max(of_token, 0)) + head * kv.head_bytes + chunk * 16;
      const uint32_t at = to + token * kStride + chunk * 16;
      CopyAsync16(at, from, of_token >= 0);
      if (kValues) CopyAsync16(at + kKeyBytes, from + kv.value_offset, of_token >= 0);
    }
  }
  // Channels of the pairs b0 and b1 of k-step `step` in lane (g, t).
  static __device__ __forceinline__ int QueryChannel(int step, int half, int t) {
    return step * 16 + half * 8 + 2 * t;
  }
  // The operand of 16 keys and the 16 channels of each step, in order; calls f(step, a).
  template <typename F>
  static __device__ __forceinline__ void ForKeys(uint32_t tile, const std::byte*, int lane, F&& f) {
    const uint32_t from = tile + (lane & 15) * kStride + (lane >> 4) * 16;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t a[4];
      LoadMatrices(a, from + step * 32);
      f(step, a);
    }
  }
  // The operand of 16 channels of V, transposed, and the 16 keys; calls f(step, a). The first eight
  // rows are channels ValueChannel(step, 0, g), the others ValueChannel(step, 1, g).
  template <typename F>
  static __device__ __forceinline__ void ForValues(uint32_t tile, const std::byte*, int lane,
                                                   F&& f) {
    const int token = (lane >> 4) * 8 + (lane & 7), half = lane >> 3 & 1;
    const uint32_t from = tile + kKeyBytes + token * kStride + half * 16;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t a[4];
      LoadMatricesTransposed(a, from + step * 32);
      f(step, a);
    }
  }
  static __device__ __forceinline__ int ValueChannel(int step, int half, int g) {
    return step * 16 + half * 8 + g;
  }
  static __device__ __forceinline__ float KeyScale(const std::byte*, int) { return 1; }
  static __device__ __forceinline__ float ValueScale(const std::byte*, int) { return 1; }
};

// An int8 cache: integers are exact in bf16; the scale of K goes on the score, that of V on the
// weight.
template <int kHeadDim>
struct Int8Tile {
  static constexpr int kDim = kHeadDim;
  // Strides that avoid bank conflicts in the loads of a warp.
  static constexpr int kKeyStride = kDim % 128 == 0 ? kDim + 64 : kDim, kValueStride = kDim + 16;
  static constexpr int kStages = kDim <= 64 ? 4 : 3;
  static constexpr int kKeyBytes = kTileKeys * kKeyStride;
  static constexpr int kScales = kKeyBytes + kTileKeys * kValueStride;  // K's, then V's
  static constexpr int kBytes = kScales + 2 * kTileKeys * 4;
  static constexpr int kPerLane = kDim >= 128 ? 16 : 8;  // consecutive channels of V in a lane
  static_assert(kDim % 64 == 0);

  template <bool kValues>
  static __device__ __forceinline__ void Copy(const KvAccess& kv, int head, int32_t slot, int lane,
                                              uint32_t to) {
    constexpr int kChunks = kDim / 16;
#pragma unroll
    for (int i = 0; i < kTileKeys * kChunks / 32; ++i) {
      const int token = (i * 32 + lane) / kChunks, chunk = (i * 32 + lane) % kChunks;
      const int32_t of_token = __shfl_sync(~0u, slot, token);
      const std::byte* from = RowOf(kv, max(of_token, 0)) + head * kv.head_bytes + chunk * 16;
      CopyAsync16(to + token * kKeyStride + chunk * 16, from, of_token >= 0);
      if (kValues) {
        CopyAsync16(to + kKeyBytes + token * kValueStride + chunk * 16, from + kv.value_offset,
                    of_token >= 0);
      }
    }
    const int value = lane >> 4;
    if (kValues || value == 0) {
      const float* from = ScaleOf(kv, max(slot, 0), head) + value * kv.kv_heads;
      CopyAsync4(to + kScales + lane * 4, from, slot >= 0);
    }
  }
  static __device__ __forceinline__ int QueryChannel(int step, int half, int t) {
    return step / 4 * 64 + t * 16 + step % 4 * 4 + half * 2;
  }
  template <typename F>
  static __device__ __forceinline__ void ForKeys(uint32_t, const std::byte* tile, int lane, F&& f) {
    const std::byte* from = tile + (lane >> 2) * kKeyStride + (lane & 3) * 16;
#pragma unroll
    for (int block = 0; block < kDim / 64; ++block) {
      uint32_t w[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint4 x = *reinterpret_cast<const uint4*>(from + i * 8 * kKeyStride + block * 64);
        w[i][0] = x.x ^ 0x80808080u, w[i][1] = x.y ^ 0x80808080u;
        w[i][2] = x.z ^ 0x80808080u, w[i][3] = x.w ^ 0x80808080u;
      }
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          a[i] = PackExact(FlippedByte<0>(w[i][step]), FlippedByte<1>(w[i][step]));
          a[i + 2] = PackExact(FlippedByte<2>(w[i][step]), FlippedByte<3>(w[i][step]));
        }
        f(block * 4 + step, a);
      }
    }
  }
  template <typename F>
  static __device__ __forceinline__ void ForValues(uint32_t, const std::byte* tile, int lane,
                                                   F&& f) {
    constexpr int kWords = kPerLane / 4;
    const std::byte* from =
        tile + kKeyBytes + 2 * (lane & 3) * kValueStride + (lane >> 2) * kPerLane;
#pragma unroll
    for (int block = 0; block < kDim / (8 * kPerLane); ++block) {
      uint32_t w[4][kWords];  // of tokens 2t, 2t + 1, 2t + 8, 2t + 9
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::byte* at = from + ((i & 1) + (i >> 1) * 8) * kValueStride + block * 128;
#pragma unroll
        for (int j = 0; j < kWords; j += 2) {
          const uint2 x = *reinterpret_cast<const uint2*>(at + j * 4);
          w[i][j] = x.x ^ 0x80808080u, w[i][j + 1] = x.y ^ 0x80808080u;
        }
      }
#pragma unroll
      for (int step = 0; step < kPerLane / 2; ++step) {
        uint32_t a[4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t x0 = w[half * 2][step / 2], x1 = w[half * 2 + 1][step / 2];
          if (step % 2 == 0) {
            a[half * 2] = PackExact(FlippedByte<0>(x0), FlippedByte<0>(x1));
            a[half * 2 + 1] = PackExact(FlippedByte<1>(x0), FlippedByte<1>(x1));
          } else {
            a[half * 2] = PackExact(FlippedByte<2>(x0), FlippedByte<2>(x1));
            a[half * 2 + 1] = PackExact(FlippedByte<3>(x0), FlippedByte<3>(x1));
          }
        }
        f(block * (kPerLane / 2) + step, a);
      }
    }
  }
  static __device__ __forceinline__ int ValueChannel(int step, int half, int g) {
    constexpr int kSteps = kPerLane / 2;
    return step / kSteps * 128 + g * kPerLane + step % kSteps * 2 + half;
  }
  static __device__ __forceinline__ float KeyScale(const std::byte* tile, int token) {
    return reinterpret_cast<const float*>(tile + kScales)[token];
  }
  static __device__ __forceinline__ float ValueScale(const std::byte* tile, int token) {
    return reinterpret_cast<const float*>(tile + kScales)[kTileKeys + token];
  }
};

template <typename Tile>
constexpr int kRowTileBytes = kRowWarps* Tile::kStages* Tile::kBytes;
template <typename Tile>
constexpr int kRowSharedBytes = kRowTileBytes<Tile> + kRowWarps* Tile::kStages * 4;

// The tiles of keys in a split.
struct WarpTiles {
  Keys keys;
  int32_t begin, end, last;  // of the split; the row's position
  int lane;

  __device__ int count() const { return (end - begin + kTileKeys - 1) / kTileKeys; }
  __device__ int32_t first(int tile) const { return begin + tile * kTileKeys; }
  // The position of token lane % 16 of the tile; -1 for none.
  __device__ int32_t Position(int tile) const {
    const int32_t i = first(tile) + (lane & 15);
    if (i >= end) return -1;
    const int32_t position = keys.position(i);
    return position <= last ? position : -1;
  }
};

// A warp's sums for 8 query heads per group. Lane (g, t) holds heads 2t and 2t + 1.
template <typename Tile, int kGroups>
struct RowState {
  float max[kGroups][2], sum[kGroups][2];
  float o[kGroups][Tile::kDim / 16][4];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      max[i][0] = max[i][1] = kNoKeys;
      sum[i][0] = sum[i][1] = 0;
#pragma unroll
      for (int d = 0; d < Tile::kDim / 16; ++d)
        o[i][d][0] = o[i][d][1] = o[i][d][2] = o[i][d][3] = 0;
    }
  }

  // The weights of one group's scores x, as powers of two, of keys g (x0, x1) and g + 8 (x2, x3).
  // Rescales the sums where a maximum grew.
  __device__ __forceinline__ void Weigh(int group, float (&x)[4]) {
    float high[2] = {fmaxf(x[0], x[2]), fmaxf(x[1], x[3])};
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) {
      high[0] = fmaxf(high[0], __shfl_xor_sync(~0u, high[0], mask));
      high[1] = fmaxf(high[1], __shfl_xor_sync(~0u, high[1], mask));
    }
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float before = max[group][i];
      max[group][i] = fmaxf(before, high[i]);
      const float reference = max[group][i] == kNoKeys ? 0 : max[group][i];
      factor[i] = Exp2(before - reference);
      x[i] = Exp2(x[i] - reference);
      x[i + 2] = Exp2(x[i + 2] - reference);
      sum[group][i] = sum[group][i] * factor[i] + (x[i] + x[i + 2]);
    }
    if (__any_sync(~0u, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
      for (int d = 0; d < Tile::kDim / 16; ++d) {
        o[group][d][0] *= factor[0], o[group][d][1] *= factor[1];
        o[group][d][2] *= factor[0], o[group][d][3] *= factor[1];
      }
    }
  }
};

// Query heads of a block as operands.
template <typename Tile, int kGroups>
struct RowQueries {
  uint32_t high[kGroups][Tile::kDim / 16][2], low[kGroups][Tile::kDim / 16][2];

  // q: [heads, D] of the block, heads 1 to 8 kGroups.
  __device__ __forceinline__ void Load(const float* q, int heads, int lane) {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int head = i * kGroupHeads + (lane >> 2);
#pragma unroll
      for (int step = 0; step < Tile::kDim / 16; ++step) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float2 x = {0, 0};
          if (head < heads) {
            const int channel = Tile::QueryChannel(step, half, lane & 3);
            x = *reinterpret_cast<const float2*>(q + head * Tile::kDim + channel);
          }
          const SplitBf16 s = Split(x.x, x.y);
          high[i][step][half] = s.high, low[i][step][half] = s.low;
        }
      }
    }
  }
};

// Scores of a tile of keys, q . k without any scale except that of the cache.
template <typename Tile, int kGroups>
__device__ __forceinline__ void TileScores(const RowQueries<Tile, kGroups>& q, uint32_t tile,
                                           const std::byte* tile_data, int lane,
                                           float (&x)[kGroups][4]) {
  float low[kGroups][4];
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
#pragma unroll
    for (int c = 0; c < 4; ++c) x[i][c] = low[i][c] = 0;
  }
  Tile::ForKeys(tile, tile_data, lane, [&](int step, const uint32_t(&a)[4]) {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      Mma(x[i], a, q.high[i][step][0], q.high[i][step][1]);
      Mma(low[i], a, q.low[i][step][0], q.low[i][step][1]);
    }
  });
  const int g = lane >> 2;
  const float scale[2] = {Tile::KeyScale(tile_data, g), Tile::KeyScale(tile_data, g + 8)};
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
#pragma unroll
    for (int c = 0; c < 4; ++c) x[i][c] = (x[i][c] + low[i][c]) * scale[c >> 1];
  }
}

// Adds the values of a tile of keys with weights p.
template <typename Tile, int kGroups>
__device__ __forceinline__ void AddValues(RowState<Tile, kGroups>& state, uint32_t tile,
                                          const std::byte* tile_data, int lane,
                                          const float (&p)[kGroups][4]) {
  const int g = lane >> 2;
  const float scale[2] = {Tile::ValueScale(tile_data, g), Tile::ValueScale(tile_data, g + 8)};
  uint32_t high[kGroups][2], low[kGroups][2];
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const SplitBf16 s = Split(p[i][half * 2] * scale[half], p[i][half * 2 + 1] * scale[half]);
      high[i][half] = TransposeMatrix(s.high), low[i][half] = TransposeMatrix(s.low);
    }
  }
  Tile::ForValues(tile, tile_data, lane, [&](int step, const uint32_t(&a)[4]) {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      Mma(state.o[i][step], a, high[i][0], high[i][1]);
      Mma(state.o[i][step], a, low[i][0], low[i][1]);
    }
  });
}

// Writes `heads` heads of D channels to o and their lse to lse (or null).
template <typename Tile, int kGroups>
__device__ __forceinline__ void WriteHeads(const RowState<Tile, kGroups>& state, int heads,
                                           int lane, float* o, float* lse) {
  const int g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float sum = state.sum[i][j];
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) sum += __shfl_xor_sync(~0u, sum, mask);
      const int head = i * kGroupHeads + 2 * t + j;
      if (head >= heads) continue;
      const float inverse = sum == 0 ? 0 : 1 / sum;
#pragma unroll
      for (int d = 0; d < Tile::kDim / 16; ++d) {
        o[head * Tile::kDim + Tile::ValueChannel(d, 0, g)] = state.o[i][d][j] * inverse;
        o[head * Tile::kDim + Tile::ValueChannel(d, 1, g)] = state.o[i][d][j + 2] * inverse;
      }
      if (g == 0 && lse) lse[head] = sum == 0 ? kNoKeys : (state.max[i][j] + log2f(sum)) * kLn2;
    }
  }
}

// One warp for each of `work`, KV head and block of query heads; see attend.cuh. Without kValues
// only scores are written.
template <typename Tile, int kGroups, bool kValues>
__global__ void __launch_bounds__(kRowWarps * 32)
    AttendRowsKernel(AttendCall call, AttendWork work) {
  extern __shared__ __align__(16) std::byte shared[];
  const int per_head = call.heads / call.kv_heads;
  const int blocks = (per_head + kGroups * kGroupHeads - 1) / (kGroups * kGroupHeads);
  const int units = call.kv_heads * blocks;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  const int unit = blockIdx.x * kRowWarps + warp;
  const RowSplit split = unit / units < work.count ? work.entry(unit / units) : RowSplit{};
  if (split.row < 0) return AwaitPrevious();
  const int kv_head = unit % units / blocks;
  const int first_head = unit % units % blocks * kGroups * kGroupHeads;
  const int heads = min(per_head - first_head, kGroups * kGroupHeads);
  const AttendRows& row = call.rows[split.row];
  const KvAccess kv = row.kv;
  const int64_t out_head = row.first * call.heads + kv_head * per_head + first_head;
  AwaitPrevious();
  const Keys keys = KeysOf(row, kv_head);
  const int per_split = call.KeysOfSplit(keys.count);
  const int32_t begin = split.split * per_split;
  if (split.split > 0 && begin >= keys.count) return;

  const WarpTiles tiles{keys, begin, min(keys.count, begin + per_split),
                        static_cast<int32_t>(row.position), lane};
  const int count = tiles.count();
  const std::byte* ring = shared + warp * Tile::kStages * Tile::kBytes;
  const uint32_t ring_address = SharedAddress(ring);
  // Masks of the keys that exist in each tile.
  auto* masks = reinterpret_cast<uint32_t*>(shared + kRowTileBytes<Tile>) + warp * Tile::kStages;
  const auto copy = [&](int tile, int32_t slot) {
    const int stage = tile % Tile::kStages;
    if (tile < count) {
      Tile::template Copy<kValues>(kv, kv_head, slot, lane, ring_address + stage * Tile::kBytes);
      const uint32_t mask = __ballot_sync(~0u, slot >= 0);
      if (lane == 0) masks[stage] = mask;
    }
    CommitCopies();
  };
  const auto slot_of = [&](int32_t position) { return position < 0 ? -1 : SlotOf(kv, position); };

  // Loads the positions, and then the pages, of the first tiles together.
  int32_t ahead[Tile::kStages + 1];
#pragma unroll
  for (int i = 0; i <= Tile::kStages; ++i) ahead[i] = tiles.Position(i);
#pragma unroll
  for (int i = 0; i < Tile::kStages; ++i) ahead[i] = slot_of(ahead[i]);
#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) copy(i, ahead[i]);
  // The slot is loaded one tile before its copy, the position two: the loop never waits for either.
  int32_t slot = ahead[Tile::kStages - 1], position = ahead[Tile::kStages];
  RowQueries<Tile, kGroups> q;
  q.Load(call.q + out_head * Tile::kDim, heads, lane);
  RowState<Tile, kGroups> state;
  if (kValues) state.Clear();
  float* scores = row.scores;
  if (scores) scores += (kv_head * per_head + first_head) * row.score_stride;
  const int64_t score_stride = row.score_stride;

  for (int tile = 0; tile < count; ++tile) {
    AwaitCopies<Tile::kStages - 2>();
    __syncwarp();
    copy(tile + Tile::kStages - 1, slot);
    slot = slot_of(position);
    position = tiles.Position(tile + Tile::kStages + 1);

    const int stage = tile % Tile::kStages;
    const uint32_t at = ring_address + stage * Tile::kBytes;
    const std::byte* data = ring + stage * Tile::kBytes;
    const uint32_t mask = masks[stage];
    float x[kGroups][4];
    TileScores<Tile, kGroups>(q, at, data, lane, x);
    if (scores) {
      // Scores are only requested when all keys are attended to: a key's index is its position.
      float* to = scores + tiles.first(tile);
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int head = i * kGroupHeads + 2 * t + (c & 1), token = g + (c >> 1) * 8;
          if (head < heads && (mask >> token & 1))
            to[head * score_stride + token] = x[i][c] * call.scale;
        }
      }
    }
    if constexpr (kValues) {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const bool there = mask >> (g + (c >> 1) * 8) & 1;
          x[i][c] = there ? x[i][c] * (call.scale * kLog2E) : kNoKeys;
        }
        state.Weigh(i, x[i]);
      }
      AddValues<Tile, kGroups>(state, at, data, lane, x);
    }
  }
  LetNextBegin();

  if constexpr (kValues) {
    float* o = call.o + out_head * Tile::kDim;
    float* lse = call.lse ? call.lse + out_head : nullptr;
    if (keys.count > per_split) {
      const int64_t part = row.part + static_cast<int64_t>(split.split) * call.heads +
                           kv_head * per_head + first_head;
      o = call.partial.o + part * Tile::kDim;
      lse = call.partial.lse + part;
    }
    WriteHeads<Tile, kGroups>(state, heads, lane, o, lse);
  }
}

}  // namespace baton::cuda
