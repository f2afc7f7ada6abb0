// Products of packed weights with prepared x for machines with AVX2 but without a four-way byte dot
// product. Two instructions replace it:
//
//   8-bit x   pairs of unsigned by signed bytes, summed in 16 bits (vpmaddubsw). With 4-bit weights
//             the eight pairs of a block fit 16 bits, so that they are widened once; larger quants
//             are widened more often. 8-bit quants swap the roles of the operands: |w| times x with
//             the sign of w.
//   16-bit x  pairs of 16 bits, summed in 32 (vpmaddwd). Even and odd bytes of the weights are
//             separated by masks, so x is stored in the order of columns 0, 2, 1, 3 of every four.
//
// Weights in bf16 and the passes after a product use the portable kernels.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/avx2/vec_math.h"
#include "kernels/cpu/fetch.h"
#include "kernels/cpu/linear_kernels.h"

namespace baton::cpu::avx2 {
namespace {

constexpr int kHalves = 2;  // of a group's 16 rows: registers of 8

inline __m256i Load(const std::byte* p) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}
inline __m256 LoadHalves(const std::byte* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Dword i of a token's q.
template <typename Block>
inline __m256i Broadcast(const Block& x, int i) {
  int32_t four;
  std::memcpy(&four, x.q + 4 * i, 4);
  return _mm256_set1_epi32(four);
}

constexpr int LargestQuant(PackLayout l) {
  switch (l) {
    case PackLayout::kSym4:
    case PackLayout::kMin4:
      return 15;
    case PackLayout::kMin8:
      return 31;  // Q5_1, Q5_K
    case PackLayout::kSym8x2:
      return 63;  // Q6_K
    default:
      return 255;
  }
}
// How many products of two pairs of bytes fit 16 bits.
constexpr int PairsIn16(PackLayout l) { return 32767 / (2 * 127 * LargestQuant(l)); }

// acc[h][t]: sums of a block of 4-bit weights with 8-bit x.
template <int NT, typename Start>
inline void Sum4(const std::byte* q, const QuantBlock* x, Start start,
                 __m256i (&acc)[kHalves][NT]) {
  static_assert(PairsIn16(PackLayout::kMin4) >= kBlockColumns / 4);
  const __m256i nibble = _mm256_set1_epi8(15);
  for (int h = 0; h < kHalves; ++h) {
    for (int t = 0; t < NT; ++t) acc[h][t] = _mm256_setzero_si256();
  }
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) {
    __m256i w[kHalves];
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      w[h] = Load(q + v % 4 * 64 + h * 32);
      if (v >= 4) w[h] = _mm256_srli_epi16(w[h], 4);
      w[h] = _mm256_and_si256(w[h], nibble);
    }
#pragma GCC unroll 6
    for (int t = 0; t < NT; ++t) {
      const __m256i b = Broadcast(x[t], v);
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) AddTo<true>(acc[h][t], _mm256_maddubs_epi16(w[h], b));
    }
  }
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 6
  for (int t = 0; t < NT; ++t) {
    const __m256i first = _mm256_set1_epi32(start(x[t]));
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h)
      acc[h][t] = _mm256_add_epi32(first, _mm256_madd_epi16(acc[h][t], ones));
  }
}

// The same for columns [4 V0, 4 V1) of a block of 8-bit weights.
template <PackLayout L, int V0, int V1, int NT, typename Start>
inline void Sum8(const std::byte* q, const QuantBlock* x, Start start,
                 __m256i (&acc)[kHalves][NT]) {
  constexpr bool kSigned = L == PackLayout::kSym8;
  constexpr int kStep = kSigned ? 1 : std::min(PairsIn16(L), 2);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int t = 0; t < NT; ++t) {
    for (int h = 0; h < kHalves; ++h) acc[h][t] = _mm256_set1_epi32(kSigned ? 0 : start(x[t]));
  }
#pragma GCC unroll 8
  for (int v = V0; v < V1; v += kStep) {
    __m256i w[kStep][kHalves], magnitude[kHalves];
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
#pragma GCC unroll 2
      for (int i = 0; i < kStep; ++i) w[i][h] = Load(q + (v + i) * 64 + h * 32);
      if constexpr (kSigned) {
        w[0][h] = _mm256_xor_si256(w[0][h], _mm256_set1_epi8(-128));
        magnitude[h] = _mm256_abs_epi8(w[0][h]);
      }
    }
#pragma GCC unroll 6
    for (int t = 0; t < NT; ++t) {
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        __m256i sum;
        if constexpr (kSigned) {
          sum = _mm256_maddubs_epi16(magnitude[h], _mm256_sign_epi8(Broadcast(x[t], v), w[0][h]));
        } else {
          sum = _mm256_maddubs_epi16(w[0][h], Broadcast(x[t], v));
          if constexpr (kStep == 2)
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w[1][h], Broadcast(x[t], v + 1)));
        }
        AddTo<false>(acc[h][t], _mm256_madd_epi16(sum, ones));
      }
    }
  }
}

// The same with 16-bit x, for columns [4 V0, 4 V1) of a block of any quants.
template <PackLayout L, int V0, int V1, int NT, typename Start>
inline void SumFine(const std::byte* q, const FineBlock* x, Start start,
                    __m256i (&acc)[kHalves][NT]) {
  constexpr bool k4 = QuantBytesPerBlock(L) == 256;
  const __m256i mask = _mm256_set1_epi16(k4 ? 15 : 255);
  for (int t = 0; t < NT; ++t) {
    for (int h = 0; h < kHalves; ++h) acc[h][t] = _mm256_set1_epi32(start(x[t]));
  }
#pragma GCC unroll 8
  for (int v = V0; v < V1; ++v) {
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      const int shift = 8 * odd + (k4 && v >= 4 ? 4 : 0);
      __m256i w[kHalves];
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        w[h] = Load(q + (k4 ? v % 4 : v) * 64 + h * 32);
        if (shift > 0) w[h] = _mm256_srli_epi16(w[h], shift);
        if (shift < (k4 ? 12 : 8)) w[h] = _mm256_and_si256(w[h], mask);
      }
#pragma GCC unroll 6
      for (int t = 0; t < NT; ++t) {
        const __m256i b = Broadcast(x[t], 2 * v + odd);
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h) AddTo<false>(acc[h][t], _mm256_madd_epi16(w[h], b));
      }
    }
  }
}

template <PackLayout L, int V0, int V1, int NT, typename Block, typename Start>
inline void Sum(const std::byte* q, const Block* x, Start start, __m256i (&acc)[kHalves][NT]) {
  if constexpr (std::is_same_v<Block, FineBlock>) {
    SumFine<L, V0, V1>(q, x, start, acc);
  } else if constexpr (QuantBytesPerBlock(L) == 256) {
    Sum4(q, x, start, acc);
  } else {
    Sum8<L, V0, V1>(q, x, start, acc);
  }
}

template <int NT, typename Block>
inline void AddScaled(const std::byte* d, const Block* x, const __m256i (&acc)[kHalves][NT],
                      __m256 (&total)[kHalves][NT]) {
#pragma GCC unroll 2
  for (int h = 0; h < kHalves; ++h) {
    const __m256 scale = LoadHalves(d + h * 16);
#pragma GCC unroll 6
    for (int t = 0; t < NT; ++t) {
      const __m256 s = _mm256_mul_ps(scale, _mm256_set1_ps(x[t].d));
      total[h][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[h][t]), s, total[h][t]);
    }
  }
}

// A group of rows times NT tokens. ahead: see PrefetchDistance; 0 = no prefetch.
template <PackLayout L, int NT, typename Block>
[[gnu::noinline]] void Tile(const std::byte* w, int64_t blocks, const Block* x, int64_t ahead,
                            float* out) {
  constexpr bool kMin = L == PackLayout::kMin4 || L == PackLayout::kMin8;
  constexpr int kQuantBytes = QuantBytesPerBlock(L);
  constexpr int kScales = L == PackLayout::kSym8x2 ? 64 : 32;
  const std::byte* d = w + blocks * kQuantBytes;
  const std::byte* m = d + blocks * kScales;
  __m256 total[kHalves][NT];
  for (int h = 0; h < kHalves; ++h) {
    for (int t = 0; t < NT; ++t) total[h][t] = _mm256_setzero_ps();
  }
  for (int64_t b = 0; b < blocks; ++b, x += kTileTokens) {
    const std::byte* q = w + b * kQuantBytes;
    if (ahead != 0) {
      PrefetchWeights(q + ahead, kQuantBytes);
      PrefetchWeights(d + b * ScaleBytesPerBlock(L) + ahead, ScaleBytesPerBlock(L));
    }
    __m256i acc[kHalves][NT];
    if constexpr (L == PackLayout::kSym8x2) {
      Sum<L, 0, 4>(
          q, x, [](const Block& v) { return v.start6[0]; }, acc);
      AddScaled(d + b * 64, x, acc, total);
      Sum<L, 4, 8>(
          q, x, [](const Block& v) { return v.start6[1]; }, acc);
      AddScaled(d + b * 64 + 32, x, acc, total);
    } else {
      Sum<L, 0, 8>(
          q, x,
          [](const Block& v) {
            return L == PackLayout::kSym4 ? v.start4 : L == PackLayout::kSym8 ? v.start8 : 0;
          },
          acc);
      AddScaled(d + b * 32, x, acc, total);
    }
    if constexpr (kMin) {
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        const __m256 min = LoadHalves(m + b * 32 + h * 16);
#pragma GCC unroll 6
        for (int t = 0; t < NT; ++t)
          total[h][t] = _mm256_fmadd_ps(min, _mm256_set1_ps(x[t].d_sum), total[h][t]);
      }
    }
  }
  for (int t = 0; t < NT; ++t) {
    for (int h = 0; h < kHalves; ++h) _mm256_store_ps(out + t * kPanelRows + h * 8, total[h][t]);
  }
}

// A group's weights stay in the first-level cache for all tokens; only the first tile prefetches.
template <PackLayout L, typename Block>
void Group(const PanelArgs& p, int g) {
  const PackedMatrix& m = *p.w;
  const std::byte* w = m.group(p.group + g);
  int64_t ahead = PrefetchDistance(w, m.group_bytes, g + 1 < p.groups ? w + m.group_bytes : p.next);
  // 16 registers hold the sums of 6 tokens with one weight at a time, or of 3 with two.
  constexpr int kMost = QuantBytesPerBlock(L) == 256 || std::is_same_v<Block, FineBlock> ? 6 : 3;
  InGroups<kMost>(p.tokens, [&]<int NT>(int64_t t) {
    const auto* x =
        reinterpret_cast<const Block*>(p.x + t / kTileTokens * p.tile_bytes) + t % kTileTokens;
    Tile<L, NT>(w, m.blocks, x, ahead, p.out + t * kPanelRows + g * kGroupRows);
    ahead = 0;
  });
}

template <PackLayout L>
void Panel(const PanelArgs& p) {
  for (int g = 0; g < p.groups; ++g) {
    if (p.fine) {
      Group<L, FineBlock>(p, g);
    } else {
      Group<L, QuantBlock>(p, g);
    }
  }
}

void Multiply(const PanelArgs& p) {
  switch (p.w->layout) {
    case PackLayout::kSym4:
      return Panel<PackLayout::kSym4>(p);
    case PackLayout::kMin4:
      return Panel<PackLayout::kMin4>(p);
    case PackLayout::kSym8:
      return Panel<PackLayout::kSym8>(p);
    case PackLayout::kMin8:
      return Panel<PackLayout::kMin8>(p);
    case PackLayout::kSym8x2:
      return Panel<PackLayout::kSym8x2>(p);
    case PackLayout::kBf16:
      return portable::GetLinearKernels().multiply(p);
  }
}

// ---- x

// Up to 8 floats, then zeros.
inline __m256 LoadUpTo(const float* p, int64_t n) {
  return n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, FirstLanes(n));
}

// 1 / rms(x), summed in 32 chains whatever the shape of the call.
float InverseRms(const float* x, int64_t n, float eps) {
  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                    _mm256_setzero_ps()};
  for (int64_t i = 0; i < n; i += 32) {
    for (int j = 0; j < 4; ++j) {
      const __m256 v = LoadUpTo(x + i + 8 * j, n - i - 8 * j);
      sums[j] = _mm256_fmadd_ps(v, v, sums[j]);
    }
  }
  const __m256 sum =
      _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
  return 1.0f / std::sqrt(SumOf(sum) / static_cast<float>(n) + eps);
}

template <typename Block>
inline void SetSums(const Scaled& s, Block& out) {
  cpu::SetSums(SumOf(_mm256_add_epi32(s.q[0], s.q[1])), SumOf(_mm256_add_epi32(s.q[2], s.q[3])),
               s.d, out);
}

void Quantise(const __m256 (&x)[4], QuantBlock& out) {
  const Scaled s = ScaleToIntegers(x, 127.0f);
  _mm256_store_si256(reinterpret_cast<__m256i*>(out.q), ToBytes(s.q));
  SetSums(s, out);
}

void Quantise(const __m256 (&x)[4], FineBlock& out) {
  const Scaled s = ScaleToIntegers(x, 32512.0f);
  for (int j = 0; j < 2; ++j) {
    // Each 64 bits: four columns; the middle two change places.
    __m256i pairs = _mm256_permute4x64_epi64(_mm256_packs_epi32(s.q[2 * j], s.q[2 * j + 1]), 0xd8);
    pairs = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(pairs, 0xd8), 0xd8);
    _mm256_store_si256(reinterpret_cast<__m256i*>(out.q) + j, pairs);
  }
  SetSums(s, out);
}

void Prepare(const PrepareArgs& p) {
  if (p.plain != nullptr) {
    PrepareArgs plain = p;
    plain.quant = nullptr, plain.fine = nullptr;
    portable::GetLinearKernels().prepare(plain);
  }
  if (p.quant == nullptr && p.fine == nullptr) return;
  for (int t = 0; t < p.count; ++t) {
    const float* x = p.x + t * p.x_stride;
    const __m256 inverse = _mm256_set1_ps(p.norm_weight ? InverseRms(x, p.cols, p.norm_eps) : 1.0f);
    for (int64_t b = 0; b < p.blocks; ++b) {
      __m256 v[4];
      for (int j = 0; j < 4; ++j) {
        const int64_t c = b * 32 + 8 * j;
        v[j] = LoadUpTo(x + c, p.cols - c);
        if (p.norm_weight) {
          v[j] =
              _mm256_mul_ps(_mm256_mul_ps(v[j], inverse), LoadUpTo(p.norm_weight + c, p.cols - c));
        }
      }
      if (p.quant) Quantise(v, p.quant[b * kTileTokens + t]);
      if (p.fine) Quantise(v, p.fine[b * kTileTokens + t]);
    }
  }
}

}  // namespace

LinearKernels GetLinearKernels() {
  LinearKernels kernels = portable::GetLinearKernels();
  kernels.quantises_x = true;
  kernels.prepare = Prepare;
  kernels.multiply = Multiply;
  return kernels;
}

}  // namespace baton::cpu::avx2
