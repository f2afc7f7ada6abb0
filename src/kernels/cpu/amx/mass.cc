// Mass of prompt tiles on tile registers: 16 queries by the 64 keys of a page. Queries are bf16;
// keys are too, exact or expanded from the 4-bit copy, as [D/2][64 keys] pairs. What becomes of a
// dot product is in avx512/, as are the finer products of single rows and the odd head dimensions.
#include "kernels/cpu/avx512/mass_parts.h"

#include "kernels/cpu/amx/expand.h"
#include "kernels/cpu/amx/tiles.h"

namespace baton::cpu::amx {
namespace {

using avx512::AddLogSum;
using avx512::AddMass;

constexpr int64_t kPairBytes = kMassBlock * 4;

bool OnTiles(int64_t dim, MassForm form) { return form != MassForm::kFine && dim % 32 == 0; }

void PackQuery(const float* q, int64_t dim, MassForm form, void* out) {
  const bool tiles = OnTiles(dim, form);
  avx512::GetMassKernels().pack_query(q, dim, tiles ? MassForm::kCoarse : form, out);
}

void PackKeys(const KvView& kv, int64_t position, int head, MassForm form, void* out) {
  const int64_t dim = kv.layout.head_dim;
  if (form != MassForm::kLowBit || !OnTiles(dim, form)) {
    return avx512::GetMassKernels().pack_keys(kv, position, head, form, out);
  }
  const LowBitBlock* block = kv.low_bit(position, head, 0);
  for (int64_t slot = 0; slot < kMassBlock; slot += 16) {
    for (int64_t c = 0; c < dim; c += 32, ++block) {
      std::byte* to = static_cast<std::byte*>(out) + c / 2 * kPairBytes + slot * 4;
      const __m512 d = LoadHalves(reinterpret_cast<const std::byte*>(block->scale));
      const __m512 scale = _mm512_mul_ps(d, _mm512_set1_ps(16));  // d (16 (1 + q / 16) - 24)
      const __m512 offset = _mm512_mul_ps(d, _mm512_set1_ps(-24));
      for (int v = 0; v < 4; ++v) {
        const __m512i raw = _mm512_loadu_si512(block->nibbles + v * 64);
        ExpandFour<4, 0>(raw, scale, offset, kPairBytes, to + 2 * v * kPairBytes);
        ExpandFour<4, 4>(raw, scale, offset, kPairBytes, to + 2 * (v + 4) * kPairBytes);
      }
    }
  }
}

// Calls use(sums of 64 keys, query) for each query that sees a key; queries lie 4 dim bytes apart.
template <typename F>
void ForEachQuery(const void* keys, int64_t dim, const MassQuery* queries, int64_t count, F&& use) {
  const TileScope tiles;
  alignas(64) float sums[kTileRows][kMassBlock];
  for (int64_t first = 0; first < count; first += kTileRows) {
    const MassQuery* tile = queries + first;
    const int64_t n = std::min<int64_t>(kTileRows, count - first);
    int32_t most = 0;
    for (int64_t i = 0; i < n; ++i) most = std::max(most, tile[i].visible);
    if (most <= 0) continue;
    ForTiles<4>([]<int j>() { ZeroTile<j>(); });
    for (int64_t c = 0; c < dim; c += 32) {
      LoadTile<4>(static_cast<const std::byte*>(tile->q) + c * 2, dim * 4);
      ForTiles<4>([&]<int j>() {
        LoadTile<5 + j % 3>(static_cast<const std::byte*>(keys) + c / 2 * kPairBytes + j * 64,
                            kPairBytes);
        MultiplyTiles<j, 4, 5 + j % 3>();
      });
    }
    ForTiles<4>([&]<int j>() { StoreTile<j>(sums[0] + j * 16, sizeof(sums[0])); });
    for (int64_t i = 0; i < n; ++i) {
      if (tile[i].visible <= 0) continue;
      const float* s = sums[i];
      const __m512 x[4] = {_mm512_load_ps(s), _mm512_load_ps(s + 16), _mm512_load_ps(s + 32),
                           _mm512_load_ps(s + 48)};
      use(x, tile[i]);
    }
  }
}

template <bool kChord, bool kMax>
void AccumulateTiles(const void* keys, int64_t dim, float scale, const MassQuery* queries,
                     int64_t count) {
  ForEachQuery(keys, dim, queries, count, [&](const __m512(&sums)[4], const MassQuery& q) {
    if (q.visible >= kMassBlock) {
      AddMass<kChord, kMax, false>(sums, scale, q);
    } else {
      AddMass<kChord, kMax, true>(sums, scale, q);
    }
  });
}

void Accumulate(const void* keys, int64_t dim, MassForm form, float scale, const MassQuery* queries,
                int64_t count, bool max) {
  if (!OnTiles(dim, form)) {
    return avx512::GetMassKernels().accumulate(keys, dim, form, scale, queries, count, max);
  }
  const auto all = form == MassForm::kLowBit
                       ? (max ? AccumulateTiles<true, true> : AccumulateTiles<true, false>)
                       : (max ? AccumulateTiles<false, true> : AccumulateTiles<false, false>);
  all(keys, dim, scale, queries, count);
}

void LogSum(const void* keys, int64_t dim, MassForm form, float scale, const MassQuery* queries,
            int64_t count) {
  if (!OnTiles(dim, form)) {
    return avx512::GetMassKernels().log_sum(keys, dim, form, scale, queries, count);
  }
  ForEachQuery(keys, dim, queries, count, [&](const __m512(&sums)[4], const MassQuery& q) {
    AddLogSum(sums, scale, q);
  });
}

}  // namespace

const MassKernels& GetMassKernels() {
  static const MassKernels kKernels = {.pack_query = PackQuery,
                                       .pack_keys = PackKeys,
                                       .accumulate = Accumulate,
                                       .log_sum = LogSum,
                                       .pool_scores = avx512::GetMassKernels().pool_scores};
  return kKernels;
}

}  // namespace baton::cpu::amx
