// Attention for bf16 and int8 caches with AVX2.
//
//   few rows   decode with up to kFewRows query heads to a KV head: keys and values go straight
//              from the cache into products in single precision, one instruction for eight floats
//              of bf16; the lanes of a key's sum are added by a tree over four keys
//   many rows  in 16-bit integers, whose pairwise products (vpmaddwd) are twice as many a cycle as
//              those of floats. Each key, value and query has a scale from its largest magnitude,
//              as has a row's weights in a block; sums are exact.
//              Keys are stored as [keys/16][D/2][16] pairs of channels, values as
//              [D/16][keys/2][16] pairs of keys; a product holds 6 rows x 16 sums in 12 registers
//              and broadcasts the rows' pairs from memory
//
// 16 channels of bf16 are loaded as two registers, the even ones and the odd ones: half of each
// dword is already a float. Queries of few rows and all sums use that order, and only the output is
// reordered. Channels of int8 are in order; the scale of K is applied to the scores, that of V to
// the weights. Softmax runs in powers of two: scores are scaled by log2(e) once.
#include "kernels/cpu/avx2/attend_parts.h"

namespace baton::cpu::avx2 {
namespace {

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
        for (int i = 0; i < kRows; ++i) {
          y[i] = _mm256_load_ps(q + (c * kRows + i) * 16 + 8 * part);
          asm volatile("" : "+x"(y[i]));
        }
#pragma GCC unroll 4
        for (int j = 0; j < kKeys; ++j) {
          const __m256 x = Load8Now<kInt8>(rows[k + j] + at, part);
#pragma GCC unroll 4
          for (int i = 0; i < kRows; ++i) a[i][j] = AddProduct(a[i][j], x, y[i]);
        }
      }
    }
    if constexpr (kKeys == 4) {
      const __m128 f = _mm_load_ps(factor + k);
#pragma GCC unroll 3
      for (int i = 0; i < kRows; ++i) {
        _mm_store_ps(s + i * kMaxBlockKeys + k,
                     _mm_mul_ps(AddLanes(a[i][0], a[i][1], a[i][2], a[i][3]), f));
      }
    } else {
      const __m128 f2 = _mm_castpd_ps(_mm_load1_pd(reinterpret_cast<const double*>(factor + k)));
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
    const __m256i inside =
        _mm256_or_si256(_mm256_cmpgt_epi32(p, window), _mm256_cmpgt_epi32(sink, p));
    const __m256i seen = _mm256_andnot_si256(_mm256_cmpgt_epi32(p, last), inside);
    _mm256_store_ps(s + k,
                    _mm256_blendv_ps(none, _mm256_load_ps(s + k), _mm256_castsi256_ps(seen)));
  }
}

void StoreRawScores(const KeyBlock& block, int keys, const float* s, float* out) {
  const __m256 ln2 = _mm256_set1_ps(kLn2);
  out += block.positions[0];  // positions are consecutive where scores are requested
  const int n = keys < block.count ? keys : block.count;
  int k = 0;
  for (; k + 8 <= n; k += 8) _mm256_storeu_ps(out + k, _mm256_mul_ps(_mm256_load_ps(s + k), ln2));
  for (; k < n; ++k) out[k] = s[k] * kLn2;
}

// The factors of a group of up to 8 rows that the sums need.
struct alignas(32) RowFactors {
  float decay[8];  // decay of the sums so far
  float block[8];  // factor of one step of this block's weights; many rows only
};

// Turns the scores of up to 8 rows into weights and updates their maxima and sums. Few rows: floats
// in place, relative to the largest score so far, times value_factors if there are any. Many rows:
// integers, after multiplication with the values' scales value_factors; a row's largest is
// kWeightTop.
template <bool kFew>
void Softmax(float* scores, int rows, int keys, const float* value_factors, float* max, float* sum,
             uint32_t* weights, RowFactors& factors) {
  static_assert(kManyAtOnce <= 8 && kFewAtOnce <= 8);
  alignas(32) float base[8];
  const __m256 none = _mm256_set1_ps(-INFINITY);
  for (int i = 0; i < rows; ++i) {
    const float* s = scores + i * kMaxBlockKeys;
    __m256 m[2] = {none, none};
    for (int k = 0; k < keys; k += 16) {
      m[0] = _mm256_max_ps(m[0], _mm256_load_ps(s + k));
      m[1] = _mm256_max_ps(m[1], _mm256_load_ps(s + k + 8));
    }
    base[i] = MaxOf(_mm256_max_ps(m[0], m[1]));
  }
  const __m256i mask = FirstLanes(rows);
  const auto known = [&](__m256 x) { return _mm256_blendv_ps(none, x, _mm256_castsi256_ps(mask)); };
  // Nothing seen yet: any finite maximum gives every weight 0.
  const auto finite = [&](__m256 x) {
    return _mm256_andnot_ps(_mm256_cmp_ps(x, none, _CMP_EQ_OQ), x);
  };
  const __m256 here = known(_mm256_load_ps(base));
  const __m256 before = known(_mm256_maskload_ps(max, mask));
  const __m256 after = _mm256_max_ps(here, before);
  const __m256 top = finite(after);
  const __m256 decay = Exp2NotPositive(_mm256_sub_ps(before, top));
  const __m256 share = kFew ? _mm256_set1_ps(1) : Exp2NotPositive(_mm256_sub_ps(here, top));
  _mm256_maskstore_ps(max, mask, after);
  _mm256_store_ps(factors.decay, decay);
  _mm256_store_ps(factors.block, share);
  _mm256_store_ps(base, kFew ? top : finite(here));
  alignas(32) float added[8] = {};
  for (int i = 0; i < rows; ++i) {
    float* s = scores + i * kMaxBlockKeys;
    const __m256 row_base = _mm256_broadcast_ss(base + i);
    __m256 total[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, most = _mm256_setzero_ps();
    for (int k = 0; k < keys; k += 16) {
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        float* at = s + k + 8 * j;
        __m256 p = Exp2NotPositive(_mm256_sub_ps(_mm256_load_ps(at), row_base));
        total[j] = _mm256_add_ps(total[j], p);
        if (!kFew || value_factors != nullptr)
          p = _mm256_mul_ps(p, _mm256_load_ps(value_factors + k + 8 * j));
        if constexpr (!kFew) most = _mm256_max_ps(p, most);
        _mm256_store_ps(at, p);
      }
    }
    if constexpr (!kFew) {
      const float top = MaxOf(most);
      const __m256 inverse = _mm256_set1_ps(top > 0x1p-100f ? kWeightTop / top : 0);
      factors.block[i] *= top / kWeightTop;
      for (int k = 0; k < keys; k += 16) {
        const __m256i w = _mm256_packs_epi32(
            _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(s + k), inverse)),
            _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(s + k + 8), inverse)));
        _mm256_store_si256(reinterpret_cast<__m256i*>(weights + i * kWeightStride + k / 2),
                           _mm256_permute4x64_epi64(w, 0xd8));
      }
    }
    added[i] = SumOf(_mm256_add_ps(total[0], total[1]));
  }
  const __m256 sums = _mm256_fmadd_ps(_mm256_maskload_ps(sum, mask), decay,
                                      _mm256_mul_ps(_mm256_load_ps(added), share));
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
  const int64_t pairs = t.layout.head_dim / 2;
  return keys / 8 * chunks + keys / 2 +
         groups * (keys / 16 * (pairs / kStepPairs) + chunks * (keys / 2 / kStepPairs));
}

// For the keys of a block: the factors of their scores, and of their values (few rows: int8 caches
// only).
struct alignas(32) BlockFactors {
  float key[kMaxBlockKeys], value[kMaxBlockKeys];
};

template <bool kInt8>
void Update(const AttendTile& t, const KeyBlock& block, const KeyBlock* next,
            const AttendScratch& scratch) {
  const int64_t dim = t.layout.head_dim;
  const int64_t padded = PaddedHead(dim);
  const int64_t key_offset = t.kv_head * t.layout.head_bytes();
  const int64_t value_offset = key_offset + t.layout.value_offset();
  auto* packed_keys = reinterpret_cast<uint32_t*>(scratch.keys);
  auto* packed_values = reinterpret_cast<uint32_t*>(scratch.values);
  const bool few = IsFew(t);
  const int step = RowsAtOnce(t), all_keys = PaddedKeys(block);
  Ahead ahead(t, next, key_offset, value_offset, Steps(t, block));
  const float scale = t.scale * kLog2E;
  BlockFactors factors;
  if (kInt8) {
    for (int k = 0; k < all_keys; ++k) {
      factors.key[k] = block.scales[k][t.kv_head];
      factors.value[k] = block.scales[k][t.layout.kv_heads + t.kv_head];
    }
  } else if (few) {
    std::fill_n(factors.key, all_keys, 1.0f);
  }
  if (!few) {
    PackKeys<kInt8>(block, ahead, key_offset, dim, packed_keys, factors.key);
    PackValues<kInt8>(block, ahead, value_offset, dim, packed_values, factors.value);
    for (int k = 0; k < all_keys; ++k) {
      // A row that sees a value that is not finite gets a NaN score.
      if (!std::isfinite(factors.value[k])) factors.key[k] = std::nanf(""), factors.value[k] = 0;
    }
  }
  for (int k = 0; k < all_keys; ++k) factors.key[k] *= scale;

  for (int row = 0; row < t.rows; row += step) {
    const int rows = t.rows - row < step ? t.rows - row : step;
    const int keys = VisibleKeys(block, t.position + (row + rows - 1) / t.heads);
    if (keys == 0) continue;
    const std::byte* q = t.queries + row * padded * 4;
    if (few) {
      for (int k = 0; k < keys; k += kKeyStep) {
        kScoreFew<kInt8>[rows](block.rows + k, key_offset, reinterpret_cast<const float*>(q), dim,
                               factors.key + k, scratch.scores + k, ahead);
      }
    } else {
      const auto* pairs = reinterpret_cast<const uint32_t*>(q);
      const auto* row_factor = reinterpret_cast<const float*>(pairs + rows * dim / 2);
      for (int k = 0; k < keys; k += 16) {
        kScores[rows](pairs, packed_keys + k * dim / 2, dim / 2, row_factor, factors.key + k,
                      scratch.scores + k, ahead);
      }
    }
    StoreAndMask(t, block, row, rows, keys, scratch.scores, StoreRawScores, MaskScores);
    RowFactors now;
    float* acc = t.acc + row * padded;
    if (few) {
      Softmax<true>(scratch.scores, rows, keys, kInt8 ? factors.value : nullptr, t.max + row,
                    t.sum + row, nullptr, now);
      kAccumulateFew<kInt8>[rows](block, value_offset, scratch.scores, keys, now.decay, dim, padded,
                                  acc, ahead);
    } else {
      Softmax<false>(scratch.scores, rows, keys, factors.value, t.max + row, t.sum + row,
                     scratch.weights, now);
      kAccumulate[rows](scratch.weights, packed_values, keys / 2, now.block, now.decay, dim, padded,
                        acc, ahead);
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

// In the order in which ScoreFew reads a group of rows: [D/16][rows][16].
template <bool kInt8>
void PackFew(const float* row, int64_t dim, int rows, float* to) {
  for (int64_t c = 0; c < dim; c += 16) {
    const Sixteen x = Order<kInt8>(row + c);
    _mm256_store_ps(to + c * rows, x.part[0]);
    _mm256_store_ps(to + c * rows + 8, x.part[1]);
  }
}

// In the order in which Scores reads them: [D/2][rows] pairs, followed by [rows] scales; i is this
// row's index.
void PackMany(const float* row, int64_t dim, int rows, int i, uint32_t* to) {
  float top = 0;
  for (int64_t c = 0; c < dim && !std::isnan(top); ++c) {
    if (!(std::fabs(row[c]) <= top)) top = std::fabs(row[c]);  // NaN is kept
  }
  const float scale = top <= std::numeric_limits<float>::max() ? top / KeyTop(dim) : std::nanf("");
  const float inverse = Inverse(scale);
  for (int64_t d = 0; d < dim / 2; ++d) {
    const auto whole = [&](float x) {
      return inverse == 0
                 ? 0u
                 : static_cast<uint32_t>(static_cast<int32_t>(std::nearbyintf(x * inverse)));
    };
    to[d * rows + i] = (whole(row[2 * d]) & 0xffff) | whole(row[2 * d + 1]) << 16;
  }
  std::memcpy(to + rows * dim / 2 + i, &scale, 4);
}

void PackRow(const AttendTile& t, int i, const float* row) {
  const int64_t dim = t.layout.head_dim;
  const int step = RowsAtOnce(t);
  const int group = i / step * step;
  const int rows = t.rows - group < step ? t.rows - group : step;
  std::byte* to = t.queries + group * PaddedHead(dim) * 4;
  if (!IsFew(t)) {
    PackMany(row, dim, rows, i - group, reinterpret_cast<uint32_t*>(to));
  } else if (t.layout.dtype == DType::kI8) {
    PackFew<true>(row, dim, rows, reinterpret_cast<float*>(to) + (i - group) * 16);
  } else {
    PackFew<false>(row, dim, rows, reinterpret_cast<float*>(to) + (i - group) * 16);
  }
}

void Begin(const AttendTile& t, const float* q, int64_t token_stride) {
  const int64_t dim = t.layout.head_dim;
  const int64_t padded = PaddedHead(dim);
  for (int i = 0; i < t.rows; ++i) {
    const float* row = q + i / t.heads * token_stride + i % t.heads * dim;
    PackRow(t, i, row);
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
  return sum == 0 ? -INFINITY : (t.max[row] + std::log2(sum)) * kLn2;
}

}  // namespace

AttendKernels GetAttendKernels() { return {.begin = Begin, .update = UpdateAny, .finish = Finish}; }

}  // namespace baton::cpu::avx2
