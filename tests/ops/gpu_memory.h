// Memory that the host and the GPU share in op tests: pinned host memory, which the GPU reads at
// the host's addresses. Programs that link this get it from operator new.
#pragma once

#include "base/device.h"

namespace baton::test {

// From this call on operator new returns shared memory. False where there is no GPU.
bool ShareMemoryWithGpu();

// Shared memory, after ShareMemoryWithGpu; ordinary memory before, or without a GPU.
Device& SharedMemory();

}  // namespace baton::test
