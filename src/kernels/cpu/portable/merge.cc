// Weighted and gated sum of the branches of one head.
#include <cmath>
#include <limits>

#include "kernels/cpu/merge_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/portable/merge.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h.
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace baton::cpu::portable::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// 1 / (1 + e^-x); 0 where e^x is not a normal number, so that a gate can close completely.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Sigmoid(D d, V x) {
  const V bounded = hn::Min(hn::Max(hn::Neg(x), hn::Set(d, -87.0f)), hn::Set(d, 88.0f));
  const V one = hn::Set(d, 1.0f);
  const V y = hn::Div(one, hn::Add(one, hn::Exp(d, bounded)));
  return hn::IfThenElse(hn::IsNaN(x), x, hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.0f)), y));
}

template <class D>
HWY_INLINE void MergeLanes(D d, const HeadPart* parts, int64_t count, const float* gate, int64_t at,
                           float* out) {
  auto sum = hn::Zero(d);
  for (int64_t b = 0; b < count; ++b) {
    auto x = hn::Mul(hn::Set(d, parts[b].weight), hn::LoadU(d, parts[b].o + at));
    if (parts[b].gate) x = hn::Mul(x, Sigmoid(d, hn::LoadU(d, parts[b].gate + at)));
    sum = hn::Add(sum, x);
  }
  if (gate) sum = hn::Mul(sum, Sigmoid(d, hn::LoadU(d, gate + at)));
  hn::StoreU(sum, d, out + at);
}

void MergeHeadImpl(const HeadPart* parts, int64_t count, const float* gate, int64_t dim,
                   float* out) {
  const hn::CappedTag<float, 16> d;
  const hn::CappedTag<float, 1> one;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t at = 0;
  for (; at + lanes <= dim; at += lanes) MergeLanes(d, parts, count, gate, at, out);
  for (; at < dim; ++at) MergeLanes(one, parts, count, gate, at, out);
}

}  // namespace
}  // namespace baton::cpu::portable::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace baton::cpu::portable {
namespace {
HWY_EXPORT(MergeHeadImpl);
}  // namespace
void MergeHead(const HeadPart* parts, int64_t count, const float* gate, int64_t dim, float* out) {
  HWY_DYNAMIC_DISPATCH(MergeHeadImpl)(parts, count, gate, dim, out);
}
}  // namespace baton::cpu::portable
#endif  // HWY_ONCE
