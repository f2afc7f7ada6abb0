#include "kernels/cuda/few_rows.cuh"

namespace baton::cuda {

void StartBf16(Recorder& recorder, const FewRowsArgs& args) {
  StartFormat<Format::kBf16, false>(recorder, args);
}

}  // namespace baton::cuda
