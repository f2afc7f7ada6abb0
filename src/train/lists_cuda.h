// The list kernel, in plain types: it is compiled without LibTorch's headers.
#pragma once

#include <cstdint>

namespace baton::train {

#ifdef BATON_TRAIN_CUDA
inline constexpr bool kHaveListKernel = true;
#else
inline constexpr bool kHaveListKernel = false;
#endif
// A row's keys lie in shared memory.
inline constexpr int64_t kMostListColumns = 49152;

// See LargestOf; all in device memory, on the default stream.
void SelectRowsCuda(const float* scores, int64_t rows, int64_t columns, int64_t k, int32_t* lists);

}  // namespace baton::train
