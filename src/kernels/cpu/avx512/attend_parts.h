// Attention code that avx512/ and amx/ share: packing of keys and values, softmax, the final
// scaling. Include from files below these folders only.
//
//   keys    per 32 keys [D/2][32] dwords: dword (d, k) holds channels 2d and 2d+1 of key k, by
//           16x16 dword transposes
//   values  per 32 channels [keys/2][32] dwords: dword (j, c) holds a channel of keys 2j and 2j+1,
//           by interleaving two rows
//   weights [row][keys/2] dwords: a row's bf16 softmax weights in order
//
// Softmax runs in powers of two: scores are scaled by log2(e) once.
//
// int8 values are exact in bf16, so int8 caches differ in packing only; the scale of K is applied
// to the scores, that of V to the weights.
#pragma once

#include <immintrin.h>
#include <math.h>

#include <numbers>

#include "kernels/cpu/attend_block.h"
#include "kernels/cpu/avx512/vec_math.h"

// GCC 12 warns about the undefined pass-through operands of its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace baton::cpu::avx512 {
// A copy for every file, as in attend_block.h.
namespace {

constexpr float kLog2E = std::numbers::log2e_v<float>, kLn2 = std::numbers::ln2_v<float>;
constexpr int kWeightStride = kMaxBlockKeys / 2;  // dwords from one row's weights to the next

inline __m512bh AsBf16(__m512i x) { return (__m512bh)x; }

// ---- packing

// 32 channels of one head of a cache row as bf16; channels that `mask` excludes are 0.
template <bool kInt8>
__m512i Load32(const std::byte* p, __mmask32 mask) {
  if constexpr (kInt8) {
    const __m256i q = _mm256_maskz_loadu_epi8(mask, p);
    const __m512 lo = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(q)));
    const __m512 hi = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(q, 1)));
    return (__m512i)_mm512_cvtne2ps_pbh(hi, lo);
  } else {
    return _mm512_maskz_loadu_epi16(mask, p);
  }
}

inline __mmask32 ChannelMask(int64_t head_dim, int64_t channel) {
  return head_dim - channel >= 32 ? 0xffffffffu : 0x0000ffffu;  // D is a multiple of 16
}

template <bool kInt8>
void PackKeys(const KeyBlock& block, Ahead& ahead, int64_t offset, int64_t head_dim,
              uint32_t* out) {
  constexpr int64_t kBytes = kInt8 ? 32 : 64;  // of 32 channels
  const int64_t padded = PaddedHead(head_dim);
  for (int k = 0; k < block.count; k += 16) {
    // 16 keys are one half of the 32 that share a stretch of `out`. An unused half of the last one
    // is left as it is: its scores are masked.
    uint32_t* to = out + k / 32 * (padded / 2) * 32 + k % 32;
    const std::byte* const* rows = block.rows + k;
    for (int64_t c = 0; c < padded; c += 32, to += 16 * 32) {
      const __mmask32 mask = ChannelMask(head_dim, c);
      const int64_t at = offset + c / 32 * kBytes;
      __m512i r[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) r[i] = Load32<kInt8>(rows[i] + at, mask);
      ahead.Step();
      Transpose16(r);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_store_si512(to + i * 32, r[i]);
    }
  }
}

template <bool kInt8>
void PackValues(const KeyBlock& block, Ahead& ahead, int64_t offset, int64_t head_dim,
                uint32_t* out) {
  constexpr int64_t kBytes = kInt8 ? 32 : 64;
  constexpr int kPairs = 4;  // at once
  // Whole steps: a hidden key's weight is 0, but 0 times old content of the scratch may be NaN.
  const int count = (block.count + kKeyStep - 1) / kKeyStep * kKeyStep;
  for (int64_t c = 0; c < head_dim; c += 32) {
    const __mmask32 mask = ChannelMask(head_dim, c);
    const int64_t at = offset + c / 32 * kBytes;
    uint32_t* to = out + c / 32 * (kMaxBlockKeys / 2) * 32;
    for (int k = 0; k < count; k += 2 * kPairs, to += kPairs * 32) {
#pragma GCC unroll 4
      for (int j = 0; j < kPairs; ++j) {
        const __m512i a = Load32<kInt8>(block.rows[k + 2 * j] + at, mask);
        const __m512i b = Load32<kInt8>(block.rows[k + 2 * j + 1] + at, mask);
        _mm512_store_si512(to + j * 32, _mm512_unpacklo_epi16(a, b));
        _mm512_store_si512(to + j * 32 + 16, _mm512_unpackhi_epi16(a, b));
      }
      ahead.Step();
    }
  }
}

// ---- softmax

// Scales of 16 keys' K or V from `key` on.
inline __m512 KeyScales(const KeyBlock& block, int key, int index) {
  alignas(64) float s[16];
  for (int i = 0; i < 16; ++i) s[i] = block.scales[key + i][index];
  return _mm512_load_ps(s);
}

struct BlockScales {
  __m512 key[kMaxBlockKeys / 16];    // `factor`, times the keys' scales in an int8 cache
  __m512 value[kMaxBlockKeys / 16];  // int8 caches only
};

template <bool kInt8>
BlockScales ScalesOf(const AttendTile& t, const KeyBlock& block, float factor) {
  BlockScales scales;
  for (int k = 0; k < (block.count + kKeyStep - 1) / kKeyStep * 2; ++k) {
    scales.key[k] = _mm512_set1_ps(factor);
    if constexpr (kInt8) {
      scales.key[k] = _mm512_mul_ps(scales.key[k], KeyScales(block, k * 16, t.kv_head));
      scales.value[k] = KeyScales(block, k * 16, t.layout.kv_heads + t.kv_head);
    }
  }
  return scales;
}

// Excludes the keys that a row at position `query` does not see.
inline void MaskScores(const AttendTile& t, const KeyBlock& block, int keys, int64_t query,
                       float* s) {
  const __m512 none = _mm512_set1_ps(-INFINITY);
  const __m512i last = _mm512_set1_epi32(static_cast<int>(query));
  const int64_t old =
      query - t.recent;  // t.recent may be as large as int64 goes; this stays negative then
  const __m512i window = _mm512_set1_epi32(static_cast<int>(old < -1 ? -1 : old));
  const __m512i sink = _mm512_set1_epi32(static_cast<int>(t.sink > query ? query + 1 : t.sink));
  for (int k = 0; k < keys; k += 16) {
    const __m512i p = _mm512_loadu_si512(block.positions + k);
    const __mmask16 outside = _mm512_cmple_epi32_mask(p, window) & _mm512_cmpge_epi32_mask(p, sink);
    const __mmask16 hidden = outside | _mm512_cmpgt_epi32_mask(p, last);
    _mm512_store_ps(s + k, _mm512_mask_mov_ps(_mm512_load_ps(s + k), hidden, none));
  }
}

// out, by position, = s * factor.
inline void StoreRawScores(const KeyBlock& block, int keys, const float* s, float factor,
                           float* out) {
  const __m512 by = _mm512_set1_ps(factor);
  out += block.positions[0];  // positions are consecutive where scores are requested
  for (int k = 0; k < keys && k < block.count; k += 16) {
    const int n = block.count - k;
    const __mmask16 mask = n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1);
    _mm512_mask_storeu_ps(out + k, mask, _mm512_mul_ps(_mm512_load_ps(s + k), by));
  }
}

// Turns the scores of up to 16 rows, in units of `factor`, into weights, updates their maxima and
// sums, and returns the factors by which their accumulators decay. kExp2: one of vec_math.h.
template <bool kInt8, auto kExp2>
void Softmax(const float* scores, float factor, int rows, int keys, const BlockScales& scales,
             float* max, float* sum, uint32_t* weights, float* decay) {
  const __m512 by = _mm512_set1_ps(factor);
  __m512 lanes[16];
  for (int i = rows; i < 16; ++i) lanes[i] = _mm512_setzero_ps();
  for (int i = 0; i < rows; ++i) {
    const float* s = scores + i * kMaxBlockKeys;
    __m512 m = _mm512_max_ps(_mm512_load_ps(s), _mm512_load_ps(s + 16));
    for (int k = 32; k < keys; k += 32) {
      m = _mm512_max_ps(m, _mm512_max_ps(_mm512_load_ps(s + k), _mm512_load_ps(s + k + 16)));
    }
    lanes[i] = m;
  }
  const __mmask16 mask = static_cast<__mmask16>((1u << rows) - 1);
  const __m512 none = _mm512_set1_ps(-INFINITY);
  const __m512 before = _mm512_mask_loadu_ps(none, mask, max);
  const __m512 highest =
      _mm512_mul_ps(AcrossLanes(lanes, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); }), by);
  const __m512 after = _mm512_max_ps(highest, before);
  // Nothing seen yet: any finite maximum gives every weight 0.
  const __m512 base =
      _mm512_mask_mov_ps(after, _mm512_cmpeq_ps_mask(after, none), _mm512_setzero_ps());
  const __m512 fade = Exp2NotPositive(_mm512_sub_ps(before, base));
  _mm512_mask_storeu_ps(max, mask, after);
  _mm512_mask_storeu_ps(decay, mask, fade);
  alignas(64) float bases[16];
  _mm512_store_ps(bases, base);
  for (int i = 0; i < rows; ++i) {
    const float* s = scores + i * kMaxBlockKeys;
    const __m512 row_base = _mm512_set1_ps(bases[i]);
    __m512 total0 = _mm512_setzero_ps(), total1 = _mm512_setzero_ps();
    for (int k = 0; k < keys; k += 32) {
      __m512 p0 = kExp2(_mm512_fmsub_ps(_mm512_load_ps(s + k), by, row_base));
      __m512 p1 = kExp2(_mm512_fmsub_ps(_mm512_load_ps(s + k + 16), by, row_base));
      total0 = _mm512_add_ps(total0, p0);
      total1 = _mm512_add_ps(total1, p1);
      if constexpr (kInt8) {
        p0 = _mm512_mul_ps(p0, scales.value[k / 16]);
        p1 = _mm512_mul_ps(p1, scales.value[k / 16 + 1]);
      }
      _mm512_store_si512(weights + i * kWeightStride + k / 2, (__m512i)_mm512_cvtne2ps_pbh(p1, p0));
    }
    lanes[i] = _mm512_add_ps(total0, total1);
  }
  const __m512 added = AcrossLanes(lanes, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
  const __m512 sums = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, sum), fade, added);
  _mm512_mask_storeu_ps(sum, mask, sums);
}

// ---- finish

inline float Finish(const AttendTile& t, int row, float* o) {
  const int64_t dim = t.layout.head_dim;
  const int64_t padded = PaddedHead(dim);
  const float* acc = t.acc + row * padded;
  const float sum = t.sum[row];
  const __m512 factor = _mm512_set1_ps(sum == 0 ? 0.0f : 1.0f / sum);
  // Interleaving left the low four channels of each group of eight in the first register, the high
  // four in the second.
  const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
  const __m512i second = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  for (int64_t c = 0; c < padded; c += 32) {
    const __m512d lo = _mm512_castps_pd(_mm512_mul_ps(_mm512_load_ps(acc + c), factor));
    const __m512d hi = _mm512_castps_pd(_mm512_mul_ps(_mm512_load_ps(acc + c + 16), factor));
    const __mmask16 upper = ChannelMask(dim, c) >> 16;
    _mm512_storeu_ps(o + c, _mm512_castpd_ps(_mm512_permutex2var_pd(lo, first, hi)));
    _mm512_mask_storeu_ps(o + c + 16, upper,
                          _mm512_castpd_ps(_mm512_permutex2var_pd(lo, second, hi)));
  }
  return sum == 0 ? -INFINITY : (t.max[row] + log2f(sum)) * kLn2;
}

}  // namespace
}  // namespace baton::cpu::avx512
