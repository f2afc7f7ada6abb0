// Sums and maxima over a warp and over a block, in a fixed order; every thread gets the result. The
// order of floats as integers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace baton::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
__device__ T WarpSum(T x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

// NaN is ignored.
__device__ inline float WarpMax(float x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

// Integers in the order of the floats; -0.0 equals 0.0.
__device__ __forceinline__ uint32_t Ordered(float x) {
  const uint32_t bits = x == 0 ? 0 : __float_as_uint(x);
  return bits ^ (bits >> 31 ? ~0u : 0x80000000u);
}

// `warps` has room for one value per warp of the block, a multiple of 32 threads.
template <typename T>
__device__ T BlockSum(T x, T* warps) {
  x = WarpSum(x);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  T sum = 0;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) sum += warps[w];
  return sum;
}

// See Recorder::Shape::overlapped: waits for the preceding kernel, and lets the following one
// begin.
__device__ inline void AwaitPrevious() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}
__device__ inline void LetNextBegin() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

}  // namespace baton::cuda
