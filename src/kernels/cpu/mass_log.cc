// Log-probabilities: a maximum over heads comes from the tiles (mass_tiles.cc) or, in one pass,
// from stored scores. Sums over heads take two passes: scores per head, then pooling, block by
// block.
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/fetch.h"
#include "kernels/cpu/mass_parts.h"

namespace baton::cpu {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
// Most scores, of all heads, that are kept at once, unless one row alone has more: 64 MiB.
constexpr int64_t kKeptScores = int64_t{1} << 24;

// Pools one row's scores of one group's heads over keys [0, n); `scores` starts at key 0, and
// blocks are whole.
void PoolBlocks(const float* scores, int64_t stride, const float* lse, int64_t heads, int64_t n,
                int64_t block, float* out) {
  if (block == 1) return portable::LogSumOfHeads(scores, stride, lse, heads, n, out);
  const int64_t blocks = CeilDiv(n, block);
  std::vector<float> largest(static_cast<size_t>((heads + 1) * blocks));
  float* pooled = largest.data() + heads * blocks;
  for (int64_t h = 0; h < heads; ++h)
    portable::MaxOfBlocks(scores + h * stride, n, block, largest.data() + h * blocks);
  portable::LogSumOfHeads(largest.data(), blocks, lse, heads, blocks, pooled);
  for (int64_t b = 0; b < blocks; ++b)
    std::fill(out + b * block, out + std::min(n, (b + 1) * block), pooled[b]);
}

// Computes the mass of some rows from the scores of all their heads.
void PoolScores(const MassParams& p, std::span<const MassParams::Segment> segments, bool lse_done,
                ThreadPool& threads) {
  struct Task {
    const MassParams::Segment* segment;
    int64_t row, key;
  };
  const bool sum = p.pool == Pool::kSum;
  const int64_t block = sum ? p.block : 1;
  const int64_t chunk = std::max<int64_t>(1, kMassChunk / block) * block;
  std::vector<Task> tasks;
  for (const auto& s : segments) {
    for (int64_t row = 0; row < s.rows.count; ++row) {
      for (int64_t key = 0; key < s.rows.position + s.rows.count; key += chunk)
        tasks.push_back({&s, row, key});
    }
  }
  const int64_t heads = p.q.dim(1);
  threads.For(static_cast<int64_t>(tasks.size()), [&](int64_t i, int) {
    const auto [segment, row, key] = tasks[static_cast<size_t>(i)];
    const MassParams::Segment& s = *segment;
    const int64_t groups = MassGroups(p, s), per_group = heads / groups;
    const int64_t end = std::min(key + chunk, s.rows.position + s.rows.count);
    const int64_t n = std::max<int64_t>(0, std::min(end, s.rows.position + row + 1) - key);
    for (int64_t g = 0; g < groups; ++g) {
      float* mass = s.mass + (row * groups + g) * s.mass_stride;
      FetchToWrite(mass + key, end - key);
      const float* scores = s.scores + (row * heads + g * per_group) * s.score_stride + key;
      const bool lse = !lse_done && !p.lse.empty();
      const float* lses = lse ? p.lse.row(s.rows.first + row) + g * per_group : nullptr;
      if (sum) {
        PoolBlocks(scores, s.score_stride, lses, per_group, n, block, mass + key);
      } else {
        portable::MaxOfHeads(scores, s.score_stride, lses, per_group, n, mass + key);
      }
      std::fill(mass + key + n, mass + end, kNothing);
    }
  });
}

}  // namespace

void LogMassFromScores(const MassParams& p, ThreadPool& threads) {
  PoolScores(p, p.segments, false, threads);
}

void LogMassSummed(const MassParams& p, const MassKernels& kernels, ThreadPool& threads,
                   MassScratch& scratch) {
  const int64_t heads = p.q.dim(1);
  MassParams by_head = p;
  by_head.scope = MassScope::kHead;
  by_head.pool = Pool::kMax;
  for (const auto& s : p.segments) {
    const int64_t stride = s.rows.position + s.rows.count;
    const int64_t rows_at_once = std::max<int64_t>(1, kKeptScores / (heads * stride));
    for (int64_t first = 0; first < s.rows.count; first += rows_at_once) {
      MassParams::Segment some = s;
      some.rows.first += first;
      some.rows.position += first;
      some.rows.count = std::min(rows_at_once, s.rows.count - first);
      const auto size = static_cast<size_t>(some.rows.count * heads * stride);
      if (scratch.head_scores.size() < size) scratch.head_scores.resize(size);
      MassParams::Segment head = some;
      head.mass = scratch.head_scores.data();
      head.mass_stride = stride;
      MassByTiles(by_head, {&head, 1}, kernels, threads, scratch);
      some.scores = scratch.head_scores.data();
      some.score_stride = stride;
      some.mass += first * MassGroups(p, s) * s.mass_stride;
      PoolScores(p, {&some, 1}, true, threads);
      // Keys after these rows are not visible to them.
      for (int64_t u = 0; u < some.rows.count * MassGroups(p, s); ++u) {
        float* mass = some.mass + u * s.mass_stride;
        std::fill(mass + some.rows.position + some.rows.count, mass + stride, kNothing);
      }
    }
  }
}

}  // namespace baton::cpu
