// The slow reference for every block type: each packed layout of every backend is tested against
// it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace baton {

// The values of the nibbles of IQ4_NL and IQ4_XS, and twice the values of those of MXFP4.
inline constexpr int8_t kNonLinear4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                           1,    13,   25,  38,  53,  69,  89,  113};
inline constexpr int8_t kFloat4Doubled[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                              0, -1, -2, -3, -4, -6, -8, -12};

// Expands `count` values of a tensor to float, from element `first` on (both multiples of the block
// size).
void Dequantize(DType dtype, const std::byte* data, int64_t first, int64_t count, float* out);

}  // namespace baton
