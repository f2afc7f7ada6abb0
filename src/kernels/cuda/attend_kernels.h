// The kernels of attention by cache type and head size. Each starts one launch for a list of units
// of work (attend.cuh) and says whether there is a kernel for the case and this device.
#pragma once

#include <vector>

#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/recorder.h"

namespace baton::cuda {

template <typename T>
const T* TableOf(Recorder& recorder, const std::vector<T>& values) {
  return recorder.Table(std::span<const T>(values.data(), values.size()));
}

// Rows one by one. Without `values` only scores are written.
void LaunchRows(Recorder& recorder, const AttendCall& call, DType cache, AttendWork work,
                bool values);
// The two kinds of kernel behind it.
bool LaunchTensorRows(Recorder& recorder, const AttendCall& call, DType cache, AttendWork work,
                      bool values);
void LaunchPlainRows(Recorder& recorder, const AttendCall& call, DType cache, AttendWork work,
                     bool values);

// Rows in tiles of up to TileRows stacked rows (token, query head); 0 where there is no kernel.
int TileRows(DType cache, int64_t head_dim);
void LaunchTiles(Recorder& recorder, const AttendCall& call, DType cache, AttendWork work);

// Whether a block of this kernel gets so many bytes of dynamic shared memory, beside `fixed` ones;
// asks for them. Slow: once per kernel.
bool AllowShared(const void* kernel, int bytes, int fixed = 0);
// The most that a block may have.
int MostShared();

}  // namespace baton::cuda
