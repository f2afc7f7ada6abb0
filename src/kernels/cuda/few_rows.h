// The arguments of FewRows' (products.h) kernels, which are compiled in separate files, one per
// format.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/recorder.h"

namespace baton::cuda {

struct FewRowsArgs {
  static constexpr int kMaxOuts = 8;
  struct Out {
    const std::byte *w, *up;
    const float* bias;
    float* y;
    int32_t rows, first_block;
  };
  Out outs[kMaxOuts];
  const uint4* x;       // SplitInput
  const float* x_sums;  // SplitInput
  int64_t x_slabs;
  int32_t count, tokens, token_groups, groups, block_bytes, unused;
  float zero;
  int32_t accumulate, activation, unused2;
};

// few_rows_bf16.cu and so on.
void StartBf16(Recorder& recorder, const FewRowsArgs& args);
void StartQ4(Recorder& recorder, const FewRowsArgs& args);
void StartQ4Min(Recorder& recorder, const FewRowsArgs& args);
void StartQ8(Recorder& recorder, const FewRowsArgs& args);
void StartQ8Min(Recorder& recorder, const FewRowsArgs& args);
void StartQ8Halves(Recorder& recorder, const FewRowsArgs& args);

}  // namespace baton::cuda
