// Memory that the host and the GPU share in op tests: pinned memory of the host, which the GPU
// reads at the addresses that the host uses. Programs that link this take it from operator new.
#pragma once

#include "base/device.h"

namespace baton::test {

// From now on operator new gives shared memory. False where there is no GPU.
bool ShareMemoryWithGpu();

// Shared memory, after ShareMemoryWithGpu; ordinary memory before, or without a GPU.
Device& SharedMemory();

}  // namespace baton::test
