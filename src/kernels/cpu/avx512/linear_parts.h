// The AVX-512 passes before and after a matrix product (linear_passes.cc).
#pragma once

#include "kernels/cpu/linear_kernels.h"

namespace baton::cpu::avx512 {

void PrepareLinear(const PrepareArgs& p);
// `plain` alone, as rows of bf16.
void PrepareRows(const PrepareArgs& p);
void FinishLinear(const FinishArgs& p);
void FinishGlu(const FinishArgs& p);

}  // namespace baton::cpu::avx512
