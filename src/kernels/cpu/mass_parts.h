// Parts of the mass operation that several files share: how work is divided, and the tile method.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/mass_kernels.h"
#include "kernels/cpu/mass_state.h"
#include "ops/attention_params.h"

namespace baton::cpu {

constexpr int64_t kMassChunk = 512;  // keys per task; eight pages; select.cc uses the same slices

inline int64_t MassGroups(const MassParams& p, const MassParams::Segment& s) {
  return p.scope == MassScope::kAll     ? 1
         : p.scope == MassScope::kGroup ? s.kv.layout.kv_heads
                                        : p.q.dim(1);
}

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows against packed pages, of some of p's segments, from K or its 4-bit copy (mass_tiles.cc).
void MassByTiles(const MassParams& p, std::span<const MassParams::Segment> segments,
                 const MassKernels& kernels, ThreadPool& threads, MassScratch& scratch);

// kLogProbability from stored scores, or with the sum over heads (mass_log.cc). `kernels` support
// the cache's type.
void LogMassFromScores(const MassParams& p, ThreadPool& threads);
void LogMassSummed(const MassParams& p, const MassKernels& kernels, ThreadPool& threads,
                   MassScratch& scratch);

}  // namespace baton::cpu
