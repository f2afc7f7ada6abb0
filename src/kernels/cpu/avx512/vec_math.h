// Exponentials, reductions and transpositions of 16 lanes for the AVX-512 kernels. Include from
// files below avx512/ only.
#pragma once

#include <immintrin.h>

namespace baton::cpu::avx512 {

namespace {

// 2^x for x <= 0, relative error below 2e-7; exactly 1 at 0, exactly 0 from -150 on
// down (also at -inf), NaN for NaN. The polynomial is a constrained minimax fit of degree 5 on
// [-0.5, 0.5].
inline __m512 Exp2NotPositive(__m512 x) {
  // max returns its second operand when either is NaN, so NaN survives.
  x = _mm512_max_ps(_mm512_set1_ps(-150.0f), x);
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, n);
  __m512 y = _mm512_set1_ps(0x1.5bba14p-10f);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0x1.3cea88p-7f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0x1.c6b752p-5f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0x1.ebf9bcp-3f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0x1.62e42ap-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, n);
}

// The same with a relative error below 1.1e-4, for what is rounded to bf16 next (2e-3). Degree 3.
inline __m512 Exp2ForBf16(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-150.0f), x);
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, n);
  __m512 y = _mm512_set1_ps(0x1.c2a28p-5f);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0x1.f00c9p-3f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0x1.62f5fcp-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, n);
}

// 2^x for any x; +inf where 2^x overflows.
inline __m512 Exp2(__m512 x) { return Exp2NotPositive(_mm512_min_ps(_mm512_set1_ps(150.0f), x)); }

// e^x, relative error below 2e-7 where the result is normal; limits as above and +inf where it
// overflows.
inline __m512 Exp(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-105.0f), x);
  x = _mm512_min_ps(_mm512_set1_ps(105.0f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // ln 2 in two parts: n times the first is exact.
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
  __m512 y = _mm512_set1_ps(0.0013843646738678217f);
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.008374162018299103f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.04166800156235695f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.16666431725025177f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.4999999403953552f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, n);
}

// Lane i of the result: the 16 lanes of v[i] reduced by `op`.
template <typename Op>
[[gnu::always_inline]] inline __m512 AcrossLanes(__m512 (&v)[16], Op op) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    v[i] =
        op(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(v[2 * i]), b = _mm512_castps_pd(v[2 * i + 1]);
    v[i] =
        op(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const auto join = [op](__m512 a, __m512 b) {
    return op(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return join(join(v[0], v[1]), join(v[2], v[3]));
}

// r[i] dword j becomes r[j] dword i. Inlined and unrolled, so that the 16 rows stay in registers.
[[gnu::always_inline]] inline void Transpose16(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512i a = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    const __m512i b = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    const __m512i c = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]);
    const __m512i d = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
    t[i] = _mm512_unpacklo_epi64(a, c);
    t[i + 1] = _mm512_unpackhi_epi64(a, c);
    t[i + 2] = _mm512_unpacklo_epi64(b, d);
    t[i + 3] = _mm512_unpackhi_epi64(b, d);
  }
  // t[4q + c], 128-bit lane l: dwords 4l + c of rows 4q to 4q + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i a = _mm512_shuffle_i32x4(t[c], t[4 + c], 0x44);
    const __m512i b = _mm512_shuffle_i32x4(t[c], t[4 + c], 0xee);
    const __m512i d = _mm512_shuffle_i32x4(t[8 + c], t[12 + c], 0x44);
    const __m512i e = _mm512_shuffle_i32x4(t[8 + c], t[12 + c], 0xee);
    r[c] = _mm512_shuffle_i32x4(a, d, 0x88);
    r[4 + c] = _mm512_shuffle_i32x4(a, d, 0xdd);
    r[8 + c] = _mm512_shuffle_i32x4(b, e, 0x88);
    r[12 + c] = _mm512_shuffle_i32x4(b, e, 0xdd);
  }
}

}  // namespace

}  // namespace baton::cpu::avx512
