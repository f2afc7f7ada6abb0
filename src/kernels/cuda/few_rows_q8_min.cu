#include "kernels/cuda/few_rows.cuh"

namespace baton::cuda {

void StartQ8Min(Recorder& recorder, const FewRowsArgs& args) {
  StartFormat<Format::kQ8, true>(recorder, args);
}

}  // namespace baton::cuda
