// Before a product: RMS norm and conversion of x. After it: bias, accumulation, gated activation.
#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "kernels/cpu/avx512/linear_parts.h"

namespace baton::cpu::avx512 {
namespace {

inline __mmask16 Tail(int64_t n) {
  return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
}

// 1 / rms(x), summed in 32 chains whatever the shape of the call.
float InverseRms(const float* x, int64_t n, float eps) {
  __m512 s0 = _mm512_setzero_ps(), s1 = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += 32) {
    const __m512 a = _mm512_maskz_loadu_ps(Tail(n - i), x + i);
    const __m512 b = _mm512_maskz_loadu_ps(Tail(n - i - 16), x + i + 16);
    s0 = _mm512_fmadd_ps(a, a, s0);
    s1 = _mm512_fmadd_ps(b, b, s1);
  }
  return 1.0f /
         std::sqrt(_mm512_reduce_add_ps(_mm512_add_ps(s0, s1)) / static_cast<float>(n) + eps);
}

inline __m512 LoadNormed(const PrepareArgs& p, const float* x, int64_t i, __m512 inverse_rms) {
  const __mmask16 mask = Tail(p.cols - i);
  const __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
  if (p.norm_weight == nullptr) return v;
  return _mm512_mul_ps(_mm512_mul_ps(v, inverse_rms),
                       _mm512_maskz_loadu_ps(mask, p.norm_weight + i));
}

struct Scaled {
  __m512i lo, hi;  // 32 integers in [-steps, steps]
  float d;
};

// x = d q with |q| <= steps; NaN in d if a value is not finite.
inline Scaled ScaleToIntegers(__m512 a, __m512 b, float steps) {
  constexpr int kNotFinite = 0x99;  // quiet NaN, +inf, -inf, signalling NaN
  // Smaller blocks count as zero, or steps / amax would overflow.
  constexpr float kSmallest = 0x1p-110f;
  const __m512 top = _mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b));
  const __m256 top8 = _mm256_max_ps(_mm512_castps512_ps256(top), _mm512_extractf32x8_ps(top, 1));
  __m128 top4 = _mm_max_ps(_mm256_castps256_ps128(top8), _mm256_extractf128_ps(top8, 1));
  top4 = _mm_max_ps(top4, _mm_movehl_ps(top4, top4));
  top4 = _mm_max_ss(top4, _mm_movehdup_ps(top4));
  const float amax = _mm_cvtss_f32(top4);
  const bool finite =
      (_mm512_fpclass_ps_mask(a, kNotFinite) | _mm512_fpclass_ps_mask(b, kNotFinite)) == 0;
  const bool zero = !finite || amax < kSmallest;
  const __m512 inverse = _mm512_set1_ps(zero ? 0.0f : steps / amax);
  const __mmask16 keep = finite ? 0xffff : 0;
  return {_mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(a, inverse)),
          _mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(b, inverse)),
          !finite ? std::nanf("")
          : zero  ? 0.0f
                  : amax * (1.0f / steps)};
}

inline __m256i ToBytes(__m512i lo, __m512i hi) {
  return _mm256_set_m128i(_mm512_cvtepi32_epi8(hi), _mm512_cvtepi32_epi8(lo));
}

void Quantise(__m512 a, __m512 b, QuantBlock& out) {
  const Scaled s = ScaleToIntegers(a, b, 127.0f);
  const __m256i q = ToBytes(s.lo, s.hi);
  _mm256_store_si256(reinterpret_cast<__m256i*>(out.q), q);
  // Sums of each half by one byte dot product with ones and two pairwise additions.
  const __m256i by4 = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), q);
  __m128i halves = _mm_hadd_epi32(_mm256_castsi256_si128(by4), _mm256_extracti128_si256(by4, 1));
  halves = _mm_hadd_epi32(halves, halves);
  SetSums(_mm_extract_epi32(halves, 0), _mm_extract_epi32(halves, 1), s.d, out);
}

void Quantise(__m512 a, __m512 b, FineBlock& out) {
  // 127 * 256: the high byte of a rounded quotient stays within +-127.
  const Scaled s = ScaleToIntegers(a, b, 32512.0f);
  const __m512i half = _mm512_set1_epi32(128);
  const __m512i hi0 = _mm512_srai_epi32(_mm512_add_epi32(s.lo, half), 8);
  const __m512i hi1 = _mm512_srai_epi32(_mm512_add_epi32(s.hi, half), 8);
  _mm256_store_si256(reinterpret_cast<__m256i*>(out.q), ToBytes(hi0, hi1));
  _mm256_store_si256(reinterpret_cast<__m256i*>(out.q + 32),
                     ToBytes(_mm512_sub_epi32(s.lo, _mm512_slli_epi32(hi0, 8)),
                             _mm512_sub_epi32(s.hi, _mm512_slli_epi32(hi1, 8))));
  SetSums(_mm512_reduce_add_epi32(s.lo), _mm512_reduce_add_epi32(s.hi), s.d, out);
}

// exp(x) within 2 ulp for x in [-104, 88.7]; 0 below, infinity above, NaN for NaN.
inline __m512 Exp(__m512 x) {
  // Limits come first: these instructions return their second operand when one is NaN.
  const __m512 v = _mm512_min_ps(_mm512_set1_ps(200.0f), _mm512_max_ps(_mm512_set1_ps(-200.0f), x));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(v, _mm512_set1_ps(1.44269504f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), v);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// Both activations are g * sigmoid(s): s = g for SiLU, s = 2 sqrt(2 / pi) (g + 0.044715 g^3) for
// tanh-GELU.
inline __m512 Activate(__m512 g, GluActivation a) {
  __m512 s = g;
  if (a == GluActivation::kGeluTanh) {
    const __m512 cubic =
        _mm512_fmadd_ps(_mm512_mul_ps(g, g), _mm512_set1_ps(0.044715f), _mm512_set1_ps(1.0f));
    s = _mm512_mul_ps(_mm512_mul_ps(g, cubic), _mm512_set1_ps(1.5957691216f));
  }
  const __m512 e = Exp(_mm512_xor_ps(s, _mm512_set1_ps(-0.0f)));
  return _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

}  // namespace

void PrepareLinear(const PrepareArgs& p) {
  for (int t = 0; t < p.count; ++t) {
    const float* x = p.x + t * p.x_stride;
    const __m512 inverse = _mm512_set1_ps(p.norm_weight ? InverseRms(x, p.cols, p.norm_eps) : 1.0f);
    auto* plain = reinterpret_cast<uint32_t*>(p.plain);
    const __m512i scatter =
        _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                           _mm512_set1_epi32(kTileTokens));
    for (int64_t b = 0; b < p.blocks; ++b) {
      const __m512 lo = LoadNormed(p, x, b * 32, inverse);
      const __m512 hi = LoadNormed(p, x, b * 32 + 16, inverse);
      if (p.quant) Quantise(lo, hi, p.quant[b * kTileTokens + t]);
      if (p.fine) Quantise(lo, hi, p.fine[b * kTileTokens + t]);
      if (plain) {
        const __m512bh pairs = _mm512_cvtne2ps_pbh(hi, lo);
        _mm512_i32scatter_epi32(plain + b * 16 * kTileTokens + t, scatter,
                                reinterpret_cast<__m512i>(pairs), 4);
      }
    }
  }
}

void PrepareRows(const PrepareArgs& p) {
  for (int t = 0; t < p.count; ++t) {
    const float* x = p.x + t * p.x_stride;
    const __m512 inverse = _mm512_set1_ps(p.norm_weight ? InverseRms(x, p.cols, p.norm_eps) : 1.0f);
    std::byte* out = p.plain + t * p.blocks * 64;
    for (int64_t b = 0; b < p.blocks; ++b) {
      const __m512 lo = LoadNormed(p, x, b * 32, inverse);
      const __m512 hi = LoadNormed(p, x, b * 32 + 16, inverse);
      _mm512_store_si512(out + b * 64, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(hi, lo)));
    }
  }
}

void FinishLinear(const FinishArgs& p) {
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int r = 0; r < p.rows; r += 16) {
      const __mmask16 mask = Tail(p.rows - r);
      __m512 v = _mm512_load_ps(p.acc + t * kPanelRows + r);
      if (p.bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, p.bias + r));
      float* y = p.y + t * p.y_stride + r;
      if (p.accumulate) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), v);
      _mm512_mask_storeu_ps(y, mask, v);
    }
  }
}

void FinishGlu(const FinishArgs& p) {
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int r = 0; r < p.rows; r += 16) {
      const __m512 gate = _mm512_load_ps(p.acc + t * kPanelRows + r);
      const __m512 up = _mm512_load_ps(p.up + t * kPanelRows + r);
      _mm512_mask_storeu_ps(p.y + t * p.y_stride + r, Tail(p.rows - r),
                            _mm512_mul_ps(Activate(gate, p.activation), up));
    }
  }
}

}  // namespace baton::cpu::avx512
