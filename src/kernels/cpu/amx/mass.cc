// Mass of prompt tiles on tile registers: 16 queries by the 64 keys of a page. Queries are bf16;
// keys are too, exact or expanded from the 4-bit copy, as [D/2][64 keys] pairs. avx512/ processes
// the dot products further and computes the finer products of single rows and odd head sizes.
#include "kernels/cpu/amx/expand.h"
#include "kernels/cpu/amx/tiles.h"
#include "kernels/cpu/avx512/mass_parts.h"

namespace baton::cpu::amx {
namespace {

using namespace avx512;

constexpr int64_t kPairBytes = kMassBlock * 4;

// log_max is only called with single rows, whose form is kFine.
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

using Sums = float[kTileRows][kMassBlock];

// Calls use(queries, n, sums) for up to 16 queries at a time of which some see a key; queries are 4
// dim bytes apart.
template <typename F>
void ForEachTile(const void* keys, int64_t dim, const MassQuery* queries, int64_t count, F&& use) {
  const TileScope tiles;
  alignas(64) Sums sums;
  for (int64_t first = 0; first < count; first += kTileRows) {
    const MassQuery* tile = queries + first;
    const int n = static_cast<int>(std::min<int64_t>(kTileRows, count - first));
    int32_t most = 0;
    for (int i = 0; i < n; ++i) most = std::max(most, tile[i].visible);
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
    use(tile, n, sums);
  }
}

template <bool kChord, bool kMax>
void AccumulateTiles(const void* keys, int64_t dim, float scale, const MassQuery* queries,
                     int64_t count) {
  ForEachTile(keys, dim, queries, count, [&](const MassQuery* tile, int n, const Sums& sums) {
    for (int i = 0, end; i < n; i = end) {
      // Queries of a set share their row of mass, which stays in registers.
      __m512 mass[4];
      for (int j = 0; j < 4; ++j) mass[j] = _mm512_loadu_ps(tile[i].out + 16 * j);
      for (end = i; end < n && tile[end].out == tile[i].out; ++end) {
        const MassQuery& q = tile[end];
        const float* s = sums[end];
        const __m512 x[4] = {_mm512_load_ps(s), _mm512_load_ps(s + 16), _mm512_load_ps(s + 32),
                             _mm512_load_ps(s + 48)};
        if (q.visible >= kMassBlock) {
          AddMass<kChord, kMax, false>(x, scale, q, mass);
        } else if (q.visible > 0) {
          AddMass<kChord, kMax, true>(x, scale, q, mass);
        }
      }
      for (int j = 0; j < 4; ++j) _mm512_storeu_ps(tile[i].out + 16 * j, mass[j]);
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

// Adds the visible keys to the stats of n queries, whose maxima and sums are computed side by side.
void AddLogSums(const MassQuery* queries, int n, float scale, Sums& sums) {
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  const __m512 scales = _mm512_set1_ps(scale);
  alignas(64) float before[kTileRows], total[kTileRows], bases[kTileRows];
  __m512 lanes[kTileRows];
  for (int i = 0; i < kTileRows; ++i) {
    lanes[i] = nothing;
    before[i] = i < n ? queries[i].stats[0] : 0;
    total[i] = i < n ? queries[i].stats[1] : 0;
    for (int j = 0; i < n && j < kMassBlock; j += 16) {
      const __m512 x = _mm512_mask_mul_ps(nothing, FirstLanes(queries[i].visible - j),
                                          _mm512_load_ps(sums[i] + j), scales);
      _mm512_store_ps(sums[i] + j, x);
      lanes[i] = _mm512_max_ps(lanes[i], x);
    }
  }
  const auto larger = [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); };
  const __m512 old = _mm512_load_ps(before);
  const __m512 now = _mm512_max_ps(AcrossLanes(lanes, larger), old);
  // Nothing seen yet: any finite base gives 0.
  const __m512 base =
      _mm512_mask_mov_ps(now, _mm512_cmpeq_ps_mask(now, nothing), _mm512_setzero_ps());
  _mm512_store_ps(bases, base);
  for (int i = 0; i < n; ++i) {
    const __m512 offset = _mm512_set1_ps(bases[i]);
    const auto weights = [&](int j) {
      return Exp2NotPositive(_mm512_sub_ps(_mm512_load_ps(sums[i] + j), offset));
    };
    lanes[i] = _mm512_add_ps(_mm512_add_ps(weights(0), weights(16)),
                             _mm512_add_ps(weights(32), weights(48)));
  }
  for (int i = n; i < kTileRows; ++i) lanes[i] = _mm512_setzero_ps();
  const __m512 added = AcrossLanes(lanes, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
  const __m512 fade = Exp2NotPositive(_mm512_sub_ps(old, base));
  _mm512_store_ps(before, now);
  _mm512_store_ps(total, _mm512_fmadd_ps(_mm512_load_ps(total), fade, added));
  for (int i = 0; i < n; ++i) {
    queries[i].stats[0] = before[i];
    queries[i].stats[1] = total[i];
  }
}

void LogSum(const void* keys, int64_t dim, MassForm form, float scale, const MassQuery* queries,
            int64_t count) {
  if (!OnTiles(dim, form)) {
    return avx512::GetMassKernels().log_sum(keys, dim, form, scale, queries, count);
  }
  ForEachTile(keys, dim, queries, count,
              [&](const MassQuery* tile, int n, Sums& sums) { AddLogSums(tile, n, scale, sums); });
}

}  // namespace

const MassKernels& GetMassKernels() {
  static const MassKernels kKernels = {.pack_query = PackQuery,
                                       .pack_keys = PackKeys,
                                       .accumulate = Accumulate,
                                       .log_max = avx512::GetMassKernels().log_max,
                                       .log_sum = LogSum,
                                       .pool_scores = avx512::GetMassKernels().pool_scores};
  return kKernels;
}

}  // namespace baton::cpu::amx
