// Sets in parallel; each set by one thread, which keeps ties and order trivially independent of the
// team.
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

// False if a mass is NaN.
bool SelectSet(const SelectParams& p, const SelectParams::Segment& s, int64_t set, int64_t group,
               SelectScratch& scratch) {
  const auto at = static_cast<size_t>(set);
  const int64_t visible = s.visible[at], recent = std::clamp<int64_t>(s.recent[at], 0, visible);
  const int64_t units = (visible + p.block - 1) / p.block;
  const int64_t take = std::min(units, std::max<int64_t>(1, s.k[at] / p.block));
  const int64_t forced_low = std::min(units, (std::min(p.sink, visible) + p.block - 1) / p.block);
  const int64_t forced_high = recent == 0 ? units : (visible - recent) / p.block;
  const float* mass = s.mass + (set * p.groups + group) * s.mass_stride;
  const float* unit_mass = UnitMass(mass, visible, p.block, scratch);
  const int64_t count =
      portable::SelectTop(unit_mass, units, take, forced_low, forced_high, scratch);
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
  std::atomic<int64_t> bad{count};  // the first one, so that the message does not depend on timing
  threads_.For(count, [&](int64_t i, int rank) {
    const Task& t = tasks[static_cast<size_t>(i)];
    if (SelectSet(p, *t.segment, t.set, t.group, scratch[static_cast<size_t>(rank)])) return;
    for (int64_t seen = bad.load(); i < seen && !bad.compare_exchange_weak(seen, i);) {
    }
  });
  if (bad == count) return Status::Ok();
  const Task& t = tasks[static_cast<size_t>(bad.load())];
  return NanError(p, *t.segment, t.set, t.group);
}

}  // namespace baton::cpu
