// Attention for bf16 and int8 caches with AVX2, in single precision: values of a cache become floats
// in registers, one instruction for eight of bf16.
//
//   few rows    decode with up to kFewRows query heads to a KV head: keys and values go from the cache
//               into the products; what a key's lanes hold is added up by a tree over four keys
//   many rows   keys are packed, [keys/16][D][16], and so are values, [D/16][keys][16]; a product
//               holds 6 rows x 16 sums in 12 registers and broadcasts the rows' values from memory
//
// 16 channels of bf16 come as two registers, the even ones and the odd ones: half of each dword is a
// float already. Queries and sums lie in the same order, and only the output is put right. Those of
// int8 come in order; the scale of K goes on the scores, that of V on the weights. Softmax runs in
// powers of two: scores are scaled by log2(e) once.
#include <immintrin.h>
#include <math.h>

#include "kernels/cpu/attend_block.h"
#include "kernels/cpu/avx2/vec_math.h"

namespace baton::cpu::avx2 {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;
constexpr int kFewRows = 8;    // of a tile
constexpr int kFewAtOnce = 4;  // of a product
constexpr int kManyAtOnce = 6;
constexpr int kStepKeys = 16, kStepChannels = 16;  // of packed products, between steps of prefetch
static_assert(kManyAtOnce <= kRowStep && kFewAtOnce <= kRowStep);

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

// Load8 here and now, and for one part only: g++ loads everything first that it can and keeps it, but
// the 12 sums of a product leave four registers.
template <bool kInt8>
[[gnu::always_inline]] inline __m256 Load8Now(const std::byte* p, int part) {
  asm volatile("" : "+r"(p));
  __m256 x = Load8<kInt8>(p, part);
  asm volatile("" : "+x"(x));
  return x;
}

// acc + x * y, in place: g++ puts the sum in a factor's register, and moves it back.
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
// And back.
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

// r[i] float j becomes r[j] float i.
[[gnu::always_inline]] inline void Transpose8(__m256 (&r)[8]) {
  __m256 t[8];
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    const __m256 a = _mm256_unpacklo_ps(r[i], r[i + 1]), b = _mm256_unpackhi_ps(r[i], r[i + 1]);
    const __m256 c = _mm256_unpacklo_ps(r[i + 2], r[i + 3]),
                 d = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
    t[i] = _mm256_shuffle_ps(a, c, 0x44);
    t[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
    t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
    t[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(t[i], t[4 + i], 0x20);
    r[4 + i] = _mm256_permute2f128_ps(t[i], t[4 + i], 0x31);
  }
}

int PaddedKeys(const KeyBlock& block) { return (block.count + kKeyStep - 1) / kKeyStep * kKeyStep; }

template <bool kInt8>
void PackKeys(const KeyBlock& block, Ahead& ahead, int64_t offset, int64_t dim, float* out) {
  for (int k = 0; k < PaddedKeys(block); k += 8) {
    float* to = out + k / 16 * dim * 16 + k % 16;
    for (int64_t c = 0; c < dim; c += 16) {
      __m256 r[2][8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const Sixteen x = Load16<kInt8>(block.rows[k + i] + offset + c / 16 * kBytesOf16<kInt8>);
        r[0][i] = x.part[0];
        r[1][i] = x.part[1];
      }
      ahead.Step();
#pragma GCC unroll 2
      for (int part = 0; part < 2; ++part) {
        Transpose8(r[part]);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i)
          _mm256_store_ps(to + (c + 8 * part + i) * 16, r[part][i]);
      }
    }
  }
}

template <bool kInt8>
void PackValues(const KeyBlock& block, Ahead& ahead, int64_t offset, int64_t dim, float* out) {
  for (int k = 0; k < PaddedKeys(block); ++k) {
    ahead.Step();
    const std::byte* from = block.rows[k] + offset;
    for (int64_t c = 0; c < dim; c += 16, from += kBytesOf16<kInt8>) {
      const Sixteen x = Load16<kInt8>(from);
      float* to = out + (c / 16 * kMaxBlockKeys + k) * 16;
      _mm256_store_ps(to, x.part[0]);
      _mm256_store_ps(to + 8, x.part[1]);
    }
  }
}

// ---- products of packed keys and values

// s[i][16] = q rows . 16 keys, times factor. q: [D][kRows].
template <int kRows>
void Scores(const float* q, const float* keys, int64_t dim, const float* factor, float* s,
            Ahead& ahead) {
  __m256 a[kRows][2];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) a[i][0] = a[i][1] = _mm256_setzero_ps();
  for (int64_t c = 0; c < dim; c += kStepChannels) {
    ahead.Step();
#pragma GCC unroll 4
    for (int j = 0; j < kStepChannels; ++j, keys += 16, q += kRows) {
      const __m256 k0 = _mm256_load_ps(keys), k1 = _mm256_load_ps(keys + 8);
#pragma GCC unroll 6
      for (int i = 0; i < kRows; ++i) {
        const __m256 x = _mm256_broadcast_ss(q + i);
        a[i][0] = _mm256_fmadd_ps(k0, x, a[i][0]);
        a[i][1] = _mm256_fmadd_ps(k1, x, a[i][1]);
      }
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
    _mm256_store_ps(s + i * kMaxBlockKeys, _mm256_mul_ps(a[i][0], _mm256_load_ps(factor)));
    _mm256_store_ps(s + i * kMaxBlockKeys + 8, _mm256_mul_ps(a[i][1], _mm256_load_ps(factor + 8)));
  }
}

// acc rows = acc * decay + weights . values, 16 channels at a time.
template <int kRows>
void Accumulate(const float* weights, const float* values, int keys, const float* decay,
                int64_t dim, int64_t padded, float* acc, Ahead& ahead) {
  for (int64_t c = 0; c < dim; c += 16) {
    const float* v = values + c * kMaxBlockKeys;
    __m256 a[kRows][2];
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      const __m256 f = _mm256_broadcast_ss(decay + i);
      a[i][0] = _mm256_mul_ps(_mm256_load_ps(acc + i * padded + c), f);
      a[i][1] = _mm256_mul_ps(_mm256_load_ps(acc + i * padded + c + 8), f);
    }
    const float* weight = weights;
    for (int k = 0; k < keys; k += kStepKeys) {
      ahead.Step();
#pragma GCC unroll 4
      for (int j = 0; j < kStepKeys; ++j, v += 16, ++weight) {
        const __m256 v0 = _mm256_load_ps(v), v1 = _mm256_load_ps(v + 8);
#pragma GCC unroll 6
        for (int i = 0; i < kRows; ++i) {
          const __m256 w = _mm256_broadcast_ss(weight + i * kMaxBlockKeys);
          a[i][0] = _mm256_fmadd_ps(v0, w, a[i][0]);
          a[i][1] = _mm256_fmadd_ps(v1, w, a[i][1]);
        }
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      _mm256_store_ps(acc + i * padded + c, a[i][0]);
      _mm256_store_ps(acc + i * padded + c + 8, a[i][1]);
    }
  }
}

using ScoresFn = void (*)(const float*, const float*, int64_t, const float*, float*, Ahead&);
using AccumulateFn = void (*)(const float*, const float*, int, const float*, int64_t, int64_t,
                              float*, Ahead&);
constexpr ScoresFn kScores[kManyAtOnce + 1] = {nullptr,   Scores<1>, Scores<2>, Scores<3>,
                                               Scores<4>, Scores<5>, Scores<6>};
constexpr AccumulateFn kAccumulate[kManyAtOnce + 1] = {
    nullptr,       Accumulate<1>, Accumulate<2>, Accumulate<3>,
    Accumulate<4>, Accumulate<5>, Accumulate<6>};

// ---- few rows

// The sums of the lanes of a, b, c and d.
inline __m128 AddLanes(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

// s[i][kKeyStep] = q rows . 32 keys, times factor. q: [D/16][kRows][16].
template <int kRows, bool kInt8>
void ScoreFew(const std::byte* const* rows, int64_t offset, const float* q, int64_t dim,
              const float* factor, float* s, Ahead& ahead) {
  constexpr int kKeys = kRows == 4 ? 2 : 4;  // 12 sums and the keys fill the registers
  for (int k = 0; k < kKeyStep; k += kKeys) {
    __m256 a[kRows][kKeys];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; ++j) a[i][j] = _mm256_setzero_ps();
    }
    for (int64_t c = 0; c < dim / 16; ++c) {
      const int64_t at = offset + c * kBytesOf16<kInt8>;
      if (k % 4 == 0) ahead.Step();
#pragma GCC unroll 2
      for (int part = 0; part < 2; ++part) {
        __m256 y[kRows];
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) y[i] = _mm256_load_ps(q + (c * kRows + i) * 16 + 8 * part);
#pragma GCC unroll 4
        for (int j = 0; j < kKeys; ++j) {
          const __m256 x = Load8Now<kInt8>(rows[k + j] + at, part);
#pragma GCC unroll 4
          for (int i = 0; i < kRows; ++i) a[i][j] = AddProduct(a[i][j], x, y[i]);
        }
      }
    }
    const __m128 f = _mm_loadu_ps(factor + k);
    if constexpr (kKeys == 4) {
#pragma GCC unroll 3
      for (int i = 0; i < kRows; ++i) {
        _mm_store_ps(s + i * kMaxBlockKeys + k,
                     _mm_mul_ps(AddLanes(a[i][0], a[i][1], a[i][2], a[i][3]), f));
      }
    } else {
      const __m128 f2 = _mm_movelh_ps(f, f);
#pragma GCC unroll 2
      for (int i = 0; i < kRows; i += 2) {
        const __m128 two = _mm_mul_ps(AddLanes(a[i][0], a[i][1], a[i + 1][0], a[i + 1][1]), f2);
        _mm_storel_pi(reinterpret_cast<__m64*>(s + i * kMaxBlockKeys + k), two);
        _mm_storeh_pi(reinterpret_cast<__m64*>(s + (i + 1) * kMaxBlockKeys + k), two);
      }
    }
  }
}

// acc rows = acc * decay + weights . values for 16 kParts channels from c on.
template <int kRows, int kParts, bool kInt8>
void AccumulatePart(const KeyBlock& block, int64_t offset, const float* weights, int keys,
                    const float* decay, int64_t padded, int64_t c, float* acc, Ahead& ahead) {
  const int64_t at = offset + c / 16 * kBytesOf16<kInt8>;
  __m256 a[kRows][2 * kParts];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
    const __m256 f = _mm256_broadcast_ss(decay + i);
#pragma GCC unroll 4
    for (int p = 0; p < 2 * kParts; ++p)
      a[i][p] = _mm256_mul_ps(_mm256_load_ps(acc + i * padded + c + 8 * p), f);
  }
  for (int k = 0; k < keys; ++k) {
    if (k % 2 == 0) ahead.Step();
    const std::byte* row = block.rows[k] + at;
    __m256 w[kRows];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) w[i] = _mm256_broadcast_ss(weights + i * kMaxBlockKeys + k);
#pragma GCC unroll 4
    for (int p = 0; p < 2 * kParts; ++p) {
      const __m256 v = Load8Now<kInt8>(row + p / 2 * kBytesOf16<kInt8>, p % 2);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) a[i][p] = _mm256_fmadd_ps(v, w[i], a[i][p]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < 2 * kParts; ++p) _mm256_store_ps(acc + i * padded + c + 8 * p, a[i][p]);
  }
}

template <int kRows, bool kInt8>
void AccumulateFew(const KeyBlock& block, int64_t offset, const float* weights, int keys,
                   const float* decay, int64_t dim, int64_t padded, float* acc, Ahead& ahead) {
  int64_t c = 0;
  if constexpr (kRows < 4) {
    for (; c + 32 <= dim; c += 32)
      AccumulatePart<kRows, 2, kInt8>(block, offset, weights, keys, decay, padded, c, acc, ahead);
  }
  for (; c < dim; c += 16)
    AccumulatePart<kRows, 1, kInt8>(block, offset, weights, keys, decay, padded, c, acc, ahead);
}

using ScoreFewFn = void (*)(const std::byte* const*, int64_t, const float*, int64_t, const float*,
                            float*, Ahead&);
using AccumulateFewFn = void (*)(const KeyBlock&, int64_t, const float*, int, const float*, int64_t,
                                 int64_t, float*, Ahead&);
template <bool kInt8>
constexpr ScoreFewFn kScoreFew[kFewAtOnce + 1] = {nullptr, ScoreFew<1, kInt8>, ScoreFew<2, kInt8>,
                                                  ScoreFew<3, kInt8>, ScoreFew<4, kInt8>};
template <bool kInt8>
constexpr AccumulateFewFn kAccumulateFew[kFewAtOnce + 1] = {
    nullptr, AccumulateFew<1, kInt8>, AccumulateFew<2, kInt8>, AccumulateFew<3, kInt8>,
    AccumulateFew<4, kInt8>};

// ---- softmax

// Excludes the keys that a row at position `query` does not see.
void MaskScores(const AttendTile& t, const KeyBlock& block, int keys, int64_t query, float* s) {
  const __m256 none = _mm256_set1_ps(-INFINITY);
  const __m256i last = _mm256_set1_epi32(static_cast<int>(query));
  const int64_t old =
      query - t.recent;  // t.recent may be as large as int64 goes; this stays negative then
  const __m256i window = _mm256_set1_epi32(static_cast<int>(old < -1 ? -1 : old));
  const __m256i sink = _mm256_set1_epi32(static_cast<int>(t.sink > query ? query + 1 : t.sink));
  for (int k = 0; k < keys; k += 8) {
    const __m256i p = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.positions + k));
    const __m256i inside = _mm256_or_si256(_mm256_cmpgt_epi32(p, window), _mm256_cmpgt_epi32(sink, p));
    const __m256i seen = _mm256_andnot_si256(_mm256_cmpgt_epi32(p, last), inside);
    _mm256_store_ps(s + k, _mm256_blendv_ps(none, _mm256_load_ps(s + k), _mm256_castsi256_ps(seen)));
  }
}

void StoreRawScores(const KeyBlock& block, int keys, const float* s, float* out) {
  const __m256 ln2 = _mm256_set1_ps(kLn2);
  out += block.positions[0];  // positions are consecutive where scores are wanted
  const int n = keys < block.count ? keys : block.count;
  int k = 0;
  for (; k + 8 <= n; k += 8)
    _mm256_storeu_ps(out + k, _mm256_mul_ps(_mm256_load_ps(s + k), ln2));
  for (; k < n; ++k) out[k] = s[k] * kLn2;
}

// Turns the scores of up to 8 rows into weights, updates their maxima and sums, and says what their
// accumulators decay by. value_scales: of int8 caches, by key, or null.
void Softmax(float* scores, int rows, int keys, const float* value_scales, float* max, float* sum,
             float* decay) {
  static_assert(kManyAtOnce <= 8 && kFewAtOnce <= 8);
  alignas(32) float block[8];
  const __m256 none = _mm256_set1_ps(-INFINITY);
  for (int i = 0; i < rows; ++i) {
    const float* s = scores + i * kMaxBlockKeys;
    __m256 m[2] = {none, none};
    for (int k = 0; k < keys; k += 16) {
      m[0] = _mm256_max_ps(m[0], _mm256_load_ps(s + k));
      m[1] = _mm256_max_ps(m[1], _mm256_load_ps(s + k + 8));
    }
    block[i] = MaxOf(_mm256_max_ps(m[0], m[1]));
  }
  const __m256i mask = FirstLanes(rows);
  const __m256 before = _mm256_blendv_ps(none, _mm256_maskload_ps(max, mask), _mm256_castsi256_ps(mask));
  const __m256 after = _mm256_blendv_ps(none, _mm256_max_ps(_mm256_load_ps(block), before),
                                        _mm256_castsi256_ps(mask));
  // Nothing seen yet: any finite maximum gives every weight 0.
  const __m256 base = _mm256_andnot_ps(_mm256_cmp_ps(after, none, _CMP_EQ_OQ), after);
  const __m256 fade = Exp2NotPositive(_mm256_sub_ps(before, base));
  _mm256_maskstore_ps(max, mask, after);
  _mm256_maskstore_ps(decay, mask, fade);
  _mm256_store_ps(block, base);
  alignas(32) float added[8] = {};
  for (int i = 0; i < rows; ++i) {
    float* s = scores + i * kMaxBlockKeys;
    const __m256 row_base = _mm256_broadcast_ss(block + i);
    __m256 total[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int k = 0; k < keys; k += 16) {
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        __m256 p = Exp2NotPositive(_mm256_sub_ps(_mm256_load_ps(s + k + 8 * j), row_base));
        total[j] = _mm256_add_ps(total[j], p);
        if (value_scales) p = _mm256_mul_ps(p, _mm256_load_ps(value_scales + k + 8 * j));
        _mm256_store_ps(s + k + 8 * j, p);
      }
    }
    added[i] = SumOf(_mm256_add_ps(total[0], total[1]));
  }
  const __m256 sums =
      _mm256_fmadd_ps(_mm256_maskload_ps(sum, mask), fade, _mm256_load_ps(added));
  _mm256_maskstore_ps(sum, mask, sums);
}

// ---- tiles

// How often Update calls Ahead::Step, see there.
int64_t Steps(const AttendTile& t, const KeyBlock& block) {
  const int64_t keys = PaddedKeys(block), chunks = t.layout.head_dim / 16;
  const int64_t step = RowsAtOnce(t), groups = (t.rows + step - 1) / step;
  if (IsFew(t)) {
    const int64_t passes = step < 4 ? (chunks + 1) / 2 : chunks;
    return groups * (keys / 4 * chunks + keys / 2 * passes);
  }
  return keys / 8 * chunks + keys +
         groups * (keys / 16 * (t.layout.head_dim / kStepChannels) + chunks * (keys / kStepKeys));
}

template <bool kInt8>
void Update(const AttendTile& t, const KeyBlock& block, const KeyBlock* next,
            const AttendScratch& scratch) {
  const int64_t dim = t.layout.head_dim;
  const int64_t padded = PaddedHead(dim);
  const int64_t key_offset = t.kv_head * t.layout.head_bytes();
  const int64_t value_offset = key_offset + t.layout.value_offset();
  auto* packed_keys = reinterpret_cast<float*>(scratch.keys);
  auto* packed_values = reinterpret_cast<float*>(scratch.values);
  const bool few = IsFew(t);
  const int step = RowsAtOnce(t);
  Ahead ahead(t, next, key_offset, value_offset, Steps(t, block));
  if (!few) {
    PackKeys<kInt8>(block, ahead, key_offset, dim, packed_keys);
    PackValues<kInt8>(block, ahead, value_offset, dim, packed_values);
  }

  const float scale = t.scale * kLog2E;
  alignas(32) float key_factors[kMaxBlockKeys], value_scales[kMaxBlockKeys];
  for (int k = 0; k < PaddedKeys(block); ++k) {
    key_factors[k] = kInt8 ? scale * block.scales[k][t.kv_head] : scale;
    if constexpr (kInt8) value_scales[k] = block.scales[k][t.layout.kv_heads + t.kv_head];
  }

  for (int row = 0; row < t.rows; row += step) {
    const int rows = t.rows - row < step ? t.rows - row : step;
    const int64_t first = t.position + row / t.heads;
    const int64_t last = t.position + (row + rows - 1) / t.heads;
    const int keys = VisibleKeys(block, last);
    if (keys == 0) continue;
    const float* q = reinterpret_cast<const float*>(t.queries) + row * padded;
    if (few) {
      for (int k = 0; k < keys; k += kKeyStep) {
        kScoreFew<kInt8>[rows](block.rows + k, key_offset, q, dim, key_factors + k,
                               scratch.scores + k, ahead);
      }
    } else {
      for (int k = 0; k < keys; k += 16) {
        kScores[rows](q, packed_keys + k * dim, dim, key_factors + k, scratch.scores + k, ahead);
      }
    }
    const bool mask = NeedsMask(t, block, keys, first, last);
    for (int i = 0; i < rows && (mask || t.scores); ++i) {
      float* s = scratch.scores + i * kMaxBlockKeys;
      const int token = (row + i) / t.heads;
      if (t.scores) {
        const int64_t head = (row + i) % t.heads;
        StoreRawScores(block, keys, s,
                       t.scores + token * t.scores_token_stride + head * t.scores_head_stride);
      }
      if (mask) MaskScores(t, block, keys, t.position + token, s);
    }
    alignas(32) float decay[8];
    Softmax(scratch.scores, rows, keys, kInt8 ? value_scales : nullptr, t.max + row, t.sum + row,
            decay);
    float* acc = t.acc + row * padded;
    if (few) {
      kAccumulateFew<kInt8>[rows](block, value_offset, scratch.scores, keys, decay, dim, padded,
                                  acc, ahead);
    } else {
      kAccumulate[rows](scratch.scores, packed_values, keys, decay, dim, padded, acc, ahead);
    }
  }
}

void UpdateAny(const AttendTile& t, const KeyBlock& block, const KeyBlock* next,
               const AttendScratch& scratch) {
  if (t.layout.dtype == DType::kI8) {
    Update<true>(t, block, next, scratch);
  } else {
    Update<false>(t, block, next, scratch);
  }
}

template <bool kInt8>
void PackRow(const AttendTile& t, int i, const float* row) {
  const int64_t dim = t.layout.head_dim;
  const int step = RowsAtOnce(t);
  const int group = i / step * step;
  const int rows = t.rows - group < step ? t.rows - group : step;
  float* to = reinterpret_cast<float*>(t.queries) + group * PaddedHead(dim);
  for (int64_t c = 0; c < dim; c += 16) {
    const Sixteen x = Order<kInt8>(row + c);
    if (IsFew(t)) {
      _mm256_store_ps(to + c * rows + (i - group) * 16, x.part[0]);
      _mm256_store_ps(to + c * rows + (i - group) * 16 + 8, x.part[1]);
    } else {
      alignas(32) float values[16];
      _mm256_store_ps(values, x.part[0]);
      _mm256_store_ps(values + 8, x.part[1]);
      for (int d = 0; d < 16; ++d) to[(c + d) * rows + (i - group)] = values[d];
    }
  }
}

void Begin(const AttendTile& t, const float* q, int64_t token_stride) {
  const int64_t dim = t.layout.head_dim;
  const int64_t padded = PaddedHead(dim);
  for (int i = 0; i < t.rows; ++i) {
    const float* row = q + i / t.heads * token_stride + i % t.heads * dim;
    if (t.layout.dtype == DType::kI8) {
      PackRow<true>(t, i, row);
    } else {
      PackRow<false>(t, i, row);
    }
    float* acc = t.acc + i * padded;
    for (int64_t c = 0; c < padded; c += 8) _mm256_store_ps(acc + c, _mm256_setzero_ps());
    t.max[i] = -INFINITY;
    t.sum[i] = 0;
  }
}

float Finish(const AttendTile& t, int row, float* o) {
  const float* acc = t.acc + row * PaddedHead(t.layout.head_dim);
  const float sum = t.sum[row];
  const __m256 factor = _mm256_set1_ps(sum == 0 ? 0.0f : 1.0f / sum);
  for (int64_t c = 0; c < t.layout.head_dim; c += 16) {
    const __m256 first = _mm256_mul_ps(_mm256_load_ps(acc + c), factor);
    const __m256 second = _mm256_mul_ps(_mm256_load_ps(acc + c + 8), factor);
    if (t.layout.dtype == DType::kI8) {
      StoreInOrder<true>(first, second, o + c);
    } else {
      StoreInOrder<false>(first, second, o + c);
    }
  }
  return sum == 0 ? -INFINITY : (t.max[row] + log2f(sum)) * kLn2;
}

}  // namespace

AttendKernels GetAttendKernels() { return {.begin = Begin, .update = UpdateAny, .finish = Finish}; }

}  // namespace baton::cpu::avx2
