#include "kv/low_bit.h"

#include <algorithm>
#include <cmath>

namespace baton {

void StoreLowBit(const KvView& kv, int64_t position, int head, const float* k) {
  const int64_t slot = position % 16;
  for (int64_t block = 0; block < kv.layout.head_dim / 32; ++block) {
    LowBitBlock& b = *kv.low_bit(position, head, block);
    const float* x = k + block * 32;
    float largest = 0;
    for (int c = 0; c < 32; ++c) largest = std::max(largest, std::fabs(x[c]));
    const uint16_t half = FloatToHalf(largest / 7.0f);
    const float scale = HalfToFloat(half);
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    b.scale[slot] = half;
    for (int v = 0; v < 4; ++v) {
      for (int i = 0; i < 4; ++i) {
        const auto nibble = [&](int channel) {
          const float q = std::clamp(std::nearbyintf(x[channel] * inverse), -7.0f, 7.0f);
          return static_cast<uint8_t>(static_cast<int>(std::isnan(q) ? 0.0f : q) + 8);
        };
        b.nibbles[v * 64 + slot * 4 + i] =
            static_cast<uint8_t>(nibble(4 * v + i) | nibble(4 * (v + 4) + i) << 4);
      }
    }
  }
}

void LoadLowBit(const KvView& kv, int64_t position, int head, float* k) {
  const int64_t slot = position % 16;
  for (int64_t block = 0; block < kv.layout.head_dim / 32; ++block) {
    const LowBitBlock& b = *kv.low_bit(position, head, block);
    const float scale = HalfToFloat(b.scale[slot]);
    for (int v = 0; v < 4; ++v) {
      for (int i = 0; i < 4; ++i) {
        const uint8_t byte = b.nibbles[v * 64 + slot * 4 + i];
        k[block * 32 + 4 * v + i] = static_cast<float>((byte & 15) - 8) * scale;
        k[block * 32 + 4 * (v + 4) + i] = static_cast<float>((byte >> 4) - 8) * scale;
      }
    }
  }
}

}  // namespace baton
