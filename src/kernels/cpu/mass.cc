// How much attention each key receives. Two ways through the keys:
//
// Tiles (rows against packed pages): a task is (sets of about 128 rows, 512 keys); it recomputes
// the probabilities from K and a known log-sum-exp and adds columns up at once, so that no [rows,
// N] matrix exists. Low-bit sets with many rows estimate the log-sum-exp by a first pass over a
// quarter of the pages. Every task owns its piece of the result: nothing to merge.
//
// Rows (decode of scan layers): the 4-bit copy of K is read once, int8 dot products, and a weight
// of 16 bits a score, close to its exponential, goes to scratch; a second pass over scratch scales
// and pools them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/fetch.h"
#include "kernels/cpu/mass_kernels.h"
#include "kernels/cpu/mass_state.h"

namespace baton::cpu {
namespace {

constexpr int64_t kChunk = 512;  // keys per task; eight pages, and what select.cc slices by
// Weights from one head's part of a chunk to the next one's: rows 1 KiB apart would all fall into
// four sets of the first-level cache.
constexpr int64_t kWeightStride = kChunk + 32;
// Low-bit tiles: a page in so many stands for all in their log-sum-exp, but for the first and the
// latest ones, which hold most of what attention looks at.
constexpr int64_t kPageStep = 4;
constexpr int64_t kLatest = 128;
// 128 rather than 64: transposing a page costs as much as ten or so rows of dot products.
constexpr int64_t kTileRows = 128;

int64_t Groups(const MassParams& p, const MassParams::Segment& s) {
  return p.scope == MassScope::kAll     ? 1
         : p.scope == MassScope::kGroup ? s.kv.layout.kv_heads
                                        : p.q.dim(1);
}

int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of a head's copy of a page.
int64_t LowBitBytes(int64_t dim) {
  return kMassBlock / 16 * (dim / 32) * static_cast<int64_t>(sizeof(LowBitBlock));
}

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
        scale_(p.scale * kLog2E),
        low_bit_(p.source == MassParams::Source::kLowBit) {
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
        for (int64_t key = 0; key < s.rows.position + s.rows.count; key += kChunk) {
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

  // Packed queries lie in the order of a segment's KV heads, rows and heads of a KV head.
  std::byte* Packed(const MassParams::Segment& s, int64_t row, int64_t head) {
    const int64_t ratio = heads_ / s.kv.layout.kv_heads;
    const int64_t n = (head / ratio * s.rows.count + row) * ratio + head % ratio;
    return scratch_.tile_queries.data() + (s.rows.first * heads_ + n) * dim_ * 4;
  }

  // A row's queries, and its log-sum-exp where that is given.
  void Pack(const MassParams::Segment& s, int64_t row) {
    for (int64_t h = 0; h < heads_; ++h) {
      kernels_.pack_query(p_.q.row(s.rows.first + row, h), dim_, Form(s), Packed(s, row, h));
      if (!low_bit_) Lse(s.rows.first + row, h) = p_.lse.row(s.rows.first + row)[h] * kLog2E;
    }
  }

  // The queries of a KV head's rows [first, last); set_up(row, head, query) adds where a result
  // goes.
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
        query->visible = static_cast<int32_t>(std::min(s.rows.position + row + 1 - t.key, kChunk));
        set_up(row, h, *query);
      }
    }
  }

  // Calls body(keys) for each page of the chunk that some of the packed queries sees and `use(first
  // key)` wants, with the queries moved on to it.
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
    return std::min(t.key + kChunk, t.segment->rows.position + last);
  }

  void Stats(const TileTask& t, int rank) {
    const MassParams::Segment& s = *t.segment;
    MassScratch::Rank& r = scratch_.ranks[static_cast<size_t>(rank)];
    const int64_t latest = s.rows.position + t.first_row - kLatest;
    for (int64_t first = t.first_row; first < t.end_row; first += kTileRows) {
      const int64_t last = std::min(first + kTileRows, t.end_row);
      // Pages by what their sums count: one, or as much as makes up for the pages not looked at.
      const auto whole = [&](int64_t key) {
        return s.rows_per_set == 1 || key == 0 || key + kMassBlock > latest;
      };
      const auto sampled = [&](int64_t key) {
        return !whole(key) && key / kMassBlock % kPageStep == 0;
      };
      int64_t samples = 0, meant = 0;  // pages looked at, and those that they stand for
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

  // The chunks of each row, in ascending order.
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
    const int64_t groups = Groups(p_, s), kv_heads = s.kv.layout.kv_heads;
    const int64_t units = Ceil(t.end_row - t.first_row, s.rows_per_set) * groups;
    const bool max = p_.pool == Pool::kMax && groups < heads_;
    // A maximum over heads has to be complete before rows are added.
    const bool by_row = max && s.rows_per_set > 1;
    r.columns.assign(static_cast<size_t>(units * kChunk), 0.0f);
    for (int64_t first = t.first_row; first < t.end_row; first += kTileRows) {
      const int64_t last = std::min(first + kTileRows, t.end_row);
      const auto column = [&](int64_t row, int64_t group) {
        const int64_t set = (row - t.first_row) / s.rows_per_set;
        return r.columns.data() + (set * groups + group) * kChunk;
      };
      for (int64_t g = 0; g < kv_heads; ++g) {
        if (by_row && (g == 0 || p_.scope != MassScope::kAll)) {
          r.row_max.assign(static_cast<size_t>((last - first) * kChunk), 0.0f);
        }
        SetQueries(t, first, last, g, r, [&](int64_t row, int64_t head, MassQuery& q) {
          q.out = by_row ? r.row_max.data() + (row - first) * kChunk
                         : column(row, head * groups / heads_);
        });
        const auto all = [](int64_t) { return true; };
        ForEachPage(t, last, g, r, all, [&](const std::byte* keys) {
          kernels_.accumulate(keys, dim_, Form(s), scale_, r.queries.data(),
                              static_cast<int64_t>(r.queries.size()), max);
        });
        if (by_row && (g + 1 == kv_heads || p_.scope != MassScope::kAll)) {
          for (int64_t row = first; row < last; ++row) {
            float* to = column(row, p_.scope == MassScope::kAll ? 0 : g);
            const float* from = r.row_max.data() + (row - first) * kChunk;
            for (int64_t n = 0; n < kChunk; ++n) to[n] += from[n];
          }
        }
      }
    }
    const int64_t n = std::min(kChunk, s.rows.position + s.rows.count - t.key);
    for (int64_t u = 0; u < units; ++u) {
      std::copy_n(r.columns.data() + u * kChunk, n,
                  s.mass + (t.first_row / s.rows_per_set * groups + u) * s.mass_stride + t.key);
    }
  }

  const MassParams& p_;
  const MassKernels& kernels_;
  ThreadPool& threads_;
  MassScratch& scratch_;
  const int64_t heads_, dim_;
  const float scale_;
  const bool low_bit_;
};

void FromScores(const MassParams& p, const MassKernels& kernels, ThreadPool& threads) {
  struct Task {
    const MassParams::Segment* segment;
    int64_t set, key;
  };
  std::vector<Task> tasks;
  for (const auto& s : p.segments) {
    for (int64_t set = 0; set < Ceil(s.rows.count, s.rows_per_set); ++set) {
      for (int64_t key = 0; key < s.rows.position + s.rows.count; key += kChunk) {
        tasks.push_back({&s, set, key});
      }
    }
  }
  const int64_t heads = p.q.dim(1);
  threads.For(static_cast<int64_t>(tasks.size()), [&](int64_t i, int) {
    const Task& t = tasks[static_cast<size_t>(i)];
    const MassParams::Segment& s = *t.segment;
    const int64_t groups = Groups(p, s), per_group = heads / groups;
    const int64_t end = std::min(t.key + kChunk, s.rows.position + s.rows.count);
    const int64_t first = t.set * s.rows_per_set;
    const int64_t last = std::min(s.rows.count, first + s.rows_per_set);
    std::vector<float> lse(static_cast<size_t>(per_group));
    for (int64_t g = 0; g < groups; ++g) {
      float* mass = s.mass + (t.set * groups + g) * s.mass_stride;
      FetchToWrite(mass + t.key, end - t.key);
      for (int64_t row = first; row < last; ++row) {
        const int64_t n = std::max<int64_t>(0, std::min(end, s.rows.position + row + 1) - t.key);
        for (int64_t h = 0; h < per_group; ++h) {
          lse[static_cast<size_t>(h)] = p.lse.row(s.rows.first + row)[g * per_group + h] * kLog2E;
        }
        const float* scores = s.scores + (row * heads + g * per_group) * s.score_stride + t.key;
        kernels.pool_scores(scores, s.score_stride, lse.data(), per_group, n, p.pool == Pool::kMax,
                            row > first, mass + t.key);
        if (row == first) std::fill(mass + t.key + n, mass + end, 0.0f);
      }
    }
  });
}

// Scan layers' decode: every row is its own set.
class LowBitRows {
 public:
  LowBitRows(const MassParams& p, const LowBitKernels& kernels, ThreadPool& threads,
             MassScratch& scratch)
      : p_(p),
        kernels_(kernels),
        threads_(threads),
        scratch_(scratch),
        heads_(p.q.dim(1)),
        dim_(p.q.dim(2)) {}

  void Run(std::span<const MassParams::Segment> segments) {
    std::vector<Row> rows;
    int64_t chunks = 0;
    const auto flush = [&] {
      RunRows(rows, chunks);
      rows.clear();
      chunks = 0;
    };
    for (const auto& s : segments) {
      for (int64_t i = 0; i < s.rows.count; ++i) {
        Row row{.segment = &s, .row = i, .keys = s.rows.position + i + 1};
        row.chunks = Ceil(row.keys, kChunk);
        row.first_head = static_cast<int64_t>(rows.size()) * heads_;
        row.first_chunk = chunks;
        chunks += row.chunks;
        rows.push_back(row);
        // Bounds scratch when a profile sends hundreds of rows.
        if (chunks * heads_ * kWeightStride > int64_t{8} << 20) flush();
      }
    }
    if (!rows.empty()) flush();
  }

 private:
  struct Row {
    const MassParams::Segment* segment = nullptr;
    int64_t row = 0, keys = 0, chunks = 0;
    int64_t first_head = 0;   // [Hq] queries, starts, factors
    int64_t first_chunk = 0;  // [chunks][Hq] weights, [chunks][chunk_heads_] sums
  };
  struct Task {
    const Row* row;
    int64_t chunk;
  };

  void RunRows(const std::vector<Row>& rows, int64_t chunks) {
    const int64_t weight_bytes = chunks * heads_ * kWeightStride * 2;
    if (scratch_.weights.size() < weight_bytes) {
      scratch_.weights = Buffer::AllocateOrDie(weight_bytes);
    }
    const size_t all_heads = rows.size() * static_cast<size_t>(heads_);
    scratch_.sums.resize(static_cast<size_t>(chunks * chunk_heads_));
    scratch_.starts.resize(all_heads);
    scratch_.factors.resize(all_heads);
    scratch_.low_bit_queries.resize(all_heads * static_cast<size_t>(query_bytes_));
    std::vector<Task> tasks;
    for (const Row& r : rows) {
      PackQueries(r);
      for (int64_t c = 0; c < r.chunks; ++c) tasks.push_back({&r, c});
    }
    const auto count = static_cast<int64_t>(tasks.size());
    threads_.For(count, [&](int64_t i, int) {
      const Task& t = tasks[static_cast<size_t>(i)];
      Weigh(*t.row, t.chunk);
    });
    for (const Row& r : rows) Normalise(r);
    threads_.For(count, [&](int64_t i, int) {
      const Task& t = tasks[static_cast<size_t>(i)];
      PoolChunk(*t.row, t.chunk);
    });
  }

  std::byte* QueryOf(const Row& r, int64_t head) {
    return scratch_.low_bit_queries.data() + (r.first_head + head) * query_bytes_;
  }
  uint16_t* Weights(const Row& r, int64_t chunk, int64_t head) {
    return scratch_.weights.as<uint16_t>() +
           ((r.first_chunk + chunk) * heads_ + head) * kWeightStride;
  }
  float* Sums(const Row& r, int64_t chunk) {
    return scratch_.sums.data() + (r.first_chunk + chunk) * chunk_heads_;
  }
  float* Starts(const Row& r) { return scratch_.starts.data() + r.first_head; }
  float* Factors(const Row& r) { return scratch_.factors.data() + r.first_head; }

  void PackQueries(const Row& r) {
    const KvView& kv = r.segment->kv;
    const int64_t ratio = heads_ / kv.layout.kv_heads;
    for (int64_t h = 0; h < heads_; ++h) {
      kernels_.pack(p_.q.row(r.segment->rows.first + r.row, h), dim_,
                    p_.scale * kLog2E * kWeightUnit, QueryOf(r, h));
    }
    for (int g = 0; g < kv.layout.kv_heads; ++g) {
      kernels_.starts(kv, r.keys, g, QueryOf(r, g * ratio), ratio, Starts(r) + g * ratio);
    }
  }

  void Weigh(const Row& r, int64_t chunk) {
    const KvView& kv = r.segment->kv;
    const int64_t ratio = heads_ / kv.layout.kv_heads;
    const int64_t key = chunk * kChunk, n = std::min(kChunk, r.keys - key);
    // Where PoolChunk will write, which the thread that chose from the last layer's has read.
    const int64_t groups = Groups(p_, *r.segment);
    for (int64_t g = 0; g < groups; ++g)
      FetchToWrite(r.segment->mass + (r.row * groups + g) * r.segment->mass_stride + key, n);
    uint16_t* weights = Weights(r, chunk, 0);
    const int kv_heads = kv.layout.kv_heads;
    // Page by page: the copies of all heads, and of consecutive pages, lie side by side.
    for (int64_t i = 0; i < n; i += kMassBlock) {
      for (int g = 0; g < kv_heads; ++g) {
        const int64_t head = g + heads_ahead_, page = key + i + head / kv_heads * kMassBlock;
        const LowBitBlock* next =
            page < kv.length ? kv.low_bit(page, static_cast<int>(head % kv_heads), 0) : nullptr;
        kernels_.page(kv.low_bit(key + i, g, 0), next, dim_, QueryOf(r, g * ratio),
                      Starts(r) + g * ratio, ratio, n - i, weights + g * ratio * kWeightStride + i,
                      kWeightStride);
      }
    }
    for (int64_t h = 0; h < heads_; ++h)
      Sums(r, chunk)[h] = kernels_.sum(weights + h * kWeightStride, n);
  }

  // What turns weights into shares. A query that is not a number has to reach them.
  void Normalise(const Row& r) {
    for (int64_t h = 0; h < heads_; ++h) {
      float sum = 0;
      for (int64_t c = 0; c < r.chunks; ++c) sum += Sums(r, c)[h];
      Factors(r)[h] = LowBitQuery::Finite(QueryOf(r, h), dim_) ? 1 / sum : NAN;
    }
  }

  void PoolChunk(const Row& r, int64_t chunk) {
    const MassParams::Segment& s = *r.segment;
    const int64_t groups = Groups(p_, s), per_group = heads_ / groups;
    const int64_t key = chunk * kChunk, n = std::min(kChunk, r.keys - key);
    for (int64_t g = 0; g < groups; ++g) {
      float* mass = s.mass + (r.row * groups + g) * s.mass_stride;
      kernels_.pool(Weights(r, chunk, g * per_group), kWeightStride, Factors(r) + g * per_group,
                    per_group, n, p_.pool == Pool::kMax, mass + key);
      if (chunk + 1 == r.chunks) {
        std::fill(mass + r.keys, mass + s.rows.position + s.rows.count, 0.0f);
      }
    }
  }

  const MassParams& p_;
  const LowBitKernels& kernels_;
  ThreadPool& threads_;
  MassScratch& scratch_;
  const int64_t heads_, dim_;
  // What is kept of a chunk is by head, so that threads that work on different chunks share no
  // line.
  const int64_t chunk_heads_ = Ceil(heads_, 16) * 16;
  const int64_t query_bytes_ = LowBitQuery::Bytes(dim_);
  // How many heads' copies of a page lie between a use and its being asked for.
  const int64_t heads_ahead_ = Ceil(kernels_.read_ahead, LowBitBytes(dim_));
};

}  // namespace

void CpuOps::DoMass(const MassParams& p) {
  if (!mass_) mass_ = std::make_shared<MassState>();
  MassScratch& scratch = mass_->mass;
  scratch.ranks.resize(static_cast<size_t>(threads_.threads()));
  const MassKernels& plain = portable::GetMassKernels();
  const MassKernels& fast = isa_ == CpuIsa::kAmx      ? amx::GetMassKernels()
                            : isa_ == CpuIsa::kAvx512 ? avx512::GetMassKernels()
                            : isa_ == CpuIsa::kAvx2   ? avx2::GetMassKernels()
                                                      : plain;
  if (p.source == MassParams::Source::kScores) return FromScores(p, fast, threads_);
  // Segments of one call share a layer, hence a layout; but a set with one row and one with many
  // take different ways.
  for (size_t begin = 0, end; begin < p.segments.size(); begin = end) {
    const bool single = p.segments[begin].rows_per_set == 1;
    for (end = begin + 1;
         end < p.segments.size() && (p.segments[end].rows_per_set == 1) == single;) {
      ++end;
    }
    const auto segments = p.segments.subspan(begin, end - begin);
    const bool low_bit = p.source == MassParams::Source::kLowBit;
    if (isa_ != CpuIsa::kPortable && low_bit && single) {
      const LowBitKernels& rows =
          isa_ >= CpuIsa::kAvx512 ? avx512::GetLowBitKernels() : avx2::GetLowBitKernels();
      LowBitRows(p, rows, threads_, scratch).Run(segments);
      continue;
    }
    const bool knows = low_bit || segments[0].kv.layout.dtype == DType::kBF16;
    Tiles(p, knows ? fast : plain, threads_, scratch).Run(segments);
  }
}

}  // namespace baton::cpu
