// Computes sets in parallel, one thread each; if they are few and long, one after another, each by
// all threads, slice by slice. A slice's masses were then written by the same thread, since mass.cc
// divides its chunks in the same order. The result is exact, so it does not depend on the method.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/mass_kernels.h"
#include "kernels/cpu/mass_state.h"
#include "kernels/cpu/select_kernels.h"

namespace baton::cpu {
namespace {

// Sums add in ascending order, each block from zero: the sums are the reference's to the last bit.
const float* UnitMass(const SelectParams& p, const float* mass, int64_t visible,
                      SelectScratch& scratch) {
  const int64_t block = p.block;
  if (block == 1) return mass;
  scratch.unit_mass.resize(static_cast<size_t>((visible + block - 1) / block));
  if (p.block_score == SelectParams::BlockScore::kMax) {
    portable::MaxOfBlocks(mass, visible, block, scratch.unit_mass.data());
    return scratch.unit_mass.data();
  }
  int64_t n = 0;
  for (float& unit : scratch.unit_mass) {
    float sum = 0;
    for (const int64_t end = std::min(visible, n + block); n < end; ++n) sum += mass[n];
    unit = sum;
  }
  return scratch.unit_mass.data();
}

constexpr int64_t kManyUnits = 4096;        // from here on a sample pays
constexpr int64_t kUnitsForTeam = 1 << 15;  // from here on several threads pay
constexpr int64_t kSlices = 16, kLeastSlice = 512;

// `take` of n units, at most all: those below forced_low and from forced_high on first (in
// ascending order when they are more than `take`), then the heaviest, the lower position on equal
// mass.
struct Choice {
  const float* mass = nullptr;  // [n]
  int64_t n = 0, take = 0, forced_low = 0, forced_high = 0;
};

class Chooser {
 public:
  // team: the threads that share the work, or null.
  Chooser(const Choice& c, SelectScratch& scratch, ThreadPool* team)
      : mass_(c.mass),
        n_(c.n),
        low_(std::min(c.take, c.forced_low)),
        forced_low_(c.forced_low),
        forced_high_(std::max(c.forced_low, c.forced_high)),
        scratch_(scratch),
        team_(team) {
    high_ = std::min(c.take - low_, n_ - forced_high_);
    need_ = c.take - low_ - high_;
    slice_ = n_;
    if (team) {
      slice_ = std::max(kLeastSlice, (n_ / kSlices + kLeastSlice - 1) / kLeastSlice * kLeastSlice);
    }
    slices_ = n_ == 0 ? 0 : (n_ + slice_ - 1) / slice_;
  }

  // Writes the positions, ascending, to scratch.units and returns how many there are, c.take, or -1
  // if a mass is NaN.
  int64_t Run() {
    const auto is_nan = [](float m) { return std::isnan(m); };
    if (std::any_of(mass_, mass_ + forced_low_, is_nan) ||
        std::any_of(mass_ + forced_high_, mass_ + n_, is_nan))
      return -1;
    int64_t found = Collect(need_ == 0 ? kNoKey : Bound());
    if (found >= 0 && found < need_) found = Collect(kEveryKey);  // the sample's bound was too high
    if (found < 0) return -1;
    scratch_.units.resize(static_cast<size_t>(low_ + need_ + high_ + kKeysAtOnce));
    int32_t* out = scratch_.units.data();
    int64_t count = 0;
    for (; count < low_; ++count) out[count] = static_cast<int32_t>(count);
    count += portable::TakeLargest({scratch_.keys.data(), scratch_.positions.data(), found}, need_,
                                   out + count, scratch_.list);
    for (int64_t i = 0; i < high_; ++i) out[count++] = static_cast<int32_t>(forced_high_ + i);
    return count;
  }

  // The same without using the mass: the forced units and the lowest others.
  int64_t Lowest() {
    const int64_t low = low_ + need_;
    scratch_.units.resize(static_cast<size_t>(low + high_));
    std::iota(scratch_.units.begin(), scratch_.units.begin() + low, 0);
    std::iota(scratch_.units.begin() + low, scratch_.units.end(),
              static_cast<int32_t>(forced_high_));
    return low + high_;
  }

 private:
  // Calls body(slice, first unit, end) for the units between the forced ones.
  template <typename F>
  void ForEachSlice(F&& body) {
    const auto one = [&](int64_t i, int = 0) {
      const int64_t first = std::max(i * slice_, forced_low_);
      const int64_t end = std::min((i + 1) * slice_, forced_high_);
      body(i, first, std::max(first, end));
    };
    if (team_) {
      team_->For(slices_, one);
    } else {
      for (int64_t i = 0; i < slices_; ++i) one(i);
    }
  }

  // The bound of the keys to collect.
  int32_t Bound() {
    const int64_t middle = forced_high_ - forced_low_;
    if (need_ >= middle || middle < kManyUnits) return kEveryKey;
    float sample[kSample];
    const auto at = [&](int64_t i) { return forced_low_ + i * middle / kSample; };
    ForEachSlice([&](int64_t, int64_t first, int64_t end) {
      for (int64_t i = ((first - forced_low_) * kSample + middle - 1) / middle;
           i < kSample && at(i) < end; ++i)
        sample[i] = mass_[at(i)];
    });
    return portable::LikelyBound(sample, need_, middle, scratch_.list);
  }

  // Collects the keys at or above the bound; returns how many, or -1 if a mass is NaN.
  int64_t Collect(int32_t bound) {
    const int64_t room = slice_ + kKeysAtOnce;
    const auto size = static_cast<size_t>(slices_ * room);
    if (scratch_.keys.size() < size) scratch_.keys.resize(size), scratch_.positions.resize(size);
    scratch_.counts.resize(static_cast<size_t>(slices_));
    int32_t* keys = scratch_.keys.data();
    int32_t* positions = scratch_.positions.data();
    ForEachSlice([&](int64_t i, int64_t first, int64_t end) {
      scratch_.counts[static_cast<size_t>(i)].keys = portable::KeysAbove(
          {mass_ + first, end - first, first}, bound, keys + i * room, positions + i * room);
    });
    int64_t found = 0;
    for (int64_t i = 0; i < slices_; ++i) {
      const int64_t count = scratch_.counts[static_cast<size_t>(i)].keys;
      if (count < 0) return -1;
      if (found != i * room) {
        std::copy_n(keys + i * room, count, keys + found);
        std::copy_n(positions + i * room, count, positions + found);
      }
      found += count;
    }
    return found;
  }

  const float* mass_;
  const int64_t n_, low_, forced_low_, forced_high_;
  SelectScratch& scratch_;
  ThreadPool* team_;
  int64_t high_ = 0, need_ = 0;  // forced units from forced_high on; units to choose by mass
  int64_t slice_ = 0, slices_ = 0;
};

// False if a mass is NaN; the list is valid either way.
bool SelectSet(const SelectParams& p, const SelectParams::Segment& s, int64_t set, int64_t group,
               SelectScratch& scratch, ThreadPool* team) {
  const auto at = static_cast<size_t>(set);
  const int64_t visible = s.visible[at], recent = std::clamp<int64_t>(s.recent[at], 0, visible);
  const int64_t units = (visible + p.block - 1) / p.block;
  const bool none = s.k[at] == 0 && p.sink <= 0 && recent == 0;
  const int64_t take = none ? 0 : std::min(units, std::max<int64_t>(1, s.k[at] / p.block));
  const int64_t forced_low = std::min(units, (std::min(p.sink, visible) + p.block - 1) / p.block);
  const int64_t forced_high = recent == 0 ? units : (visible - recent) / p.block;
  const float* mass = s.mass + (set * p.groups + group) * s.mass_stride;
  const Choice choice{.mass = UnitMass(p, mass, visible, scratch),
                      .n = units,
                      .take = take,
                      .forced_low = forced_low,
                      .forced_high = forced_high};
  Chooser chooser(choice, scratch, team);
  int64_t count = chooser.Run();
  const bool good = count >= 0;
  if (!good) count = chooser.Lowest();
  int32_t* list = s.out->list(set, group);
  if (p.block == 1) {
    BATON_CHECK_LE(count, s.out->capacity);
    std::copy_n(scratch.units.data(), count, list);
    s.out->count(set, group) = static_cast<int32_t>(count);
    return good;
  }
  int64_t tokens = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = scratch.units[static_cast<size_t>(i)] * p.block;
    const int64_t end = std::min(visible, first + p.block);
    BATON_CHECK_LE(tokens + end - first, s.out->capacity);
    for (int64_t n = first; n < end; ++n) list[tokens++] = static_cast<int32_t>(n);
  }
  s.out->count(set, group) = static_cast<int32_t>(tokens);
  return good;
}

int64_t FirstNan(const SelectParams& p, const SelectParams::Segment& s, int64_t set,
                 int64_t group) {
  const float* mass = s.mass + (set * p.groups + group) * s.mass_stride;
  int64_t n = 0;
  while (n + 1 < s.visible[static_cast<size_t>(set)] && !std::isnan(mass[n])) ++n;
  return n;
}

}  // namespace

void CpuOps::DoSelect(const SelectParams& p) {
  if (!mass_) mass_ = std::make_shared<MassState>();
  std::vector<SelectScratch>& scratch = mass_->select;
  scratch.resize(static_cast<size_t>(threads_.threads()));
  struct Task {
    const SelectParams::Segment* segment;
    int64_t set, group;
    bool good = true;
  };
  std::vector<Task> tasks;
  for (const auto& s : p.segments) {
    for (int64_t set = 0; set < s.sets; ++set) {
      for (int64_t group = 0; group < p.groups; ++group) tasks.push_back({&s, set, group, true});
    }
  }
  const auto count = static_cast<int64_t>(tasks.size());
  const auto select = [&](int64_t i, int rank, ThreadPool* team) {
    Task& t = tasks[static_cast<size_t>(i)];
    t.good = SelectSet(p, *t.segment, t.set, t.group, scratch[static_cast<size_t>(rank)], team);
  };
  const bool long_ones = std::any_of(tasks.begin(), tasks.end(), [&](const Task& t) {
    return t.segment->visible[static_cast<size_t>(t.set)] / p.block >= kUnitsForTeam;
  });
  if (long_ones && count < threads_.threads()) {
    for (int64_t i = 0; i < count; ++i) select(i, 0, &threads_);
  } else {
    threads_.For(count, [&](int64_t i, int rank) { select(i, rank, nullptr); });
  }
  const SelectParams::Segment* reported = nullptr;  // tasks are in the order of segments
  for (const Task& t : tasks) {
    if (t.good || t.segment->bad_position == nullptr) continue;
    const int64_t n = FirstNan(p, *t.segment, t.set, t.group);
    int64_t& bad = *t.segment->bad_position;
    bad = reported == t.segment ? std::min(bad, n) : n;
    reported = t.segment;
  }
}

}  // namespace baton::cpu
