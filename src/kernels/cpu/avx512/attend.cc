// Attention for bf16 and int8 caches with vdpbf16ps, which multiplies pairs: score products pair
// channels, value products pair keys (layouts in attend_parts.h).
//
// Decode has too few rows to amortise packing, and does without it (ScoreFew, AccumulateFew).
//
// A product holds up to 12 stack rows x 32 accumulators in 24 registers and broadcasts the rows'
// pairs from memory.
#include "kernels/cpu/avx512/attend_parts.h"

namespace baton::cpu::avx512 {
namespace {

constexpr int kStepProducts = 8;  // pairs between two steps of the prefetch

// ---- products

// s[i][32] = q rows . 32 keys, times factor. q: [d2][kRows] dwords. Every loop over the rows is
// unrolled by hand: otherwise GCC 12 keeps the accumulators in memory before and after the main
// loop.

template <int kRows>
void Scores(const uint32_t* q, const uint32_t* keys, int64_t d2, __m512 factor0, __m512 factor1,
            float* s, Ahead& ahead) {
  __m512 a[kRows][2];
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) a[i][0] = a[i][1] = _mm512_setzero_ps();
  for (int64_t d = 0; d < d2; ++d) {
    if (d % kStepProducts == 0) ahead.Step();
    const __m512bh k0 = AsBf16(_mm512_load_si512(keys + d * 32));
    const __m512bh k1 = AsBf16(_mm512_load_si512(keys + d * 32 + 16));
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const __m512bh x = AsBf16(_mm512_set1_epi32(static_cast<int>(q[d * kRows + i])));
      a[i][0] = _mm512_dpbf16_ps(a[i][0], k0, x);
      a[i][1] = _mm512_dpbf16_ps(a[i][1], k1, x);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
    _mm512_store_ps(s + i * kMaxBlockKeys, _mm512_mul_ps(a[i][0], factor0));
    _mm512_store_ps(s + i * kMaxBlockKeys + 16, _mm512_mul_ps(a[i][1], factor1));
  }
}

// acc rows = acc * decay + weights . values, 32 channels at a time.
template <int kRows>
void Accumulate(const uint32_t* weights, const uint32_t* values, int pairs, const float* decay,
                int64_t padded, float* acc, Ahead& ahead) {
  for (int64_t c = 0; c < padded; c += 32) {
    const uint32_t* v = values + c / 32 * (kMaxBlockKeys / 2) * 32;
    __m512 a[kRows][2];
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const __m512 f = _mm512_set1_ps(decay[i]);
      a[i][0] = _mm512_mul_ps(_mm512_load_ps(acc + i * padded + c), f);
      a[i][1] = _mm512_mul_ps(_mm512_load_ps(acc + i * padded + c + 16), f);
    }
    for (int j = 0; j < pairs; ++j) {
      if (j % kStepProducts == 0) ahead.Step();
      const __m512bh v0 = AsBf16(_mm512_load_si512(v + j * 32));
      const __m512bh v1 = AsBf16(_mm512_load_si512(v + j * 32 + 16));
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i) {
        const __m512bh w =
            AsBf16(_mm512_set1_epi32(static_cast<int>(weights[i * kWeightStride + j])));
        a[i][0] = _mm512_dpbf16_ps(a[i][0], v0, w);
        a[i][1] = _mm512_dpbf16_ps(a[i][1], v1, w);
      }
    }
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      _mm512_store_ps(acc + i * padded + c, a[i][0]);
      _mm512_store_ps(acc + i * padded + c + 16, a[i][1]);
    }
  }
}

using ScoresFn = void (*)(const uint32_t*, const uint32_t*, int64_t, __m512, __m512, float*,
                          Ahead&);
using AccumulateFn = void (*)(const uint32_t*, const uint32_t*, int, const float*, int64_t, float*,
                              Ahead&);
constexpr ScoresFn kScores[kRowStep + 1] = {nullptr,    Scores<1>,  Scores<2>, Scores<3>, Scores<4>,
                                            Scores<5>,  Scores<6>,  Scores<7>, Scores<8>, Scores<9>,
                                            Scores<10>, Scores<11>, Scores<12>};
constexpr AccumulateFn kAccumulate[kRowStep + 1] = {
    nullptr,        Accumulate<1>,  Accumulate<2>, Accumulate<3>, Accumulate<4>,
    Accumulate<5>,  Accumulate<6>,  Accumulate<7>, Accumulate<8>, Accumulate<9>,
    Accumulate<10>, Accumulate<11>, Accumulate<12>};

// ---- few rows: decode with up to kFewRows query heads to a KV head
//
// Packing keys and values costs as much as multiplying them with three rows, so here they go
// straight from the cache into the products. Scores: two keys of 16 channels to a register; the
// lanes of a key's sum are added by a tree over 16 keys. Values: pairs of keys interleaved in
// registers, 64 channels at a time.

constexpr int kFewRows = 4;

// 16 channels of two keys.
template <bool kInt8>
__m512i LoadTwo(const std::byte* a, const std::byte* b) {
  if constexpr (kInt8) {
    const auto widen = [](const std::byte* p) {
      return _mm512_cvtepi32_ps(
          _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    };
    return (__m512i)_mm512_cvtne2ps_pbh(widen(b), widen(a));
  } else {
    const auto load = [](const std::byte* p) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    };
    return _mm512_inserti64x4(_mm512_castsi256_si512(load(a)), load(b), 1);
  }
}

// Partial sums of 8 keys in four registers, keys p and p + 4 in the halves of v[p]: dword p of the
// two lower 128-bit lanes, then of the two upper, still to be added.
[[gnu::always_inline]] inline __m512 AddLanes(const __m512 (&v)[4]) {
  const auto join = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  const __m512d s0 = _mm512_castps_pd(join(v[0], v[1])), s1 = _mm512_castps_pd(join(v[2], v[3]));
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(s0, s1)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(s0, s1)));
}

// s[i][16] = q rows . 16 keys, times factor. q: [D/16][kRows] registers of 16 channels twice.
template <int kRows, bool kInt8>
void ScoreFew(const std::byte* const* rows, int64_t offset, const __m512i* q, int64_t chunks,
              __m512 factor, float* s, Ahead& ahead) {
  constexpr int64_t kBytes = kInt8 ? 16 : 32;  // of 16 channels
  __m512 sums[2][kRows];
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    __m512 a[kRows][4];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) a[i][0] = a[i][1] = a[i][2] = a[i][3] = _mm512_setzero_ps();
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t at = offset + c * kBytes;
      ahead.Step();
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) {
        const std::byte* const* two = rows + 8 * half + p;
        const __m512bh k = AsBf16(LoadTwo<kInt8>(two[0] + at, two[4] + at));
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) {
          a[i][p] = _mm512_dpbf16_ps(a[i][p], k, AsBf16(q[c * kRows + i]));
        }
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) sums[half][i] = AddLanes(a[i]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
    const __m512 lower = _mm512_shuffle_f32x4(sums[0][i], sums[1][i], 0x88);
    const __m512 upper = _mm512_shuffle_f32x4(sums[0][i], sums[1][i], 0xdd);
    _mm512_store_ps(s + i * kMaxBlockKeys, _mm512_mul_ps(_mm512_add_ps(lower, upper), factor));
  }
}

// acc rows = acc * decay + weights . values for 32 kParts channels, from c on.
template <int kRows, int kParts, bool kInt8>
void AccumulatePart(const KeyBlock& block, int64_t offset, int64_t head_dim, int64_t c,
                    const uint32_t* weights, int pairs, const float* decay, float* acc,
                    Ahead& ahead) {
  constexpr int64_t kBytes = kInt8 ? 32 : 64;  // of 32 channels
  const int64_t padded = PaddedHead(head_dim), at = offset + c / 32 * kBytes;
  const __mmask32 mask = ChannelMask(head_dim, c + 32 * (kParts - 1));  // of the last part
  __m512 a[kRows][2 * kParts];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
    const __m512 f = _mm512_set1_ps(decay[i]);
#pragma GCC unroll 4
    for (int j = 0; j < 2 * kParts; ++j) {
      a[i][j] = _mm512_mul_ps(_mm512_load_ps(acc + i * padded + c + 16 * j), f);
    }
  }
  for (int k = 0; k < pairs; ++k) {
    ahead.Step();
    __m512bh v[2 * kParts];
#pragma GCC unroll 2
    for (int j = 0; j < kParts; ++j) {
      const __mmask32 m = j + 1 == kParts ? mask : 0xffffffffu;
      const __m512i x = Load32<kInt8>(block.rows[2 * k] + at + j * kBytes, m);
      const __m512i y = Load32<kInt8>(block.rows[2 * k + 1] + at + j * kBytes, m);
      v[2 * j] = AsBf16(_mm512_unpacklo_epi16(x, y));
      v[2 * j + 1] = AsBf16(_mm512_unpackhi_epi16(x, y));
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const __m512bh w =
          AsBf16(_mm512_set1_epi32(static_cast<int>(weights[i * kWeightStride + k])));
#pragma GCC unroll 4
      for (int j = 0; j < 2 * kParts; ++j) a[i][j] = _mm512_dpbf16_ps(a[i][j], v[j], w);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < 2 * kParts; ++j) _mm512_store_ps(acc + i * padded + c + 16 * j, a[i][j]);
  }
}

template <int kRows, bool kInt8>
void AccumulateFew(const KeyBlock& block, int64_t offset, int64_t head_dim, const uint32_t* weights,
                   int pairs, const float* decay, float* acc, Ahead& ahead) {
  int64_t c = 0;
  for (; c + 32 < head_dim; c += 64) {
    AccumulatePart<kRows, 2, kInt8>(block, offset, head_dim, c, weights, pairs, decay, acc, ahead);
  }
  if (c < head_dim) {
    AccumulatePart<kRows, 1, kInt8>(block, offset, head_dim, c, weights, pairs, decay, acc, ahead);
  }
}

using ScoreFewFn = void (*)(const std::byte* const*, int64_t, const __m512i*, int64_t, __m512,
                            float*, Ahead&);
using AccumulateFewFn = void (*)(const KeyBlock&, int64_t, int64_t, const uint32_t*, int,
                                 const float*, float*, Ahead&);
template <bool kInt8>
constexpr ScoreFewFn kScoreFew[kFewRows + 1] = {nullptr, ScoreFew<1, kInt8>, ScoreFew<2, kInt8>,
                                                ScoreFew<3, kInt8>, ScoreFew<4, kInt8>};
template <bool kInt8>
constexpr AccumulateFewFn kAccumulateFew[kFewRows + 1] = {
    nullptr, AccumulateFew<1, kInt8>, AccumulateFew<2, kInt8>, AccumulateFew<3, kInt8>,
    AccumulateFew<4, kInt8>};

// How often Update calls Ahead::Step. Few rows take a step per 8 keys and 16 channels, then per two
// keys and 64 channels. Otherwise packing takes one per 16 keys, then per 8 keys, 32 channels each,
// and both products one per kStepProducts pairs, for each group of rows.
int64_t Steps(const AttendTile& t, const KeyBlock& block) {
  const int64_t dim = t.layout.head_dim, padded = PaddedHead(dim);
  const int64_t blocks = (block.count + kKeyStep - 1) / kKeyStep;
  if (t.rows <= kFewRows) return blocks * (dim / 16 * 4 + (padded + 32) / 64 * 16);
  const int64_t groups = (t.rows + GroupRows(t.rows, kRowStep) - 1) / GroupRows(t.rows, kRowStep);
  return blocks * (padded / 32) * (2 + 4 + groups * 2 * 16 / kStepProducts);
}

template <bool kInt8>
void Update(const AttendTile& t, const KeyBlock& block, const KeyBlock* next,
            const AttendScratch& scratch) {
  const int64_t dim = t.layout.head_dim;
  const int64_t padded = PaddedHead(dim);
  const int64_t key_offset = t.kv_head * t.layout.head_bytes();
  const int64_t value_offset = key_offset + t.layout.value_offset();
  auto* packed_keys = reinterpret_cast<uint32_t*>(scratch.keys);
  auto* packed_values = reinterpret_cast<uint32_t*>(scratch.values);
  const bool few = t.rows <= kFewRows;
  const int step = GroupRows(t.rows, kRowStep);
  Ahead ahead(t, next, key_offset, value_offset, Steps(t, block));
  if (!few) {
    PackKeys<kInt8>(block, ahead, key_offset, dim, packed_keys);
    PackValues<kInt8>(block, ahead, value_offset, dim, packed_values);
  }

  const BlockScales scales = ScalesOf<kInt8>(t, block, t.scale * kLog2E);

  for (int row = 0; row < t.rows; row += step) {
    const int rows = t.rows - row < step ? t.rows - row : step;
    const int keys = VisibleKeys(block, t.position + (row + rows - 1) / t.heads);
    if (keys == 0) continue;
    if (few) {
      const auto* q = reinterpret_cast<const __m512i*>(t.queries);
      for (int k = 0; k < keys; k += 16) {
        kScoreFew<kInt8>[rows](block.rows + k, key_offset, q, dim / 16, scales.key[k / 16],
                               scratch.scores + k, ahead);
      }
    } else {
      const auto* q = reinterpret_cast<const uint32_t*>(t.queries) + row * padded / 2;
      for (int k = 0; k < keys; k += 32) {
        kScores[rows](q, packed_keys + k / 32 * (padded / 2) * 32, padded / 2, scales.key[k / 16],
                      scales.key[k / 16 + 1], scratch.scores + k, ahead);
      }
    }
    const auto store = [](const KeyBlock& b, int n, const float* s, float* out) {
      StoreRawScores(b, n, s, kLn2, out);
    };
    StoreAndMask(t, block, row, rows, keys, scratch.scores, store, MaskScores);
    float decay[kRowStep];
    Softmax<kInt8, Exp2NotPositive>(scratch.scores, 1.0f, rows, keys, scales, t.max + row,
                                    t.sum + row, scratch.weights, decay);
    if (few) {
      kAccumulateFew<kInt8>[rows](block, value_offset, dim, scratch.weights, keys / 2, decay, t.acc,
                                  ahead);
    } else {
      kAccumulate[rows](scratch.weights, packed_values, keys / 2, decay, padded,
                        t.acc + row * padded, ahead);
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

// A group's rows are interleaved: [D/2][rows of the group] pairs.
void PackRow(const AttendTile& t, int i, const float* row) {
  const int64_t dim = t.layout.head_dim;
  const int64_t padded = PaddedHead(dim);
  const int step = GroupRows(t.rows, kRowStep);
  const int64_t group = i / step * step;
  const int64_t rows = t.rows - group < step ? t.rows - group : step;
  uint32_t* to = reinterpret_cast<uint32_t*>(t.queries) + group * padded / 2 + (i - group);
  for (int64_t c = 0; c < padded; c += 32) {
    const __mmask16 upper = ChannelMask(dim, c) >> 16;
    const __m512 lo = _mm512_loadu_ps(row + c);
    const __m512 hi = _mm512_maskz_loadu_ps(upper, row + c + 16);
    alignas(64) uint32_t pairs[16];
    _mm512_store_si512(pairs, (__m512i)_mm512_cvtne2ps_pbh(hi, lo));
    for (int d = 0; d < 16; ++d) to[(c / 2 + d) * rows] = pairs[d];
  }
}

// In the order in which ScoreFew reads them: [D/16][rows] registers of 16 channels twice.
void PackFew(const AttendTile& t, int i, const float* row) {
  auto* to = reinterpret_cast<__m512i*>(t.queries) + i;
  for (int64_t c = 0; c < t.layout.head_dim / 16; ++c) {
    const __m512 x = _mm512_loadu_ps(row + 16 * c);
    _mm512_store_si512(to + c * t.rows, (__m512i)_mm512_cvtne2ps_pbh(x, x));
  }
}

void Begin(const AttendTile& t, const float* q, int64_t token_stride) {
  const int64_t dim = t.layout.head_dim;
  const int64_t padded = PaddedHead(dim);
  for (int i = 0; i < t.rows; ++i) {
    const float* row = q + i / t.heads * token_stride + i % t.heads * dim;
    if (t.rows <= kFewRows) {
      PackFew(t, i, row);
    } else {
      PackRow(t, i, row);
    }
    float* acc = t.acc + i * padded;
    for (int64_t c = 0; c < padded; c += 16) _mm512_store_ps(acc + c, _mm512_setzero_ps());
    t.max[i] = -INFINITY;
    t.sum[i] = 0;
  }
}

}  // namespace

AttendKernels GetAttendKernels() { return {.begin = Begin, .update = UpdateAny, .finish = Finish}; }

}  // namespace baton::cpu::avx512
