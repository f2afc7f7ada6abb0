// To be written.
#include "kernels/cuda/attention_kernels.h"

namespace baton::cuda {

void Select(Recorder&, Scratch&, const SelectParams&) { BATON_CHECK(false); }

}  // namespace baton::cuda
