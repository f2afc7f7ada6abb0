// Scratch of the mass and select operations, kept between calls: the sizes repeat layer after layer
// and step after step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/mass_kernels.h"

namespace baton::cpu {

struct MassScratch {
  struct Rank {  // of one thread
    std::vector<std::byte> packed_keys;
    std::vector<MassQuery> queries;
    std::vector<float> columns;  // [sets * groups][keys of a chunk]
    std::vector<float> row_max;  // [rows of a tile][keys of a chunk]
  };
  std::vector<Rank> ranks;
  std::vector<std::byte> tile_queries;  // packed, by segment [Hkv][rows][Hq / Hkv]
  std::vector<float> lse;               // [T, Hq] log2 units
  std::vector<float> stats;             // per tile task {largest, sum} of [rows, Hq]
  std::vector<float> head_scores;       // sums of log-probabilities: [rows][Hq][keys]
  // Low-bit rows:
  Buffer weights;                          // bf16 [rows][chunks][Hq][keys of a chunk]
  std::vector<float> starts;               // [rows][Hq]
  std::vector<float> sums;                 // [rows][chunks][Hq rounded up]
  std::vector<float> factors;              // [rows][Hq]
  std::vector<std::byte> low_bit_queries;  // [rows][Hq] LowBitQuery
};

struct SelectScratch {
  struct alignas(64) Count {
    int64_t keys = 0;
  };
  std::vector<float> unit_mass;    // block mode: [units]
  std::vector<int32_t> keys;       // [slices][units of a slice and a few]: candidates
  std::vector<int32_t> positions;  // their positions
  std::vector<Count> counts;       // [slices] numbers of candidates
  std::vector<int32_t> list;       // keys that may be the threshold
  std::vector<int32_t> units;      // the result
};

struct CpuOps::MassState {
  MassScratch mass;
  std::vector<SelectScratch> select;  // per thread
};

}  // namespace baton::cpu
