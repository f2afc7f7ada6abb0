// Mass kernels for AVX-512 with BF16 and VNNI.
//
// Tiles: K of a page is transposed once into [D/2][64 keys] pairs of bf16, so that 16 keys fill a
// register and a query's pair is a broadcast. Six queries by 64 keys keep 24 sums in registers: 24
// dot-product instructions (one a cycle) per 4 + 6 loads. Each (query, key) sum runs over the
// channels in order, whatever the number of queries in the block.
//
// Tiles of the low-bit copy: bytes, unpacked once a page, three queries by 64 keys at a time.
//
// Decode scan: nibbles are unpacked once for the query heads of a KV head and multiplied as
// unsigned bytes; the offset of 8 is taken out by starting each sum at -8 * sum(q).
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/avx512/mass_parts.h"
#include "kernels/cpu/fetch.h"

namespace baton::cpu::avx512 {
namespace {

void PackLowBitQuery(const float* q, int64_t dim, float score_scale, std::byte* out);

void PackQuery(const float* q, int64_t dim, MassForm form, void* out) {
  if (form == MassForm::kLowBit) {
    return PackLowBitQuery(q, dim, 1.0f, static_cast<std::byte*>(out));
  }
  auto* to = static_cast<uint16_t*>(out);
  for (int64_t d = 0; d < dim; d += 16) {
    const __mmask16 m = FirstLanes(dim - d);
    const __m512 x = _mm512_maskz_loadu_ps(m, q + d);
    const __m256i high = std::bit_cast<__m256i>(_mm512_cvtneps_pbh(x));
    _mm256_mask_storeu_epi16(to + d, m, high);
    if (form == MassForm::kFine) {
      const __m512 rest =
          _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
      _mm256_mask_storeu_epi16(to + dim + d, m, std::bit_cast<__m256i>(_mm512_cvtneps_pbh(rest)));
    }
  }
}

void PackExactKeys(const KvView& kv, int64_t position, int head, uint32_t* out) {
  const int64_t pairs = kv.layout.head_dim / 2, stride = kv.layout.row_bytes();
  const std::byte* k = kv.row(position) + head * kv.layout.head_bytes();
  const std::byte* next = NextKeys(kv, position, head);
  for (int64_t slot = 0; slot < kMassBlock; slot += 16) {
    for (int64_t c = 0; c < pairs; c += 16) {
      const __mmask16 m = FirstLanes(pairs - c);
      __m512i r[16];
      for (int i = 0; i < 16; ++i) {
        r[i] = _mm512_maskz_loadu_epi32(m, k + (slot + i) * stride + c * 4);
        _mm_prefetch(next + (slot + i) * stride + c * 4, _MM_HINT_T1);
      }
      Transpose16(r);
      const int64_t n = std::min<int64_t>(16, pairs - c);
      for (int i = 0; i < n; ++i) _mm512_store_si512(out + (c + i) * kMassBlock + slot, r[i]);
    }
  }
}

// The copy of a page unpacked to bytes, [64 / 16][D / 32] blocks of 16 slots by 32 channels.
struct alignas(64) ByteBlock {
  uint8_t bytes[8][64];  // [channels / 4][slot][4], offset by 8
  float scale[16];
};

void PackLowBitKeys(const KvView& kv, int64_t position, int head, ByteBlock* out) {
  const __m512i low = _mm512_set1_epi8(15);
  const LowBitBlock* block = kv.low_bit(position, head, 0);
  const int64_t blocks = kMassBlock / 16 * (kv.layout.head_dim / 32);
  for (int64_t b = 0; b < blocks; ++b, ++block, ++out) {
    for (int v = 0; v < 4; ++v) {
      const __m512i x = _mm512_loadu_si512(block->nibbles + v * 64);
      _mm512_store_si512(out->bytes[v], _mm512_and_si512(x, low));
      _mm512_store_si512(out->bytes[v + 4], _mm512_and_si512(_mm512_srli_epi16(x, 4), low));
    }
    _mm512_store_ps(
        out->scale,
        _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block->scale))));
  }
}

void PackKeys(const KvView& kv, int64_t position, int head, MassForm form, void* out) {
  if (form == MassForm::kLowBit) {
    PackLowBitKeys(kv, position, head, static_cast<ByteBlock*>(out));
  } else {
    PackExactKeys(kv, position, head, static_cast<uint32_t*>(out));
  }
}

inline __m512i Broadcast(const std::byte* four) {
  int32_t x;
  std::memcpy(&x, four, 4);
  return _mm512_set1_epi32(x);
}

// sums[m][j]: query m with keys 16 j .. 16 j + 15.
template <int M>
[[gnu::always_inline]] inline void Bf16Dots(const uint32_t* keys, int64_t pairs, int terms,
                                            const MassQuery* queries, __m512 (&sums)[M][4]) {
  const int32_t* q[M];
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    q[m] = static_cast<const int32_t*>(queries[m].q);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[m][j] = _mm512_setzero_ps();
  }
  for (int t = 0; t < terms; ++t) {
    for (int64_t c = 0; c < pairs; ++c) {
      __m512bh k[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        k[j] = std::bit_cast<__m512bh>(_mm512_load_si512(keys + c * kMassBlock + 16 * j));
      }
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) {
        const auto pair = std::bit_cast<__m512bh>(_mm512_set1_epi32(q[m][t * pairs + c]));
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) sums[m][j] = _mm512_dpbf16_ps(sums[m][j], k[j], pair);
      }
    }
  }
}

// The same with bytes; half as many instructions.
template <int M>
[[gnu::always_inline]] inline void ByteDots(const ByteBlock* keys, int64_t dim,
                                            const MassQuery* queries, __m512 (&sums)[M][4]) {
  const int64_t per_group = dim / 32;
#pragma GCC unroll 3
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sums[m][j] = _mm512_setzero_ps();
  }
  for (int64_t b = 0; b < per_group; ++b) {
    const std::byte* q[M];
    __m512i acc[M][4];
#pragma GCC unroll 3
    for (int m = 0; m < M; ++m) {
      q[m] = static_cast<const std::byte*>(queries[m].q);
      const __m512i offset = Broadcast(q[m] + dim + 8 * b + 4);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) acc[m][j] = offset;
    }
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      __m512i k[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) k[j] = _mm512_load_si512(keys[j * per_group + b].bytes[v]);
#pragma GCC unroll 3
      for (int m = 0; m < M; ++m) {
        const __m512i four = Broadcast(q[m] + 32 * b + 4 * v);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) acc[m][j] = _mm512_dpbusd_epi32(acc[m][j], k[j], four);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512 scale = _mm512_load_ps(keys[j * per_group + b].scale);
#pragma GCC unroll 3
      for (int m = 0; m < M; ++m) {
        const __m512 both =
            _mm512_mul_ps(scale, _mm512_castsi512_ps(Broadcast(q[m] + dim + 8 * b)));
        sums[m][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[m][j]), both, sums[m][j]);
      }
    }
  }
}

template <int M, bool kBytes>
[[gnu::always_inline]] inline void Dots(const void* keys, int64_t dim, MassForm form,
                                        const MassQuery* queries, __m512 (&sums)[M][4]) {
  if constexpr (kBytes) {
    ByteDots<M>(static_cast<const ByteBlock*>(keys), dim, queries, sums);
  } else {
    Bf16Dots<M>(static_cast<const uint32_t*>(keys), dim / 2, form == MassForm::kFine ? 2 : 1,
                queries, sums);
  }
}

// kMasked: some query of the block does not see all 64 keys.
template <int M, bool kBytes, bool kMax, bool kMasked>
void AccumulateBlock(const void* keys, int64_t dim, MassForm form, float scale,
                     const MassQuery* queries) {
  __m512 sums[M][4];
  Dots<M, kBytes>(keys, dim, form, queries, sums);
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    float* out = queries[m].out;
    __m512 mass[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) mass[j] = _mm512_loadu_ps(out + 16 * j);
    AddMass<kBytes, kMax, kMasked>(sums[m], scale, queries[m], mass);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) _mm512_storeu_ps(out + 16 * j, mass[j]);
  }
}

template <int M, bool kBytes, bool kMax>
void AccumulateQueries(const void* keys, int64_t dim, MassForm form, float scale,
                       const MassQuery* queries) {
  int32_t least = kMassBlock, most = 0;
  for (int m = 0; m < M; ++m) {
    least = std::min(least, queries[m].visible);
    most = std::max(most, queries[m].visible);
  }
  if (most <= 0) return;
  if (least >= kMassBlock) {
    AccumulateBlock<M, kBytes, kMax, false>(keys, dim, form, scale, queries);
  } else {
    AccumulateBlock<M, kBytes, kMax, true>(keys, dim, form, scale, queries);
  }
}

// Adds the visible keys to q.stats.
[[gnu::always_inline]] inline void AddLogSum(const __m512 (&sums)[4], float scale,
                                             const MassQuery& q) {
  if (q.visible <= 0) return;
  const __m512 scales = _mm512_set1_ps(scale);
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 t[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm512_mask_mul_ps(nothing, FirstLanes(q.visible - 16 * j), sums[j], scales);
  }
  const float largest =
      _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(t[0], t[1]), _mm512_max_ps(t[2], t[3])));
  if (largest > q.stats[0]) {
    q.stats[1] *= std::exp2(q.stats[0] - largest);
    q.stats[0] = largest;
  }
  const __m512 offset = _mm512_set1_ps(q.stats[0]);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) t[j] = Exp2NotPositive(_mm512_sub_ps(t[j], offset));
  q.stats[1] +=
      _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(t[0], t[1]), _mm512_add_ps(t[2], t[3])));
}

template <int M, bool kBytes>
void LogSumBlock(const void* keys, int64_t dim, MassForm form, float scale,
                 const MassQuery* queries) {
  bool seen = false;
  for (int m = 0; m < M; ++m) seen |= queries[m].visible > 0;
  if (!seen) return;
  __m512 sums[M][4];
  Dots<M, kBytes>(keys, dim, form, queries, sums);
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) AddLogSum(sums[m], scale, queries[m]);
}

template <bool kBytes, bool kMax>
void AccumulateAll(const void* keys, int64_t dim, MassForm form, float scale,
                   const MassQuery* queries, int64_t count) {
  int64_t i = 0;
  if constexpr (!kBytes) {  // bytes need twice the registers
    for (; i + 6 <= count; i += 6) {
      AccumulateQueries<6, kBytes, kMax>(keys, dim, form, scale, queries + i);
    }
  }
  for (; i + 3 <= count; i += 3) {
    AccumulateQueries<3, kBytes, kMax>(keys, dim, form, scale, queries + i);
  }
  for (; i < count; ++i) AccumulateQueries<1, kBytes, kMax>(keys, dim, form, scale, queries + i);
}

void Accumulate(const void* keys, int64_t dim, MassForm form, float scale, const MassQuery* queries,
                int64_t count, bool max) {
  const bool bytes = form == MassForm::kLowBit;
  const auto all = bytes ? (max ? AccumulateAll<true, true> : AccumulateAll<true, false>)
                         : (max ? AccumulateAll<false, true> : AccumulateAll<false, false>);
  all(keys, dim, form, scale, queries, count);
}

template <int M>
void LogMaxQueries(const void* keys, int64_t dim, MassForm form, float scale,
                   const MassQuery* queries) {
  int32_t most = 0;
  for (int m = 0; m < M; ++m) most = std::max(most, queries[m].visible);
  if (most <= 0) return;
  __m512 sums[M][4];
  Dots<M, false>(keys, dim, form, queries, sums);
  const __m512 scales = _mm512_set1_ps(scale);
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    const MassQuery& q = queries[m];
    const __m512 lse = _mm512_set1_ps(q.lse);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512 old = _mm512_loadu_ps(q.out + 16 * j);
      const __m512 joined = MaxOrNan(old, _mm512_fmsub_ps(sums[m][j], scales, lse));
      _mm512_mask_storeu_ps(q.out + 16 * j, FirstLanes(q.visible - 16 * j), joined);
    }
  }
}

void LogMax(const void* keys, int64_t dim, MassForm form, float scale, const MassQuery* queries,
            int64_t count) {
  int64_t i = 0;
  for (; i + 6 <= count; i += 6) LogMaxQueries<6>(keys, dim, form, scale, queries + i);
  for (; i + 3 <= count; i += 3) LogMaxQueries<3>(keys, dim, form, scale, queries + i);
  for (; i < count; ++i) LogMaxQueries<1>(keys, dim, form, scale, queries + i);
}

template <bool kBytes>
void LogSumAll(const void* keys, int64_t dim, MassForm form, float scale, const MassQuery* queries,
               int64_t count) {
  int64_t i = 0;
  if constexpr (!kBytes) {
    for (; i + 6 <= count; i += 6) LogSumBlock<6, kBytes>(keys, dim, form, scale, queries + i);
  }
  for (; i + 3 <= count; i += 3) LogSumBlock<3, kBytes>(keys, dim, form, scale, queries + i);
  for (; i < count; ++i) LogSumBlock<1, kBytes>(keys, dim, form, scale, queries + i);
}

void LogSum(const void* keys, int64_t dim, MassForm form, float scale, const MassQuery* queries,
            int64_t count) {
  const auto all = form == MassForm::kLowBit ? LogSumAll<true> : LogSumAll<false>;
  all(keys, dim, form, scale, queries, count);
}

void PoolScores(const float* scores, int64_t stride, const float* lse, int64_t heads, int64_t n,
                bool max, bool add, float* out) {
  const __m512 log2e = _mm512_set1_ps(kLog2E);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = FirstLanes(n - i);
    __m512 pooled = _mm512_setzero_ps();
    for (int64_t h = 0; h < heads; ++h) {
      const __m512 x = _mm512_maskz_loadu_ps(m, scores + h * stride + i);
      const __m512 e = Exp2(_mm512_fmsub_ps(x, log2e, _mm512_set1_ps(lse[h])));
      pooled = max ? MaxOrNan(pooled, e) : _mm512_add_ps(pooled, e);
    }
    if (add) pooled = _mm512_add_ps(pooled, _mm512_maskz_loadu_ps(m, out + i));
    _mm512_mask_storeu_ps(out + i, m, pooled);
  }
}

// R queries against 32 slots of one head: two groups of 16, so that every four bytes of a query
// that are broadcast are multiplied with two registers of keys. Adds to `scores`. The same number
// of bytes from `next` on is prefetched meanwhile (kNear: into the first-level cache, else the
// second), a few lines per query: a burst would fill the line fill buffers and block the loads
// behind it.
template <int R, bool kNear>
[[gnu::always_inline]] inline void LowBitGroups(const LowBitBlock* blocks, const LowBitBlock* next,
                                                int64_t dim, const std::byte* queries,
                                                __m512 (&scores)[R][2]) {
  constexpr int kLines = 2 * sizeof(LowBitBlock) / 64;
  const auto* ahead = reinterpret_cast<const char*>(next);
  const int64_t per_group = dim / 32, bytes = LowBitQuery::Bytes(dim);
  const __m512i low = _mm512_set1_epi8(15);
  for (int64_t b = 0; b < per_group; ++b) {
    __m512i k[2][8];
    __m512 k_scale[2];
#pragma GCC unroll 2
    for (int g = 0; g < 2; ++g) {
      const LowBitBlock& block = blocks[g * per_group + b];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m512i x = _mm512_loadu_si512(block.nibbles + 64 * v);
        k[g][v] = _mm512_and_si512(x, low);
        k[g][v + 4] = _mm512_and_si512(_mm512_srli_epi16(x, 4), low);
      }
      k_scale[g] =
          _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.scale)));
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 9
      for (int l = r * kLines / R; l < (r + 1) * kLines / R; ++l)
        _mm_prefetch(ahead + (kLines * b + l) * 64, kNear ? _MM_HINT_T0 : _MM_HINT_T1);
      const std::byte* q = queries + r * bytes;
      const std::byte* tail = q + dim + 8 * b;
      __m512i sum[2] = {Broadcast(tail + 4), Broadcast(tail + 4)};
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) {
        const __m512i four = Broadcast(q + 32 * b + 4 * v);
        sum[0] = _mm512_dpbusd_epi32(sum[0], k[0][v], four);
        sum[1] = _mm512_dpbusd_epi32(sum[1], k[1][v], four);
      }
      const __m512 q_scale = _mm512_castsi512_ps(Broadcast(tail));
#pragma GCC unroll 2
      for (int g = 0; g < 2; ++g) {
        scores[r][g] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum[g]), k_scale[g]),
                                       q_scale, scores[r][g]);
      }
    }
  }
}

// The bits of a weight as a float before rounding; NaN counts as the largest.
inline __m512i WeightBits(__m512 score, __mmask16 seen) {
  const __m512 heaviest = _mm512_set1_ps(kWeightUnit * (127 + 100));
  return _mm512_cvtps_epi32(_mm512_maskz_min_ps(seen, score, heaviest));
}

// R queries against a page of one head. Another page's blocks are prefetched meanwhile.
template <int R, bool kNear>
void LowBitWeights(const LowBitBlock* blocks, const LowBitBlock* next, int64_t dim,
                   const std::byte* queries, const float* start, int64_t visible, uint16_t* out,
                   int64_t stride) {
  const int64_t two = 2 * (dim / 32);  // blocks of 32 slots
  for (int64_t slot = 0; slot < kMassBlock; slot += 32, blocks += two) {
    const __mmask16 seen[] = {FirstLanes(visible - slot), FirstLanes(visible - slot - 16)};
    __m512 scores[R][2];
    for (int r = 0; r < R; ++r) scores[r][0] = scores[r][1] = _mm512_set1_ps(start[r]);
    LowBitGroups<R, kNear>(blocks, next == nullptr ? blocks : next + slot / 32 * two, dim, queries,
                           scores);
    for (int r = 0; r < R; ++r) {
      const __m512i w =
          _mm512_packus_epi32(WeightBits(scores[r][0], seen[0]), WeightBits(scores[r][1], seen[1]));
      _mm512_storeu_si512(out + r * stride + slot, w);
    }
  }
}

float SumOfWeights(const uint16_t* weights, int64_t n) {
  const auto ones = std::bit_cast<__m512bh>(_mm512_set1_epi16(0x3f80));
  __m512 total = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += 32) {
    total = _mm512_dpbf16_ps(total, std::bit_cast<__m512bh>(_mm512_loadu_si512(weights + i)), ones);
  }
  return _mm512_reduce_add_ps(total);
}

// Calls body.operator()<R>(first) for 4, ..., 4 and the rest of `count` queries.
template <typename F>
void ByFours(int64_t count, F&& body) {
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) body.template operator()<4>(r);
  if (count - r == 3) body.template operator()<3>(r);
  if (count - r == 2) body.template operator()<2>(r);
  if (count - r == 1) body.template operator()<1>(r);
}

void PackLowBitQuery(const float* q, int64_t dim, float score_scale, std::byte* out) {
  constexpr int kNotFinite = 0x99;  // quiet NaN, +inf, -inf, signalling NaN
  for (int64_t b = 0; b < dim / 32; ++b) {
    const __m512 lo = _mm512_loadu_ps(q + 32 * b), hi = _mm512_loadu_ps(q + 32 * b + 16);
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(lo), _mm512_abs_ps(hi)));
    // A NaN or infinite query must reach the scores. Integers cannot represent it, so the scale
    // becomes NaN.
    const bool finite =
        (_mm512_fpclass_ps_mask(lo, kNotFinite) | _mm512_fpclass_ps_mask(hi, kNotFinite)) == 0;
    const float scale =
        finite ? score_scale * (largest / 127.0f) : std::numeric_limits<float>::quiet_NaN();
    const __m512 inverse = _mm512_set1_ps(finite && largest > 0 ? 127.0f / largest : 0.0f);
    const __mmask16 keep = finite ? 0xffff : 0;
    const __m512i lo_q = _mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(lo, inverse));
    const __m512i hi_q = _mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(hi, inverse));
    const int32_t offset = -8 * _mm512_reduce_add_epi32(_mm512_add_epi32(lo_q, hi_q));
    // The saturating form: 127 / largest overflows for the smallest magnitudes.
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 32 * b), _mm512_cvtsepi32_epi8(lo_q));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 32 * b + 16), _mm512_cvtsepi32_epi8(hi_q));
    std::memcpy(out + dim + 8 * b, &scale, 4);
    std::memcpy(out + dim + 8 * b + 4, &offset, 4);
  }
}

void LowBitStarts(const KvView& kv, int64_t n, int head, const std::byte* queries, int64_t count,
                  float* start) {
  const int64_t dim = kv.layout.head_dim;
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  ByFours(count, [&]<int R>(int64_t first) {
    __m512 scores[R][2];
    for (int r = 0; r < R; ++r) scores[r][0] = scores[r][1] = _mm512_setzero_ps();
    const LowBitBlock* blocks = kv.low_bit(0, head, 0);
    LowBitGroups<R, true>(blocks, blocks, dim, queries + first * LowBitQuery::Bytes(dim), scores);
    for (int r = 0; r < R; ++r) {
      const __m512 top =
          _mm512_mask_max_ps(_mm512_mask_mov_ps(nothing, FirstLanes(n), scores[r][0]),
                             FirstLanes(n - 16), scores[r][0], scores[r][1]);
      const float largest = _mm512_reduce_max_ps(top);
      start[first + r] =
          kWeightUnit * (127 - (std::isfinite(largest) ? std::ceil(largest / kWeightUnit) : 0));
    }
  });
}

template <bool kNear>
void LowBitPage(const LowBitBlock* blocks, const LowBitBlock* next, int64_t dim,
                const std::byte* queries, const float* start, int64_t count, int64_t visible,
                uint16_t* out, int64_t stride) {
  ByFours(count, [&]<int R>(int64_t r) {
    LowBitWeights<R, kNear>(blocks, r == 0 ? next : nullptr, dim,
                            queries + r * LowBitQuery::Bytes(dim), start + r, visible,
                            out + r * stride, stride);
  });
}

void PoolWeights(const uint16_t* weights, int64_t stride, const float* factor, int64_t heads,
                 int64_t n, bool max, float* out) {
  for (int64_t i = 0; i < n; i += 32) {
    __m512 pooled[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t h = 0; h < heads; ++h) {
      const __m512i w = _mm512_loadu_si512(weights + h * stride + i);
      const __m512i zero = _mm512_setzero_si512();
      const __m512 x[2] = {_mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, w)),
                           _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, w))};
      const __m512 f = _mm512_set1_ps(factor[h]);
#pragma GCC unroll 2
      for (int g = 0; g < 2; ++g) {
        pooled[g] =
            max ? MaxOrNan(pooled[g], _mm512_mul_ps(x[g], f)) : _mm512_fmadd_ps(x[g], f, pooled[g]);
      }
    }
    _mm512_mask_storeu_ps(out + i, FirstLanes(n - i), pooled[0]);
    _mm512_mask_storeu_ps(out + i + 16, FirstLanes(n - i - 16), pooled[1]);
  }
}

}  // namespace

const MassKernels& GetMassKernels() {
  static constexpr MassKernels kKernels = {.pack_query = PackQuery,
                                           .pack_keys = PackKeys,
                                           .accumulate = Accumulate,
                                           .log_max = LogMax,
                                           .log_sum = LogSum,
                                           .pool_scores = PoolScores};
  return kKernels;
}

const LowBitKernels& GetLowBitKernels() {
  static const LowBitKernels kKernels = {
      .read_ahead = kFetchesNear ? 4096 : 16384,
      .pack = PackLowBitQuery,
      .starts = LowBitStarts,
      .page = kFetchesNear ? LowBitPage<true> : LowBitPage<false>,
      .sum = SumOfWeights,
      .pool = PoolWeights};
  return kKernels;
}

}  // namespace baton::cpu::avx512
