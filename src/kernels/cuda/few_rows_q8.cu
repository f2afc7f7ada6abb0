#include "kernels/cuda/few_rows.cuh"

namespace baton::cuda {

void StartQ8(Recorder& recorder, const FewRowsArgs& args) {
  StartFormat<Format::kQ8, false>(recorder, args);
}

}  // namespace baton::cuda
