// Rankings of keys, and the lists of the best of them: hard choices, without gradients.
#pragma once

#include <cstdint>

#include "plan/layer_plan.h"
#include "train/torch.h"

namespace baton::train {

struct RankInput {
  Tensor q;    // [B, H, n, D]
  Tensor k;    // [B, G, n, D]; G divides H
  Tensor lse;  // [B, H, n] of the layer's own attention; undefined: scores rank as they are
  double scale = 1;
  int64_t groups = 1;  // lists per row: 1, or G
  Pool pool = Pool::kMax;
  int64_t block = 1;
  int64_t sink = 0, recent = 0;  // no candidates: they are forced into every list
  int64_t top_k = 0;             // tokens; of blocks, as many as hold so many
  Tensor starts;                 // as in Visible; multiples of `block`
};

// [B, groups, n, ceil(top_k / block)] int32, ascending: tokens or blocks of the row, -1 where there
// are fewer. Larger scores first; equal ones: the lower position.
Tensor Rank(const RankInput& in);

// Of each row of scores [rows, columns] f32, the positions of the k largest above -inf, ascending,
// padded with -1: [rows, k] int32.
Tensor LargestOf(const Tensor& scores, int64_t k);

}  // namespace baton::train
