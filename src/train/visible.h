// Which keys the rows of a sequence see, as a mask of a few rows at a time: no storage of n x n.
#pragma once

#include <cstdint>

#include "train/torch.h"

namespace baton::train {

// Positions are those of the packed row; a document of it begins at starts[b, t].
struct Visible : torch::CustomClassHolder {
  enum class Kind { kAll, kWindow, kList } kind = Kind::kAll;
  int64_t sink = 0, recent = 0;  // window; or what is forced into a list
  Tensor list;                   // [B, groups, n, K] int32, ascending, -1: none; blocks or tokens
  int64_t block = 1;             // tokens per entry
  Tensor starts;                 // [B, n] int64; undefined: one document a row

  // Of rows [first, end) and keys [from, end): [B or 1, groups or 1, end - first, end - from].
  Tensor Mask(int64_t first, int64_t end, int64_t from, torch::Device device) const;
  // The same from key 0 as something to add to logits: 0 or -inf, of the type of `like`.
  Tensor Bias(int64_t first, int64_t end, const Tensor& like) const;
};

}  // namespace baton::train
