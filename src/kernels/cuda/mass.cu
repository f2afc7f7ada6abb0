// Mass: the kernels of a call, launched in pieces whose scratch memory is bounded.
#include <vector>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/mass.cuh"

namespace baton::cuda {
namespace {

using Segment = MassParams::Segment;
using Source = MassParams::Source;

constexpr int64_t kMostScratch = int64_t{512} << 20;

int64_t RoundedUp(int64_t n) {
  int64_t power = 256;
  while (power < n) power *= 2;
  return power;
}

MassCall CallOf(const MassParams& p) {
  MassCall call{.q = p.q.data(),
                .lse = p.lse.empty() ? nullptr : p.lse.data(),
                .scale = p.scale,
                .heads = static_cast<int32_t>(p.q.dim(1)),
                .kv_heads = p.segments[0].kv.layout.kv_heads,
                .dim = static_cast<int32_t>(p.q.dim(2)),
                .max = p.pool == Pool::kMax,
                .block = static_cast<int32_t>(p.block)};
  call.groups = p.scope == MassScope::kAll     ? 1
                : p.scope == MassScope::kGroup ? call.kv_heads
                                               : call.heads;
  return call;
}

MassSegment SegmentOf(const Segment& s) {
  return {.kv = KvAccess(s.kv),
          .first = s.rows.first,
          .position = s.rows.position,
          .scores = s.scores,
          .score_stride = s.score_stride,
          .mass = s.mass,
          .mass_stride = s.mass_stride,
          .rows_per_set = s.rows_per_set,
          .keys = s.rows.position + s.rows.count};
}

// Sets of many rows; each launch takes as many as its scratch memory allows.
class Tiles {
 public:
  Tiles(Recorder& recorder, Scratch& scratch, const MassParams& p)
      : recorder_(recorder), scratch_(scratch), p_(p), call_(CallOf(p)) {}

  static bool Takes(const MassParams& p, const Segment& s) {
    constexpr int64_t kLeastRows = 16;
    const bool low_bit = p.source == Source::kLowBit;
    return p.score == MassParams::Score::kProbability && p.source != Source::kScores &&
           std::min(s.rows_per_set, s.rows.count) >= kLeastRows &&
           HasMassTiles(s.kv.layout.dtype, low_bit, p.q.dim(2));
  }

  void Add(const Segment& s) {
    constexpr int64_t kMostUnits = 65535;  // of a grid
    const int64_t keys = std::max(keys_, RoundedUp(s.rows.position + s.rows.count));
    segments_.push_back(SegmentOf(s));
    cache_ = s.kv.layout.dtype;
    for (int64_t row = 0; row < s.rows.count; row += s.rows_per_set) {
      const int64_t rows = std::min(s.rows.count - row, s.rows_per_set);
      if ((rows_ + rows) * BytesOfRow(keys) > kMostScratch || std::ssize(units_) == kMostUnits)
        Launch();
      keys_ = keys, rows_ += rows;
      units_.push_back({.segment = static_cast<int32_t>(segments_.size() - 1),
                        .row = static_cast<int32_t>(row),
                        .rows = static_cast<int32_t>(rows)});
    }
  }

  void Launch() {
    if (units_.empty()) return;
    call_.segments = TableOf(recorder_, segments_);
    call_.units = TableOf(recorder_, units_);
    const int64_t q_bytes = (p_.q.size() * 2 + 255) / 256 * 256;
    auto* memory = scratch_.Get<std::byte>(Scratch::kMass, q_bytes + rows_ * BytesOfRow(keys_));
    const MassTileMemory at{.q = reinterpret_cast<__nv_bfloat16*>(memory),
                            .low_bit = memory + q_bytes};
    RoundQueries(recorder_, call_.q, at.q, p_.q.size());
    LaunchMassTiles(recorder_, at, call_, cache_, p_.source == Source::kLowBit, units_, keys_);
    units_.clear();
    rows_ = 0;
  }

 private:
  int64_t BytesOfRow(int64_t keys) const {
    return p_.source == Source::kLowBit ? MassTileBytes(call_.heads, keys) : 0;
  }

  Recorder& recorder_;
  Scratch& scratch_;
  const MassParams& p_;
  MassCall call_;
  DType cache_ = DType::kBF16;
  std::vector<MassUnit> units_;
  std::vector<MassSegment> segments_;
  int64_t rows_ = 0, keys_ = 0;  // of all units; most keys, in coarse steps
};

// Collects sets, whole or in parts, until their scores or weights fill the scratch memory, then
// launches the kernels that rank them.
class Pieces {
 public:
  Pieces(Recorder& recorder, Scratch& scratch, const MassParams& p)
      : recorder_(recorder), scratch_(scratch), p_(p), call_(CallOf(p)) {}

  void Add(const Segment& s) {
    const int64_t keys = s.rows.position + s.rows.count;
    for (int64_t row = 0; row < s.rows.count;) {
      const int64_t in_set = row % s.rows_per_set;
      const int64_t left = std::min(s.rows.count - row, s.rows_per_set - in_set);
      const int64_t most = std::max(keys_, RoundedUp(keys));
      const int64_t fit = kMostScratch / std::max<int64_t>(1, BytesOfRow(most)) - rows_;
      if (fit < left && rows_ > 0) {
        Launch();
        continue;
      }
      const int64_t rows = std::clamp<int64_t>(fit, 1, left);
      keys_ = most, rows_ += rows;
      units_.push_back({.segment = static_cast<int32_t>(segments_.size()),
                        .row = static_cast<int32_t>(row),
                        .rows = static_cast<int32_t>(rows),
                        .add = in_set > 0});
      segments_.push_back(SegmentOf(s));
      row += rows;
      if (rows < left) Launch();
    }
  }

  void Launch() {
    if (units_.empty()) return;
    if (p_.source == Source::kExact) Score();
    call_.segments = TableOf(recorder_, segments_);
    call_.units = TableOf(recorder_, units_);
    if (p_.source == Source::kLowBit) {
      LaunchLowBit(recorder_, call_, units_, rows_, keys_,
                   scratch_.Get<std::byte>(Scratch::kMass, rows_ * BytesOfRow(keys_)));
    } else {
      const bool fours = std::ranges::all_of(segments_, [](const MassSegment& s) {
        return s.score_stride % 4 == 0 && reinterpret_cast<uintptr_t>(s.scores) % 16 == 0;
      });
      LaunchPoolScores(recorder_, call_, std::ssize(units_), keys_,
                       p_.score == MassParams::Score::kLogProbability, fours);
    }
    units_.clear(), segments_.clear();
    rows_ = keys_ = 0;
  }

 private:
  int64_t BytesOfRow(int64_t keys) const {
    if (p_.source == Source::kScores) return 0;
    return p_.source == Source::kLowBit ? LowBitScratchBytes(call_.heads, keys)
                                        : call_.heads * keys * 4;
  }

  // Scores of all rows of all units, as Attend writes them.
  void Score() {
    auto* scores = scratch_.Get<float>(Scratch::kMass, rows_ * call_.heads * keys_);
    AttendCall call{.q = call_.q,
                    .scale = call_.scale,
                    .heads = call_.heads,
                    .kv_heads = call_.kv_heads,
                    .dim = call_.dim};
    const DType cache = segments_[0].kv.dtype;
    SetUnits(call, call_.dim * BytesOf(cache, 1));
    std::vector<AttendRows> rows;
    for (size_t i = 0; i < units_.size(); ++i) {
      const MassUnit& unit = units_[i];
      MassSegment& of = segments_[i];
      of.scores = scores, of.score_stride = keys_, of.scores_row = unit.row;
      for (int32_t row = 0; row < unit.rows; ++row) {
        rows.push_back({.kv = of.kv,
                        .first = of.first + unit.row + row,
                        .position = of.position + unit.row + row,
                        .scores = scores,
                        .score_stride = keys_});
        scores += call_.heads * keys_;
      }
    }
    call.rows = TableOf(recorder_, rows);
    const int splits = MostSplits(keys_, call);
    LaunchRows(recorder_, call, cache,
               {.count = static_cast<int32_t>(splits * std::ssize(rows)), .splits = splits}, false);
  }

  Recorder& recorder_;
  Scratch& scratch_;
  const MassParams& p_;
  MassCall call_;
  std::vector<MassUnit> units_;
  std::vector<MassSegment> segments_;  // one per unit
  int64_t rows_ = 0, keys_ = 0;        // of all units; most keys, in coarse steps
};

}  // namespace

void Mass(Recorder& recorder, Scratch& scratch, const MassParams& p) {
  if (p.segments.empty()) return;
  Tiles tiles(recorder, scratch, p);
  Pieces pieces(recorder, scratch, p);
  for (const Segment& s : p.segments) {
    if (s.rows.count > 0) Tiles::Takes(p, s) ? tiles.Add(s) : pieces.Add(s);
  }
  tiles.Launch();
  pieces.Launch();
}

}  // namespace baton::cuda
