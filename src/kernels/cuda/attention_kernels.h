// The operations of attention on a GPU, one .cu file each, called by CudaOps. They record their
// work and return; scratch belongs to the caller, so that its addresses stay the same from step to
// step.
#pragma once

#include "kernels/cuda/recorder.h"
#include "kernels/cuda/scratch.h"
#include "ops/attention_params.h"

namespace baton::cuda {

class LibraryAttention;

// attend.cu. Without a library the own kernels do all.
void Attend(Recorder& recorder, Scratch& scratch, LibraryAttention* library, const AttendParams& p);
void Merge(Recorder& recorder, Scratch& scratch, const MergeParams& p);    // merge.cu
void Mass(Recorder& recorder, Scratch& scratch, const MassParams& p);      // mass.cu
void Select(Recorder& recorder, Scratch& scratch, const SelectParams& p);  // select.cu

}  // namespace baton::cuda
