#include "train/visible.h"

#include <limits>

#include "train/lists_cuda.h"

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

// Rows of the result begin at multiples of 16 bytes, as fused kernels want them.
Tensor ByKernel(const Visible& visible, int64_t first, int64_t end, const Tensor& like) {
  const Tensor list = visible.list.contiguous();
  const int64_t sets = list.size(0) * list.size(1), stride = (end + 7) / 8 * 8;
  Tensor bias = torch::empty({list.size(0), list.size(1), end - first, stride}, like.options());
  ListBiasCuda({.lists = list.data_ptr<int32_t>(),
                .sets = sets,
                .n = list.size(2),
                .k = list.size(3),
                .first = first,
                .rows = end - first,
                .columns = end,
                .block = visible.block,
                .sink = visible.sink,
                .recent = visible.recent,
                .never = static_cast<uint16_t>(
                    like.scalar_type() == torch::kBFloat16 ? 0xff80 : 0xfc00),  // -inf
                .stride = stride,
                .out = static_cast<uint16_t*>(bias.data_ptr())});
  return bias.narrow(3, 0, end);
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
  if (kHaveListKernel && kind == Kind::kList && !starts.defined() && like.is_cuda() &&
      like.element_size() == 2 && end <= kMostBiasColumns)
    return ByKernel(*this, first, end, like);
  const Tensor mask = Mask(first, end, 0, like.device());
  return torch::zeros(mask.sizes(), like.options())
      .masked_fill_(mask.logical_not(), -std::numeric_limits<double>::infinity());
}

}  // namespace baton::train
