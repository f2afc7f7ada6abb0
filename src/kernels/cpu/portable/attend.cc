// Attention with Highway, in single precision for every cache type: a block's K and V of one head
// are widened to f32 once, then every stack row is multiplied with four keys at a time and
// accumulates four vectors of channels at a time.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/attend_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/portable/attend.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h.
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace baton::cpu::portable::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using F = hn::CappedTag<float, 16>;  // D is a multiple of 16

// One head of one cache row as f32.
void Widen(const std::byte* p, DType dtype, float scale, int64_t dim, float* out) {
  const F f;
  if (dtype == DType::kF32) {
    std::memcpy(out, p, static_cast<size_t>(dim) * 4);
    return;
  }
  if (dtype == DType::kBF16) {
    const hn::Rebind<uint16_t, F> u16;
    const hn::Rebind<uint32_t, F> u32;
    const auto* x = reinterpret_cast<const uint16_t*>(p);
    for (int64_t d = 0; d < dim; d += hn::Lanes(f)) {
      const auto bits = hn::ShiftLeft<16>(hn::PromoteTo(u32, hn::LoadU(u16, x + d)));
      hn::StoreU(hn::BitCast(f, bits), f, out + d);
    }
    return;
  }
  const auto* x = reinterpret_cast<const int8_t*>(p);
  for (int64_t d = 0; d < dim; ++d) out[d] = static_cast<float>(x[d]) * scale;
}

// s[k] = q . keys[k]
void Scores(const float* q, const float* keys, int count, int64_t dim, int64_t stride, float factor,
            float* s) {
  const F f;
  int k = 0;
  for (; k + 4 <= count; k += 4) {
    const float* x = keys + k * stride;
    auto a0 = hn::Zero(f), a1 = hn::Zero(f), a2 = hn::Zero(f), a3 = hn::Zero(f);
    for (int64_t d = 0; d < dim; d += hn::Lanes(f)) {
      const auto v = hn::LoadU(f, q + d);
      a0 = hn::MulAdd(v, hn::LoadU(f, x + d), a0);
      a1 = hn::MulAdd(v, hn::LoadU(f, x + stride + d), a1);
      a2 = hn::MulAdd(v, hn::LoadU(f, x + 2 * stride + d), a2);
      a3 = hn::MulAdd(v, hn::LoadU(f, x + 3 * stride + d), a3);
    }
    s[k] = hn::GetLane(hn::SumOfLanes(f, a0)) * factor;
    s[k + 1] = hn::GetLane(hn::SumOfLanes(f, a1)) * factor;
    s[k + 2] = hn::GetLane(hn::SumOfLanes(f, a2)) * factor;
    s[k + 3] = hn::GetLane(hn::SumOfLanes(f, a3)) * factor;
  }
  for (; k < count; ++k) {
    auto a = hn::Zero(f);
    for (int64_t d = 0; d < dim; d += hn::Lanes(f)) {
      a = hn::MulAdd(hn::LoadU(f, q + d), hn::LoadU(f, keys + k * stride + d), a);
    }
    s[k] = hn::GetLane(hn::SumOfLanes(f, a)) * factor;
  }
}

// s[k] = e^(s[k] - base); returns their sum. s has room for a whole vector past `count`.
float Exponentials(float* s, int count, float base) {
  const F f;
  const int lanes = static_cast<int>(hn::Lanes(f));
  for (int k = count; k % lanes != 0; ++k) s[k] = -INFINITY;
  auto sum = hn::Zero(f);
  for (int k = 0; k < count; k += lanes) {
    const auto x = hn::Sub(hn::LoadU(f, s + k), hn::Set(f, base));
    // That Exp is finite at -inf is accidental, and a hidden key must weigh exactly 0.
    const auto e = hn::IfThenZeroElse(hn::Lt(x, hn::Set(f, -104.0f)), hn::Exp(f, x));
    const auto y = hn::IfThenElse(hn::IsNaN(x), x, e);
    sum = hn::Add(sum, y);
    hn::StoreU(y, f, s + k);
  }
  return hn::GetLane(hn::SumOfLanes(f, sum));
}

// acc[c] = acc[c] * decay + sum over k of w[k] values[k][c], for kVectors vectors from c on.
template <int kVectors>
void Channels(const float* w, const float* values, int count, int64_t stride, float decay,
              float* acc) {
  const F f;
  const size_t lanes = hn::Lanes(f);
  const auto d = hn::Set(f, decay);
  auto a0 = hn::Mul(hn::LoadU(f, acc), d);
  auto a1 = a0, a2 = a0, a3 = a0;
  if constexpr (kVectors == 4) {
    a1 = hn::Mul(hn::LoadU(f, acc + lanes), d);
    a2 = hn::Mul(hn::LoadU(f, acc + 2 * lanes), d);
    a3 = hn::Mul(hn::LoadU(f, acc + 3 * lanes), d);
  }
  for (int k = 0; k < count; ++k) {
    const auto x = hn::Set(f, w[k]);
    const float* v = values + k * stride;
    a0 = hn::MulAdd(x, hn::LoadU(f, v), a0);
    if constexpr (kVectors == 4) {
      a1 = hn::MulAdd(x, hn::LoadU(f, v + lanes), a1);
      a2 = hn::MulAdd(x, hn::LoadU(f, v + 2 * lanes), a2);
      a3 = hn::MulAdd(x, hn::LoadU(f, v + 3 * lanes), a3);
    }
  }
  hn::StoreU(a0, f, acc);
  if constexpr (kVectors == 4) {
    hn::StoreU(a1, f, acc + lanes);
    hn::StoreU(a2, f, acc + 2 * lanes);
    hn::StoreU(a3, f, acc + 3 * lanes);
  }
}

void Accumulate(const float* w, const float* values, int count, int64_t dim, int64_t stride,
                float decay, float* acc) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(F()));
  int64_t c = 0;
  for (; c + 4 * lanes <= dim; c += 4 * lanes)
    Channels<4>(w, values + c, count, stride, decay, acc + c);
  for (; c < dim; c += lanes) Channels<1>(w, values + c, count, stride, decay, acc + c);
}

void UpdateTile(const AttendTile& t, const KeyBlock& block, const KeyBlock*,
                const AttendScratch& scratch) {
  const KvLayout& l = t.layout;
  const int64_t dim = l.head_dim;
  const int64_t stride = PaddedHead(dim);
  auto* keys = reinterpret_cast<float*>(scratch.keys);
  auto* values = reinterpret_cast<float*>(scratch.values);
  for (int k = 0; k < block.count; ++k) {
    const bool scaled = l.dtype == DType::kI8;
    const std::byte* row = block.rows[k] + t.kv_head * l.head_bytes();
    Widen(row, l.dtype, scaled ? block.scales[k][t.kv_head] : 1.0f, dim, keys + k * stride);
    Widen(row + l.value_offset(), l.dtype, scaled ? block.scales[k][l.kv_heads + t.kv_head] : 1.0f,
          dim, values + k * stride);
  }
  float* s = scratch.scores;
  for (int i = 0; i < t.rows; ++i) {
    const int64_t query = t.position + i / t.heads;
    int count = block.count;
    while (count > 0 && block.positions[count - 1] > query) --count;
    if (count == 0) continue;
    Scores(reinterpret_cast<const float*>(t.queries) + i * stride, keys, count, dim, stride,
           t.scale, s);
    if (t.scores) {
      std::copy_n(s, count,
                  t.scores + i / t.heads * t.scores_token_stride +
                      i % t.heads * t.scores_head_stride + block.positions[0]);
    }
    float largest = t.max[i];
    for (int k = 0; k < count; ++k) {
      if (block.positions[k] >= t.sink && block.positions[k] <= query - t.recent) s[k] = -INFINITY;
      if (s[k] > largest) largest = s[k];
    }
    // Nothing seen yet: any finite maximum gives every weight 0.
    const float base = largest == -INFINITY ? 0.0f : largest;
    const float decay = t.max[i] == largest ? 1.0f : std::exp(t.max[i] - base);
    t.max[i] = largest;
    t.sum[i] = t.sum[i] * decay + Exponentials(s, count, base);
    Accumulate(s, values, count, dim, stride, decay, t.acc + i * stride);
  }
}

}  // namespace

void Update(const AttendTile& t, const KeyBlock& block, const KeyBlock* next,
            const AttendScratch& scratch) {
  UpdateTile(t, block, next, scratch);
}

}  // namespace baton::cpu::portable::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace baton::cpu::portable {
namespace {

HWY_EXPORT(Update);

void UpdateBest(const AttendTile& t, const KeyBlock& block, const KeyBlock* next,
                const AttendScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(Update)(t, block, next, scratch);
}

void Begin(const AttendTile& t, const float* q, int64_t token_stride) {
  const int64_t dim = t.layout.head_dim;
  const int64_t stride = PaddedHead(dim);
  for (int64_t i = 0; i < t.rows; ++i) {
    std::copy_n(q + i / t.heads * token_stride + i % t.heads * dim, dim,
                reinterpret_cast<float*>(t.queries) + i * stride);
    std::fill_n(t.acc + i * stride, stride, 0.0f);
    t.max[i] = -INFINITY;
    t.sum[i] = 0;
  }
}

float Finish(const AttendTile& t, int row, float* o) {
  const float sum = t.sum[row];
  const float factor = sum == 0 ? 0.0f : 1.0f / sum;
  const float* acc = t.acc + row * PaddedHead(t.layout.head_dim);
  for (int64_t c = 0; c < t.layout.head_dim; ++c) o[c] = acc[c] * factor;
  return sum == 0 ? -INFINITY : t.max[row] + std::log(sum);
}

}  // namespace

AttendKernels GetAttendKernels() {
  return {.begin = Begin, .update = UpdateBest, .finish = Finish};
}

}  // namespace baton::cpu::portable
#endif  // HWY_ONCE
