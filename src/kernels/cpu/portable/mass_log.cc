// Pooling of log-probabilities: maxima need no exponential and run at memory bandwidth.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/mass_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/portable/mass_log.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h.
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace baton::cpu::portable::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr float kNothing = -std::numeric_limits<float>::infinity();

template <class D, class V = hn::Vec<D>>
HWY_INLINE V MaxOrNan(D, V a, V b) {
  const V m = hn::IfThenElse(hn::Gt(a, b), a, b);  // b if either is NaN
  return hn::IfThenElse(hn::IsNaN(a), a, m);
}

// The largest x of the heads.
template <class D>
HWY_INLINE hn::Vec<D> MaxLanes(D d, const float* scores, int64_t stride, const float* lse,
                               int64_t heads) {
  auto largest = hn::Set(d, kNothing);
  for (int64_t h = 0; h < heads; ++h) {
    auto x = hn::LoadU(d, scores + h * stride);
    if (lse) x = hn::Sub(x, hn::Set(d, lse[h]));
    largest = MaxOrNan(d, largest, x);
  }
  return largest;
}

template <class D>
HWY_INLINE hn::Vec<D> LogSumLanes(D d, const float* scores, int64_t stride, const float* lse,
                                  int64_t heads) {
  const auto largest = MaxLanes(d, scores, stride, lse, heads);
  const auto empty = hn::Eq(largest, hn::Set(d, kNothing));
  const auto base = hn::IfThenZeroElse(empty, largest);
  auto sum = hn::Zero(d);
  for (int64_t h = 0; h < heads; ++h) {
    auto x = hn::LoadU(d, scores + h * stride);
    if (lse) x = hn::Sub(x, hn::Set(d, lse[h]));
    x = hn::Sub(x, base);
    // That Exp is finite at -inf is accidental.
    const auto hidden = hn::Lt(x, hn::Set(d, -87.0f));
    sum = hn::Add(sum, hn::IfThenZeroElse(hidden, hn::Exp(d, hn::IfThenZeroElse(hidden, x))));
  }
  const auto joined = hn::Add(base, hn::Log(d, hn::IfThenElse(empty, hn::Set(d, 1.0f), sum)));
  // The largest also where it is -inf or NaN.
  return hn::IfThenElse(hn::Or(empty, hn::IsNaN(largest)), largest, joined);
}

// Calls body(tag, first) for whole vectors and then for single values.
template <typename F>
HWY_INLINE void ForLanes(int64_t n, F&& body) {
  const hn::CappedTag<float, 16> d;
  const hn::CappedTag<float, 1> one;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) body(d, i);
  for (; i < n; ++i) body(one, i);
}

void MaxOfHeadsImpl(const float* scores, int64_t stride, const float* lse, int64_t heads, int64_t n,
                    float* out) {
  ForLanes(n, [&](auto d, int64_t i) HWY_ATTR {
    hn::StoreU(MaxLanes(d, scores + i, stride, lse, heads), d, out + i);
  });
}

void LogSumOfHeadsImpl(const float* scores, int64_t stride, const float* lse, int64_t heads,
                       int64_t n, float* out) {
  ForLanes(n, [&](auto d, int64_t i) HWY_ATTR {
    hn::StoreU(LogSumLanes(d, scores + i, stride, lse, heads), d, out + i);
  });
}

void MaxOfBlocksImpl(const float* x, int64_t n, int64_t block, float* out) {
  const hn::CappedTag<float, 16> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t first = 0; first < n; first += block) {
    const int64_t end = std::min(n, first + block);
    int64_t i = first;
    auto largest = hn::Set(d, kNothing);
    for (; i + lanes <= end; i += lanes) largest = MaxOrNan(d, largest, hn::LoadU(d, x + i));
    float rest = kNothing;
    for (; i < end; ++i) rest = rest > x[i] || std::isnan(rest) ? rest : x[i];
    const bool nan = !hn::AllFalse(d, hn::IsNaN(largest)) || std::isnan(rest);
    *out++ = nan ? std::numeric_limits<float>::quiet_NaN()
                 : std::max(rest, hn::GetLane(hn::MaxOfLanes(d, largest)));
  }
}

}  // namespace
}  // namespace baton::cpu::portable::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace baton::cpu::portable {
namespace {
HWY_EXPORT(MaxOfHeadsImpl);
HWY_EXPORT(LogSumOfHeadsImpl);
HWY_EXPORT(MaxOfBlocksImpl);
}  // namespace
void MaxOfHeads(const float* scores, int64_t stride, const float* lse, int64_t heads, int64_t n,
                float* out) {
  HWY_DYNAMIC_DISPATCH(MaxOfHeadsImpl)(scores, stride, lse, heads, n, out);
}
void LogSumOfHeads(const float* scores, int64_t stride, const float* lse, int64_t heads, int64_t n,
                   float* out) {
  HWY_DYNAMIC_DISPATCH(LogSumOfHeadsImpl)(scores, stride, lse, heads, n, out);
}
void MaxOfBlocks(const float* x, int64_t n, int64_t block, float* out) {
  HWY_DYNAMIC_DISPATCH(MaxOfBlocksImpl)(x, n, block, out);
}
}  // namespace baton::cpu::portable
#endif  // HWY_ONCE
