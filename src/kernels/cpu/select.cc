// Several sets: each by one thread. Fewer sets than threads: each by the whole team, slice by
// slice, where a slice's masses are those that the same thread has just written (mass.cc hands out
// its chunks in the same order). The answer is exact, so neither way shows in it.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/mass_state.h"
#include "kernels/cpu/select_kernels.h"

namespace baton::cpu {
namespace {

// Adds in ascending order, each block from zero: the sums are the reference's to the last bit.
const float* UnitMass(const float* mass, int64_t visible, int64_t block, SelectScratch& scratch) {
  if (block == 1) return mass;
  scratch.unit_mass.resize(static_cast<size_t>((visible + block - 1) / block));
  int64_t n = 0;
  for (float& unit : scratch.unit_mass) {
    float sum = 0;
    for (const int64_t end = std::min(visible, n + block); n < end; ++n) sum += mass[n];
    unit = sum;
  }
  return scratch.unit_mass.data();
}

constexpr int64_t kManyUnits = 4096;        // where a sample pays
constexpr int64_t kUnitsForTeam = 1 << 15;  // where a team does
constexpr int64_t kSample = 512;
constexpr int64_t kSlices = 16, kLeastSlice = 512;

// The positions of `take` of units [0, n), in scratch.units: those below forced_low and from
// forced_high on first (in ascending order when they are more than `take`), then the heaviest, the
// lower position on equal mass. Returns how many there are, min(take, n), or -1 if a mass is NaN.
// team: null, or who does it.
int64_t SelectUnits(const float* mass, int64_t n, int64_t take, int64_t forced_low,
                    int64_t forced_high, SelectScratch& scratch, ThreadPool* team) {
  take = std::min(take, n);
  forced_high = std::max(forced_low, forced_high);
  const int64_t low = std::min(take, forced_low);
  const int64_t high = std::min(take - low, n - forced_high);
  const int64_t need = take - low - high, middle = forced_high - forced_low;
  const auto is_nan = [](float m) { return std::isnan(m); };
  if (std::any_of(mass, mass + forced_low, is_nan) ||
      std::any_of(mass + forced_high, mass + n, is_nan))
    return -1;

  if (n < kUnitsForTeam) team = nullptr;
  const int64_t slice =
      team ? std::max(kLeastSlice, (n / kSlices + kLeastSlice - 1) / kLeastSlice * kLeastSlice)
           : std::max<int64_t>(1, n);
  const int64_t slices = (n + slice - 1) / slice, room = slice + kKeysAtOnce;
  // Calls body(slice, first unit, end) for the units in between the forced ones.
  const auto each = [&](auto&& body) {
    const auto one = [&](int64_t i, int = 0) {
      body(i, std::max(i * slice, forced_low), std::min((i + 1) * slice, forced_high));
    };
    if (team) {
      team->For(slices, one);
    } else {
      for (int64_t i = 0; i < slices; ++i) one(i);
    }
  };

  int32_t bound = need == 0 ? kNoKey : kEveryKey;
  if (need > 0 && need < middle && middle >= kManyUnits) {
    float sample[kSample];
    const auto at = [&](int64_t i) { return forced_low + i * middle / kSample; };
    each([&](int64_t, int64_t first, int64_t end) {
      for (int64_t i = ((first - forced_low) * kSample + middle - 1) / middle;
           i < kSample && at(i) < end; ++i)
        sample[i] = mass[at(i)];
    });
    bound = portable::LikelyBound(sample, kSample, need, middle);
  }

  scratch.keys.resize(static_cast<size_t>(slices * room));
  scratch.positions.resize(scratch.keys.size());
  scratch.counts.resize(static_cast<size_t>(slices));
  int32_t* keys = scratch.keys.data();
  int32_t* positions = scratch.positions.data();
  int64_t found = 0;
  for (;; bound = kEveryKey) {
    each([&](int64_t i, int64_t first, int64_t end) {
      scratch.counts[static_cast<size_t>(i)].keys =
          end <= first ? 0
                       : portable::KeysAbove(mass + first, end - first, first, bound,
                                             keys + i * room, positions + i * room);
    });
    found = 0;
    for (int64_t i = 0; i < slices; ++i) {
      const int64_t count = scratch.counts[static_cast<size_t>(i)].keys;
      if (count < 0) return -1;
      if (found != i * room) {
        std::copy_n(keys + i * room, count, keys + found);
        std::copy_n(positions + i * room, count, positions + found);
      }
      found += count;
    }
    if (found >= std::min(need, middle)) break;  // but for a misleading sample
  }

  scratch.units.resize(static_cast<size_t>(take + kKeysAtOnce));
  int32_t* out = scratch.units.data();
  int64_t count = 0;
  for (; count < low; ++count) out[count] = static_cast<int32_t>(count);
  count += portable::TakeLargest(keys, positions, found, need, out + count, scratch.list);
  for (int64_t i = 0; i < high; ++i) out[count++] = static_cast<int32_t>(forced_high + i);
  return count;
}

// False if a mass is NaN.
bool SelectSet(const SelectParams& p, const SelectParams::Segment& s, int64_t set, int64_t group,
               SelectScratch& scratch, ThreadPool* team) {
  const auto at = static_cast<size_t>(set);
  const int64_t visible = s.visible[at], recent = std::clamp<int64_t>(s.recent[at], 0, visible);
  const int64_t units = (visible + p.block - 1) / p.block;
  const int64_t take = std::min(units, std::max<int64_t>(1, s.k[at] / p.block));
  const int64_t forced_low = std::min(units, (std::min(p.sink, visible) + p.block - 1) / p.block);
  const int64_t forced_high = recent == 0 ? units : (visible - recent) / p.block;
  const float* mass = s.mass + (set * p.groups + group) * s.mass_stride;
  const int64_t count = SelectUnits(UnitMass(mass, visible, p.block, scratch), units, take,
                                    forced_low, forced_high, scratch, team);
  if (count < 0) return false;
  int32_t* list = s.out->list(set, group);
  if (p.block == 1) {
    BATON_CHECK_LE(count, s.out->capacity);
    std::copy_n(scratch.units.data(), count, list);
    s.out->count(set, group) = static_cast<int32_t>(count);
    return true;
  }
  int64_t tokens = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = scratch.units[static_cast<size_t>(i)] * p.block;
    const int64_t end = std::min(visible, first + p.block);
    BATON_CHECK_LE(tokens + end - first, s.out->capacity);
    for (int64_t n = first; n < end; ++n) list[tokens++] = static_cast<int32_t>(n);
  }
  s.out->count(set, group) = static_cast<int32_t>(tokens);
  return true;
}

Error NanError(const SelectParams& p, const SelectParams::Segment& s, int64_t set, int64_t group) {
  const float* mass = s.mass + (set * p.groups + group) * s.mass_stride;
  int64_t n = 0;
  while (n + 1 < s.visible[static_cast<size_t>(set)] && !std::isnan(mass[n])) ++n;
  return Error::InvalidArgument("attention mass is not a number at position {} of set {}", n, set);
}

}  // namespace

Status CpuOps::DoSelect(const SelectParams& p) {
  if (!mass_) mass_ = std::make_shared<MassState>();
  std::vector<SelectScratch>& scratch = mass_->select;
  scratch.resize(static_cast<size_t>(threads_.threads()));
  struct Task {
    const SelectParams::Segment* segment;
    int64_t set, group;
  };
  std::vector<Task> tasks;
  for (const auto& s : p.segments) {
    for (int64_t set = 0; set < s.sets; ++set) {
      for (int64_t group = 0; group < p.groups; ++group) tasks.push_back({&s, set, group});
    }
  }
  const auto count = static_cast<int64_t>(tasks.size());
  // The first one, so that the message does not depend on timing.
  std::atomic<int64_t> bad{count};
  const auto select = [&](int64_t i, int rank, ThreadPool* team) {
    const Task& t = tasks[static_cast<size_t>(i)];
    if (SelectSet(p, *t.segment, t.set, t.group, scratch[static_cast<size_t>(rank)], team)) return;
    for (int64_t seen = bad.load(); i < seen && !bad.compare_exchange_weak(seen, i);) {
    }
  };
  if (count < threads_.threads()) {
    for (int64_t i = 0; i < count; ++i) select(i, 0, &threads_);
  } else {
    threads_.For(count, [&](int64_t i, int rank) { select(i, rank, nullptr); });
  }
  if (bad == count) return Status::Ok();
  const Task& t = tasks[static_cast<size_t>(bad.load())];
  return NanError(p, *t.segment, t.set, t.group);
}

}  // namespace baton::cpu
