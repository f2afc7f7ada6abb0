// Dense attention of prompts by cuDNN, which is opened at run time: without it the own kernels do
// that too.
#pragma once

#include <memory>

#include "kernels/cuda/cudnn_plan.h"
#include "kernels/cuda/recorder.h"
#include "kernels/cuda/scratch.h"
#include "ops/attention_params.h"

namespace baton::cuda {

class LibraryAttention {
 public:
  // Dense segments of many rows over a bf16 cache.
  static bool Suits(const AttendParams::Segment& s);
  // Records the attention of a segment, or returns false and leaves it to the own kernels. Which of
  // both depends on the segment alone, so that its bits do not depend on the others. The library is
  // opened by the first segment that it may take.
  bool Attend(Recorder& recorder, Scratch& scratch, const AttendParams& p,
              const AttendParams::Segment& s);

 private:
  bool opened_ = false;
  std::unique_ptr<Cudnn> cudnn_;  // null where it is absent
};

}  // namespace baton::cuda
