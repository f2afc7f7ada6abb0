// Products of prompts by cuBLASLt, which is opened at run time: without it the program still starts
// and multiplies prompts with its own kernels.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <memory>

#include "kernels/cuda/recorder.h"
#include "kernels/cuda/scratch.h"

namespace baton::cuda {

class LibraryGemm {
 public:
  // Null where the library is not installed.
  static std::unique_ptr<LibraryGemm> Load();
  ~LibraryGemm();

  // The library's kernels need y in vectors of 16 bytes. This depends on the matrix alone, so that
  // a row's bits do not depend on its batch.
  static bool Takes(int64_t out) { return out % 8 == 0; }

  // y (+)= x w^T: x [tokens, in], w [out, in], both dense, bf16; y [tokens, out]. A matrix is
  // always multiplied by the same kernel, whatever the number of tokens, and that kernel does not
  // split sums: a row's bits do not depend on the others.
  struct Params {
    const __nv_bfloat16 *x, *w;
    float* y;
    int64_t tokens, out, in;
    bool accumulate;
  };
  void Multiply(Recorder& recorder, Scratch& scratch, const Params& p);

 private:
  struct State;
  explicit LibraryGemm(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace baton::cuda
