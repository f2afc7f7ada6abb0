#include "train/visible.h"

#include <limits>

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

Tensor Visible::Bias(int64_t first, int64_t end, const Tensor& like) const {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  // Rows of the result begin at multiples of 16 bytes, as fused kernels want them.
  constexpr int64_t kSpare = 8;
  if (kind != Kind::kList || starts.defined()) {
    const Tensor mask = Mask(first, end, 0, like.device());
    return torch::zeros(mask.sizes(), like.options()).masked_fill_(mask.logical_not(), kNever);
  }
  // A list's few entries are written into -inf: fewer passes than over a mask.
  const Tensor rows = list.narrow(2, first, end - first);
  const int64_t columns = (end + block - 1) / block;
  const Tensor at = torch::where(rows < 0, columns, rows).to(torch::kInt64);
  Tensor bias = torch::full({rows.size(0), rows.size(1), rows.size(2), columns + kSpare}, kNever,
                            like.options());
  bias.scatter_(3, at, 0.0);
  const auto options = torch::TensorOptions(like.device()).dtype(torch::kInt64);
  const Tensor row = torch::arange(first, end, options).unsqueeze(1);
  const Tensor key = torch::arange(end, options).unsqueeze(0);
  if (block > 1) {
    bias = bias.narrow(3, 0, columns).repeat_interleave(block, 3).narrow(3, 0, end);
    bias.masked_fill_(key > row, kNever);
  } else {
    bias = bias.narrow(3, 0, end);
  }
  if (recent > 0 || sink > 0)
    bias.masked_fill_((key <= row) & ((row - key < recent) | (key < sink)), 0.0);
  return bias;
}

}  // namespace baton::train
