// Mass by tiles: a task is (sets of about 128 rows, 512 keys). It recomputes the probabilities from
// K and a known log-sum-exp and sums columns at once, so that no [rows, N] matrix exists. Low-bit
// sets with many rows estimate the log-sum-exp in a first pass over a quarter of the pages. Every
// task owns its piece of the result: nothing is merged.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/mass_parts.h"

namespace baton::cpu {
namespace {

// Low-bit tiles estimate the log-sum-exp from one in this many pages, except the first and latest
// ones, which have most of the mass and are all read.
constexpr int64_t kPageStep = 4;
constexpr int64_t kLatest = 128;
// 128 rather than 64: transposing a page costs as much as ten or so rows of dot products.
constexpr int64_t kTileRows = 128;

// One task's worth of work on the tile path.
struct TileTask {
  const MassParams::Segment* segment;
  int64_t first_row, end_row;  // whole sets, whose rows share packed keys
  int64_t key;                 // first key of the chunk
  int64_t chunk_stats;         // low-bit first pass: where the task's stats begin
};

int64_t SetsPerTile(const MassParams::Segment& s) {
  return std::max<int64_t>(1, kTileRows / s.rows_per_set);
}

class Tiles {
 public:
  Tiles(const MassParams& p, const MassKernels& kernels, ThreadPool& threads, MassScratch& scratch)
      : p_(p),
        kernels_(kernels),
        threads_(threads),
        scratch_(scratch),
        heads_(p.q.dim(1)),
        dim_(p.q.dim(2)),
        log_(p.score == MassParams::Score::kLogProbability),
        low_bit_(p.source == MassParams::Source::kLowBit),
        lse_unit_(log_ ? 1.0f : kLog2E),
        scale_(p.scale * lse_unit_) {
    scratch_.lse.resize(static_cast<size_t>(p.q.dim(0) * heads_));
  }

  void Run(std::span<const MassParams::Segment> segments) {
    std::vector<TileTask> tasks;
    int64_t stats = 0;
    scratch_.tile_queries.resize(static_cast<size_t>((p_.q.dim(0) * heads_ + 15) * dim_ * 4));
    for (const auto& s : segments) {
      threads_.For(s.rows.count, [&](int64_t row, int) { Pack(s, row); });
      const int64_t step = SetsPerTile(s) * s.rows_per_set;
      for (int64_t first = 0; first < s.rows.count; first += step) {
        const int64_t end = std::min(s.rows.count, first + step);
        for (int64_t key = 0; key < s.rows.position + s.rows.count; key += kMassChunk) {
          tasks.push_back({&s, first, end, key, stats});
          stats += (end - first) * heads_ * 2;
        }
      }
    }
    const auto count = static_cast<int64_t>(tasks.size());
    if (low_bit_) {
      scratch_.stats.resize(static_cast<size_t>(stats));
      threads_.For(count, [&](int64_t i, int rank) { Stats(tasks[static_cast<size_t>(i)], rank); });
      MergeStats(tasks);
    }
    threads_.For(count, [&](int64_t i, int rank) { Columns(tasks[static_cast<size_t>(i)], rank); });
  }

 private:
  float& Lse(int64_t row, int64_t head) {
    return scratch_.lse[static_cast<size_t>(row * heads_ + head)];
  }

  // 16 bits of q for single rows: profiles and the watch read absolute values, prompt tiles only
  // rank.
  MassForm Form(const MassParams::Segment& s) const {
    return low_bit_ ? MassForm::kLowBit : s.rows_per_set == 1 ? MassForm::kFine : MassForm::kCoarse;
  }

  // Packed queries are in the order of a segment's KV heads, rows and heads of a KV head.
  std::byte* Packed(const MassParams::Segment& s, int64_t row, int64_t head) {
    const int64_t ratio = heads_ / s.kv.layout.kv_heads;
    const int64_t n = (head / ratio * s.rows.count + row) * ratio + head % ratio;
    return scratch_.tile_queries.data() + (s.rows.first * heads_ + n) * dim_ * 4;
  }

  // A row's queries, and its log-sum-exp where that is given.
  void Pack(const MassParams::Segment& s, int64_t row) {
    for (int64_t h = 0; h < heads_; ++h) {
      kernels_.pack_query(p_.q.row(s.rows.first + row, h), dim_, Form(s), Packed(s, row, h));
      if (low_bit_) continue;
      const float lse = p_.lse.empty() ? 0.0f : p_.lse.row(s.rows.first + row)[h];
      Lse(s.rows.first + row, h) = lse * lse_unit_;
    }
  }

  // Sets up the queries of a KV head's rows [first, last); set_up(row, head, query) adds where a
  // result is written.
  template <typename F>
  void SetQueries(const TileTask& t, int64_t first, int64_t last, int64_t kv_head,
                  MassScratch::Rank& r, F&& set_up) {
    const MassParams::Segment& s = *t.segment;
    const int64_t ratio = heads_ / s.kv.layout.kv_heads;
    r.queries.resize(static_cast<size_t>((last - first) * ratio));
    auto query = r.queries.begin();
    for (int64_t row = first; row < last; ++row) {
      for (int64_t h = kv_head * ratio; h < (kv_head + 1) * ratio; ++h, ++query) {
        *query = {.q = Packed(s, row, h), .lse = Lse(s.rows.first + row, h)};
        query->visible =
            static_cast<int32_t>(std::min(s.rows.position + row + 1 - t.key, kMassChunk));
        set_up(row, h, *query);
      }
    }
  }

  // Calls body(keys) for each page of the chunk that some of the packed queries sees and that
  // `use(first key)` accepts, with the queries advanced to it.
  template <typename U, typename F>
  void ForEachPage(const TileTask& t, int64_t last, int64_t kv_head, MassScratch::Rank& r, U&& use,
                   F&& body) {
    const MassParams::Segment& s = *t.segment;
    const auto move = [&](int64_t by) {
      for (MassQuery& q : r.queries) {
        q.visible -= static_cast<int32_t>(by);
        if (q.out != nullptr) q.out += by;
      }
    };
    r.packed_keys.resize(static_cast<size_t>(kMassBlock * dim_ * 4 + 64));
    auto* keys = reinterpret_cast<std::byte*>(
        (reinterpret_cast<uintptr_t>(r.packed_keys.data()) + 63) / 64 * 64);
    int64_t at = t.key;
    for (int64_t key = t.key; key < EndKey(t, last); key += kMassBlock) {
      if (!use(key)) continue;
      move(key - at);
      at = key;
      kernels_.pack_keys(s.kv, key, static_cast<int>(kv_head), Form(s), keys);
      body(keys);
    }
    move(t.key - at);
  }
  static int64_t EndKey(const TileTask& t, int64_t last) {
    return std::min(t.key + kMassChunk, t.segment->rows.position + last);
  }

  void Stats(const TileTask& t, int rank) {
    const MassParams::Segment& s = *t.segment;
    MassScratch::Rank& r = scratch_.ranks[static_cast<size_t>(rank)];
    const int64_t latest = s.rows.position + t.first_row - kLatest;
    for (int64_t first = t.first_row; first < t.end_row; first += kTileRows) {
      const int64_t last = std::min(first + kTileRows, t.end_row);
      // Weights of pages in the sums: 1 for pages that are read anyway; sampled pages also count
      // for the pages that are skipped.
      const auto whole = [&](int64_t key) {
        return s.rows_per_set == 1 || key == 0 || key + kMassBlock > latest;
      };
      const auto sampled = [&](int64_t key) {
        return !whole(key) && key / kMassBlock % kPageStep == 0;
      };
      int64_t samples = 0, meant = 0;  // sampled pages, and the pages that they represent
      for (int64_t key = t.key; key < EndKey(t, last); key += kMassBlock) {
        samples += sampled(key);
        meant += !whole(key);
      }
      for (int64_t g = 0; g < s.kv.layout.kv_heads; ++g) {
        SetQueries(t, first, last, g, r, [&](int64_t row, int64_t head, MassQuery& q) {
          q.stats =
              scratch_.stats.data() + t.chunk_stats + ((row - t.first_row) * heads_ + head) * 2;
          q.stats[0] = -std::numeric_limits<float>::infinity();
          q.stats[1] = 0;
        });
        const auto add = [&](const std::byte* keys) {
          kernels_.log_sum(keys, dim_, Form(s), scale_, r.queries.data(),
                           static_cast<int64_t>(r.queries.size()));
        };
        if (samples > 0) {
          ForEachPage(t, last, g, r, sampled, add);
          const float factor = static_cast<float>(meant) / static_cast<float>(samples);
          for (MassQuery& q : r.queries) q.stats[1] *= factor;
        }
        const auto rest = [&](int64_t key) { return whole(key) || samples == 0; };
        ForEachPage(t, last, g, r, rest, add);
      }
    }
  }

  // Merges the chunks of each row, in ascending order.
  void MergeStats(const std::vector<TileTask>& tasks) {
    for (size_t begin = 0, end; begin < tasks.size(); begin = end) {
      for (end = begin + 1; end < tasks.size() && tasks[end].segment == tasks[begin].segment &&
                            tasks[end].first_row == tasks[begin].first_row;) {
        ++end;
      }
      const MassParams::Segment& s = *tasks[begin].segment;
      const int64_t first = tasks[begin].first_row, last = tasks[begin].end_row;
      threads_.For(last - first, [&](int64_t i, int) {
        for (int64_t h = 0; h < heads_; ++h) {
          float largest = -std::numeric_limits<float>::infinity();
          for (size_t c = begin; c < end; ++c) {
            largest = std::max(largest, StatsOf(tasks[c], i, h)[0]);
          }
          float sum = 0;
          for (size_t c = begin; c < end; ++c) {
            const float* x = StatsOf(tasks[c], i, h);
            if (x[0] > -std::numeric_limits<float>::infinity() || std::isnan(x[1])) {
              sum += x[1] * std::exp2(x[0] - largest);
            }
          }
          Lse(s.rows.first + first + i, h) = largest + std::log2(sum);
        }
      });
    }
  }
  const float* StatsOf(const TileTask& t, int64_t row, int64_t head) const {
    return scratch_.stats.data() + t.chunk_stats + (row * heads_ + head) * 2;
  }

  void Columns(const TileTask& t, int rank) {
    const MassParams::Segment& s = *t.segment;
    MassScratch::Rank& r = scratch_.ranks[static_cast<size_t>(rank)];
    const int64_t groups = MassGroups(p_, s), kv_heads = s.kv.layout.kv_heads;
    const int64_t units = CeilDiv(t.end_row - t.first_row, s.rows_per_set) * groups;
    const bool max = p_.pool == Pool::kMax && groups < heads_;
    // A maximum over heads must be complete before rows are added.
    const bool by_row = max && s.rows_per_set > 1;
    const float nothing = log_ ? -std::numeric_limits<float>::infinity() : 0.0f;
    r.columns.assign(static_cast<size_t>(units * kMassChunk), nothing);
    for (int64_t first = t.first_row; first < t.end_row; first += kTileRows) {
      const int64_t last = std::min(first + kTileRows, t.end_row);
      const auto column = [&](int64_t row, int64_t group) {
        const int64_t set = (row - t.first_row) / s.rows_per_set;
        return r.columns.data() + (set * groups + group) * kMassChunk;
      };
      for (int64_t g = 0; g < kv_heads; ++g) {
        if (by_row && (g == 0 || p_.scope != MassScope::kAll)) {
          r.row_max.assign(static_cast<size_t>((last - first) * kMassChunk), 0.0f);
        }
        SetQueries(t, first, last, g, r, [&](int64_t row, int64_t head, MassQuery& q) {
          q.out = by_row ? r.row_max.data() + (row - first) * kMassChunk
                         : column(row, head * groups / heads_);
        });
        const auto all = [](int64_t) { return true; };
        ForEachPage(t, last, g, r, all, [&](const std::byte* keys) {
          const auto count = static_cast<int64_t>(r.queries.size());
          if (log_) {
            kernels_.log_max(keys, dim_, Form(s), scale_, r.queries.data(), count);
          } else {
            kernels_.accumulate(keys, dim_, Form(s), scale_, r.queries.data(), count, max);
          }
        });
        if (by_row && (g + 1 == kv_heads || p_.scope != MassScope::kAll)) {
          for (int64_t row = first; row < last; ++row) {
            float* to = column(row, p_.scope == MassScope::kAll ? 0 : g);
            const float* from = r.row_max.data() + (row - first) * kMassChunk;
            for (int64_t n = 0; n < kMassChunk; ++n) to[n] += from[n];
          }
        }
      }
    }
    const int64_t n = std::min(kMassChunk, s.rows.position + s.rows.count - t.key);
    for (int64_t u = 0; u < units; ++u) {
      std::copy_n(r.columns.data() + u * kMassChunk, n,
                  s.mass + (t.first_row / s.rows_per_set * groups + u) * s.mass_stride + t.key);
    }
  }

  const MassParams& p_;
  const MassKernels& kernels_;
  ThreadPool& threads_;
  MassScratch& scratch_;
  const int64_t heads_, dim_;
  const bool log_, low_bit_;
  const float lse_unit_;  // of natural logarithms in those of the kernels
  const float scale_;
};

}  // namespace

void MassByTiles(const MassParams& p, std::span<const MassParams::Segment> segments,
                 const MassKernels& kernels, ThreadPool& threads, MassScratch& scratch) {
  Tiles(p, kernels, threads, scratch).Run(segments);
}

}  // namespace baton::cpu
