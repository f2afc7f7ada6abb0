// Products of packed weights with prepared x: byte dot products (VNNI) for the quantised layouts,
// bf16 dot products for the rest. One tile kernel per layout serves decode and prompts: up to 6
// tokens share every unpacked weight.
//
// Register budget of the widest tile, 2 groups x 6 tokens: 12 integer sums, 12 float totals, 2
// weights, 1 broadcast, 2 scales. Per block and token a group costs 8 dot products, 1
// multiplication of the scales and 1 FMA (2 with mins) on the two ports that do multiplications, so
// 8 of 10 (11) cycles is the ceiling. Loads: 2 weights + 6 broadcasts per 12 dot products; one
// group x 12 tokens would need 13.
#include <immintrin.h>

#include <algorithm>
#include <type_traits>

#include "kernels/cpu/avx512/linear_parts.h"
#include "kernels/cpu/fetch.h"

namespace baton::cpu::avx512 {
namespace {

inline __m512 LoadHalves(const std::byte* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// Four bytes of x: of its 8-bit form, or of the high or low half of its 16-bit form.
enum class Part { kWhole, kHigh, kLow };

template <Part P, typename Block>
inline __m512i BroadcastQuants(const Block& x, int v) {
  const int8_t* q = x.q + (P == Part::kLow ? 32 : 0);
  return _mm512_set1_epi32(reinterpret_cast<const int32_t*>(q)[v]);
}

template <int G, bool kNear>
inline void PrefetchAhead(const std::byte* p, int64_t group_bytes, int64_t distance, int bytes) {
  for (int g = 0; g < G; ++g) PrefetchWeights<kNear>(p + g * group_bytes + distance, bytes);
}

template <Part P, int V0, int V1, int G, int NT, typename Block>
inline void Dot8(const std::byte* q, int64_t group_bytes, const Block* x, __m512i (&acc)[G][NT]) {
#pragma GCC unroll 8
  for (int v = V0; v < V1; ++v) {
    __m512i w[G];
    for (int g = 0; g < G; ++g) w[g] = _mm512_load_si512(q + g * group_bytes + v * 64);
#pragma GCC unroll 6
    for (int t = 0; t < NT; ++t) {
      const __m512i b = BroadcastQuants<P>(x[t], v);
      for (int g = 0; g < G; ++g) acc[g][t] = _mm512_dpbusd_epi32(acc[g][t], w[g], b);
    }
  }
}

template <Part P, int G, int NT, typename Block>
inline void Dot4(const std::byte* q, int64_t group_bytes, const Block* x, __m512i (&acc)[G][NT]) {
  const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    __m512i w[G], h[G];
    for (int g = 0; g < G; ++g) {
      const __m512i raw = _mm512_load_si512(q + g * group_bytes + v * 64);
      w[g] = _mm512_and_si512(raw, low);
      h[g] = _mm512_and_si512(_mm512_srli_epi16(raw, 4), low);
    }
#pragma GCC unroll 6
    for (int t = 0; t < NT; ++t) {
      const __m512i b = BroadcastQuants<P>(x[t], v);
      for (int g = 0; g < G; ++g) acc[g][t] = _mm512_dpbusd_epi32(acc[g][t], w[g], b);
    }
#pragma GCC unroll 6
    for (int t = 0; t < NT; ++t) {
      const __m512i b = BroadcastQuants<P>(x[t], v + 4);
      for (int g = 0; g < G; ++g) acc[g][t] = _mm512_dpbusd_epi32(acc[g][t], h[g], b);
    }
  }
}

template <int G, int NT, typename Block>
inline void AddScaled(const std::byte* d, int64_t group_bytes, const Block* x,
                      const __m512i (&acc)[G][NT], __m512 (&total)[G][NT]) {
  for (int g = 0; g < G; ++g) {
    const __m512 scale = LoadHalves(d + g * group_bytes);
#pragma GCC unroll 6
    for (int t = 0; t < NT; ++t) {
      const __m512 s = _mm512_mul_ps(scale, _mm512_set1_ps(x[t].d));
      total[g][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[g][t]), s, total[g][t]);
    }
  }
}

// The 16-bit form of one token and 4-bit weights: every unpacked weight is multiplied with both
// halves of x, whose sums are two independent chains. (8-bit weights need no unpacking, and for
// them this is slower.)
template <int G>
inline void DotFine(const std::byte* q, int64_t group_bytes, const FineBlock& x,
                    __m512i (&high)[G][1], __m512i (&low)[G][1]) {
  const auto add = [&](int g, __m512i w, int v) {
    high[g][0] = _mm512_dpbusd_epi32(high[g][0], w, BroadcastQuants<Part::kHigh>(x, v));
    low[g][0] = _mm512_dpbusd_epi32(low[g][0], w, BroadcastQuants<Part::kLow>(x, v));
  };
  const __m512i nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    for (int g = 0; g < G; ++g) {
      const __m512i raw = _mm512_load_si512(q + g * group_bytes + v * 64);
      add(g, _mm512_and_si512(raw, nibble), v);
      add(g, _mm512_and_si512(_mm512_srli_epi16(raw, 4), nibble), v + 4);
    }
  }
}

// Integer sums of columns [4 V0, 4 V1) of a block, from `start(t)`. The 16-bit form sums its high
// bytes, shifts, and adds the low ones: at most 255 * 127 * 256 * 32 in magnitude.
template <PackLayout L, int V0, int V1, int G, int NT, typename Block, typename Start>
inline void Sum(const std::byte* q, int64_t group_bytes, const Block* x, Start start,
                __m512i (&acc)[G][NT]) {
  const auto dot = [&]<Part P>() {
    if constexpr (QuantBytesPerBlock(L) == 256) {
      Dot4<P>(q, group_bytes, x, acc);
    } else {
      Dot8<P, V0, V1>(q, group_bytes, x, acc);
    }
  };
  constexpr bool kFine = std::is_same_v<Block, FineBlock>;
  if constexpr (kFine && NT == 1 && QuantBytesPerBlock(L) == 256) {
    __m512i high[G][1];
    for (int g = 0; g < G; ++g) {
      high[g][0] = _mm512_setzero_si512();
      acc[g][0] = _mm512_set1_epi32(start(x[0]));
    }
    DotFine(q, group_bytes, x[0], high, acc);
    for (int g = 0; g < G; ++g) {
      acc[g][0] = _mm512_add_epi32(acc[g][0], _mm512_slli_epi32(high[g][0], 8));
    }
    return;
  }
  for (int t = 0; t < NT; ++t) {
    for (int g = 0; g < G; ++g) {
      acc[g][t] = kFine ? _mm512_setzero_si512() : _mm512_set1_epi32(start(x[t]));
    }
  }
  if constexpr (kFine) {
    dot.template operator()<Part::kHigh>();
    for (int t = 0; t < NT; ++t) {
      for (int g = 0; g < G; ++g) {
        acc[g][t] =
            _mm512_add_epi32(_mm512_slli_epi32(acc[g][t], 8), _mm512_set1_epi32(start(x[t])));
      }
    }
    dot.template operator()<Part::kLow>();
  } else {
    dot.template operator()<Part::kWhole>();
  }
}

// ahead: see PrefetchDistance; 0 = no prefetch.
template <PackLayout L, int G, int NT, bool kNear, typename Block>
void QuantTile(const std::byte* w, int64_t group_bytes, int64_t blocks, const Block* x,
               int64_t ahead, float* out) {
  constexpr bool kMin = L == PackLayout::kMin4 || L == PackLayout::kMin8;
  constexpr int kQuantBytes = QuantBytesPerBlock(L);
  constexpr int kScales = L == PackLayout::kSym8x2 ? 64 : 32;
  const std::byte* d = w + blocks * kQuantBytes;
  const std::byte* m = d + blocks * kScales;
  __m512 total[G][NT];
  for (int g = 0; g < G; ++g) {
    for (int t = 0; t < NT; ++t) total[g][t] = _mm512_setzero_ps();
  }
  for (int64_t b = 0; b < blocks; ++b, x += kTileTokens) {
    const std::byte* q = w + b * kQuantBytes;
    if (ahead != 0) PrefetchAhead<G, kNear>(q, group_bytes, ahead, kQuantBytes);
    if (ahead != 0) PrefetchAhead<G, kNear>(d + b * ScaleBytesPerBlock(L), group_bytes, ahead, 64);
    __m512i acc[G][NT];
    if constexpr (L == PackLayout::kSym8x2) {
      const auto half0 = [](const Block& v) { return v.start6[0]; };
      const auto half1 = [](const Block& v) { return v.start6[1]; };
      Sum<L, 0, 4>(q, group_bytes, x, half0, acc);
      AddScaled(d + b * 64, group_bytes, x, acc, total);
      Sum<L, 4, 8>(q, group_bytes, x, half1, acc);
      AddScaled(d + b * 64 + 32, group_bytes, x, acc, total);
    } else {
      Sum<L, 0, 8>(
          q, group_bytes, x,
          [](const Block& v) {
            return L == PackLayout::kSym4 ? v.start4 : L == PackLayout::kSym8 ? v.start8 : 0;
          },
          acc);
      AddScaled(d + b * 32, group_bytes, x, acc, total);
    }
    if constexpr (kMin) {
      for (int g = 0; g < G; ++g) {
        const __m512 min = LoadHalves(m + b * 32 + g * group_bytes);
#pragma GCC unroll 6
        for (int t = 0; t < NT; ++t)
          total[g][t] = _mm512_fmadd_ps(min, _mm512_set1_ps(x[t].d_sum), total[g][t]);
      }
    }
  }
  for (int t = 0; t < NT; ++t) {
    for (int g = 0; g < G; ++g) _mm512_store_ps(out + t * kPanelRows + g * kGroupRows, total[g][t]);
  }
}

template <int G, int NT, bool kNear>
void Bf16Tile(const std::byte* w, int64_t group_bytes, int64_t blocks, const uint32_t* x,
              int64_t ahead, float* out) {
  __m512 total[G][NT];
  for (int g = 0; g < G; ++g) {
    for (int t = 0; t < NT; ++t) total[g][t] = _mm512_setzero_ps();
  }
  const int64_t pairs = blocks * (kBlockColumns / 2);
  for (int64_t p = 0; p < pairs; ++p, x += kTileTokens, w += 64) {
    if (ahead != 0) PrefetchAhead<G, kNear>(w, group_bytes, ahead, 64);
    __m512bh a[G];
    for (int g = 0; g < G; ++g) {
      a[g] = reinterpret_cast<__m512bh>(_mm512_load_si512(w + g * group_bytes));
    }
#pragma GCC unroll 6
    for (int t = 0; t < NT; ++t) {
      const auto b = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int32_t>(x[t])));
      for (int g = 0; g < G; ++g) total[g][t] = _mm512_dpbf16_ps(total[g][t], a[g], b);
    }
  }
  for (int t = 0; t < NT; ++t) {
    for (int g = 0; g < G; ++g) _mm512_store_ps(out + t * kPanelRows + g * kGroupRows, total[g][t]);
  }
}

template <PackLayout L, int G, int NT, bool kNear = false>
inline void Tile(const std::byte* w, const PackedMatrix& m, const std::byte* x, bool fine,
                 int64_t ahead, float* out) {
  if constexpr (L == PackLayout::kBf16) {
    const auto* pairs = reinterpret_cast<const uint32_t*>(x);
    Bf16Tile<G, NT, kNear>(w, m.group_bytes, m.blocks, pairs, ahead, out);
  } else if (fine) {
    const auto* blocks = reinterpret_cast<const FineBlock*>(x);
    QuantTile<L, G, NT, kNear>(w, m.group_bytes, m.blocks, blocks, ahead, out);
  } else {
    const auto* blocks = reinterpret_cast<const QuantBlock*>(x);
    QuantTile<L, G, NT, kNear>(w, m.group_bytes, m.blocks, blocks, ahead, out);
  }
}

// Only the first tile of tokens prefetches.
template <PackLayout L, int G>
void Groups(const PanelArgs& p, int first) {
  const PackedMatrix& m = *p.w;
  const std::byte* w = m.group(p.group + first);
  const std::byte* x = p.x;
  float* out = p.out + first * kGroupRows;
  const int64_t bytes = G * m.group_bytes;
  int64_t ahead = PrefetchDistance(w, bytes, first + G < p.groups ? w + bytes : p.next);
  for (int64_t t = 0; t < p.tokens; t += kTileTokens, x += p.tile_bytes) {
    switch (p.tokens - t) {
      case 1:
        (kFetchesNear ? Tile<L, G, 1, true> : Tile<L, G, 1>)(w, m, x, p.fine, ahead, out);
        break;
      case 2:
        Tile<L, G, 2>(w, m, x, p.fine, ahead, out);
        break;
      case 3:
        Tile<L, G, 3>(w, m, x, p.fine, ahead, out);
        break;
      case 4:
        Tile<L, G, 4>(w, m, x, p.fine, ahead, out);
        break;
      case 5:
        Tile<L, G, 5>(w, m, x, p.fine, ahead, out);
        break;
      default:
        Tile<L, G, 6>(w, m, x, p.fine, ahead, out);
    }
    ahead = 0;
    out += kTileTokens * kPanelRows;
  }
}

// Groups outermost: a pair's weights stay in the first-level cache for all tokens.
template <PackLayout L>
void Panel(const PanelArgs& p) {
  int g = 0;
  if constexpr (L == PackLayout::kBf16) {
    if (p.groups == 4) return Groups<L, 4>(p, 0);
  }
  for (; g + 2 <= p.groups; g += 2) Groups<L, 2>(p, g);
  if (g < p.groups) Groups<L, 1>(p, g);
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
      return Panel<PackLayout::kBf16>(p);
  }
}

}  // namespace

LinearKernels GetLinearKernels() {
  return {.quantises_x = true,
          .plain_tile_bytes_per_block = kBlockColumns * kTileTokens * 2,
          .prepare = PrepareLinear,
          .multiply = Multiply,
          .finish_linear = FinishLinear,
          .finish_glu = FinishGlu};
}

}  // namespace baton::cpu::avx512
