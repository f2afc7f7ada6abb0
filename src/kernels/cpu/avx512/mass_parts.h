// The mass kernels of avx512/ and amx/ from the dot products of a query and the 64 keys of a page
// on. Include from files below these folders only.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/avx512/vec_math.h"
#include "kernels/cpu/mass_kernels.h"

namespace baton::cpu::avx512 {
// A copy for every file, as in attend_block.h.
namespace {

// The larger one; NaN if either is.
inline __m512 MaxOrNan(__m512 a, __m512 b) {
  const __m512 m = _mm512_max_ps(a, b);
  return _mm512_mask_mov_ps(m, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
}

inline __mmask16 FirstLanes(int64_t n) {
  return static_cast<__mmask16>((1u << std::clamp<int64_t>(n, 0, 16)) - 1);
}

constexpr float kChordUnit = 1 << 23;

// The float with the bits x: the chord of 2^(x / kChordUnit - 127) between powers of two, from 0 to
// 1; 1 for NaN.
inline __m512 Chord(__m512 x) {
  x = _mm512_min_ps(x, _mm512_set1_ps(127 * kChordUnit));
  return _mm512_castsi512_ps(_mm512_cvtps_epi32(_mm512_max_ps(x, _mm512_setzero_ps())));
}

// Adds to `mass`, the current or future content of q.out. kChord: low-bit ranking. kMasked: q may
// not see all keys.
template <bool kChord, bool kMax, bool kMasked>
[[gnu::always_inline]] inline void AddMass(const __m512 (&sums)[4], float scale, const MassQuery& q,
                                           __m512 (&mass)[4]) {
  const __m512 scales = _mm512_set1_ps(kChord ? scale * kChordUnit : scale);
  const __m512 lse = _mm512_set1_ps(kChord ? (q.lse - 127) * kChordUnit : q.lse);
  const bool unknown = kChord && std::isnan(q.lse);  // the chord would make it 1
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 x = _mm512_fmsub_ps(sums[j], scales, lse);
    const __m512 p = unknown ? lse : kChord ? Chord(x) : Exp2(x);
    const __m512 joined = kMax ? MaxOrNan(mass[j], p) : _mm512_add_ps(mass[j], p);
    mass[j] =
        kMasked ? _mm512_mask_mov_ps(mass[j], FirstLanes(q.visible - 16 * j), joined) : joined;
  }
}

}  // namespace
}  // namespace baton::cpu::avx512
