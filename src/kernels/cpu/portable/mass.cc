// Mass kernels for any machine: single precision, K transposed to [D][64 keys] so that lanes are
// keys.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/mass_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/portable/mass.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace baton::cpu::portable {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// 2^x, relative error 2e-7; 0 below -126, NaN for NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V clamped = hn::Min(hn::Max(x, hn::Set(d, -127.0f)), hn::Set(d, 127.0f));
  const V n = hn::Round(clamped);
  const V f = hn::Sub(clamped, n);
  V p = hn::Set(d, 0.0013276472454890609f);
  p = hn::MulAdd(p, f, hn::Set(d, 0.009675541892647743f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.05550713092088699f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.24022120237350464f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.6931469440460205f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0000001192092896f));
  const auto bits = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  const V e = hn::Mul(p, hn::BitCast(d, bits));
  const V zero_or_e = hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), e);
  return hn::IfThenElse(hn::IsNaN(x), x, zero_or_e);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V MaxOrNan(D, V a, V b) {
  const V m = hn::IfThenElse(hn::Gt(a, b), a, b);  // b if either is NaN
  return hn::IfThenElse(hn::IsNaN(a), a, m);
}

// scores[n] = q . k[n] of one query and the 64 keys of a block.
HWY_INLINE void Dots(const float* HWY_RESTRICT keys, int64_t dim, const float* HWY_RESTRICT q,
                     float* HWY_RESTRICT scores) {
  const hn::CappedTag<float, 16> d;
  constexpr int64_t kGroup = 4;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  // Four vectors at a time hide the latency of the sums; 64 keys are a multiple of 4 * 4, 4 * 8 and
  // 4 * 16.
  for (int64_t n = 0; n < kMassBlock; n += kGroup * lanes) {
    auto s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
    for (int64_t c = 0; c < dim; ++c) {
      const auto x = hn::Set(d, q[c]);
      const float* k = keys + c * kMassBlock + n;
      s0 = hn::MulAdd(x, hn::LoadU(d, k), s0);
      s1 = hn::MulAdd(x, hn::LoadU(d, k + lanes), s1);
      s2 = hn::MulAdd(x, hn::LoadU(d, k + 2 * lanes), s2);
      s3 = hn::MulAdd(x, hn::LoadU(d, k + 3 * lanes), s3);
    }
    hn::StoreU(s0, d, scores + n);
    hn::StoreU(s1, d, scores + n + lanes);
    hn::StoreU(s2, d, scores + n + 2 * lanes);
    hn::StoreU(s3, d, scores + n + 3 * lanes);
  }
}

void Accumulate(const void* keys, int64_t dim, float scale, const MassQuery* queries, int64_t count,
                bool max) {
  const hn::CappedTag<float, 16> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < count; ++i) {
    const MassQuery& q = queries[i];
    if (q.visible <= 0) continue;
    float scores[kMassBlock];
    Dots(static_cast<const float*>(keys), dim, static_cast<const float*>(q.q), scores);
    const int64_t visible = std::min<int64_t>(q.visible, kMassBlock);
    for (int64_t n = 0; n < visible; n += lanes) {
      const auto x = hn::LoadU(d, scores + n);
      const auto p = Exp2(d, hn::MulSub(x, hn::Set(d, scale), hn::Set(d, q.lse)));
      const auto old = hn::LoadU(d, q.out + n);
      const auto joined = max ? MaxOrNan(d, old, p) : hn::Add(old, p);
      const auto mask = hn::FirstN(d, static_cast<size_t>(visible - n));
      hn::StoreU(hn::IfThenElse(mask, joined, old), d, q.out + n);
    }
  }
}

void LogMax(const void* keys, int64_t dim, float scale, const MassQuery* queries, int64_t count) {
  const hn::CappedTag<float, 16> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < count; ++i) {
    const MassQuery& q = queries[i];
    if (q.visible <= 0) continue;
    float scores[kMassBlock];
    Dots(static_cast<const float*>(keys), dim, static_cast<const float*>(q.q), scores);
    const int64_t visible = std::min<int64_t>(q.visible, kMassBlock);
    for (int64_t n = 0; n < visible; n += lanes) {
      const auto x = hn::LoadU(d, scores + n);
      const auto old = hn::LoadU(d, q.out + n);
      const auto joined = MaxOrNan(d, old, hn::MulSub(x, hn::Set(d, scale), hn::Set(d, q.lse)));
      const auto mask = hn::FirstN(d, static_cast<size_t>(visible - n));
      hn::StoreU(hn::IfThenElse(mask, joined, old), d, q.out + n);
    }
  }
}

void LogSum(const void* keys, int64_t dim, float scale, const MassQuery* queries, int64_t count) {
  const hn::CappedTag<float, 16> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < count; ++i) {
    const MassQuery& q = queries[i];
    if (q.visible <= 0) continue;
    float scores[kMassBlock];
    Dots(static_cast<const float*>(keys), dim, static_cast<const float*>(q.q), scores);
    const int64_t visible = std::min<int64_t>(q.visible, kMassBlock);
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t n = 0; n < visible; ++n) {
      scores[n] *= scale;
      largest = std::max(largest, scores[n]);
    }
    if (largest > q.stats[0]) {
      q.stats[1] *= std::exp2(q.stats[0] - largest);
      q.stats[0] = largest;
    }
    auto sum = hn::Zero(d);
    for (int64_t n = 0; n < visible; n += lanes) {
      const auto e = Exp2(d, hn::Sub(hn::LoadU(d, scores + n), hn::Set(d, q.stats[0])));
      const auto mask = hn::FirstN(d, static_cast<size_t>(visible - n));
      sum = hn::Add(sum, hn::IfThenElseZero(mask, e));
    }
    q.stats[1] += hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

using Four = hn::FixedTag<float, 4>;

// Four channels of one key as floats.
template <DType kType>
HWY_INLINE hn::Vec<Four> LoadFour(const std::byte* k, int64_t c, float scale) {
  const Four f;
  const hn::RebindToSigned<Four> i32;
  if constexpr (kType == DType::kF32) {
    return hn::LoadU(f, reinterpret_cast<const float*>(k) + c);
  } else if constexpr (kType == DType::kBF16) {
    const hn::RebindToUnsigned<Four> u32;
    const hn::Rebind<uint16_t, Four> u16;
    const auto bits = hn::LoadU(u16, reinterpret_cast<const uint16_t*>(k) + c);
    return hn::BitCast(f, hn::ShiftLeft<16>(hn::PromoteTo(u32, bits)));
  } else {
    const hn::Rebind<int8_t, Four> i8;
    const auto x = hn::LoadU(i8, reinterpret_cast<const int8_t*>(k) + c);
    return hn::Mul(hn::ConvertTo(f, hn::PromoteTo(i32, x)), hn::Set(f, scale));
  }
}

// K of a page as floats, [D][64 keys], by squares of four keys and channels; the next page's lines
// are prefetched, a few per square.
template <DType kType>
void PackType(const KvView& kv, int64_t position, int head, float* out) {
  const Four f;
  const int64_t dim = kv.layout.head_dim, stride = kv.layout.row_bytes();
  const std::byte* first = kv.row(position) + head * kv.layout.head_bytes();
  const std::byte* next = NextKeys(kv, position, head);
  const int64_t per_line = 64 / kv.layout.element_bytes();
  for (int64_t slot = 0; slot < kMassBlock; slot += 4, out += 4) {
    const std::byte* k[4];
    float scale[4] = {};
    for (int i = 0; i < 4; ++i) {
      k[i] = first + (slot + i) * stride;
      if (kType == DType::kI8) scale[i] = *kv.scale(position + slot + i, false, head);
    }
    for (int64_t c = 0; c < dim; c += 4) {
      if (c % per_line == 0) {
        for (int i = 0; i < 4; ++i)
          __builtin_prefetch(next + (k[i] - first) + c * kv.layout.element_bytes(), 0, 2);
      }
      const auto a = LoadFour<kType>(k[0], c, scale[0]), b = LoadFour<kType>(k[1], c, scale[1]);
      const auto e = LoadFour<kType>(k[2], c, scale[2]), g = LoadFour<kType>(k[3], c, scale[3]);
      const auto ae0 = hn::InterleaveLower(f, a, e), ae1 = hn::InterleaveUpper(f, a, e);
      const auto bg0 = hn::InterleaveLower(f, b, g), bg1 = hn::InterleaveUpper(f, b, g);
      float* to = out + c * kMassBlock;
      hn::StoreU(hn::InterleaveLower(f, ae0, bg0), f, to);
      hn::StoreU(hn::InterleaveUpper(f, ae0, bg0), f, to + kMassBlock);
      hn::StoreU(hn::InterleaveLower(f, ae1, bg1), f, to + 2 * kMassBlock);
      hn::StoreU(hn::InterleaveUpper(f, ae1, bg1), f, to + 3 * kMassBlock);
    }
  }
}

void PackExact(const KvView& kv, int64_t position, int head, float* out) {
  switch (kv.layout.dtype) {
    case DType::kF32:
      return PackType<DType::kF32>(kv, position, head, out);
    case DType::kBF16:
      return PackType<DType::kBF16>(kv, position, head, out);
    default:
      return PackType<DType::kI8>(kv, position, head, out);
  }
}

template <class D>
HWY_INLINE void PoolLanes(D d, const float* scores, int64_t stride, const float* lse, int64_t heads,
                          bool max, bool add, float* out) {
  auto pooled = hn::Zero(d);
  for (int64_t h = 0; h < heads; ++h) {
    const auto x = hn::LoadU(d, scores + h * stride);
    const auto e = Exp2(d, hn::MulSub(x, hn::Set(d, kLog2E), hn::Set(d, lse[h])));
    pooled = max ? MaxOrNan(d, pooled, e) : hn::Add(pooled, e);
  }
  if (add) pooled = hn::Add(pooled, hn::LoadU(d, out));
  hn::StoreU(pooled, d, out);
}

void PoolScores(const float* scores, int64_t stride, const float* lse, int64_t heads, int64_t n,
                bool max, bool add, float* out) {
  const hn::CappedTag<float, 16> d;
  const hn::CappedTag<float, 1> one;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    PoolLanes(d, scores + i, stride, lse, heads, max, add, out + i);
  }
  for (; i < n; ++i) PoolLanes(one, scores + i, stride, lse, heads, max, add, out + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace baton::cpu::portable
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace baton::cpu::portable {
namespace {

HWY_EXPORT(Accumulate);
HWY_EXPORT(LogMax);
HWY_EXPORT(LogSum);
HWY_EXPORT(PoolScores);
HWY_EXPORT(PackExact);

void PackQuery(const float* q, int64_t dim, MassForm, void* out) {
  std::copy_n(q, dim, static_cast<float*>(out));
}

void PackLowBit(const KvView& kv, int64_t position, int head, float* out) {
  for (int64_t slot = 0; slot < kMassBlock; ++slot) {
    for (int64_t b = 0; b < kv.layout.head_dim / 32; ++b) {
      const LowBitBlock& block = *kv.low_bit(position + slot, head, b);
      const int64_t s = slot % 16;
      const float scale = HalfToFloat(block.scale[s]);
      float* to = out + b * 32 * kMassBlock + slot;
      for (int c = 0; c < 16; ++c) {
        const uint8_t byte = block.nibbles[c / 4 * 64 + s * 4 + c % 4];
        to[c * kMassBlock] = static_cast<float>((byte & 15) - 8) * scale;
        to[(c + 16) * kMassBlock] = static_cast<float>((byte >> 4) - 8) * scale;
      }
    }
  }
}

void PackKeys(const KvView& kv, int64_t position, int head, MassForm form, void* out) {
  auto* to = static_cast<float*>(out);
  if (form == MassForm::kLowBit) return PackLowBit(kv, position, head, to);
  HWY_DYNAMIC_DISPATCH(PackExact)(kv, position, head, to);
}

}  // namespace

const MassKernels& GetMassKernels() {
  static const MassKernels kKernels = {
      .pack_query = PackQuery,
      .pack_keys = PackKeys,
      .accumulate =
          [](const void* keys, int64_t dim, MassForm, float scale, const MassQuery* queries,
             int64_t count, bool max) {
            HWY_DYNAMIC_DISPATCH(Accumulate)(keys, dim, scale, queries, count, max);
          },
      .log_max =
          [](const void* keys, int64_t dim, MassForm, float scale, const MassQuery* queries,
             int64_t count) {
            HWY_DYNAMIC_DISPATCH(LogMax)
            (keys, dim, scale, queries, count);
          },
      .log_sum =
          [](const void* keys, int64_t dim, MassForm, float scale, const MassQuery* queries,
             int64_t count) {
            HWY_DYNAMIC_DISPATCH(LogSum)
            (keys, dim, scale, queries, count);
          },
      .pool_scores =
          [](const float* scores, int64_t stride, const float* lse, int64_t heads, int64_t n,
             bool max, bool add, float* out) {
            HWY_DYNAMIC_DISPATCH(PoolScores)(scores, stride, lse, heads, n, max, add, out);
          }};
  return kKernels;
}

}  // namespace baton::cpu::portable
#endif  // HWY_ONCE
