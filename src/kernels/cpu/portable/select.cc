// Top-k without sorting. Masses become integers of the same order; the k-th largest integer is
// found by bisection, one vector compare and count per step. A step over 8,192 keys costs about a
// third of a microsecond in the first-level caches, and after five or six steps the keys between
// the bounds fit a small list, on which the other steps cost nothing. Of many keys a sample gives
// the list at once, since each pass reads them from caches further out. A radix histogram needs few
// passes as well, but a scalar increment per key and a table to clear, and collides on equal
// exponents.
#include <algorithm>
#include <limits>

#include "kernels/cpu/select_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/portable/select.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace baton::cpu::portable {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DI = hn::CappedTag<int32_t, 16>;
constexpr int64_t kMaxLanes = 16;
constexpr int64_t kManyKeys = 4096;  // where a sample pays

struct Bounds {
  int32_t smallest, largest;
  bool nan;
};

// keys[i] = mass[i] as an integer of the same order, -0.0 as +0.0.
HWY_INLINE Bounds ToKeys(const float* HWY_RESTRICT mass, int64_t n, int32_t* HWY_RESTRICT keys) {
  const DI di;
  const hn::RebindToFloat<DI> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto nan = hn::Lt(hn::Zero(d), hn::Zero(d));
  auto smallest = hn::Set(di, std::numeric_limits<int32_t>::max());
  auto largest = hn::Set(di, std::numeric_limits<int32_t>::min());
  const auto key = [&](hn::Vec<decltype(d)> x) HWY_ATTR {
    nan = hn::Or(nan, hn::IsNaN(x));
    const auto bits = hn::BitCast(di, hn::Add(x, hn::Zero(d)));
    const auto k = hn::Xor(bits, hn::And(hn::ShiftRight<31>(bits), hn::Set(di, 0x7fffffff)));
    smallest = hn::Min(smallest, k);
    largest = hn::Max(largest, k);
    return k;
  };
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(key(hn::LoadU(d, mass + i)), di, keys + i);
  if (i < n) {
    float rest[kMaxLanes];
    std::fill(std::copy(mass + i, mass + n, rest), rest + kMaxLanes, mass[i]);
    int32_t out[kMaxLanes];
    hn::StoreU(key(hn::LoadU(d, rest)), di, out);
    std::copy_n(out, n - i, keys + i);
  }
  return {hn::GetLane(hn::MinOfLanes(di, smallest)), hn::GetLane(hn::MaxOfLanes(di, largest)),
          !hn::AllFalse(d, nan)};
}

// How many of keys[0, n) are at least `bound`.
HWY_INLINE int64_t CountAtLeast(const int32_t* keys, int64_t n, int32_t bound) {
  const DI d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto b = hn::Set(d, bound);
  // A lane counts below: subtracting the all-ones of "less" adds one.
  auto less0 = hn::Zero(d), less1 = hn::Zero(d);
  const int64_t pairs = n / (2 * lanes) * (2 * lanes);
  for (int64_t i = 0; i < pairs; i += 2 * lanes) {
    less0 = hn::Sub(less0, hn::VecFromMask(d, hn::Lt(hn::LoadU(d, keys + i), b)));
    less1 = hn::Sub(less1, hn::VecFromMask(d, hn::Lt(hn::LoadU(d, keys + i + lanes), b)));
  }
  int64_t less = hn::GetLane(hn::SumOfLanes(d, hn::Add(less0, less1)));
  for (int64_t i = pairs; i < n; ++i) less += keys[i] < bound;
  return n - less;
}

// Copies the keys in [low, high] and counts those above; `out` has room for one vector more.
HWY_INLINE int64_t Between(const int32_t* keys, int64_t n, int32_t low, int32_t high, int32_t* out,
                           int64_t* larger) {
  const DI d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto above = hn::Zero(d);
  int64_t count = 0, i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto x = hn::LoadU(d, keys + i);
    const auto over = hn::Gt(x, hn::Set(d, high));
    above = hn::Sub(above, hn::VecFromMask(d, over));
    const auto in = hn::Not(hn::Or(hn::Lt(x, hn::Set(d, low)), over));
    // Not CompressStore: the instruction's memory form takes over a hundred cycles on Zen 4.
    hn::StoreU(hn::Compress(x, in), d, out + count);
    count += static_cast<int64_t>(hn::CountTrue(d, in));
  }
  *larger = hn::GetLane(hn::SumOfLanes(d, above));
  for (; i < n; ++i) {
    *larger += keys[i] > high;
    if (low <= keys[i] && keys[i] <= high) out[count++] = keys[i];
  }
  return count;
}

// The rank-th largest of the keys.
int32_t ValueAt(const int32_t* keys, int64_t n, int64_t rank, Bounds bounds) {
  int64_t low = bounds.smallest, high = bounds.largest;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (CountAtLeast(keys, n, static_cast<int32_t>(middle)) >= rank) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return static_cast<int32_t>(low);
}

// Bounds between which the `need` largest of many keys very likely end, from 512 of them.
Bounds FromSample(const int32_t* keys, int64_t n, int64_t need, Bounds bounds) {
  constexpr int64_t kSample = 512;
  int32_t sample[kSample];
  for (int64_t i = 0; i < kSample; ++i) sample[i] = keys[i * n / kSample];
  const int64_t rank = need * kSample / n + 1;  // rounded up
  // Four standard deviations of a count, and one.
  int64_t slack = 1;
  while (slack * slack < 16 * std::min(rank, kSample - rank)) slack++;
  if (rank - slack > 1) bounds.largest = ValueAt(sample, kSample, rank - slack - 1, bounds);
  if (rank + slack < kSample) bounds.smallest = ValueAt(sample, kSample, rank + slack, bounds);
  return bounds;
}

struct Threshold {
  int32_t above;  // keys larger than this are taken
  int64_t equal;  // and this many equal to it
};

// Of the `need` largest keys, 0 < need < n, all within the bounds.
Threshold FindThreshold(const int32_t* keys, int64_t n, int64_t need, Bounds bounds,
                        std::vector<int32_t>& candidates) {
  int64_t low = bounds.smallest, high = bounds.largest;  // the threshold is in [low, high]
  int64_t at_least_low = n, above_high = 0;
  const int32_t* list = keys;             // the keys in [low, high] are among these
  int64_t list_size = n, list_above = 0;  // keys above `high` that are not in the list
  if (n >= kManyKeys) {
    const Bounds likely = FromSample(keys, n, need, bounds);
    candidates.resize(static_cast<size_t>(n + kMaxLanes));
    int64_t above = 0;
    const int64_t size =
        Between(keys, n, likely.smallest, likely.largest, candidates.data(), &above);
    if (above < need && need <= above + size) {
      low = likely.smallest, high = likely.largest;
      at_least_low = above + size, above_high = above;
      list = candidates.data(), list_size = size, list_above = above;
    }
  }
  while (low < high && at_least_low > need) {
    const int64_t middle = low + (high - low + 1) / 2;
    const int64_t c = list_above + CountAtLeast(list, list_size, static_cast<int32_t>(middle));
    if (c >= need) {
      low = middle;
      at_least_low = c;
    } else {
      high = middle - 1;
      above_high = c;
    }
    const int64_t left = at_least_low - above_high;
    if (list == keys && left * 16 <= n) {
      candidates.resize(static_cast<size_t>(left + kMaxLanes));
      list_size = Between(keys, n, static_cast<int32_t>(low), static_cast<int32_t>(high),
                          candidates.data(), &list_above);
      list = candidates.data();
    }
  }
  // Every key from low on is needed, or low is the threshold itself and need - above_high of its
  // equals are.
  if (at_least_low == need) return {static_cast<int32_t>(low) - 1, 0};
  return {static_cast<int32_t>(low), need - above_high};
}

// Positions first + i of the keys above the threshold and of the first `t.equal` at it, ascending.
HWY_INLINE int64_t Take(const int32_t* keys, int64_t n, Threshold t, int64_t first, int32_t* out) {
  const DI d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto bound = hn::Set(d, t.above);
  auto position = hn::Iota(d, static_cast<int32_t>(first));
  int64_t count = 0, i = 0;
  const auto scalar = [&](int64_t j) {
    if (keys[j] < t.above || (keys[j] == t.above && t.equal == 0)) return;
    t.equal -= keys[j] == t.above;
    out[count++] = static_cast<int32_t>(first + j);
  };
  for (; i + lanes <= n;
       i += lanes, position = hn::Add(position, hn::Set(d, static_cast<int32_t>(lanes)))) {
    const auto x = hn::LoadU(d, keys + i);
    auto taken = hn::Gt(x, bound);
    if (t.equal > 0) {
      const auto equals = hn::Eq(x, bound);
      const auto more = static_cast<int64_t>(hn::CountTrue(d, equals));
      if (more > t.equal) {
        for (int64_t j = i; j < i + lanes; ++j) scalar(j);
        continue;
      }
      taken = hn::Or(taken, equals);
      t.equal -= more;
    }
    hn::StoreU(hn::Compress(position, taken), d, out + count);
    count += static_cast<int64_t>(hn::CountTrue(d, taken));
  }
  for (; i < n; ++i) scalar(i);
  return count;
}

int64_t Select(const float* mass, int64_t n, int64_t take, int64_t forced_low, int64_t forced_high,
               SelectScratch& scratch) {
  scratch.keys.resize(static_cast<size_t>(n));
  const Bounds bounds = ToKeys(mass, n, scratch.keys.data());
  if (bounds.nan) return -1;
  take = std::min(take, n);
  forced_high = std::max(forced_low, forced_high);
  scratch.units.resize(static_cast<size_t>(take + kMaxLanes));
  int32_t* out = scratch.units.data();
  const int64_t low = std::min(take, forced_low);
  for (int64_t i = 0; i < low; ++i) out[i] = static_cast<int32_t>(i);
  const int64_t high = std::min(take - low, n - forced_high);
  const int64_t need = take - low - high, middle = forced_high - forced_low;
  int64_t count = low;
  if (need > 0) {
    const int32_t* keys = scratch.keys.data() + forced_low;
    const Threshold t = need < middle
                            ? FindThreshold(keys, middle, need, bounds, scratch.candidates)
                            : Threshold{std::numeric_limits<int32_t>::min(), middle};
    count += Take(keys, middle, t, forced_low, out + count);
  }
  for (int64_t i = 0; i < high; ++i) out[count++] = static_cast<int32_t>(forced_high + i);
  return count;
}

}  // namespace HWY_NAMESPACE
}  // namespace baton::cpu::portable
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace baton::cpu::portable {
namespace {
HWY_EXPORT(Select);
}
int64_t SelectTop(const float* mass, int64_t n, int64_t take, int64_t forced_low,
                  int64_t forced_high, SelectScratch& scratch) {
  return HWY_DYNAMIC_DISPATCH(Select)(mass, n, take, forced_low, forced_high, scratch);
}
}  // namespace baton::cpu::portable
#endif  // HWY_ONCE
