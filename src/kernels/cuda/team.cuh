// Blocks that work together: a cluster, where the GPU has them.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>

#include "kernels/cuda/recorder.h"

namespace baton::cuda {

constexpr int kMostTeam = 8;

// Blocks of a team, each with at least `least` of `n` elements and no more in all than
// `most_blocks`; 1 where the GPU has no clusters.
inline int TeamSize(const Recorder& recorder, int64_t n, int64_t least, int64_t most_blocks) {
  int blocks = 1;
  while (recorder.clusters() && blocks < kMostTeam && blocks * least < n &&
         blocks * 2 <= most_blocks)
    blocks *= 2;
  return blocks;
}

struct Team {
#if __CUDA_ARCH__ >= 900
  __device__ int size() const {
    return static_cast<int>(cooperative_groups::this_cluster().num_blocks());
  }
  __device__ int rank() const {
    return static_cast<int>(cooperative_groups::this_cluster().block_rank());
  }
  __device__ void Sync() const { cooperative_groups::this_cluster().sync(); }
  template <typename T>
  __device__ T* Of(T* shared, int rank) const {
    return cooperative_groups::this_cluster().map_shared_rank(shared, rank);
  }
#else
  __device__ int size() const { return 1; }
  __device__ int rank() const { return 0; }
  __device__ void Sync() const { __syncthreads(); }
  template <typename T>
  __device__ T* Of(T* shared, int) const {
    return shared;
  }
#endif
};

}  // namespace baton::cuda
