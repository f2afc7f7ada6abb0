// Mass: which kernels a call takes, in pieces whose scratch memory is bounded.
#include "kernels/cuda/mass.cuh"

#include <vector>

#include "kernels/cuda/attention_kernels.h"

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

// Collects sets, whole or in parts, until their scores or weights fill the scratch memory, and
// launches what ranks them.
class Pieces {
 public:
  Pieces(Recorder& recorder, Scratch& scratch, const MassParams& p)
      : recorder_(recorder), scratch_(scratch), p_(p) {
    const Segment& any = p.segments[0];
    call_ = {.q = p.q.data(),
             .lse = p.lse.empty() ? nullptr : p.lse.data(),
             .scale = p.scale,
             .heads = static_cast<int32_t>(p.q.dim(1)),
             .kv_heads = any.kv.layout.kv_heads,
             .dim = static_cast<int32_t>(p.q.dim(2)),
             .max = p.pool == Pool::kMax,
             .block = static_cast<int32_t>(p.block)};
    call_.groups = p.scope == MassScope::kAll     ? 1
                   : p.scope == MassScope::kGroup ? call_.kv_heads
                                                  : call_.heads;
  }

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
      segments_.push_back({.kv = KvAccess(s.kv),
                           .first = s.rows.first,
                           .position = s.rows.position,
                           .scores = s.scores,
                           .score_stride = s.score_stride,
                           .mass = s.mass,
                           .mass_stride = s.mass_stride,
                           .rows_per_set = s.rows_per_set,
                           .keys = keys});
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
      LaunchPoolScores(recorder_, call_, std::ssize(units_), keys_,
                       p_.score == MassParams::Score::kLogProbability);
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
    std::vector<AttendSegment> segments;
    std::vector<AttendRow> rows;
    std::vector<RowSplit> splits;
    for (size_t i = 0; i < units_.size(); ++i) {
      const MassUnit& unit = units_[i];
      MassSegment& of = segments_[i];
      of.scores = scores, of.score_stride = keys_, of.scores_row = unit.row;
      segments.push_back({.kv = of.kv,
                          .first = of.first + unit.row,
                          .position = of.position + unit.row,
                          .scores = scores,
                          .score_stride = keys_});
      scores += unit.rows * call_.heads * keys_;
      for (int32_t row = 0; row < unit.rows; ++row) {
        const auto index = static_cast<int32_t>(rows.size());
        rows.push_back({.segment = static_cast<int32_t>(i), .row = row});
        const int count = MostSplits(RoundedUp(of.keys), call_.kv_heads);
        for (int32_t split = 0; split < count; ++split) splits.push_back({index, split});
      }
    }
    const AttendCall call{.q = call_.q,
                          .segments = TableOf(recorder_, segments),
                          .rows = TableOf(recorder_, rows),
                          .scale = call_.scale,
                          .heads = call_.heads,
                          .kv_heads = call_.kv_heads,
                          .dim = call_.dim};
    LaunchRows(recorder_, call, segments[0].kv.dtype, {TableOf(recorder_, splits), std::ssize(splits)},
               false);
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
  Pieces pieces(recorder, scratch, p);
  for (const Segment& s : p.segments) pieces.Add(s);
  pieces.Launch();
}

}  // namespace baton::cuda
