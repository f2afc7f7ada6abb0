// Shared by the attention kernels: how tables describe a call, which keys a row attends to and how
// these are split.
//
// Few rows (decode) are computed row by row: a unit of work is a row, a KV head with up to 16 of
// its query heads, and a split of the row's keys. Rows of prompts are computed in tiles of stacked
// rows (token, query head of one KV head). A second kernel merges the partial results of splits, in
// the order of the splits. Splits depend only on the keys of the row (or tile).
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/kv_access.cuh"
#include "kernels/cuda/mma.cuh"
#include "ops/attention_params.h"

namespace baton::cuda {

constexpr float kNoKeys = -INFINITY;  // the lse of a row without keys

// A row of an AttendParams::Segment, or a tile of consecutive rows that share their keys.
struct AttendRows {
  KvAccess kv;
  int64_t first = 0, position = 0;  // batch row and position of the first row
  int64_t sink = 0, recent = 0;     // kWindow
  const int32_t* lists = nullptr;   // kIndex: the rows' set, [groups, capacity]
  const int32_t* counts = nullptr;
  const int32_t* head_map = nullptr;  // on the device; null = identity
  int64_t capacity = 0;
  float* scores = nullptr;  // of the first row
  int64_t score_stride = 0;
  int64_t part = 0;  // of the first split's partial results, see Partial
  int32_t groups = 1;
  int32_t rows = 1;
  int32_t keys_per_split = 0;  // tiles; 0: not split
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

// The keys that at least one of the rows sees.
__device__ inline Keys KeysOf(const AttendRows& rows, int kv_head) {
  const int64_t first = rows.position, end = first + rows.rows;
  if (rows.kind == KeySet::Kind::kIndex) {
    const int group = rows.groups == 1 ? 0 : rows.head_map ? rows.head_map[kv_head] : kv_head;
    return {rows.lists + group * rows.capacity, rows.counts[group], 0, 0};
  }
  if (rows.kind == KeySet::Kind::kAll)
    return {nullptr, static_cast<int32_t>(end), static_cast<int32_t>(end), 0};
  const int64_t sink = Clamp(rows.sink, 0, end);
  const int64_t from = Clamp(first - Clamp(rows.recent, 0, end) + 1, sink, end);
  return {nullptr, static_cast<int32_t>(sink + end - from), static_cast<int32_t>(sink),
          static_cast<int32_t>(from - sink)};
}

// Whether the row at `position` sees the key at `key`, one of KeysOf of its tile.
__device__ __forceinline__ bool Sees(const AttendRows& rows, int64_t position, int64_t key) {
  return key <= position &&
         (rows.kind != KeySet::Kind::kWindow || key < rows.sink || key > position - rows.recent);
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

// An entry of a list of work.
struct RowSplit {
  int32_t row = -1;  // of the table of rows; -1: none
  int32_t split = 0;
};
// A list of work: a table, or, without one, `splits` entries for each row in order.
struct AttendWork {
  const RowSplit* table = nullptr;  // on the device
  int32_t count = 0, splits = 1;

  __device__ RowSplit entry(int i) const {
    return table ? table[i] : RowSplit{i / splits, i % splits};
  }
};

// Partial results: o [parts, D] and lse [parts], part = AttendRows::part + split * rows * Hq +
// row * Hq + head.
struct Partial {
  float* o = nullptr;
  float* lse = nullptr;
};

// The arguments of a call that every kernel needs.
struct AttendCall {
  const float* q = nullptr;  // [T, Hq, D]
  float* o = nullptr;        // [T, Hq, D]
  float* lse = nullptr;      // [T, Hq] or null
  const AttendRows* rows = nullptr;
  Partial partial;
  float scale = 0;
  int32_t heads = 0, kv_heads = 0, dim = 0;
  // For decode rows: units per split, the most units of a row, and the fewest keys for which a
  // split pays.
  int32_t units = 0, most_units = 0, least_split = 0, unused = 0;

  // Keys of a split of a decode row.
  __host__ __device__ int KeysOfSplit(int64_t keys) const {
    const int64_t want = (keys * units + most_units - 1) / most_units;
    int n = least_split;
    while (n < want) n *= 2;
    return n;
  }
};

// An upper bound on the splits of rows of up to `keys` keys.
inline int MostSplits(int64_t keys, const AttendCall& call) {
  const int64_t by_length = std::max<int64_t>(1, (keys + call.least_split - 1) / call.least_split);
  const int64_t by_units = (call.most_units + call.units - 1) / call.units + 1;
  return static_cast<int>(std::min(by_length, by_units));
}

// Sets what splits depend on. A long row alone has as many units as a large GPU runs at a time;
// narrow heads take half the registers and shared memory, so twice as many fit. A partial result of
// R heads, written and read again, is as large as R keys and values of 16 bits, so the smallest
// split grows with R.
inline void SetUnits(AttendCall& call, int64_t head_bytes) {
  constexpr int kWarpHeads = 16, kLeastSplit = 128, kNarrow = 128, kMostUnits = 1024;
  const int per_head = call.heads / call.kv_heads;
  call.units = call.kv_heads * ((per_head + kWarpHeads - 1) / kWarpHeads);
  call.most_units = head_bytes <= kNarrow ? 2 * kMostUnits : kMostUnits;
  call.least_split = per_head > 8 ? 2 * kLeastSplit : kLeastSplit;
}

}  // namespace baton::cuda
