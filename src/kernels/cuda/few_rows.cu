#include <optional>
#include <vector>

#include "kernels/cuda/few_rows.h"
#include "kernels/cuda/products.h"

namespace baton::cuda {
namespace {

void Start(Recorder& recorder, const CudaMatrix& m, const FewRowsArgs& args) {
  switch (m.format) {
    case Format::kBf16:
      return StartBf16(recorder, args);
    case Format::kQ4:
      return m.has_min ? StartQ4Min(recorder, args) : StartQ4(recorder, args);
    case Format::kQ8:
      return m.has_min ? StartQ8Min(recorder, args) : StartQ8(recorder, args);
    case Format::kQ8Halves:
      return StartQ8Halves(recorder, args);
  }
}

}  // namespace

// Matrices of one format share a launch.
void FewRows(Recorder& recorder, Scratch& scratch, const FewRowsParams& p) {
  std::optional<SplitInput> inputs[2];  // by the order of columns
  std::vector<const FewRowsOut*> left;
  for (const FewRowsOut& o : p.outs) left.push_back(&o);
  while (!left.empty()) {
    const CudaMatrix& first = *left[0]->w;
    const bool halves = first.format != Format::kBf16;
    std::optional<SplitInput>& input = inputs[halves];
    if (!input) input = PrepareSplitInput(recorder, scratch, p.input, halves);
    FewRowsArgs args = {};
    args.x = reinterpret_cast<const uint4*>(input->x);
    args.x_sums = input->sums;
    args.x_slabs = input->slabs;
    args.tokens = static_cast<int32_t>(p.input.x.dim(0));
    BATON_CHECK_LT(args.tokens * args.x_slabs * 8, int64_t{1} << 31);  // offsets in the kernel
    args.groups = static_cast<int32_t>(first.groups);
    args.block_bytes = static_cast<int32_t>(first.block_bytes());
    args.zero = static_cast<float>(first.zero);
    args.accumulate = p.accumulate;
    args.activation = static_cast<int32_t>(p.activation);
    std::vector<const FewRowsOut*> others;
    for (const FewRowsOut* o : left) {
      if (args.count == FewRowsArgs::kMaxOuts || !SameFormat(*o->w, first)) {
        others.push_back(o);
        continue;
      }
      args.outs[args.count++] = {o->w->memory.data(),
                                 o->up ? o->up->memory.data() : nullptr,
                                 o->bias,
                                 o->y,
                                 static_cast<int32_t>(o->w->rows),
                                 0};
    }
    Start(recorder, first, args);
    left = std::move(others);
  }
}

}  // namespace baton::cuda
