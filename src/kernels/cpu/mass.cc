// How much attention each key receives, computed in one of two ways:
//
// Tiles (rows against packed pages): mass_tiles.cc.
//
// Rows (decode of scan layers): the 4-bit copy of K is read once with int8 dot products. For each
// score a 16-bit weight, close to its exponential, is written to scratch; a second pass over
// scratch scales and pools the weights.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/fetch.h"
#include "kernels/cpu/mass_parts.h"

namespace baton::cpu {
namespace {

// From one head's weights of a chunk to the next one's: rows 1 KiB apart would all map to four sets
// of the first-level cache.
constexpr int64_t kWeightStride = kMassChunk + 32;
// Bytes of a head's copy of a page.
int64_t LowBitBytes(int64_t dim) {
  return kMassBlock / 16 * (dim / 32) * static_cast<int64_t>(sizeof(LowBitBlock));
}

void FromScores(const MassParams& p, const MassKernels& kernels, ThreadPool& threads) {
  struct Task {
    const MassParams::Segment* segment;
    int64_t set, key;
  };
  std::vector<Task> tasks;
  for (const auto& s : p.segments) {
    for (int64_t set = 0; set < CeilDiv(s.rows.count, s.rows_per_set); ++set) {
      for (int64_t key = 0; key < s.rows.position + s.rows.count; key += kMassChunk) {
        tasks.push_back({&s, set, key});
      }
    }
  }
  const int64_t heads = p.q.dim(1);
  threads.For(static_cast<int64_t>(tasks.size()), [&](int64_t i, int) {
    const Task& t = tasks[static_cast<size_t>(i)];
    const MassParams::Segment& s = *t.segment;
    const int64_t groups = MassGroups(p, s), per_group = heads / groups;
    const int64_t end = std::min(t.key + kMassChunk, s.rows.position + s.rows.count);
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
        row.chunks = CeilDiv(row.keys, kMassChunk);
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
    const int64_t key = chunk * kMassChunk, n = std::min(kMassChunk, r.keys - key);
    // Prefetch what PoolChunk will write: the thread that selected from the previous layer's masses
    // was the last to read these lines.
    const int64_t groups = MassGroups(p_, *r.segment);
    for (int64_t g = 0; g < groups; ++g)
      FetchToWrite(r.segment->mass + (r.row * groups + g) * r.segment->mass_stride + key, n);
    uint16_t* weights = Weights(r, chunk, 0);
    const int kv_heads = kv.layout.kv_heads;
    // Page by page: the copies of all heads, and of consecutive pages, are adjacent.
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

  // Computes the factors that turn weights into shares. A NaN in a query must reach them.
  void Normalise(const Row& r) {
    for (int64_t h = 0; h < heads_; ++h) {
      float sum = 0;
      for (int64_t c = 0; c < r.chunks; ++c) sum += Sums(r, c)[h];
      Factors(r)[h] = LowBitQuery::Finite(QueryOf(r, h), dim_) ? 1 / sum : NAN;
    }
  }

  void PoolChunk(const Row& r, int64_t chunk) {
    const MassParams::Segment& s = *r.segment;
    const int64_t groups = MassGroups(p_, s), per_group = heads_ / groups;
    const int64_t key = chunk * kMassChunk, n = std::min(kMassChunk, r.keys - key);
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
  // Each chunk's sums are padded to 16 heads, a cache line, so that threads that work on different
  // chunks share no line.
  const int64_t chunk_heads_ = CeilDiv(heads_, 16) * 16;
  const int64_t query_bytes_ = LowBitQuery::Bytes(dim_);
  // The distance between a prefetch and its use, in heads' copies of a page.
  const int64_t heads_ahead_ = CeilDiv(kernels_.read_ahead, LowBitBytes(dim_));
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
  if (p.score == MassParams::Score::kLogProbability) {
    if (p.source == MassParams::Source::kScores) return LogMassFromScores(p, threads_);
    if (p.segments.empty()) return;
    const MassKernels& known = p.segments[0].kv.layout.dtype == DType::kBF16 ? fast : plain;
    if (p.pool == Pool::kSum) return LogMassSummed(p, known, threads_, scratch);
    return MassByTiles(p, p.segments, known, threads_, scratch);
  }
  if (p.source == MassParams::Source::kScores) return FromScores(p, fast, threads_);
  // Segments of one call share a layer, hence a layout; but sets of one row and sets of many rows
  // are computed in different ways.
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
    MassByTiles(p, segments, knows ? fast : plain, threads_, scratch);
  }
}

}  // namespace baton::cpu
