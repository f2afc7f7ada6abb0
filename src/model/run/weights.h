// A checkpoint's tensors in a backend's layout, by role.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "model/spec/checkpoint.h"
#include "ops/ops.h"

namespace baton {

struct WeightSet {
  std::array<Array<float>, kTensorRoles> vectors;  // norms, biases, sink logits: on the device
  std::array<std::unique_ptr<Matrix>, kTensorRoles> matrices;

  // Null where the model has none.
  const float* vector(TensorRole r) const { return vectors[static_cast<size_t>(r)].data(); }
  const Matrix* matrix(TensorRole r) const { return matrices[static_cast<size_t>(r)].get(); }
};

struct Weights {
  WeightSet model;
  std::vector<WeightSet> layers;
  std::vector<float> smear;     // [C], on the host; empty: none
  RawMatrix embedding;          // rows are expanded on look-up, straight from the file
  int64_t bytes_per_token = 0;  // what one decode step reads of all matrices

  static Result<Weights> Load(const Checkpoint& checkpoint, Ops& ops);
};

}  // namespace baton
