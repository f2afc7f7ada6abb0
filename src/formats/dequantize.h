// The slow, obvious meaning of every block type: what each packed layout of every backend is tested
// against.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace baton {

// Expands `count` values of a tensor to float, from element `first` on (both multiples of the block
// size).
void Dequantize(DType dtype, const std::byte* data, int64_t first, int64_t count, float* out);

}  // namespace baton
