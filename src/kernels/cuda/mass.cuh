// Shared by the kernels of Mass. Probabilities are pooled from scores that Attend stored, that are
// first computed from K into scratch memory (by Attend's kernels without values), or that come from
// the 4-bit copy. Tiles of prompts are scored and pooled in one kernel (mass_tiles.cu).
#pragma once

#include <cstdint>

#include "kernels/cuda/attend_kernels.h"
#include "ops/attention_params.h"

namespace baton::cuda {

// Some rows of a segment and their output.
struct MassSegment {
  KvAccess kv;
  int64_t first = 0, position = 0;  // batch row and position of row 0 of the segment
  const float* scores = nullptr;    // row `scores_row` first: [rows, Hq, score_stride]
  int64_t score_stride = 0, scores_row = 0;
  float* mass = nullptr;  // [sets, groups, mass_stride]
  int64_t mass_stride = 0;
  int64_t rows_per_set = 1;
  int64_t keys =
      0;  // position + count of the whole segment: the part of a row of mass that is written
};

// A set, or a part of its rows: rows [row, row + rows) of a segment. A part that does not begin the
// set adds to the output of the parts before it.
struct MassUnit {
  int32_t segment = -1;  // -1: none
  int32_t row = 0, rows = 0;
  int32_t add = 0;
};

struct MassCall {
  const float* q = nullptr;    // [T, Hq, D]
  const float* lse = nullptr;  // [T, Hq] or null for zeros
  const MassSegment* segments = nullptr;
  const MassUnit* units = nullptr;
  float scale = 0;
  int32_t heads = 0, kv_heads = 0, dim = 0, groups = 0;
  int32_t max = 0;    // pool by the maximum, not the sum
  int32_t block = 1;  // see MassParams
};

// Larger of two, NaN if either is.
__device__ __forceinline__ float LargerOrNan(float a, float b) {
  return a >= b || isnan(a) ? a : b;
}

// `keys`: most keys of a unit, in coarse steps; `units` of the table; `fours`: scores begin at
// multiples of 16 bytes.
void LaunchPoolScores(Recorder& recorder, const MassCall& call, int64_t units, int64_t keys,
                      bool log, bool fours);

// Rows [row, row + rows) of a segment, all of one set or single-row sets, ranked by the 4-bit copy.
// Returns the bytes of scratch for a row of `keys` keys.
int64_t LowBitScratchBytes(int64_t heads, int64_t keys);
void LaunchLowBit(Recorder& recorder, const MassCall& call, std::span<const MassUnit> units,
                  int64_t rows, int64_t keys, std::byte* scratch);

// Whole sets of many rows: see mass_tiles.cu. Memory of a launch: the rounded queries of all rows
// of the batch, and for the 4-bit copy MassTileBytes for each row of its units.
struct MassTileMemory {
  __nv_bfloat16* q = nullptr;
  std::byte* low_bit = nullptr;
};
bool HasMassTiles(DType cache, bool low_bit, int64_t head_dim);
int64_t MassTileBytes(int64_t heads, int64_t keys);
void RoundQueries(Recorder& recorder, const float* q, __nv_bfloat16* to, int64_t count);
void LaunchMassTiles(Recorder& recorder, MassTileMemory memory, const MassCall& call, DType cache,
                     bool low_bit, std::span<const MassUnit> units, int64_t keys);

}  // namespace baton::cuda
