// Geometry of the KV cache. A page holds kSlots consecutive tokens of one sequence and one layer:
//
//   rows    [kSlots][planes][Hkv][D]   K then V of a token side by side: f32, bf16 or int8
//   scales  [kSlots][planes][Hkv]      f32, int8 only: value = int8 * scale
//
// (two planes, or K alone where nothing attends to the cache: an indexer's keys are only ranked)
// and, in a separate region, so that a ranking reads contiguous memory and nothing else,
//
//   low bit [Hkv][kSlots/16][D/32] LowBitBlock, only in layers whose plan scans
//
// A token's K and V of all heads are contiguous, so a reuse layer's gather reads whole cache lines
// and neighbouring lines; dense attention streams the page front to back. (A transposed K would
// save shuffles in dense scoring but touch D/2 cache lines per gathered token.)
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "base/dtype.h"
#include "plan/layer_plan.h"

namespace baton {

// 4-bit copy of K for 16 slots x 32 channels, laid out for 4-way byte dot products: byte
// nibbles[v*64 + slot*4 + i] holds channel 4v + i in its low half and channel 4(v+4) + i in its
// high half. Value = (nibble - 8) * scale[slot].
struct LowBitBlock {
  uint8_t nibbles[256];
  uint16_t scale[16];  // f16
};
static_assert(sizeof(LowBitBlock) == 288);

struct KvLayout {
  static constexpr int kSlots = static_cast<int>(kPageTokens);

  DType dtype = DType::kBF16;  // kF32, kBF16 or kI8
  int kv_heads = 0;
  int64_t head_dim = 0;
  bool low_bit = false;
  bool values = true;  // false: K alone

  int64_t planes() const { return values ? 2 : 1; }
  int64_t element_bytes() const { return dtype == DType::kF32 ? 4 : dtype == DType::kBF16 ? 2 : 1; }
  int64_t head_bytes() const { return head_dim * element_bytes(); }
  int64_t value_offset() const { return kv_heads * head_bytes(); }  // from a token's K to its V
  int64_t row_bytes() const { return planes() * value_offset(); }
  int64_t scales_offset() const { return kSlots * row_bytes(); }
  int64_t scales_bytes() const {
    return dtype == DType::kI8 ? kSlots * planes() * kv_heads * 4 : 0;
  }
  int64_t page_bytes() const { return (scales_offset() + scales_bytes() + 63) / 64 * 64; }
  int64_t low_bit_blocks_per_head() const { return kSlots / 16 * (head_dim / 32); }
  // Bytes of a page's copies: a multiple of 64, since a head has a multiple of four blocks of 288.
  int64_t low_bit_bytes() const {
    return low_bit ? kv_heads * low_bit_blocks_per_head() * int64_t{sizeof(LowBitBlock)} : 0;
  }
  // Bytes of pages and their low-bit copies.
  int64_t arena_bytes(int64_t pages) const { return pages * (page_bytes() + low_bit_bytes()); }
};

// Pages that hold `tokens` tokens. Not (tokens + 63) / 64, which overflows for a request near the
// end of the range.
inline int64_t PagesOf(int64_t tokens) {
  return tokens / KvLayout::kSlots + (tokens % KvLayout::kSlots != 0);
}

// One sequence's cache of one layer. `length` counts the tokens that may be read.
struct KvView {
  std::byte* arena = nullptr;      // the layer's page 0
  std::byte* low_bits = nullptr;   // the low-bit copy of page 0; null where the layout has none
  const int32_t* pages = nullptr;  // page table: [ceil(length / kSlots)]
  int64_t length = 0;
  KvLayout layout;
  int64_t stored = 0;      // tokens that the cache holds, where that is more than `length`
  bool host_rows = false;  // pages lie in host memory

  std::byte* page(int64_t position) const {
    return arena + pages[position / KvLayout::kSlots] * layout.page_bytes();
  }
  // K of a token, head 0; head h is h * head_bytes() further, V value_offset() further.
  std::byte* row(int64_t position) const {
    return page(position) + position % KvLayout::kSlots * layout.row_bytes();
  }
  // Scale of K (value = false) or V of a token's head; int8 caches only.
  float* scale(int64_t position, bool value, int head) const {
    auto* s = reinterpret_cast<float*>(page(position) + layout.scales_offset());
    return s + (position % KvLayout::kSlots * layout.planes() + value) * layout.kv_heads + head;
  }
  // Block of 16 slots that holds `position`, for channels [32 * block, 32 * block + 32) of a head.
  LowBitBlock* low_bit(int64_t position, int head, int64_t block) const {
    auto* b = reinterpret_cast<LowBitBlock*>(low_bits + pages[position / KvLayout::kSlots] *
                                                            layout.low_bit_bytes());
    const int64_t per_group = layout.head_dim / 32;
    return b + (head * (KvLayout::kSlots / 16) + position % KvLayout::kSlots / 16) * per_group +
           block;
  }
};

}  // namespace baton
