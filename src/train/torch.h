// The parts of LibTorch that the trainer uses: Debian's 1.13 and later versions.
#pragma once

#include <torch/autograd.h>
#include <torch/cuda.h>
#include <torch/types.h>
#include <torch/version.h>

#include <vector>

// Fused attention and norms that return what a backward pass of one's own needs.
#define BATON_TORCH_FUSED (TORCH_VERSION_MAJOR >= 2 && TORCH_VERSION_MINOR >= 9)

namespace baton::train {

using torch::Tensor;
using Slice = torch::indexing::Slice;

// Sums and softmaxes are taken in this type: f64 for f64 (gradient checks), f32 for all else.
inline torch::ScalarType SumType(const Tensor& t) {
  return t.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
}

}  // namespace baton::train
