#include "train/visible.h"

namespace baton::train {
namespace {

// [B, G, R, columns]: true where the list has an entry. One column more takes the entries of -1.
Tensor Scatter(const Tensor& list, int64_t columns) {
  const Tensor at = torch::where(list < 0, columns, list).to(torch::kInt64);
  Tensor mask = torch::zeros({list.size(0), list.size(1), list.size(2), columns + 1},
                             list.options().dtype(torch::kBool));
  mask.scatter_(3, at, true);
  return mask.narrow(3, 0, columns);
}

}  // namespace

Tensor Visible::Mask(int64_t first, int64_t end, int64_t from, torch::Device device) const {
  const auto options = torch::TensorOptions(device).dtype(torch::kInt64);
  const Tensor row = torch::arange(first, end, options).unsqueeze(1);
  const Tensor key = torch::arange(from, end, options).unsqueeze(0);
  const Tensor start =
      starts.defined() ? starts.narrow(1, first, end - first).unsqueeze(1).unsqueeze(3) : Tensor();
  Tensor mask = key <= row;
  if (start.defined()) mask = mask & (key >= start);
  if (kind == Kind::kAll) return mask.dim() == 2 ? mask.unsqueeze(0).unsqueeze(0) : mask;
  Tensor forced = row - key < recent;
  if (sink > 0) forced = forced | ((start.defined() ? key - start : key) < sink);
  if (kind == Kind::kList) {
    Tensor in = Scatter(list.narrow(2, first, end - first), (end + block - 1) / block);
    if (block > 1) in = in.repeat_interleave(block, 3);
    forced = forced | in.narrow(3, from, end - from);
  }
  mask = mask & forced;
  return mask.dim() == 2 ? mask.unsqueeze(0).unsqueeze(0) : mask;
}

}  // namespace baton::train
