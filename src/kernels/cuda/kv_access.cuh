// The fields of a KvView (kv/page.h) that kernels need: its pointers and the offsets of its layout,
// small enough for a table.
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>

#include "kv/page.h"

namespace baton::cuda {

struct KvAccess {
  std::byte* arena = nullptr;
  std::byte* low_bits = nullptr;
  const int32_t* pages = nullptr;
  int64_t length = 0;
  int64_t page_bytes = 0, low_bit_bytes = 0;
  int32_t row_bytes = 0, value_offset = 0, head_bytes = 0, scales_offset = 0;
  int32_t kv_heads = 0, head_dim = 0, planes = 0;
  DType dtype = DType::kBF16;
  bool low_bit = false, unused[2] = {};  // no padding: tables are compared in tests

  KvAccess() = default;
  explicit KvAccess(const KvView& kv)
      : arena(kv.arena),
        low_bits(kv.low_bits),
        pages(kv.pages),
        length(kv.length),
        page_bytes(kv.layout.page_bytes()),
        low_bit_bytes(kv.layout.low_bit_bytes()),
        row_bytes(static_cast<int32_t>(kv.layout.row_bytes())),
        value_offset(static_cast<int32_t>(kv.layout.value_offset())),
        head_bytes(static_cast<int32_t>(kv.layout.head_bytes())),
        scales_offset(static_cast<int32_t>(kv.layout.scales_offset())),
        kv_heads(kv.layout.kv_heads),
        head_dim(static_cast<int32_t>(kv.layout.head_dim)),
        planes(static_cast<int32_t>(kv.layout.planes())),
        dtype(kv.layout.dtype),
        low_bit(kv.layout.low_bit) {}

#ifdef __CUDACC__
  // These work like the functions of KvView of the same names.
  __device__ std::byte* page(int64_t position) const {
    return arena + pages[position / KvLayout::kSlots] * page_bytes;
  }
  __device__ std::byte* row(int64_t position) const {
    return page(position) + position % KvLayout::kSlots * row_bytes;
  }
  __device__ float* scale(int64_t position, bool value, int head) const {
    auto* s = reinterpret_cast<float*>(page(position) + scales_offset);
    return s + (position % KvLayout::kSlots * planes + value) * kv_heads + head;
  }
  __device__ LowBitBlock* low_bit_block(int64_t position, int head, int block) const {
    auto* b = reinterpret_cast<LowBitBlock*>(low_bits +
                                             pages[position / KvLayout::kSlots] * low_bit_bytes);
    return b +
           (head * (KvLayout::kSlots / 16) + position % KvLayout::kSlots / 16) * (head_dim / 32) +
           block;
  }
#endif
};

}  // namespace baton::cuda
