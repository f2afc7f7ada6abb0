// Parts of attention with AVX2: the cache's values, and the packing and products of many rows
// (attend.cc says how they work). Include from attend.cc only.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>

#include "kernels/cpu/attend_block.h"
#include "kernels/cpu/avx2/vec_math.h"

namespace baton::cpu::avx2 {
// A copy for every file, as in attend_block.h.
namespace {

constexpr float kLog2E = std::numbers::log2e_v<float>, kLn2 = std::numbers::ln2_v<float>;
constexpr int kFewRows = 8;    // of a tile
constexpr int kFewAtOnce = 4;  // of a product
constexpr int kManyAtOnce = 6;
constexpr int kStepPairs = 8;  // of packed products, between steps of prefetch
static_assert(kManyAtOnce <= kRowStep && kFewAtOnce <= kRowStep);

// Largest magnitudes of the integers of many rows. Queries and keys: their product over all
// channels must fit 32 bits. Values and weights: their product over all keys of a block must.
float KeyTop(int64_t dim) {
  const auto each = static_cast<double>(std::numeric_limits<int32_t>::max() / dim);
  return static_cast<float>(std::floor(std::sqrt(each)));
}
constexpr int kValueTop = 2047, kWeightTop = 8191;
static_assert(int64_t{kValueTop} * kWeightTop * kMaxBlockKeys <=
              std::numeric_limits<int32_t>::max());
constexpr int kWeightStride = kMaxBlockKeys / 2;  // dwords from one row's weights to the next

bool IsFew(const AttendTile& t) { return t.rows <= kFewRows; }
int RowsAtOnce(const AttendTile& t) {
  return GroupRows(t.rows, IsFew(t) ? kFewAtOnce : kManyAtOnce);
}

// ---- the cache's values

// 16 channels: in order (int8), or the even and the odd ones (bf16).
struct Sixteen {
  __m256 part[2];
};

// part: 0 or 1.
template <bool kInt8>
[[gnu::always_inline]] inline __m256 Load8(const std::byte* p, int part) {
  if constexpr (kInt8) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * part))));
  } else {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_castsi256_ps(part == 0 ? _mm256_slli_epi32(x, 16)
                                         : _mm256_and_si256(x, _mm256_set1_epi32(-65536)));
  }
}
template <bool kInt8>
[[gnu::always_inline]] inline Sixteen Load16(const std::byte* p) {
  return {Load8<kInt8>(p, 0), Load8<kInt8>(p, 1)};
}
template <bool kInt8>
constexpr int64_t kBytesOf16 = kInt8 ? 16 : 32;

// Load8 at this place and of one part only: g++ would load everything as early as possible and keep
// it, but the 12 sums of a product leave only four registers.
template <bool kInt8>
[[gnu::always_inline]] inline __m256 Load8Now(const std::byte* p, int part) {
  asm volatile("" : "+r"(p));
  if (!kInt8 && part == 1) {
    alignas(32) static constexpr uint32_t kOdd[8] = {0xffff0000, 0xffff0000, 0xffff0000,
                                                     0xffff0000, 0xffff0000, 0xffff0000,
                                                     0xffff0000, 0xffff0000};
    __m256 x = _mm256_loadu_ps(reinterpret_cast<const float*>(p));
    asm volatile("vandps %1, %0, %0" : "+x"(x) : "m"(*reinterpret_cast<const __m256*>(kOdd)));
    return x;
  }
  __m256 x = Load8<kInt8>(p, part);
  asm volatile("" : "+x"(x));
  return x;
}

// acc + x * y, in place: g++ would put the sum in a factor's register and move it back.
[[gnu::always_inline]] inline __m256 AddProduct(__m256 acc, __m256 x, __m256 y) {
  asm("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(x), "x"(y));
  return acc;
}

// The same order for 16 floats.
template <bool kInt8>
Sixteen Order(const float* x) {
  const __m256 lo = _mm256_loadu_ps(x), hi = _mm256_loadu_ps(x + 8);
  if constexpr (kInt8) return {lo, hi};
  const __m256 a = _mm256_permute2f128_ps(lo, hi, 0x20), b = _mm256_permute2f128_ps(lo, hi, 0x31);
  // a: channels 0-3 and 8-11, b: 4-7 and 12-15.
  return {_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd)};
}
// Back to the order of memory.
template <bool kInt8>
void StoreInOrder(__m256 first, __m256 second, float* out) {
  if constexpr (kInt8) {
    _mm256_storeu_ps(out, first);
    _mm256_storeu_ps(out + 8, second);
  } else {
    const __m256 lo = _mm256_unpacklo_ps(first, second), hi = _mm256_unpackhi_ps(first, second);
    // Channels 0-3 and 8-11 from the lower four of each, in 128-bit lanes.
    _mm256_storeu_ps(out, _mm256_permute2f128_ps(lo, hi, 0x20));
    _mm256_storeu_ps(out + 8, _mm256_permute2f128_ps(lo, hi, 0x31));
  }
}

// ---- packing

int PaddedKeys(const KeyBlock& block) { return (block.count + kKeyStep - 1) / kKeyStep * kKeyStep; }

// The scale of bf16 values, their largest magnitude being `top` steps; NaN if one is not finite.
float ScaleOf(const std::byte* row, int64_t dim, float top) {
  __m256i largest = _mm256_setzero_si256();
  for (int64_t c = 0; c < dim; c += 16) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 2 * c));
    largest = _mm256_max_epu16(largest, _mm256_and_si256(x, _mm256_set1_epi16(0x7fff)));
  }
  // The smallest of the complements.
  const __m128i eight =
      _mm_max_epu16(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1)));
  const uint32_t bits = ~static_cast<uint32_t>(_mm_cvtsi128_si32(least)) << 16;
  return bits >= 0x7f800000 ? std::nanf("") : std::bit_cast<float>(bits) / top;
}
float Inverse(float scale) { return scale > 0x1p-120f ? 1 / scale : 0; }  // 0 for NaN

// 16 channels of bf16 as integers: the even ones, and the odd ones in the upper halves of dwords.
struct Integers {
  __m256i even, odd;
};
[[gnu::always_inline]] inline Integers Quantise(const std::byte* p, __m256 inverse) {
  const Sixteen x = Load16<false>(p);
  const __m256i odd = _mm256_cvtps_epi32(_mm256_mul_ps(x.part[1], inverse));
  return {_mm256_cvtps_epi32(_mm256_mul_ps(x.part[0], inverse)), _mm256_slli_epi32(odd, 16)};
}
inline __m256i Widen(const std::byte* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Lower halves of a, upper ones of b.
inline __m256i Join(__m256i a, __m256i b) { return _mm256_blend_epi16(a, b, 0xaa); }

// scale[k]: bf16 only.
template <bool kInt8>
void PackKeys(const KeyBlock& block, Ahead& ahead, int64_t offset, int64_t dim, uint32_t* out,
              float* scale) {
  const float top = KeyTop(dim);
  for (int k = 0; k < PaddedKeys(block); k += 8) {
    uint32_t* to = out + k / 16 * dim * 8 + k % 16;
    const std::byte* const* rows = block.rows + k;
    float inverse[8];
    if constexpr (!kInt8) {
      for (int i = 0; i < 8; ++i) {
        scale[k + i] = ScaleOf(rows[i] + offset, dim, top);
        inverse[i] = Inverse(scale[k + i]);
      }
    }
    for (int64_t c = 0; c < dim; c += 16) {
      const int64_t at = offset + c / 16 * kBytesOf16<kInt8>;
      __m256i r[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        if constexpr (kInt8) {
          r[i] = Widen(rows[i] + at);
        } else {
          const Integers x = Quantise(rows[i] + at, _mm256_broadcast_ss(inverse + i));
          r[i] = Join(x.even, x.odd);
        }
      }
      ahead.Step();
      Transpose8(r);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i)
        _mm256_store_si256(reinterpret_cast<__m256i*>(to + (c / 2 + i) * 16), r[i]);
    }
  }
}

template <bool kInt8>
void PackValues(const KeyBlock& block, Ahead& ahead, int64_t offset, int64_t dim, uint32_t* out,
                float* scale) {
  for (int k = 0; k < PaddedKeys(block); k += 2) {
    ahead.Step();
    const std::byte* a = block.rows[k] + offset;
    const std::byte* b = block.rows[k + 1] + offset;
    __m256 inverse[2];
    if constexpr (!kInt8) {
      scale[k] = ScaleOf(a, dim, kValueTop), scale[k + 1] = ScaleOf(b, dim, kValueTop);
      for (int i = 0; i < 2; ++i) inverse[i] = _mm256_set1_ps(Inverse(scale[k + i]));
    }
    for (int64_t c = 0; c < dim; c += 16, a += kBytesOf16<kInt8>, b += kBytesOf16<kInt8>) {
      auto* to = reinterpret_cast<__m256i*>(out + (c / 16 * (kMaxBlockKeys / 2) + k / 2) * 16);
      if constexpr (kInt8) {
        const __m256i x = Widen(a), y = Widen(b);
        const __m256i lo = _mm256_unpacklo_epi16(x, y), hi = _mm256_unpackhi_epi16(x, y);
        _mm256_store_si256(to, _mm256_permute2x128_si256(lo, hi, 0x20));
        _mm256_store_si256(to + 1, _mm256_permute2x128_si256(lo, hi, 0x31));
      } else {
        const Integers x = Quantise(a, inverse[0]), y = Quantise(b, inverse[1]);
        _mm256_store_si256(to, Join(x.even, _mm256_slli_epi32(y.even, 16)));
        _mm256_store_si256(to + 1, Join(_mm256_srli_epi32(x.odd, 16), y.odd));
      }
    }
  }
}

// ---- products of packed keys and values

inline __m256i Broadcast(const uint32_t* pair) {
  return _mm256_set1_epi32(static_cast<int32_t>(*pair));
}

// Sums of kRows rows by 16 columns over pairs. Those of `columns` are [pairs][16]; those of the
// rows are pair_step apart, and rows row_step apart.
template <int kRows>
[[gnu::always_inline]] inline void PairSums(const uint32_t* columns, const uint32_t* rows,
                                            int64_t pair_step, int64_t row_step, int64_t pairs,
                                            Ahead& ahead, __m256i (&a)[kRows][2]) {
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) a[i][0] = a[i][1] = _mm256_setzero_si256();
  for (int64_t p = 0; p < pairs; p += kStepPairs) {
    ahead.Step();
#pragma GCC unroll 2
    for (int j = 0; j < kStepPairs; ++j, columns += 16, rows += pair_step) {
      const __m256i c0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(columns));
      const __m256i c1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(columns + 8));
#pragma GCC unroll 6
      for (int i = 0; i < kRows; ++i) {
        const __m256i x = Broadcast(rows + i * row_step);
        AddTo<false>(a[i][0], _mm256_madd_epi16(c0, x));
        AddTo<false>(a[i][1], _mm256_madd_epi16(c1, x));
      }
    }
  }
}

// s[i][16] = q rows . 16 keys, times both factors. q: [D/2][kRows].
template <int kRows>
void Scores(const uint32_t* q, const uint32_t* keys, int64_t pairs, const float* row_factor,
            const float* key_factor, float* s, Ahead& ahead) {
  __m256i a[kRows][2];
  PairSums<kRows>(keys, q, kRows, 1, pairs, ahead, a);
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
    const __m256 f = _mm256_broadcast_ss(row_factor + i);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256 both = _mm256_mul_ps(f, _mm256_load_ps(key_factor + 8 * h));
      _mm256_store_ps(s + i * kMaxBlockKeys + 8 * h,
                      _mm256_mul_ps(_mm256_cvtepi32_ps(a[i][h]), both));
    }
  }
}

// acc rows = acc * decay + factor * (weights . values), 16 channels at a time.
template <int kRows>
void Accumulate(const uint32_t* weights, const uint32_t* values, int pairs, const float* factor,
                const float* decay, int64_t dim, int64_t padded, float* acc, Ahead& ahead) {
  for (int64_t c = 0; c < dim; c += 16) {
    __m256i a[kRows][2];
    PairSums<kRows>(values + c * (kMaxBlockKeys / 2), weights, 1, kWeightStride, pairs, ahead, a);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      const __m256 f = _mm256_broadcast_ss(factor + i), fade = _mm256_broadcast_ss(decay + i);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        float* to = acc + i * padded + c + 8 * h;
        _mm256_store_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(a[i][h]), f,
                                            _mm256_mul_ps(_mm256_load_ps(to), fade)));
      }
    }
  }
}

using ScoresFn = void (*)(const uint32_t*, const uint32_t*, int64_t, const float*, const float*,
                          float*, Ahead&);
using AccumulateFn = void (*)(const uint32_t*, const uint32_t*, int, const float*, const float*,
                              int64_t, int64_t, float*, Ahead&);
constexpr ScoresFn kScores[kManyAtOnce + 1] = {nullptr,   Scores<1>, Scores<2>, Scores<3>,
                                               Scores<4>, Scores<5>, Scores<6>};
constexpr AccumulateFn kAccumulate[kManyAtOnce + 1] = {nullptr,       Accumulate<1>, Accumulate<2>,
                                                       Accumulate<3>, Accumulate<4>, Accumulate<5>,
                                                       Accumulate<6>};

}  // namespace
}  // namespace baton::cpu::avx2
