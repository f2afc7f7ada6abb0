// Memory that the host and the GPU share in op tests: pinned host memory, which the GPU reads at
// the host's addresses. Programs that link this get it from operator new. Also what else op tests
// need of the CUDA backend and its headers.
#pragma once

#include <cstdint>

#include "base/device.h"
#include "ops/ops.h"

namespace baton::test {

// From this call on operator new returns shared memory. False where there is no GPU.
bool ShareMemoryWithGpu();

// Shared memory, after ShareMemoryWithGpu; ordinary memory before, or without a GPU.
Device& SharedMemory();

// How often ops, of the CUDA backend, have replayed a graph.
int64_t GraphReplays(const Ops& ops);

}  // namespace baton::test
