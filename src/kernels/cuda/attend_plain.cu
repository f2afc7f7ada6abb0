#include "kernels/cuda/attend_kernels.h"
#include "kernels/cuda/attend_plain.cuh"

namespace baton::cuda {
namespace {

template <DType kType, int kChannels>
void Launch(Recorder& recorder, const AttendCall& call, AttendWork work, bool values) {
  const int per_head = call.heads / call.kv_heads;
  const int64_t blocks = work.count * call.kv_heads * ((per_head + kPlainHeads - 1) / kPlainHeads);
  const size_t shared = sizeof(float) * kPlainWarps * kPlainHeads * static_cast<size_t>(call.dim);
  const auto kernel = values ? AttendPlainKernel<kType, kChannels, true>
                             : AttendPlainKernel<kType, kChannels, false>;
  recorder.Launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kPlainWarps * 32), shared, call,
                  work);
}

template <DType kType>
void LaunchType(Recorder& recorder, const AttendCall& call, AttendWork work, bool values) {
  if (call.dim <= 64) return Launch<kType, 2>(recorder, call, work, values);
  if (call.dim <= 128) return Launch<kType, 4>(recorder, call, work, values);
  if (call.dim <= 256) return Launch<kType, 8>(recorder, call, work, values);
  BATON_CHECK_LE(call.dim, 512);  // more per lane would spill; no model has such heads
  Launch<kType, 16>(recorder, call, work, values);
}

}  // namespace

void LaunchPlainRows(Recorder& recorder, const AttendCall& call, DType cache, AttendWork work,
                     bool values) {
  if (cache == DType::kF32) return LaunchType<DType::kF32>(recorder, call, work, values);
  if (cache == DType::kBF16) return LaunchType<DType::kBF16>(recorder, call, work, values);
  BATON_CHECK(cache == DType::kI8);
  LaunchType<DType::kI8>(recorder, call, work, values);
}

}  // namespace baton::cuda
