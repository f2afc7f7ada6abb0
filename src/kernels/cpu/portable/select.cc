// Top-k without sorting. The k-th largest key is found by bisection, one vector compare and count
// per step: a step over 8,192 keys takes about a third of a microsecond in the first-level caches.
// Once few keys are left between the bounds they are copied into a list, on which the remaining
// steps are almost free. A radix histogram needs few passes as well, but it has a scalar increment
// per key and a table to clear, and collides on equal exponents.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/select_kernels.h"

#ifndef BATON_SELECT_TABLE
#define BATON_SELECT_TABLE
#include <array>
namespace baton::cpu::portable {
// Byte i of entry m: the lane of the i-th bit that is set in m.
inline constexpr std::array<uint64_t, 256> kSetLanes = [] {
  std::array<uint64_t, 256> lanes{};
  for (unsigned m = 0; m < 256; ++m) {
    for (unsigned lane = 0, i = 0; lane < 8; ++lane) {
      if (m >> lane & 1) lanes[m] |= uint64_t{lane} << 8 * i++;
    }
  }
  return lanes;
}();
}  // namespace baton::cpu::portable
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/portable/select.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace baton::cpu::portable {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DI = hn::CappedTag<int32_t, kKeysAtOnce>;
using DF = hn::RebindToFloat<DI>;
using Keys = hn::Vec<DI>;

HWY_INLINE Keys ToKeys(hn::Vec<DF> mass) {
  const DI di;
  const auto bits = hn::BitCast(di, hn::Add(mass, hn::Zero(DF())));
  return hn::Xor(bits, hn::And(hn::ShiftRight<31>(bits), hn::Set(di, 0x7fffffff)));
}

// The lanes in `in`, moved to the front.
HWY_INLINE Keys Compress(Keys x, hn::Mask<DI> in) {
#if HWY_TARGET == HWY_AVX2
  // For 32-bit lanes, Highway 1.0 and g++ copy a table of 1 KiB to the stack each time.
  const int bits = _mm256_movemask_ps(_mm256_castsi256_ps(hn::VecFromMask(DI(), in).raw));
  const auto lanes = _mm_cvtsi64_si128(static_cast<int64_t>(kSetLanes[static_cast<size_t>(bits)]));
  return Keys{_mm256_permutevar8x32_epi32(x.raw, _mm256_cvtepu8_epi32(lanes))};
#else
  return hn::Compress(x, in);
#endif
}

// How many of keys[0, n) are at least `bound`.
HWY_INLINE int64_t CountAtLeast(const int32_t* keys, int64_t n, int32_t bound) {
  const DI d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto b = hn::Set(d, bound);
  // Subtracting the all-ones mask of "less" adds one for each lane below.
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
    hn::StoreU(Compress(x, in), d, out + count);
    count += static_cast<int64_t>(hn::CountTrue(d, in));
  }
  *larger = hn::GetLane(hn::SumOfLanes(d, above));
  for (; i < n; ++i) {
    *larger += keys[i] > high;
    if (low <= keys[i] && keys[i] <= high) out[count++] = keys[i];
  }
  return count;
}

struct Bounds {
  int32_t smallest, largest;
};

Bounds BoundsOf(const int32_t* keys, int64_t n) {
  const DI d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto smallest = hn::Set(d, kNoKey), largest = hn::Set(d, kEveryKey);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto x = hn::LoadU(d, keys + i);
    smallest = hn::Min(smallest, x);
    largest = hn::Max(largest, x);
  }
  Bounds b{hn::GetLane(hn::MinOfLanes(d, smallest)), hn::GetLane(hn::MaxOfLanes(d, largest))};
  for (; i < n; ++i) b = {std::min(b.smallest, keys[i]), std::max(b.largest, keys[i])};
  return b;
}

int64_t Above(const Masses& m, int32_t bound, int32_t* keys, int32_t* positions) {
  const float* mass = m.mass;
  const int64_t n = m.n;
  const DI d;
  const DF df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto least = hn::Set(d, bound);
  auto nan = hn::Lt(hn::Zero(df), hn::Zero(df));
  auto position = hn::Iota(d, static_cast<int32_t>(m.first));
  int64_t count = 0;
  const auto add = [&](hn::Vec<DF> x, hn::Mask<DI> valid) HWY_ATTR {
    nan = hn::Or(nan, hn::IsNaN(x));
    const auto k = ToKeys(x);
    const auto in = hn::AndNot(hn::Lt(k, least), valid);
    hn::StoreU(Compress(k, in), d, keys + count);
    hn::StoreU(Compress(position, in), d, positions + count);
    count += static_cast<int64_t>(hn::CountTrue(d, in));
    position = hn::Add(position, hn::Set(d, static_cast<int32_t>(lanes)));
  };
  int64_t i = 0;
  const auto all = hn::FirstN(d, static_cast<size_t>(lanes));
  for (; i + lanes <= n; i += lanes) add(hn::LoadU(df, mass + i), all);
  if (i < n) {
    float rest[kKeysAtOnce] = {};
    std::copy(mass + i, mass + n, rest);
    add(hn::LoadU(df, rest), hn::FirstN(d, static_cast<size_t>(n - i)));
  }
  return hn::AllFalse(df, nan) ? count : -1;
}

struct Threshold {
  int32_t above;  // keys larger than this are taken
  int64_t equal;  // and this many equal to it
};

// The threshold of the `need` largest keys, 0 < need < n.
Threshold FindThreshold(const int32_t* keys, int64_t n, int64_t need,
                        std::vector<int32_t>& scratch) {
  const Bounds bounds = BoundsOf(keys, n);
  int64_t low = bounds.smallest, high = bounds.largest;  // the threshold is in [low, high]
  int64_t at_least_low = n, above_high = 0;
  const int32_t* list = keys;             // the keys in [low, high] are among these
  int64_t list_size = n, list_above = 0;  // keys above `high` that are not in the list
  if (low < high) {                       // often most keys are the smallest: masses of zero
    const int64_t larger = CountAtLeast(keys, n, bounds.smallest + 1);
    if (larger < need) high = low, above_high = larger;
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
      scratch.resize(static_cast<size_t>(left + kKeysAtOnce));
      list_size = Between(keys, n, static_cast<int32_t>(low), static_cast<int32_t>(high),
                          scratch.data(), &list_above);
      list = scratch.data();
    }
  }
  // Every key from low on is selected, or low is the threshold itself and need - above_high of the
  // keys equal to it are.
  if (at_least_low == need) return {static_cast<int32_t>(low) - 1, 0};
  return {static_cast<int32_t>(low), need - above_high};
}

int32_t Bound(const float* sample, int64_t need, int64_t n, std::vector<int32_t>& scratch) {
  const DI d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t rank = need * kSample / n + 1;  // rounded up
  int64_t slack = 1;                            // four standard deviations of a count, and one
  while (slack * slack < 16 * std::min(rank, kSample - rank)) slack++;
  if (rank + slack >= kSample) return kEveryKey;
  int32_t keys[kSample];
  for (int64_t i = 0; i < kSample; i += lanes)
    hn::StoreU(ToKeys(hn::LoadU(DF(), sample + i)), d, keys + i);
  const Threshold t = FindThreshold(keys, kSample, rank + slack, scratch);
  return t.equal > 0 ? t.above : t.above + 1;
}

int64_t Take(const Candidates& c, int64_t need, int32_t* out, std::vector<int32_t>& scratch) {
  const auto [keys, positions, n] = c;
  if (need >= n) {
    std::copy_n(positions, n, out);
    return n;
  }
  if (need <= 0) return 0;
  Threshold t = FindThreshold(keys, n, need, scratch);
  const DI d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto bound = hn::Set(d, t.above);
  int64_t count = 0, i = 0;
  const auto scalar = [&](int64_t j) {
    if (keys[j] < t.above || (keys[j] == t.above && t.equal == 0)) return;
    t.equal -= keys[j] == t.above;
    out[count++] = positions[j];
  };
  for (; i + lanes <= n; i += lanes) {
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
    hn::StoreU(Compress(hn::LoadU(d, positions + i), taken), d, out + count);
    count += static_cast<int64_t>(hn::CountTrue(d, taken));
  }
  for (; i < n; ++i) scalar(i);
  return count;
}

}  // namespace HWY_NAMESPACE
}  // namespace baton::cpu::portable
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace baton::cpu::portable {
namespace {
HWY_EXPORT(Bound);
HWY_EXPORT(Above);
HWY_EXPORT(Take);
}  // namespace
int32_t LikelyBound(const float* sample, int64_t need, int64_t n, std::vector<int32_t>& scratch) {
  return HWY_DYNAMIC_DISPATCH(Bound)(sample, need, n, scratch);
}
int64_t KeysAbove(const Masses& m, int32_t bound, int32_t* keys, int32_t* positions) {
  return HWY_DYNAMIC_DISPATCH(Above)(m, bound, keys, positions);
}
int64_t TakeLargest(const Candidates& c, int64_t need, int32_t* out,
                    std::vector<int32_t>& scratch) {
  return HWY_DYNAMIC_DISPATCH(Take)(c, need, out, scratch);
}
}  // namespace baton::cpu::portable
#endif  // HWY_ONCE
