// The CUDA backend: the operations of ops.h in a GPU's memory. This class keeps scratch memory and
// splits work into launches; the kernels are in the .cu files, one per operation.
#pragma once

#include <memory>
#include <string>

#include "baton/error.h"
#include "ops/ops.h"

namespace baton {

struct CudaOptions {
  // Passes that repeat are replayed as graphs; if false, their kernels are launched one by one.
  bool graphs = true;
  // An operation outside a pass has completed when it returns, for tests that share memory with the
  // GPU.
  bool synchronous = false;
};

// Uses the first GPU. Errors: Unsupported where there is no GPU that this build has code for (the
// error names what is present and what is needed).
Result<std::unique_ptr<Ops>> MakeCudaOps(ThreadPool& threads, const CudaOptions& options = {});

}  // namespace baton
