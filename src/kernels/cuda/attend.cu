// To be written.
#include "kernels/cuda/attention_kernels.h"

namespace baton::cuda {

void Attend(Recorder&, Scratch&, const AttendParams&) { BATON_CHECK(false); }

}  // namespace baton::cuda
