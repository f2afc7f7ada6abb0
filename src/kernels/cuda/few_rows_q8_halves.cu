#include "kernels/cuda/few_rows.cuh"

namespace baton::cuda {

void StartQ8Halves(Recorder& recorder, const FewRowsArgs& args) {
  StartFormat<Format::kQ8Halves, false>(recorder, args);
}

}  // namespace baton::cuda
