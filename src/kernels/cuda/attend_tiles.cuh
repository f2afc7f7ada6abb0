// Prompt rows on tensor cores: flash attention over tiles of stacked rows (token, query head) that
// share a KV head and a set of keys. q and the weights are rounded to bf16; sums are in f32.
#pragma once

#include "kernels/cuda/attend.cuh"

namespace baton::cuda {

template <int kHeadDim, bool kIsInt8>
struct TileShape {
  static constexpr int kDim = kHeadDim;
  static constexpr bool kInt8 = kIsInt8;
  // Rows of 16 per warp: two share each load of K and V if the accumulators fit into registers.
  static constexpr int kWarps = kDim > 128 ? 8 : 4, kRowTiles = kDim > 128 ? 1 : 2;
  static constexpr int kThreads = kWarps * 32, kRows = kWarps * kRowTiles * 16;
  static constexpr int kKeys = kDim > 128 ? 32 : 64;
  static constexpr int kStages = kInt8 ? 1 : 2;      // of K and V as operands
  static constexpr int kStride = kDim * 2 + 16;      // of a row, in bytes
  static constexpr int kKeyBytes = kKeys * kStride;  // K or V of a stage
  // int8 rows arrive in a separate buffer and are expanded from there.
  static constexpr int kRawBytes = kInt8 ? kKeys * (2 * kDim + 8) : 0;
  static constexpr int kSlotRing = 4;
  static constexpr int kSharedBytes = kRows * kStride + kStages * 2 * kKeyBytes + kRawBytes +
                                      2 * kSlotRing * kKeys * 4 + 2 * kKeys * 4;
};

// Keys [begin, end) of a tile of rows, in blocks of Shape::kKeys: their slots and positions, a few
// blocks ahead, in rings in shared memory.
template <typename Shape>
struct TileKeys {
  Keys keys;
  int32_t begin, end, last;  // `last`: position of the last row of the tile
  int32_t* slots;            // [kSlotRing, kKeys], -1 for none
  int32_t* positions;        // likewise

  __device__ int count() const { return (end - begin + Shape::kKeys - 1) / Shape::kKeys; }
  __device__ int32_t Position(int block) const {
    const int32_t i = begin + block * Shape::kKeys + static_cast<int>(threadIdx.x);
    if (threadIdx.x >= Shape::kKeys || i >= end) return -1;
    const int32_t position = keys.position(i);
    return position <= last ? position : -1;
  }
  __device__ void Put(int block, int32_t position, int32_t slot) const {
    if (threadIdx.x >= Shape::kKeys) return;
    const int at = block % Shape::kSlotRing * Shape::kKeys + static_cast<int>(threadIdx.x);
    slots[at] = slot, positions[at] = position;
  }
  __device__ int32_t slot(int block, int i) const {
    return slots[block % Shape::kSlotRing * Shape::kKeys + i];
  }
  __device__ int32_t position(int block, int i) const {
    return positions[block % Shape::kSlotRing * Shape::kKeys + i];
  }
};

// A block of K and V in shared memory.
template <typename Shape>
struct KeyBlocks {
  std::byte* operands;  // [kStages][K, V][kKeys][kStride]
  std::byte* raw;       // int8: [K, V][kKeys][D], then scales [K, V][kKeys]
  float* scales;        // int8: [K, V][kKeys] of the expanded block

  __device__ uint32_t keys(int block) const {
    return SharedAddress(operands) + block % Shape::kStages * 2 * Shape::kKeyBytes;
  }
  __device__ uint32_t values(int block) const { return keys(block) + Shape::kKeyBytes; }

  __device__ __forceinline__ void Copy(const KvAccess& kv, int head, const TileKeys<Shape>& at,
                                       int block) const {
    constexpr int kChunks = Shape::kDim * (Shape::kInt8 ? 1 : 2) / 16;
    const uint32_t to = Shape::kInt8 ? SharedAddress(raw) : keys(block);
    constexpr int kRow = Shape::kInt8 ? Shape::kDim : Shape::kStride;
#pragma unroll 4
    for (int i = threadIdx.x; i < Shape::kKeys * kChunks; i += Shape::kThreads) {
      const int key = i / kChunks, chunk = i % kChunks;
      const int32_t slot = at.slot(block, key);
      const std::byte* from = RowOf(kv, max(slot, 0)) + head * kv.head_bytes + chunk * 16;
      const uint32_t shared = to + key * kRow + chunk * 16;
      CopyAsync16(shared, from, slot >= 0);
      CopyAsync16(shared + Shape::kKeys * kRow, from + kv.value_offset, slot >= 0);
    }
    if constexpr (Shape::kInt8) {
      const int i = threadIdx.x;
      if (i < 2 * Shape::kKeys) {
        const int value = i / Shape::kKeys;
        const int32_t slot = at.slot(block, i % Shape::kKeys);
        CopyAsync4(to + 2 * Shape::kKeys * Shape::kDim + i * 4,
                   ScaleOf(kv, max(slot, 0), head) + value * kv.kv_heads, slot >= 0);
      }
    }
  }

  // int8: expands the block that has arrived to operands. Every thread calls it, between barriers.
  __device__ __forceinline__ void Expand() const {
    constexpr int kChunks = Shape::kDim / 16;
    for (int i = threadIdx.x; i < 2 * Shape::kKeys * kChunks; i += Shape::kThreads) {
      const uint4 x = reinterpret_cast<const uint4*>(raw)[i];
      const uint32_t in[4] = {x.x, x.y, x.z, x.w};
      uint32_t out[8];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t w = in[j] ^ 0x80808080u;
        out[2 * j] = PackExact(FlippedByte<0>(w), FlippedByte<1>(w));
        out[2 * j + 1] = PackExact(FlippedByte<2>(w), FlippedByte<3>(w));
      }
      auto* to =
          reinterpret_cast<uint4*>(operands + i / kChunks * Shape::kStride + i % kChunks * 32);
      to[0] = {out[0], out[1], out[2], out[3]};
      to[1] = {out[4], out[5], out[6], out[7]};
    }
    const float* from = reinterpret_cast<const float*>(raw + 2 * Shape::kKeys * Shape::kDim);
    for (int i = threadIdx.x; i < 2 * Shape::kKeys; i += Shape::kThreads) scales[i] = from[i];
  }
};

// A warp's rows: scores of a block of keys, and the sums so far. Lane (g, t) holds rows g and g + 8
// of each row tile.
template <typename Shape>
struct TileState {
  static constexpr int kRowTiles = Shape::kRowTiles;
  float x[kRowTiles][Shape::kKeys / 8][4];
  float o[kRowTiles][Shape::kDim / 8][4];
  float max[kRowTiles][2], sum[kRowTiles][2];
  int32_t positions[kRowTiles][2];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      max[m][0] = max[m][1] = kNoKeys, sum[m][0] = sum[m][1] = 0;
#pragma unroll
      for (int d = 0; d < Shape::kDim / 8; ++d)
        o[m][d][0] = o[m][d][1] = o[m][d][2] = o[m][d][3] = 0;
    }
  }

  __device__ __forceinline__ void Score(uint32_t queries, uint32_t keys, int lane) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < Shape::kKeys / 8; ++n)
        x[m][n][0] = x[m][n][1] = x[m][n][2] = x[m][n][3] = 0;
    }
    const uint32_t q = queries + (lane & 15) * Shape::kStride + (lane >> 4) * 16;
    const uint32_t k =
        keys + ((lane >> 4) * 8 + (lane & 7)) * Shape::kStride + (lane >> 3 & 1) * 16;
#pragma unroll
    for (int step = 0; step < Shape::kDim / 16; ++step) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
        LoadMatrices(a[m], q + m * 16 * Shape::kStride + step * 32);
#pragma unroll
      for (int n = 0; n < Shape::kKeys / 16; ++n) {
        uint32_t b[4];
        LoadMatrices(b, k + n * 16 * Shape::kStride + step * 32);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          Mma(x[m][2 * n], a[m], b[0], b[1]);
          Mma(x[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void ScaleKeys(const float* scales, int t) {
#pragma unroll
    for (int n = 0; n < Shape::kKeys / 8; ++n) {
      const float a = scales[n * 8 + 2 * t], b = scales[n * 8 + 2 * t + 1];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
        x[m][n][0] *= a, x[m][n][1] *= b, x[m][n][2] *= a, x[m][n][3] *= b;
    }
  }

  __device__ __forceinline__ void Mask(const AttendRows& s, const TileKeys<Shape>& keys, int block,
                                       int t) {
#pragma unroll
    for (int n = 0; n < Shape::kKeys / 8; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int32_t key = keys.position(block, n * 8 + 2 * t + c);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            if (key < 0 || !Sees(s, positions[m][r], key)) x[m][n][r * 2 + c] = kNoKeys;
          }
        }
      }
    }
  }

  // Turns scores into weights; `scale` converts scores to powers of two.
  __device__ __forceinline__ void Weigh(float scale) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float high = kNoKeys;
#pragma unroll
        for (int n = 0; n < Shape::kKeys / 8; ++n)
          high = fmaxf(high, fmaxf(x[m][n][2 * r], x[m][n][2 * r + 1]));
        high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
        high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
        const float before = max[m][r];
        max[m][r] = fmaxf(before, high * scale);
        const float reference = max[m][r] == kNoKeys ? 0 : max[m][r];
        const float factor = Exp2(before - reference);
        float total = 0;
#pragma unroll
        for (int n = 0; n < Shape::kKeys / 8; ++n) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& p = x[m][n][2 * r + c];
            p = Exp2(fmaf(p, scale, -reference));
            total += p;
          }
        }
        sum[m][r] = sum[m][r] * factor + total;
#pragma unroll
        for (int d = 0; d < Shape::kDim / 8; ++d)
          o[m][d][2 * r] *= factor, o[m][d][2 * r + 1] *= factor;
      }
    }
  }

  __device__ __forceinline__ void AddValues(uint32_t values, int lane) {
    const uint32_t v =
        values + ((lane >> 3 & 1) * 8 + (lane & 7)) * Shape::kStride + (lane >> 4) * 16;
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* p = &x[m][2 * step + (i >> 1)][(i & 1) * 2];
          a[m][i] = PackBf16(p[0], p[1]);
        }
      }
#pragma unroll
      for (int d = 0; d < Shape::kDim / 16; ++d) {
        uint32_t b[4];
        LoadMatricesTransposed(b, v + step * 16 * Shape::kStride + d * 32);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          Mma(o[m][2 * d], a[m], b[0], b[1]);
          Mma(o[m][2 * d + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
};

// Query rows [kRows, D] of a tile as bf16; rows past `rows` are zero.
template <typename Shape>
__device__ __forceinline__ void LoadTileQueries(const float* q, int64_t token_stride, int rows,
                                                int heads, std::byte* to) {
  constexpr int kPairs = Shape::kDim / 4;
  for (int i = threadIdx.x; i < Shape::kRows * kPairs; i += Shape::kThreads) {
    const int row = i / kPairs, d = i % kPairs * 4;
    float4 x = {0, 0, 0, 0};
    if (row < rows) {
      x = *reinterpret_cast<const float4*>(q + row / heads * token_stride +
                                           row % heads * Shape::kDim + d);
    }
    *reinterpret_cast<uint2*>(to + row * Shape::kStride + d * 2) = {PackBf16(x.x, x.y),
                                                                    PackBf16(x.z, x.w)};
  }
}

// One unit for each of `work`, KV head and block of query heads.
template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    AttendTilesKernel(AttendCall call, AttendWork work) {
  extern __shared__ __align__(16) std::byte shared[];
  const int per_head = call.heads / call.kv_heads;
  const int tile_heads = min(per_head, Shape::kRows);
  const int blocks = (per_head + tile_heads - 1) / tile_heads;
  const int units = call.kv_heads * blocks;
  const RowSplit split = work.entry(blockIdx.x / units);
  if (split.row < 0) return;
  const int kv_head = blockIdx.x % units / blocks;
  const int first_head = blockIdx.x % units % blocks * tile_heads;
  const int heads = min(per_head - first_head, tile_heads);
  const AttendRows& row = call.rows[split.row];
  const KvAccess kv = row.kv;

  std::byte* at = shared + Shape::kRows * Shape::kStride;
  KeyBlocks<Shape> kept{.operands = at};
  at += Shape::kStages * 2 * Shape::kKeyBytes;
  kept.raw = at, at += Shape::kRawBytes;
  TileKeys<Shape> keys{.keys = KeysOf(row, kv_head)};
  const bool whole = row.keys_per_split == 0 || keys.keys.count <= row.keys_per_split;
  keys.begin = split.split * row.keys_per_split;
  if (split.split > 0 && (whole || keys.begin >= keys.keys.count)) return;
  keys.end = whole ? keys.keys.count : min(keys.keys.count, keys.begin + row.keys_per_split);
  const int32_t first = static_cast<int32_t>(row.position);
  keys.last = first + row.rows - 1;
  keys.slots = reinterpret_cast<int32_t*>(at);
  keys.positions = keys.slots + Shape::kSlotRing * Shape::kKeys;
  kept.scales = reinterpret_cast<float*>(keys.positions + Shape::kSlotRing * Shape::kKeys);

  const int count = keys.count();
  const auto slot_of = [&](int32_t position) { return position < 0 ? -1 : SlotOf(kv, position); };
  for (int block = 0; block < 2; ++block) {
    const int32_t position = keys.Position(block);
    keys.Put(block, position, slot_of(position));
  }
  int32_t ahead = keys.Position(2);
  __syncthreads();
  if (count > 0) kept.Copy(kv, kv_head, keys, 0);
  CommitCopies();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  const int64_t out_head = row.first * call.heads + kv_head * per_head + first_head;
  const int tokens = row.rows, rows = tokens * heads;
  LoadTileQueries<Shape>(call.q + out_head * Shape::kDim,
                         static_cast<int64_t>(call.heads) * Shape::kDim, rows, heads, shared);
  TileState<Shape> state;
  state.Clear();
  const int first_row = warp * Shape::kRowTiles * 16;
#pragma unroll
  for (int m = 0; m < Shape::kRowTiles; ++m) {
    state.positions[m][0] = first + (first_row + m * 16 + g) / heads;
    state.positions[m][1] = first + (first_row + m * 16 + g + 8) / heads;
  }
  const uint32_t queries = SharedAddress(shared) + first_row * Shape::kStride;
  const float scale = call.scale * kLog2E;
  const bool window = row.kind == KeySet::Kind::kWindow;
  const int64_t sink = row.sink, recent = row.recent;

  for (int block = 0; block < count; ++block) {
    AwaitCopies<0>();
    __syncthreads();
    if constexpr (Shape::kInt8) {
      kept.Expand();
      __syncthreads();
    }
    if (block + 1 < count) kept.Copy(kv, kv_head, keys, block + 1);
    CommitCopies();
    const int32_t position = ahead, slot = slot_of(position);
    ahead = keys.Position(block + 3);

    state.Score(queries, kept.keys(block), lane);
    if constexpr (Shape::kInt8) state.ScaleKeys(kept.scales, t);
    const int32_t begin_key = keys.position(block, 0);
    const int32_t end_key = keys.position(block, Shape::kKeys - 1);
    const bool inside =
        !window || begin_key > keys.last - recent || (end_key < sink && end_key >= 0);
    if (end_key < 0 || end_key > first || !inside) state.Mask(row, keys, block, t);
    state.Weigh(scale);
    if constexpr (Shape::kInt8) state.ScaleKeys(kept.scales + Shape::kKeys, t);
    state.AddValues(kept.values(block), lane);
    keys.Put(block + 2, position, slot);
  }

#pragma unroll
  for (int m = 0; m < Shape::kRowTiles; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = state.sum[m][r];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const int i = first_row + m * 16 + g + r * 8;
      if (i >= rows) continue;
      const int64_t head = static_cast<int64_t>(i / heads) * call.heads + i % heads;
      float* o = call.o + (out_head + head) * Shape::kDim;
      float* lse = call.lse ? call.lse + out_head + head : nullptr;
      if (!whole) {
        const int64_t part = row.part + static_cast<int64_t>(split.split) * tokens * call.heads +
                             kv_head * per_head + first_head + head;
        o = call.partial.o + part * Shape::kDim;
        lse = call.partial.lse + part;
      }
      const float inverse = sum == 0 ? 0 : 1 / sum;
#pragma unroll
      for (int d = 0; d < Shape::kDim / 8; ++d) {
        *reinterpret_cast<float2*>(o + d * 8 + 2 * t) = {state.o[m][d][2 * r] * inverse,
                                                         state.o[m][d][2 * r + 1] * inverse};
      }
      if (t == 0 && lse) *lse = sum == 0 ? kNoKeys : (state.max[m][r] + log2f(sum)) * kLn2;
    }
  }
}

}  // namespace baton::cuda
