// Scales of the quantised block types of GGUF, by sub-blocks of 32 columns, which the formats of
// products.h store beside the quants.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/dtype.h"

namespace baton::cuda {

// w[i] = scale[i / 16] * q[i] + minimum, q an integer.
struct SubBlock {
  float scale[2];
  float minimum;
};

inline float HalfAt(const std::byte* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return HalfToFloat(h);
}

// Sub-block `index` of a row of blocks.
inline SubBlock ScalesOf(DType dtype, const std::byte* row, int64_t index) {
  const DTypeInfo info = Info(dtype);
  const int64_t per_block = info.block_elements / 32;
  const std::byte* b = row + index / per_block * info.block_bytes;
  const auto s = static_cast<int>(index % per_block);
  const auto byte = [](const std::byte* p) { return static_cast<int>(*p); };
  switch (dtype) {
    case DType::kQ4_1:
    case DType::kQ5_1:
      return {{HalfAt(b), HalfAt(b)}, HalfAt(b + 2)};
    case DType::kQ4_K:
    case DType::kQ5_K: {
      // Eight 6-bit scales and minima share 12 bytes.
      const std::byte* p = b + 4;
      const int scale =
          s < 4 ? byte(p + s) & 63 : (byte(p + s + 4) & 15) | byte(p + s - 4) >> 6 << 4;
      const int minimum =
          s < 4 ? byte(p + s + 4) & 63 : byte(p + s + 4) >> 4 | byte(p + s) >> 6 << 4;
      const float d = HalfAt(b) * static_cast<float>(scale);
      return {{d, d}, -HalfAt(b + 2) * static_cast<float>(minimum)};
    }
    case DType::kQ6_K: {
      const float d = HalfAt(b + 208);
      const auto scale = [&](int half) {
        return d * static_cast<float>(static_cast<int8_t>(byte(b + 192 + 2 * s + half)));
      };
      return {{scale(0), scale(1)}, 0};
    }
    case DType::kQ3_K: {
      // Sixteen 6-bit scales: the low four bits of scale j are in byte j % 8, the high two in byte
      // 8 + j % 4.
      const std::byte* p = b + 96;
      const auto scale = [&](int j) {
        const int low = byte(p + j % 8) >> (j < 8 ? 0 : 4) & 15;
        const int high = byte(p + 8 + j % 4) >> (j / 4 * 2) & 3;
        return HalfAt(b + 108) * static_cast<float>((low | high << 4) - 32);
      };
      return {{scale(2 * s), scale(2 * s + 1)}, 0};
    }
    case DType::kIQ4_XS: {
      const int low = byte(b + 4 + s / 2) >> (s % 2 * 4) & 15;
      const int high = (byte(b + 2) | byte(b + 3) << 8) >> (2 * s) & 3;
      const float d = HalfAt(b) * static_cast<float>((low | high << 4) - 32);
      return {{d, d}, 0};
    }
    default:  // Q4_0, Q5_0, Q8_0, IQ4_NL
      return {{HalfAt(b), HalfAt(b)}, 0};
  }
}

}  // namespace baton::cuda
