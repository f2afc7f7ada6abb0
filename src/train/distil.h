// An indexer learns where dense attention looks (arXiv 2606.06467, section 3): the mean map of all
// layers and heads that read the memory is its teacher.
#pragma once

#include <vector>

#include "train/transformer.h"

namespace baton::train {

struct DistilInput {
  std::vector<Tensor> queries;  // of the memory's readers, [B, Hq, n, D] each, without gradients
  Tensor keys;                  // [B, Hkv, n, D], without gradients
  Tensor index_q, index_k;      // [B, n, d_idx]
  Tensor rows;                  // [R] int64
  Tensor starts;                // as in ForwardInput
  double scale = 1, index_scale = 1;
  int64_t top_k = 0;  // of the coverage
};

// Mean over sequences and rows of KL(teacher || softmax of the indexer's scores): a scalar whose
// gradient reaches index_q and index_k alone. O(R n) storage.
Tensor Distil(const DistilInput& in, Coverage* coverage = nullptr);

}  // namespace baton::train
