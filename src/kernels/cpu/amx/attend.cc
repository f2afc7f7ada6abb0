// Attention of prompt tiles on tile registers: 16 stack rows at a time, scores of 64 keys and
// values of 64 channels in four tiles of sums. Keys, values and weights are laid out as
// attend_parts.h says, which suits the tile products; queries are rows of bf16.
#include "kernels/cpu/amx/tiles.h"
#include "kernels/cpu/avx512/attend_parts.h"

namespace baton::cpu::amx {
namespace {

using namespace avx512;

// Tile registers: four for sums, one for the rows that they share, three for the other operands.
constexpr int kSums = 4, kRows = 4, kOthers = 5;
constexpr int64_t kPairBytes = 32 * 4;  // of 32 keys or channels

// s[16][16 kTiles] = q . keys, for the 32 or 64 keys that `keys` points to. q: [16, padded].
template <int kTiles>
void ScoreTiles(const std::byte* q, int64_t padded, const uint32_t* keys, float* s) {
  ForTiles<kTiles>([]<int j>() { ZeroTile<j>(); });
  for (int64_t c = 0; c < padded; c += 32) {
    LoadTile<kRows>(q + c * 2, padded * 2);
    ForTiles<kTiles>([&]<int j>() {
      LoadTile<kOthers + j % 3>(keys + j / 2 * (padded / 2) * 32 + c / 2 * 32 + j % 2 * 16,
                                kPairBytes);
      MultiplyTiles<j, kRows, kOthers + j % 3>();
    });
  }
  ForTiles<kTiles>([&]<int j>() { StoreTile<j>(s + j * 16, kMaxBlockKeys * 4); });
}

// sums[16][64] = weights . values, of 16 kTiles channels.
template <int kTiles>
void ValueTiles(const uint32_t* weights, const uint32_t* values, int keys, float* sums) {
  constexpr int64_t kChannels = (kMaxBlockKeys / 2) * 32;  // dwords from 32 channels to the next
  ForTiles<kTiles>([]<int j>() { ZeroTile<j>(); });
  for (int k = 0; k < keys; k += 32) {
    LoadTile<kRows>(weights + k / 2, kWeightStride * 4);
    ForTiles<kTiles>([&]<int j>() {
      LoadTile<kOthers + j % 3>(values + j / 2 * kChannels + k / 2 * 32 + j % 2 * 16, kPairBytes);
      MultiplyTiles<j, kRows, kOthers + j % 3>();
    });
  }
  ForTiles<kTiles>([&]<int j>() { StoreTile<j>(sums + j * 16, 64 * 4); });
}

// acc = acc * decay + sums of the channels [c, c + 16 kTiles).
template <int kTiles>
void AddSums(const float* sums, const float* decay, int rows, int64_t padded, float* acc) {
  for (int i = 0; i < rows; ++i) {
    const __m512 f = _mm512_set1_ps(decay[i]);
#pragma GCC unroll 4
    for (int j = 0; j < kTiles; ++j) {
      float* to = acc + i * padded + j * 16;
      _mm512_store_ps(
          to, _mm512_fmadd_ps(_mm512_load_ps(to), f, _mm512_load_ps(sums + i * 64 + j * 16)));
    }
  }
}

template <bool kInt8>
void Update(const AttendTile& t, const KeyBlock& block, const KeyBlock* next,
            const AttendScratch& scratch) {
  const int64_t dim = t.layout.head_dim, padded = PaddedHead(dim);
  const int64_t key_offset = t.kv_head * t.layout.head_bytes();
  const int64_t value_offset = key_offset + t.layout.value_offset();
  const int64_t key_steps = (block.count + kKeyStep - 1) / kKeyStep;
  // Packing takes a step per 16 keys, then per 8 keys, for each 32 channels.
  Ahead ahead(t, next, key_offset, value_offset, key_steps * (padded / 32) * (2 + 4));
  auto* keys = reinterpret_cast<uint32_t*>(scratch.keys);
  auto* values = reinterpret_cast<uint32_t*>(scratch.values);
  PackKeys<kInt8>(block, ahead, key_offset, dim, keys);
  PackValues<kInt8>(block, ahead, value_offset, dim, values);
  const BlockScales scales = ScalesOf<kInt8>(t, block, 1);

  const TileScope tiles;
  for (int row = 0; row < t.rows; row += kTileRows) {
    const int rows = t.rows - row < kTileRows ? t.rows - row : kTileRows;
    const int visible = VisibleKeys(block, t.position + (row + rows - 1) / t.heads);
    if (visible == 0) continue;
    const std::byte* q = t.queries + row * padded * 2;
    for (int k = 0; k < visible; k += 64) {
      (visible - k > 32 ? ScoreTiles<4> : ScoreTiles<2>)(q, padded,
                                                         keys + k / 32 * (padded / 2) * 32,
                                                         scratch.scores + k);
    }
    if constexpr (kInt8) {
      for (int i = 0; i < rows; ++i) {
        for (int k = 0; k < visible; k += 16) {
          float* s = scratch.scores + i * kMaxBlockKeys + k;
          _mm512_store_ps(s, _mm512_mul_ps(_mm512_load_ps(s), scales.key[k / 16]));
        }
      }
    }
    const auto store = [&t](const KeyBlock& b, int n, const float* s, float* out) {
      StoreRawScores(b, n, s, t.scale, out);
    };
    StoreAndMask(t, block, row, rows, visible, scratch.scores, store, MaskScores);
    float decay[kTileRows];
    Softmax<kInt8, Exp2ForBf16>(scratch.scores, t.scale * kLog2E, rows, visible, scales,
                                t.max + row, t.sum + row, scratch.weights, decay);
    for (int64_t c = 0; c < padded; c += 64) {
      const uint32_t* v = values + c / 32 * (kMaxBlockKeys / 2) * 32;
      float* acc = t.acc + row * padded + c;
      if (padded - c > 32) {
        ValueTiles<4>(scratch.weights, v, visible, scratch.scores);
        AddSums<4>(scratch.scores, decay, rows, padded, acc);
      } else {
        ValueTiles<2>(scratch.weights, v, visible, scratch.scores);
        AddSums<2>(scratch.scores, decay, rows, padded, acc);
      }
    }
  }
}

void UpdateAny(const AttendTile& t, const KeyBlock& block, const KeyBlock* next,
               const AttendScratch& scratch) {
  const bool int8 = t.layout.dtype == DType::kI8;
  (int8 ? Update<true> : Update<false>)(t, block, next, scratch);
}

void Begin(const AttendTile& t, const float* q, int64_t token_stride) {
  const int64_t dim = t.layout.head_dim, padded = PaddedHead(dim);
  for (int i = 0; i < t.rows; ++i) {
    const float* row = q + i / t.heads * token_stride + i % t.heads * dim;
    float* acc = t.acc + i * padded;
    for (int64_t c = 0; c < padded; c += 32) {
      const __mmask16 upper = ChannelMask(dim, c) >> 16;
      const __m512 lo = _mm512_loadu_ps(row + c);
      const __m512 hi = _mm512_maskz_loadu_ps(upper, row + c + 16);
      _mm512_store_si512(t.queries + (i * padded + c) * 2, (__m512i)_mm512_cvtne2ps_pbh(hi, lo));
      _mm512_store_ps(acc + c, _mm512_setzero_ps());
      _mm512_store_ps(acc + c + 16, _mm512_setzero_ps());
    }
    t.max[i] = -INFINITY;
    t.sum[i] = 0;
  }
}

}  // namespace

AttendKernels GetPromptAttendKernels() {
  return {.prompt_rows = 240,
          .prompt_block = 64,
          .begin = Begin,
          .update = UpdateAny,
          .finish = Finish};
}

}  // namespace baton::cpu::amx
