// Converts quants to bf16 pairs, the second operand of the tile product. Include from files below
// amx/ only.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace baton::cpu::amx {
// A copy for every file, as in attend_block.h.
namespace {

inline __m512 LoadHalves(const std::byte* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// The pairs (a, b) of 16 rows, rounded to bf16.
inline __m512i Pairs(__m512 a, __m512 b) {
  const __m512i interleave =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                       21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}

// w = scale * (1 + q / 2^kBits) + offset, where q is kBits wide from bit kShift of each dword: the
// quant becomes the mantissa of a number between 1 and 2, which avoids a conversion.
template <int kBits, int kShift>
inline __m512 Expand(__m512i raw, __m512 scale, __m512 offset) {
  constexpr int kUp = 23 - kBits - kShift;
  const __m512i moved = kUp > 0 ? _mm512_slli_epi32(raw, std::max(kUp, 0))
                                : _mm512_srli_epi32(raw, std::max(-kUp, 0));
  const __m512i mantissa = _mm512_set1_epi32(((1 << kBits) - 1) << (23 - kBits));
  const __m512i one = _mm512_set1_epi32(0x3f800000);
  // (moved & mantissa) | one
  const __m512i bits = _mm512_ternarylogic_epi32(moved, mantissa, one, 0xea);
  return _mm512_fmadd_ps(_mm512_castsi512_ps(bits), scale, offset);
}

// Converts four columns of 16 rows, kBits wide from bit kShift of each byte, to two rows of pairs,
// `stride` bytes apart.
template <int kBits, int kShift>
inline void ExpandFour(__m512i raw, __m512 scale, __m512 offset, int64_t stride, std::byte* out) {
  _mm512_store_si512(out, Pairs(Expand<kBits, kShift>(raw, scale, offset),
                                Expand<kBits, kShift + 8>(raw, scale, offset)));
  _mm512_store_si512(out + stride, Pairs(Expand<kBits, kShift + 16>(raw, scale, offset),
                                         Expand<kBits, kShift + 24>(raw, scale, offset)));
}

}  // namespace
}  // namespace baton::cpu::amx
