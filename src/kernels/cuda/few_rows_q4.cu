#include "kernels/cuda/few_rows.cuh"

namespace baton::cuda {

void StartQ4(Recorder& recorder, const FewRowsArgs& args) {
  StartFormat<Format::kQ4, false>(recorder, args);
}

}  // namespace baton::cuda
