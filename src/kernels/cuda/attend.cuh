// What the attention kernels share: how a call is described in tables, which keys a row attends to
// and how they are split.
//
// Rows of few (decode) are taken one by one: a unit of work is a row, a KV head with up to 16 of
// its query heads, and a split of the row's keys. Rows of prompts are taken in tiles of stacked
// rows (token, query head of one KV head). Partial results of splits are merged by a second kernel,
// in the order of the splits. Splits depend on the row's (or tile's) own keys alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/kv_access.cuh"
#include "kernels/cuda/mma.cuh"
#include "ops/attention_params.h"

namespace baton::cuda {

constexpr float kNoKeys = -INFINITY;  // the lse of a row without keys

// One AttendParams::Segment.
struct AttendSegment {
  KvAccess kv;
  int64_t first = 0, position = 0;  // batch row and position of row 0
  int64_t sink = 0, recent = 0;     // kWindow
  const int32_t* lists = nullptr;   // kIndex: [sets, groups, capacity]
  const int32_t* counts = nullptr;
  const int32_t* head_map = nullptr;  // on the device; null = identity
  int64_t capacity = 0, rows_per_set = 1;
  float* scores = nullptr;
  int64_t score_stride = 0;
  int32_t groups = 1;
  KeySet::Kind kind = KeySet::Kind::kAll;
};

// Keys by index, ascending: a list, or [0, sink) followed by [sink + gap, ...).
struct Keys {
  const int32_t* list = nullptr;
  int32_t count = 0, sink = 0, gap = 0;

  __device__ int32_t position(int32_t i) const { return list ? list[i] : i < sink ? i : i + gap; }
};

__host__ __device__ inline int64_t Clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

// The keys that rows [row, row + rows) of a segment see, one or another.
__device__ inline Keys KeysOf(const AttendSegment& s, int64_t row, int64_t rows, int kv_head) {
  const int64_t first = s.position + row, end = first + rows;
  if (s.kind == KeySet::Kind::kIndex) {
    const int group = s.groups == 1 ? 0 : s.head_map ? s.head_map[kv_head] : kv_head;
    const int64_t set = row / s.rows_per_set * s.groups + group;
    return {s.lists + set * s.capacity, s.counts[set], 0, 0};
  }
  if (s.kind == KeySet::Kind::kAll)
    return {nullptr, static_cast<int32_t>(end), static_cast<int32_t>(end), 0};
  const int64_t sink = Clamp(s.sink, 0, end);
  const int64_t from = Clamp(first - Clamp(s.recent, 0, end) + 1, sink, end);
  return {nullptr, static_cast<int32_t>(sink + end - from), static_cast<int32_t>(sink),
          static_cast<int32_t>(from - sink)};
}

// Whether the row at `position` sees the key at `key`, one of KeysOf of its tile.
__device__ __forceinline__ bool Sees(const AttendSegment& s, int64_t position, int64_t key) {
  return key <= position &&
         (s.kind != KeySet::Kind::kWindow || key < s.sink || key > position - s.recent);
}

// The physical slot of a token: page * kSlots + slot.
__device__ __forceinline__ int32_t SlotOf(const KvAccess& kv, int32_t position) {
  return kv.pages[position / KvLayout::kSlots] * KvLayout::kSlots + position % KvLayout::kSlots;
}
__device__ __forceinline__ const std::byte* RowOf(const KvAccess& kv, int32_t slot) {
  return kv.arena + static_cast<int64_t>(slot / KvLayout::kSlots) * kv.page_bytes +
         slot % KvLayout::kSlots * kv.row_bytes;
}
// K scale of a head of an int8 token; V's is kv_heads floats further.
__device__ __forceinline__ const float* ScaleOf(const KvAccess& kv, int32_t slot, int head) {
  return reinterpret_cast<const float*>(kv.arena + slot / KvLayout::kSlots * kv.page_bytes +
                                        kv.scales_offset) +
         slot % KvLayout::kSlots * kv.planes * kv.kv_heads + head;
}

// Keys of a split of a decode row. The splits of all KV heads together are about 512 at most:
// enough for all multiprocessors of a large GPU twice over, and few to merge.
constexpr int kLeastSplit = 128, kMostUnits = 512;
__host__ __device__ inline int KeysPerSplit(int64_t keys, int kv_heads) {
  const int64_t want = (keys * kv_heads + kMostUnits - 1) / kMostUnits;
  int n = kLeastSplit;
  while (n < want) n *= 2;
  return n;
}
// No row of up to `keys` keys has more splits.
inline int MostSplits(int64_t keys, int kv_heads) {
  const int64_t by_length = std::max<int64_t>(1, (keys + kLeastSplit - 1) / kLeastSplit);
  return static_cast<int>(std::min<int64_t>(by_length, (kMostUnits + kv_heads - 1) / kv_heads + 1));
}

// A row of a segment, or a tile of rows, that is taken apart into splits.
struct AttendRow {
  int32_t segment = 0;
  int32_t row = 0;             // of the segment
  int32_t rows = 1;            // tiles: of the segment, 0 for none
  int32_t keys_per_split = 0;  // tiles; 0: not split
  int64_t part = 0;            // of the first split's partial results, see Partial
};
struct RowSplit {
  int32_t row = -1;  // of the table of rows; -1: none
  int32_t split = 0;
};

// Partial results: o [parts, D] and lse [parts], part = AttendRow::part + split * heads + stacked
// row; for decode rows `heads` is Hq.
struct Partial {
  float* o = nullptr;
  float* lse = nullptr;
};

// A call, as every kernel needs it.
struct AttendCall {
  const float* q = nullptr;  // [T, Hq, D]
  float* o = nullptr;        // [T, Hq, D]
  float* lse = nullptr;      // [T, Hq] or null
  const AttendSegment* segments = nullptr;
  const AttendRow* rows = nullptr;
  Partial partial;
  float scale = 0;
  int32_t heads = 0, kv_heads = 0, dim = 0;
};

}  // namespace baton::cuda
