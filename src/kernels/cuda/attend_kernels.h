// The kernels of attention by cache type and head size. Each function launches one kernel for a
// list of units of work (attend.cuh) and returns whether there is a kernel for the case and this
// device.
#pragma once

#include <vector>

#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/recorder.h"

namespace baton::cuda {

template <typename T>
const T* TableOf(Recorder& recorder, const std::vector<T>& values) {
  return recorder.Table(std::span<const T>(values.data(), values.size()));
}

// Row by row. Without `values` only scores are written.
void LaunchRows(Recorder& recorder, const AttendCall& call, DType cache, AttendWork work,
                bool values);
// The two kinds of kernel that LaunchRows chooses from.
bool LaunchTensorRows(Recorder& recorder, const AttendCall& call, DType cache, AttendWork work,
                      bool values);
void LaunchPlainRows(Recorder& recorder, const AttendCall& call, DType cache, AttendWork work,
                     bool values);

// Rows in tiles of up to TileRows stacked rows (token, query head); 0 where there is no kernel.
int TileRows(DType cache, int64_t head_dim);
void LaunchTiles(Recorder& recorder, const AttendCall& call, DType cache, AttendWork work);

// Whether a block of this kernel can have this many bytes of dynamic shared memory, beside `fixed`
// ones; raises the kernel's limit. Slow: call once per kernel.
bool AllowShared(const void* kernel, int bytes, int fixed = 0);
// The most shared memory of a block.
int MostShared();

}  // namespace baton::cuda
