// Mass kernels for AVX2.
//
// Tiles: K of a page is transposed to [D][64 keys], as floats or, for the low-bit copy, bytes; then
// up to six queries are multiplied with 16 keys at a time, 12 sums in registers. Sums of bytes fit
// 16 bits over 32 channels: nibbles by vpmaddubsw with q as int8, as in linear.cc.
//
// Decode scan: the same byte products straight from the packed nibbles, for the query heads of a KV
// head.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/avx2/vec_math.h"
#include "kernels/cpu/fetch.h"
#include "kernels/cpu/mass_kernels.h"

namespace baton::cpu::avx2 {
namespace {

constexpr int kKeys = 16;    // at once
constexpr int kQueries = 6;  // likewise, at most

inline __m256i Broadcast(const std::byte* four) {
  int32_t x;
  std::memcpy(&x, four, 4);
  return _mm256_set1_epi32(x);
}
inline __m256 LoadHalves(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// ---- packing

// bf16 to [D][64] floats.
void PackExactKeys(const KvView& kv, int64_t position, int head, float* out) {
  const int64_t dim = kv.layout.head_dim, stride = kv.layout.row_bytes();
  const std::byte* k = kv.row(position) + head * kv.layout.head_bytes();
  const std::byte* next = NextKeys(kv, position, head);
  for (int64_t slot = 0; slot < kMassBlock; slot += 8) {
    for (int64_t c = 0; c < dim; c += 16) {
      __m256i r[8];
      const std::byte* from = k + slot * stride + c * 2;
      for (int i = 0; i < 8; ++i, from += stride) {
        r[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        if (c % 32 == 0) _mm_prefetch(next + (from - k), _MM_HINT_T1);
      }
      Transpose8(r);  // r[i]: channels c + 2 i and c + 2 i + 1 of the slots
      for (int i = 0; i < 8; ++i) {
        const auto store = [&](int64_t channel, __m256i bits) {
          _mm256_store_ps(out + channel * kMassBlock + slot, _mm256_castsi256_ps(bits));
        };
        store(c + 2 * i, _mm256_slli_epi32(r[i], 16));
        store(c + 2 * i + 1, _mm256_and_si256(r[i], _mm256_set1_epi32(-65536)));
      }
    }
  }
}

// The copy of a page unpacked to bytes, [64 / 16][D / 32] blocks of 16 slots by 32 channels.
struct alignas(64) ByteBlock {
  uint8_t bytes[8][64];  // [channels / 4][slot][4], offset by 8
  float scale[16];
};

void PackLowBitKeys(const KvView& kv, int64_t position, int head, ByteBlock* out) {
  const __m256i low = _mm256_set1_epi8(15);
  const LowBitBlock* block = kv.low_bit(position, head, 0);
  const int64_t blocks = kMassBlock / 16 * (kv.layout.head_dim / 32);
  for (int64_t b = 0; b < blocks; ++b, ++block, ++out) {
    for (int i = 0; i < 8; ++i) {  // halves of v = i / 2
      const int at = i % 2 * 32;
      const __m256i x =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block->nibbles + i * 32));
      _mm256_store_si256(reinterpret_cast<__m256i*>(out->bytes[i / 2] + at),
                         _mm256_and_si256(x, low));
      _mm256_store_si256(reinterpret_cast<__m256i*>(out->bytes[i / 2 + 4] + at),
                         _mm256_and_si256(_mm256_srli_epi16(x, 4), low));
    }
    _mm256_store_ps(out->scale, LoadHalves(block->scale));
    _mm256_store_ps(out->scale + 8, LoadHalves(block->scale + 8));
  }
}

// LowBitKernels::pack. noipa: g++ 12 takes it for a function without effects and drops calls.
[[gnu::noipa]] void PackLowBitQuery(const float* q, int64_t dim, float score_scale,
                                    std::byte* out) {
  for (int64_t b = 0; b < dim / 32; ++b) {
    __m256 x[4];
    for (int j = 0; j < 4; ++j) x[j] = _mm256_loadu_ps(q + 32 * b + 8 * j);
    // A NaN or infinite query must reach the scores. Integers cannot represent it, so the scale
    // becomes NaN.
    const Scaled s = ScaleToIntegers(x, 127.0f);
    const float scale = score_scale * s.d;
    const int32_t offset =
        -8 * (SumOf(_mm256_add_epi32(s.q[0], s.q[1])) + SumOf(_mm256_add_epi32(s.q[2], s.q[3])));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32 * b), ToBytes(s.q));
    std::memcpy(out + dim + 8 * b, &scale, 4);
    std::memcpy(out + dim + 8 * b + 4, &offset, 4);
  }
}

void PackQuery(const float* q, int64_t dim, MassForm form, void* out) {
  if (form == MassForm::kLowBit) {
    PackLowBitQuery(q, dim, 1.0f, static_cast<std::byte*>(out));
  } else {
    std::copy_n(q, dim, static_cast<float*>(out));
  }
}

void PackKeys(const KvView& kv, int64_t position, int head, MassForm form, void* out) {
  if (form == MassForm::kLowBit) {
    PackLowBitKeys(kv, position, head, static_cast<ByteBlock*>(out));
  } else {
    PackExactKeys(kv, position, head, static_cast<float*>(out));
  }
}

// ---- tiles

// q . k of M queries and the 64 keys of a page.
template <int M>
using Dots = float[M][kMassBlock];

template <int M>
void ExactDots(const float* keys, int64_t dim, const MassQuery* queries, Dots<M>& out) {
  const float* q[M];
  for (int m = 0; m < M; ++m) q[m] = static_cast<const float*>(queries[m].q);
  for (int64_t n = 0; n < kMassBlock; n += kKeys) {
    __m256 sums[M][2];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = _mm256_setzero_ps();
    for (int64_t c = 0; c < dim; ++c) {
      const __m256 k0 = _mm256_load_ps(keys + c * kMassBlock + n);
      const __m256 k1 = _mm256_load_ps(keys + c * kMassBlock + n + 8);
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) {
        const __m256 x = _mm256_broadcast_ss(q[m] + c);
        sums[m][0] = _mm256_fmadd_ps(k0, x, sums[m][0]);
        sums[m][1] = _mm256_fmadd_ps(k1, x, sums[m][1]);
      }
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      _mm256_store_ps(out[m] + n, sums[m][0]);
      _mm256_store_ps(out[m] + n + 8, sums[m][1]);
    }
  }
}

template <int M>
void ByteDots(const ByteBlock* keys, int64_t dim, const MassQuery* queries, Dots<M>& out) {
  const int64_t per_group = dim / 32;
  const std::byte* q[M];
  for (int m = 0; m < M; ++m) q[m] = static_cast<const std::byte*>(queries[m].q);
  for (int64_t n = 0; n < kMassBlock; n += kKeys) {
    __m256 sums[M][2];
    for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = _mm256_setzero_ps();
    for (int64_t b = 0; b < per_group; ++b, ++keys) {
      __m256i acc[M][2];
#pragma GCC unroll 6
      for (int m = 0; m < M; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) {
        const __m256i k0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(keys->bytes[v]));
        const __m256i k1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(keys->bytes[v] + 32));
#pragma GCC unroll 6
        for (int m = 0; m < M; ++m) {
          const __m256i four = Broadcast(q[m] + 32 * b + 4 * v);
          AddTo<true>(acc[m][0], _mm256_maddubs_epi16(k0, four));
          AddTo<true>(acc[m][1], _mm256_maddubs_epi16(k1, four));
        }
      }
      for (int m = 0; m < M; ++m) {
        const std::byte* tail = q[m] + dim + 8 * b;
        const __m256 q_scale = _mm256_castsi256_ps(Broadcast(tail));
        for (int h = 0; h < 2; ++h) {
          const __m256i whole = _mm256_add_epi32(_mm256_madd_epi16(acc[m][h], _mm256_set1_epi16(1)),
                                                 Broadcast(tail + 4));
          const __m256 both = _mm256_mul_ps(_mm256_load_ps(keys->scale + 8 * h), q_scale);
          sums[m][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), both, sums[m][h]);
        }
      }
    }
    for (int m = 0; m < M; ++m) {
      _mm256_store_ps(out[m] + n, sums[m][0]);
      _mm256_store_ps(out[m] + n + 8, sums[m][1]);
    }
  }
}

// Calls body(query, its products) for the queries that see a key of the page.
template <typename F>
void ForEachQuery(const void* keys, int64_t dim, bool bytes, const MassQuery* queries,
                  int64_t count, F&& body) {
  InGroups<kQueries>(count, [&]<int M>(int64_t first) {
    const MassQuery* some = queries + first;
    if (std::none_of(some, some + M, [](const MassQuery& q) { return q.visible > 0; })) return;
    alignas(32) Dots<M> dots;
    if (bytes) {
      ByteDots<M>(static_cast<const ByteBlock*>(keys), dim, some, dots);
    } else {
      ExactDots<M>(static_cast<const float*>(keys), dim, some, dots);
    }
    for (int m = 0; m < M; ++m) {
      if (some[m].visible > 0) body(some[m], dots[m]);
    }
  });
}

constexpr float kChordUnit = 1 << 23;

// The float with the bits x: the chord of 2^(x / kChordUnit - 127) between powers of two, from 0 to
// 1; 1 for NaN.
inline __m256 Chord(__m256 x) {
  x = _mm256_min_ps(x, _mm256_set1_ps(127 * kChordUnit));
  return _mm256_castsi256_ps(_mm256_cvtps_epi32(_mm256_max_ps(x, _mm256_setzero_ps())));
}

template <bool kBytes, bool kMax>
void AccumulateQuery(const MassQuery& q, const float* dots, float scale) {
  if (kBytes && std::isnan(q.lse)) {
    std::fill_n(q.out, std::min<int64_t>(q.visible, kMassBlock), q.lse);
    return;
  }
  const __m256 scales = _mm256_set1_ps(kBytes ? scale * kChordUnit : scale);
  const __m256 lse = _mm256_set1_ps(kBytes ? (q.lse - 127) * kChordUnit : q.lse);
  for (int64_t n = 0; n < kMassBlock && n < q.visible; n += 8) {
    const __m256 x = _mm256_fmsub_ps(_mm256_load_ps(dots + n), scales, lse);
    const __m256 p = kBytes ? Chord(x) : Exp2(x);
    const __m256 old = _mm256_loadu_ps(q.out + n);
    const __m256 joined = kMax ? MaxOrNan(old, p) : _mm256_add_ps(old, p);
    const __m256 seen = _mm256_castsi256_ps(FirstLanes(q.visible - n));
    _mm256_storeu_ps(q.out + n, _mm256_blendv_ps(old, joined, seen));
  }
}

void Accumulate(const void* keys, int64_t dim, MassForm form, float scale, const MassQuery* queries,
                int64_t count, bool max) {
  const bool bytes = form == MassForm::kLowBit;
  const auto one = bytes ? (max ? AccumulateQuery<true, true> : AccumulateQuery<true, false>)
                         : (max ? AccumulateQuery<false, true> : AccumulateQuery<false, false>);
  ForEachQuery(keys, dim, bytes, queries, count,
               [&](const MassQuery& q, const float* dots) { one(q, dots, scale); });
}

void LogMax(const void* keys, int64_t dim, MassForm, float scale, const MassQuery* queries,
            int64_t count) {
  ForEachQuery(keys, dim, false, queries, count, [&](const MassQuery& q, const float* dots) {
    const __m256 scales = _mm256_set1_ps(scale), lse = _mm256_set1_ps(q.lse);
    for (int64_t n = 0; n < kMassBlock && n < q.visible; n += 8) {
      const __m256 old = _mm256_loadu_ps(q.out + n);
      const __m256 x = _mm256_fmsub_ps(_mm256_load_ps(dots + n), scales, lse);
      const __m256 seen = _mm256_castsi256_ps(FirstLanes(q.visible - n));
      _mm256_storeu_ps(q.out + n, _mm256_blendv_ps(old, MaxOrNan(old, x), seen));
    }
  });
}

void LogSum(const void* keys, int64_t dim, MassForm form, float scale, const MassQuery* queries,
            int64_t count) {
  const __m256 scales = _mm256_set1_ps(scale);
  const __m256 nothing = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  const auto add = [&](const MassQuery& q, const float* dots) {
    __m256 t[kMassBlock / 8], top = nothing;
    for (int j = 0; j < kMassBlock / 8; ++j) {
      const __m256 x = _mm256_mul_ps(_mm256_load_ps(dots + 8 * j), scales);
      t[j] = _mm256_blendv_ps(nothing, x, _mm256_castsi256_ps(FirstLanes(q.visible - 8 * j)));
      top = _mm256_max_ps(top, t[j]);
    }
    const float largest = MaxOf(top);
    if (largest > q.stats[0]) {
      q.stats[1] *= std::exp2(q.stats[0] - largest);
      q.stats[0] = largest;
    }
    __m256 total = _mm256_setzero_ps();
    for (const __m256 x : t)
      total = _mm256_add_ps(total, Exp2NotPositive(_mm256_sub_ps(x, _mm256_set1_ps(q.stats[0]))));
    q.stats[1] += SumOf(total);
  };
  ForEachQuery(keys, dim, form == MassForm::kLowBit, queries, count, add);
}

// ---- the decode scan

// Scores of R queries and 16 slots of one head, added to `start`.
template <int R>
[[gnu::always_inline]] inline void LowBitScores(const LowBitBlock* blocks, int64_t dim,
                                                const std::byte* queries, const float* start,
                                                __m256 (&scores)[R][2]) {
  const int64_t bytes = LowBitQuery::Bytes(dim);
  const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) scores[r][0] = scores[r][1] = _mm256_broadcast_ss(start + r);
  for (int64_t b = 0; b < dim / 32; ++b) {
    const LowBitBlock& block = blocks[b];
    __m256i acc[R][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) {
      __m256i k[2];
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        k[h] = _mm256_loadu_si256(
            reinterpret_cast<const __m256i*>(block.nibbles + v % 4 * 64 + h * 32));
        if (v >= 4) k[h] = _mm256_srli_epi16(k[h], 4);
        k[h] = _mm256_and_si256(k[h], low);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m256i four = Broadcast(queries + r * bytes + 32 * b + 4 * v);
        AddTo<true>(acc[r][0], _mm256_maddubs_epi16(k[0], four));
        AddTo<true>(acc[r][1], _mm256_maddubs_epi16(k[1], four));
      }
    }
    const __m256 k_scale[2] = {LoadHalves(block.scale), LoadHalves(block.scale + 8)};
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const std::byte* tail = queries + r * bytes + dim + 8 * b;
      const __m256 q_scale = _mm256_castsi256_ps(Broadcast(tail));
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m256i whole = _mm256_add_epi32(_mm256_madd_epi16(acc[r][h], _mm256_set1_epi16(1)),
                                               Broadcast(tail + 4));
        scores[r][h] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(whole), k_scale[h]),
                                       q_scale, scores[r][h]);
      }
    }
  }
}

// The bits of a weight as a float before rounding; NaN counts as the largest.
inline __m256i WeightBits(__m256 score, __m256i seen) {
  const __m256 heaviest = _mm256_set1_ps(kWeightUnit * (127 + 100));
  return _mm256_and_si256(_mm256_cvtps_epi32(_mm256_min_ps(score, heaviest)), seen);
}

// R queries against a page of one head. Another page's blocks are prefetched meanwhile.
template <int R>
void LowBitWeights(const LowBitBlock* blocks, const LowBitBlock* next, int64_t dim,
                   const std::byte* queries, const float* start, int64_t visible, uint16_t* out,
                   int64_t stride) {
  const int64_t per_group = dim / 32;
  for (int64_t slot = 0; slot < kMassBlock; slot += kKeys, blocks += per_group) {
    if (next != nullptr) {
      PrefetchWeights(reinterpret_cast<const std::byte*>(next + slot / kKeys * per_group),
                      static_cast<int>(per_group * static_cast<int64_t>(sizeof(LowBitBlock))));
    }
    __m256 scores[R][2];
    LowBitScores<R>(blocks, dim, queries, start, scores);
    const __m256i seen[] = {FirstLanes(visible - slot), FirstLanes(visible - slot - 8)};
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m256i w =
          _mm256_packus_epi32(WeightBits(scores[r][0], seen[0]), WeightBits(scores[r][1], seen[1]));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * stride + slot), w);
    }
  }
}

float SumOfWeights(const uint16_t* weights, int64_t n) {
  __m256 total[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t i = 0; i < n; i += 16) {
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + i));
    total[0] = _mm256_add_ps(total[0], _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)));
    total[1] = _mm256_add_ps(total[1],
                             _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(-65536))));
  }
  return SumOf(_mm256_add_ps(total[0], total[1]));
}

void LowBitStarts(const KvView& kv, int64_t n, int head, const std::byte* queries, int64_t count,
                  float* start) {
  const int64_t dim = kv.layout.head_dim;
  const __m256 nothing = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  InGroups<4>(count, [&]<int R>(int64_t first) {
    constexpr float kZeros[R] = {};
    __m256 top[R];
    for (int r = 0; r < R; ++r) top[r] = nothing;
    for (int64_t slot = 0; slot < std::min<int64_t>(n, 32); slot += kKeys) {
      __m256 scores[R][2];
      LowBitScores<R>(kv.low_bit(slot, head, 0), dim, queries + first * LowBitQuery::Bytes(dim),
                      kZeros, scores);
      for (int r = 0; r < R; ++r) {
        for (int h = 0; h < 2; ++h) {
          const __m256 seen = _mm256_castsi256_ps(FirstLanes(n - slot - 8 * h));
          top[r] = _mm256_max_ps(top[r], _mm256_blendv_ps(nothing, scores[r][h], seen));
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      const float largest = MaxOf(top[r]);
      start[first + r] =
          kWeightUnit * (127 - (std::isfinite(largest) ? std::ceil(largest / kWeightUnit) : 0));
    }
  });
}

void LowBitPage(const LowBitBlock* blocks, const LowBitBlock* next, int64_t dim,
                const std::byte* queries, const float* start, int64_t count, int64_t visible,
                uint16_t* out, int64_t stride) {
  InGroups<4>(count, [&]<int R>(int64_t r) {
    LowBitWeights<R>(blocks, r == 0 ? next : nullptr, dim, queries + r * LowBitQuery::Bytes(dim),
                     start + r, visible, out + r * stride, stride);
  });
}

void PoolWeights(const uint16_t* weights, int64_t stride, const float* factor, int64_t heads,
                 int64_t n, bool max, float* out) {
  const __m256i zero = _mm256_setzero_si256();
  for (int64_t i = 0; i < n; i += 16) {
    __m256 pooled[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t h = 0; h < heads; ++h) {
      const __m256i w =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + h * stride + i));
      const __m256 x[2] = {_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, w)),
                           _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, w))};
      const __m256 f = _mm256_broadcast_ss(factor + h);
#pragma GCC unroll 2
      for (int g = 0; g < 2; ++g) {
        pooled[g] =
            max ? MaxOrNan(pooled[g], _mm256_mul_ps(x[g], f)) : _mm256_fmadd_ps(x[g], f, pooled[g]);
      }
    }
    for (int g = 0; g < 2; ++g) {
      const int64_t rest = n - i - 8 * g;
      if (rest >= 8) {
        _mm256_storeu_ps(out + i + 8 * g, pooled[g]);
      } else if (rest > 0) {
        _mm256_maskstore_ps(out + i + 8 * g, FirstLanes(rest), pooled[g]);
      }
    }
  }
}

}  // namespace

const MassKernels& GetMassKernels() {
  static const MassKernels kKernels = {.pack_query = PackQuery,
                                       .pack_keys = PackKeys,
                                       .accumulate = Accumulate,
                                       .log_max = LogMax,
                                       .log_sum = LogSum,
                                       .pool_scores = portable::GetMassKernels().pool_scores};
  return kKernels;
}

const LowBitKernels& GetLowBitKernels() {
  static constexpr LowBitKernels kKernels = {.read_ahead = 8192,
                                             .pack = PackLowBitQuery,
                                             .starts = LowBitStarts,
                                             .page = LowBitPage,
                                             .sum = SumOfWeights,
                                             .pool = PoolWeights};
  return kKernels;
}

}  // namespace baton::cpu::avx2
