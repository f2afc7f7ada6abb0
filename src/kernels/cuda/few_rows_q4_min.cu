#include "kernels/cuda/few_rows.cuh"

namespace baton::cuda {

void StartQ4Min(Recorder& recorder, const FewRowsArgs& args) {
  StartFormat<Format::kQ4, true>(recorder, args);
}

}  // namespace baton::cuda
