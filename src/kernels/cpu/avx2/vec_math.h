// Registers of 8 floats for the AVX2 kernels. Include from files below avx2/ only.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>

namespace baton::cpu::avx2 {

// Calls body.operator()<R>(first) for kMost, ..., kMost and the rest of `count`.
template <int kMost, typename F>
void InGroups(int64_t count, F&& body) {
  int64_t first = 0;
  for (; first + kMost <= count; first += kMost) body.template operator()<kMost>(first);
  if constexpr (kMost > 1) {
    if (first < count) {
      InGroups<kMost - 1>(count - first,
                          [&]<int R>(int64_t r) { body.template operator()<R>(first + r); });
    }
  }
}

// All bits of the first n lanes.
inline __m256i FirstLanes(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int count = n <= 0 ? 0 : n >= 8 ? 8 : static_cast<int>(n);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
}

// acc += x, at this place and in place: g++ postpones chains of additions until their sum is used,
// and the pending operands exceed the 16 registers.
template <bool k16>
inline void AddTo(__m256i& acc, __m256i x) {
  if constexpr (k16) {
    asm("vpaddw %1, %0, %0" : "+x"(acc) : "x"(x));
  } else {
    asm("vpaddd %1, %0, %0" : "+x"(acc) : "x"(x));
  }
}

// 32 integers as bytes, saturated.
inline __m256i ToBytes(const __m256i (&x)[4]) {
  const __m256i bytes =
      _mm256_packs_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_packs_epi32(x[2], x[3]));
  // Packing works on halves of registers.
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// r[i] dword j becomes r[j] dword i.
[[gnu::always_inline]] inline void Transpose8(__m256i (&r)[8]) {
  __m256i t[8];
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    const __m256i a = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    const __m256i b = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    const __m256i c = _mm256_unpacklo_epi32(r[i + 2], r[i + 3]);
    const __m256i d = _mm256_unpackhi_epi32(r[i + 2], r[i + 3]);
    t[i] = _mm256_unpacklo_epi64(a, c);
    t[i + 1] = _mm256_unpackhi_epi64(a, c);
    t[i + 2] = _mm256_unpacklo_epi64(b, d);
    t[i + 3] = _mm256_unpackhi_epi64(b, d);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2x128_si256(t[i], t[4 + i], 0x20);
    r[4 + i] = _mm256_permute2x128_si256(t[i], t[4 + i], 0x31);
  }
}

// The larger one; NaN if either is.
inline __m256 MaxOrNan(__m256 a, __m256 b) {
  return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}

inline float SumOf(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline int32_t SumOf(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
inline float MaxOf(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

struct Scaled {
  __m256i q[4];  // 32 integers in [-steps, steps]
  float d;
};

// x = d q with |q| <= steps; NaN in d if a value is not finite.
inline Scaled ScaleToIntegers(const __m256 (&x)[4], float steps) {
  // Smaller blocks count as zero, or steps / amax would overflow.
  constexpr float kSmallest = 0x1p-110f;
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 top = _mm256_setzero_ps(), nothing = _mm256_setzero_ps();
  for (const __m256 v : x) {
    top = _mm256_max_ps(top, _mm256_andnot_ps(sign, v));
    nothing = _mm256_add_ps(nothing, _mm256_sub_ps(v, v));  // NaN from NaN and infinity
  }
  const bool finite = _mm256_movemask_ps(_mm256_cmp_ps(nothing, nothing, _CMP_UNORD_Q)) == 0;
  const float amax = MaxOf(top);
  const bool zero = !finite || amax < kSmallest;
  Scaled s{.d = !finite ? std::nanf("") : zero ? 0.0f : amax * (1.0f / steps)};
  const __m256 inverse = _mm256_set1_ps(zero ? 0.0f : steps / amax);
  for (int j = 0; j < 4; ++j) {
    s.q[j] = finite ? _mm256_cvtps_epi32(_mm256_mul_ps(x[j], inverse)) : _mm256_setzero_si256();
  }
  return s;
}

// 2^x for x <= 0, relative error below 2e-7; exactly 1 at 0, exactly 0 from -127 on down (also at
// -inf), NaN for NaN. The polynomial is that of avx512/vec_math.h.
inline __m256 Exp2NotPositive(__m256 x) {
  // max returns its second operand when either is NaN, so NaN survives.
  x = _mm256_max_ps(_mm256_set1_ps(-127.0f), x);
  const __m256 n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 f = _mm256_sub_ps(x, n);
  __m256 y = _mm256_set1_ps(0x1.5bba14p-10f);
  y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(0x1.3cea88p-7f));
  y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(0x1.c6b752p-5f));
  y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(0x1.ebf9bcp-3f));
  y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(0x1.62e42ap-1f));
  y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(1.0f));
  const __m256i power =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(y, _mm256_castsi256_ps(power));
}

// The same for any x up to 127, as 2^127 above.
inline __m256 Exp2(__m256 x) { return Exp2NotPositive(_mm256_min_ps(_mm256_set1_ps(127.0f), x)); }

}  // namespace baton::cpu::avx2
