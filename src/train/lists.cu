// A block per row. The row's scores become unsigned numbers of the same order, which stay in shared
// memory; the k-th largest is built bit by bit from 32 counts, and one pass in order of position
// writes what is above it, and of its equals the first. No sort. A sort of 32K rows of 4,096 takes
// ten times as long.
#include <cstdio>
#include <cstdlib>

#include "train/lists_cuda.h"

namespace baton::train {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr uint32_t kNothing = 0x007fffffu;  // the number of -inf

__device__ uint32_t Ordered(float score) {
  const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 becomes +0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ int SumOfBlock(int value, int* partial) {
  for (int d = 16; d > 0; d /= 2) value += __shfl_xor_sync(~0u, value, d);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  int sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += partial[w];
  __syncthreads();
  return sum;
}

// How many threads before this one have the flag; `total` of the block.
__device__ int CountBefore(bool flag, int* partial, int* total) {
  const uint32_t warp = __ballot_sync(~0u, flag);
  const int lane = threadIdx.x % 32, mine = threadIdx.x / 32;
  if (lane == 0) partial[mine] = __popc(warp);
  __syncthreads();
  int before = __popc(warp & ((1u << lane) - 1));
  *total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < mine) before += partial[w];
    *total += partial[w];
  }
  __syncthreads();
  return before;
}

__global__ void SelectKernel(const float* scores, int64_t columns, int k, int32_t* lists) {
  extern __shared__ uint32_t keys[];
  __shared__ int partial[kWarps];
  const int n = static_cast<int>(columns);
  scores += static_cast<int64_t>(blockIdx.x) * columns;
  lists += static_cast<int64_t>(blockIdx.x) * k;
  int mine = 0;
  for (int i = threadIdx.x; i < n; i += kThreads) {
    keys[i] = Ordered(scores[i]);
    mine += keys[i] > kNothing;
  }
  const int candidates = SumOfBlock(mine, partial);
  uint32_t threshold = kNothing;
  if (candidates > k) {
    threshold = 0;
    for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
      int count = 0;
      for (int i = threadIdx.x; i < n; i += kThreads) count += keys[i] >= (threshold | bit);
      if (SumOfBlock(count, partial) >= k) threshold |= bit;
    }
  }
  int above = 0;
  for (int i = threadIdx.x; i < n; i += kThreads) above += keys[i] > threshold;
  const int equals = candidates > k ? k - SumOfBlock(above, partial) : 0;
  int written = 0, seen_equal = 0;
  for (int begin = 0; begin < n; begin += kThreads) {
    const int i = begin + static_cast<int>(threadIdx.x);
    const uint32_t key = i < n ? keys[i] : 0;
    int total_equal, total;
    const int rank = seen_equal + CountBefore(key == threshold, partial, &total_equal);
    const bool taken = key > threshold || (key == threshold && rank < equals);
    const int at = written + CountBefore(taken, partial, &total);
    if (taken) lists[at] = i;
    written += total;
    seen_equal += total_equal;
  }
  for (int i = written + static_cast<int>(threadIdx.x); i < k; i += kThreads) lists[i] = -1;
}

void Check(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "list kernel: %s\n", cudaGetErrorString(status));
  std::abort();
}

}  // namespace

void SelectRowsCuda(const float* scores, int64_t rows, int64_t columns, int64_t k, int32_t* lists) {
  if (rows == 0) return;
  const auto bytes = static_cast<int>(columns * static_cast<int64_t>(sizeof(uint32_t)));
  if (bytes > 48 * 1024)
    Check(cudaFuncSetAttribute(SelectKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  SelectKernel<<<static_cast<unsigned>(rows), kThreads, static_cast<size_t>(bytes)>>>(
      scores, columns, static_cast<int>(k), lists);
  Check(cudaGetLastError());
}

}  // namespace baton::train
