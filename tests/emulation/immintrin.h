// AVX-512 for machines without it: stands before the compiler's <immintrin.h> when the AVX-512
// kernels are built with BATON_EMULATE_AVX512, so that their tests run anywhere (`make emulate`).
// SIMDe has most instructions, in plain C; those that it lacks follow. Slow, and for tests alone.
#pragma once

#include_next <immintrin.h>

#define SIMDE_X86_AVX512F_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512BW_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512DQ_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512VL_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512VNNI_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512BF16_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

// The compiler's own types of these names belong to instructions that are not enabled.
#define __m512 simde__m512
#define __m512i simde__m512i
#define __m512d simde__m512d
#define __m512bh simde__m512bh

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace baton::emulation {

template <typename T>
using Lanes = std::array<T, 64 / sizeof(T)>;
using Floats = Lanes<float>;
using Ints = Lanes<int32_t>;

// Lane i of the result is f(lane i of x).
template <typename To, typename R, typename From, typename V, typename F>
R Map(const V& x, F&& f) {
  const auto in = std::bit_cast<std::array<From, sizeof(V) / sizeof(From)>>(x);
  std::array<To, sizeof(R) / sizeof(To)> out{};
  for (size_t i = 0; i < out.size(); ++i) out[i] = f(in[i]);
  return std::bit_cast<R>(out);
}

// What lies at p where the mask has a bit, else what `other` has.
template <typename T, typename V>
V Load(const V& other, uint64_t mask, const void* p) {
  auto lanes = std::bit_cast<std::array<T, sizeof(V) / sizeof(T)>>(other);
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (mask >> i & 1) std::memcpy(&lanes[i], static_cast<const T*>(p) + i, sizeof(T));
  }
  return std::bit_cast<V>(lanes);
}
template <typename T, typename V>
void Store(void* p, uint64_t mask, const V& x) {
  const auto lanes = std::bit_cast<std::array<T, sizeof(V) / sizeof(T)>>(x);
  for (size_t i = 0; i < lanes.size(); ++i) {
    if (mask >> i & 1) std::memcpy(static_cast<T*>(p) + i, &lanes[i], sizeof(T));
  }
}

// As the instruction: to the nearest, denormals to zero, NaNs quiet.
inline uint16_t ToBf16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  if ((bits & 0x7f800000) == 0) return static_cast<uint16_t>(bits >> 16 & 0x8000);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline __m256i ToBf16(const __m512& x) {
  return Map<uint16_t, __m256i, float>(x, [](float v) { return ToBf16(v); });
}
inline __m512bh ToBf16(const __m512& hi, const __m512& lo) {
  return std::bit_cast<__m512bh>(std::array{ToBf16(lo), ToBf16(hi)});
}

inline __m512i Round(uint16_t mask, const __m512& x) {
  const auto halves = std::bit_cast<std::array<__m256, 2>>(x);
  const std::array whole{_mm256_cvtps_epi32(halves[0]), _mm256_cvtps_epi32(halves[1])};
  return Load<int32_t>(simde_mm512_setzero_si512(), mask, &whole);
}
inline __m512 FromHalves(__m256i x) {
  const auto halves = std::bit_cast<std::array<__m128i, 2>>(x);
  return std::bit_cast<__m512>(std::array{_mm256_cvtph_ps(halves[0]), _mm256_cvtph_ps(halves[1])});
}
inline uint16_t NotFinite(const __m512& x) {
  const auto lanes = std::bit_cast<Floats>(x);
  uint16_t mask = 0;
  for (size_t i = 0; i < 16; ++i) mask |= static_cast<uint16_t>(!std::isfinite(lanes[i]) << i);
  return mask;
}
inline void Scatter(void* p, const __m512i& index, const __m512i& x, int scale) {
  const auto at = std::bit_cast<Ints>(index), lanes = std::bit_cast<Ints>(x);
  for (size_t i = 0; i < 16; ++i)
    std::memcpy(static_cast<std::byte*>(p) + int64_t{at[i]} * scale, &lanes[i], 4);
}
// By halves, as the compiler's sequences do.
template <typename T, typename V, typename F>
T Reduce(const V& x, F&& f) {
  auto lanes = std::bit_cast<Lanes<T>>(x);
  for (size_t n = lanes.size() / 2; n > 0; n /= 2) {
    for (size_t i = 0; i < n; ++i) lanes[i] = f(lanes[i], lanes[i + n]);
  }
  return lanes[0];
}
inline constexpr auto kAdd = [](auto a, auto b) { return a + b; };
inline constexpr auto kMax = [](auto a, auto b) { return a > b ? a : b; };

}  // namespace baton::emulation

#define BATON_ZERO simde_mm512_setzero_ps()
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4(a, b, imm) \
  simde_mm512_castsi512_ps(             \
      simde_mm512_shuffle_i32x4(simde_mm512_castps_si512(a), simde_mm512_castps_si512(b), imm))
#define _mm256_mask_storeu_epi16(p, m, x) baton::emulation::Store<uint16_t>(p, m, x)
#define _mm256_maskz_loadu_epi8(m, p) baton::emulation::Load<uint8_t>(_mm256_setzero_si256(), m, p)
#define _mm512_cvtepi32_epi8(x) \
  baton::emulation::Map<uint8_t, __m128i, int32_t>(x, [](int32_t v) { return uint8_t(v); })
#define _mm512_cvtepi32_ps(x) \
  baton::emulation::Map<float, __m512, int32_t>(x, [](int32_t v) { return float(v); })
#define _mm512_cvtepi8_epi32(x) \
  baton::emulation::Map<int32_t, __m512i, int8_t>(x, [](int8_t v) { return int32_t{v}; })
#define _mm512_cvtepu16_epi32(x) \
  baton::emulation::Map<int32_t, __m512i, uint16_t>(x, [](uint16_t v) { return int32_t{v}; })
#define _mm512_srai_epi32(x, n) \
  baton::emulation::Map<int32_t, __m512i, int32_t>(x, [](int32_t v) { return v >> (n); })
#define _mm512_cvtneps_pbh(x) baton::emulation::ToBf16(x)
#define _mm512_cvtne2ps_pbh(hi, lo) baton::emulation::ToBf16(hi, lo)
#define _mm512_cvtph_ps(x) baton::emulation::FromHalves(x)
#define _mm512_cvtps_epi32(x) baton::emulation::Round(0xffff, x)
#define _mm512_maskz_cvtps_epi32(m, x) baton::emulation::Round(m, x)
#define _mm512_extractf32x8_ps(x, i) std::bit_cast<std::array<__m256, 2>>(x)[i]
#define _mm512_fpclass_ps_mask(x, classes) \
  baton::emulation::NotFinite(x)  // the only ones asked for
#define _mm512_i32scatter_epi32(p, index, x, scale) baton::emulation::Scatter(p, index, x, scale)
#define _mm512_mask_load_ps(other, m, p) baton::emulation::Load<float>(other, m, p)
#define _mm512_mask_loadu_ps(other, m, p) baton::emulation::Load<float>(other, m, p)
#define _mm512_maskz_load_ps(m, p) baton::emulation::Load<float>(BATON_ZERO, m, p)
#define _mm512_maskz_loadu_ps(m, p) baton::emulation::Load<float>(BATON_ZERO, m, p)
#define _mm512_maskz_loadu_epi16(m, p) \
  baton::emulation::Load<uint16_t>(simde_mm512_setzero_si512(), m, p)
#define _mm512_maskz_loadu_epi32(m, p) \
  baton::emulation::Load<uint32_t>(simde_mm512_setzero_si512(), m, p)
#define _mm512_mask_storeu_ps(p, m, x) baton::emulation::Store<float>(p, m, x)
#define _mm512_reduce_add_ps(x) baton::emulation::Reduce<float>(x, baton::emulation::kAdd)
#define _mm512_reduce_max_ps(x) baton::emulation::Reduce<float>(x, baton::emulation::kMax)
#define _mm512_reduce_add_epi32(x) baton::emulation::Reduce<int32_t>(x, baton::emulation::kAdd)
