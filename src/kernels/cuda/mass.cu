// To be written.
#include "kernels/cuda/attention_kernels.h"

namespace baton::cuda {

void Mass(Recorder&, Scratch&, const MassParams&) { BATON_CHECK(false); }

}  // namespace baton::cuda
