// Whether the cuda backend is built and there is a GPU for it.
#pragma once

#if BATON_WITH_CUDA
#include "base/thread_pool.h"
#include "kernels/cuda/cuda_ops.h"
#endif

namespace baton::test {

inline bool HaveGpu() {
#if BATON_WITH_CUDA
  static const bool have = [] {
    ThreadPool one(1);
    return MakeCudaOps(one).ok();
  }();
  return have;
#else
  return false;
#endif
}

}  // namespace baton::test
