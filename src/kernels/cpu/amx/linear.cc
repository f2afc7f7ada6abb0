// Products of packed weights with the rows of a prompt, on tile registers: weights and x as bf16,
// sums in f32. Quantised weights are expanded to bf16 a panel at a time, which costs as much as
// multiplying them with about 80 tokens (decode, which has few, uses avx512/).
//
// A panel is computed in stretches of columns: the expanded weights of a stretch stay in the caches
// for all tokens, and the sums are kept in `out` between two stretches. Two tiles of tokens are
// multiplied with two groups of rows at once, so that every tile that is loaded is used twice.
#include <immintrin.h>

#include <algorithm>

#include "kernels/cpu/amx/expand.h"
#include "kernels/cpu/amx/tiles.h"
#include "kernels/cpu/avx512/linear_parts.h"

namespace baton::cpu::amx {
namespace {

constexpr int64_t kStretch = 32;  // blocks

// Blocks [begin, end) of a group as tiles.
template <PackLayout L>
void ExpandGroup(const std::byte* group, int64_t blocks, int64_t begin, int64_t end,
                 std::byte* out) {
  constexpr int kQuantBytes = QuantBytesPerBlock(L);
  constexpr int kBits = kQuantBytes == 256 ? 4 : 8;
  constexpr int kScales = L == PackLayout::kSym8x2 ? 64 : 32;
  constexpr bool kMin = L == PackLayout::kMin4 || L == PackLayout::kMin8;
  constexpr float kZero = L == PackLayout::kSym4 ? 8 : L == PackLayout::kSym8 ? 128 : 32;
  const std::byte* scales = group + blocks * kQuantBytes;
  const std::byte* mins = scales + blocks * kScales;
  for (int64_t b = begin; b < end; ++b, out += kTileBytes) {
    const std::byte* q = group + b * kQuantBytes;
    __m512 scale[2], offset[2];
    for (int i = 0; i < kScales / 32; ++i) {
      const __m512 d = LoadHalves(scales + b * kScales + i * 32);
      const __m512 zero =
          kMin ? LoadHalves(mins + b * 32) : _mm512_mul_ps(d, _mm512_set1_ps(-kZero));
      scale[i] = _mm512_mul_ps(d, _mm512_set1_ps(1 << kBits));
      offset[i] = _mm512_sub_ps(zero, scale[i]);
    }
    if constexpr (kBits == 4) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m512i raw = _mm512_load_si512(q + v * 64);
        ExpandFour<4, 0>(raw, scale[0], offset[0], 64, out + v * 128);
        ExpandFour<4, 4>(raw, scale[0], offset[0], 64, out + (v + 4) * 128);
      }
    } else {
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) {
        const int i = kScales == 64 ? v / 4 : 0;
        ExpandFour<8, 0>(_mm512_load_si512(q + v * 64), scale[i], offset[i], 64, out + v * 128);
      }
    }
  }
}

// 16 T tokens by 16 G rows of W, over `blocks` blocks.
template <int T, int G>
void Product(const std::byte* x, int64_t token_bytes, const std::byte* w, int64_t group_bytes,
             int64_t blocks, bool first, float* out) {
  constexpr int64_t kOutBytes = kPanelRows * 4;
  const auto each = [](auto&& body) {
    ForTiles<T * G>([&]<int I>() { body.template operator()<I, I / G, I % G>(); });
  };
  const auto sums = [&](int t, int g) { return out + t * kTileRows * kPanelRows + g * kGroupRows; };
  each([&]<int I, int t, int g>() {
    if (first) {
      ZeroTile<I>();
    } else {
      LoadTile<I>(sums(t, g), kOutBytes);
    }
  });
  for (int64_t b = 0; b < blocks; ++b) {
    ForTiles<T>(
        [&]<int t>() { LoadTile<4 + t>(x + b * 64 + t * kTileRows * token_bytes, token_bytes); });
    ForTiles<G>([&]<int g>() { LoadTile<6 + g>(w + b * kTileBytes + g * group_bytes, 64); });
    each([&]<int I, int t, int g>() { MultiplyTiles<I, 4 + t, 6 + g>(); });
  }
  each([&]<int I, int t, int g>() { StoreTile<I>(sums(t, g), kOutBytes); });
}

template <int G>
void Groups(const PanelArgs& p, int group, const std::byte* w, int64_t group_bytes, int64_t begin,
            int64_t end) {
  const int64_t token_bytes = p.w->blocks * 64;
  const std::byte* x = p.x + begin * 64;
  float* out = p.out + group * kGroupRows;
  for (int64_t t = 0; t < p.tokens; t += 2 * kTileRows) {
    const auto product = p.tokens - t > kTileRows ? Product<2, G> : Product<1, G>;
    product(x + t * token_bytes, token_bytes, w, group_bytes, end - begin, begin == 0,
            out + t * kPanelRows);
  }
}

template <PackLayout L>
void Panel(const PanelArgs& p) {
  const PackedMatrix& m = *p.w;
  // Stretches of equal length: a short last one would load and store all sums for little work.
  const int64_t stretches = (m.blocks + kStretch - 1) / kStretch;
  const int64_t stretch = (m.blocks + stretches - 1) / stretches;
  for (int64_t begin = 0; begin < m.blocks; begin += stretch) {
    const int64_t end = std::min(m.blocks, begin + stretch);
    const std::byte* w = m.group(p.group) + begin * kTileBytes;
    int64_t group_bytes = m.group_bytes;
    if constexpr (L != PackLayout::kBf16) {
      group_bytes = (end - begin) * kTileBytes;
      for (int g = 0; g < p.groups; ++g) {
        ExpandGroup<L>(m.group(p.group + g), m.blocks, begin, end, p.scratch + g * group_bytes);
      }
      w = p.scratch;
    }
    int g = 0;
    for (; g + 2 <= p.groups; g += 2) Groups<2>(p, g, w + g * group_bytes, group_bytes, begin, end);
    if (g < p.groups) Groups<1>(p, g, w + g * group_bytes, group_bytes, begin, end);
  }
}

void Multiply(const PanelArgs& p) {
  const TileScope tiles;
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

LinearKernels GetPromptLinearKernels() {
  return {.quantises_x = false,
          .tile_tokens = kTileRows,
          .token_block = 512,
          .plain_tile_bytes_per_block = kTileRows * 64,
          .scratch_bytes = kPanelGroups * kStretch * kTileBytes,
          .prepare = avx512::PrepareRows,
          .multiply = Multiply,
          .finish_linear = avx512::FinishLinear,
          .finish_glu = avx512::FinishGlu};
}

}  // namespace baton::cpu::amx
