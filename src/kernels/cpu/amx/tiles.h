// Tile registers. Every kernel of this folder uses one configuration: eight tiles of 16 rows of 64
// bytes. A product takes
//
//   A     [16 rows][32 columns] bf16
//   B     [16 column pairs][16 outputs][2] bf16
//   sums  [16 rows][16 outputs] f32
//
// The functions replace the compiler's intrinsics, because those of GCC 12 do not declare which
// memory the instructions read. Include from files below amx/ only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace baton::cpu::amx {

constexpr int kTileRows = 16;
constexpr int64_t kTileBytes = 1024;

// Every kernel creates one before its first tile: the thread may not have used tiles yet. Tiles
// start at zero. They are released at the end, so that interrupts of the thread need not save them.
class TileScope {
 public:
  TileScope() {
    struct alignas(64) Config {
      uint8_t palette = 1, start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static constexpr Config kConfig;
    asm volatile("ldtilecfg %0" : : "m"(kConfig));
  }
  ~TileScope() { asm volatile("tilerelease"); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

template <int kTile>
inline void LoadTile(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
inline void StoreTile(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
inline void ZeroTile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// Tile kSums += tile kA . tile kB.
template <int kSums, int kA, int kB>
inline void MultiplyTiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
}

// Calls body.operator()<0>() to body.operator()<N - 1>(): tiles are numbered by constants.
template <int N, typename F>
[[gnu::always_inline]] inline void ForTiles(F&& body) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    (body.template operator()<kIndex>(), ...);
  }
  (std::make_integer_sequence<int, N>());
}

}  // namespace baton::cpu::amx
