// Lists: a block per row. The row's scores become unsigned numbers of the same order, which stay in
// shared memory; the k-th largest is built bit by bit from 32 counts, and one pass in order of
// position writes what is above it, and of its equals the first. No sort. A sort of 32K rows of
// 4,096 takes ten times as long.
//
// Masks of lists: a block per row, which sets a bit for each token of its list in shared memory and
// writes the row once.
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

// Of keys[0, n) in shared memory, the k largest above -inf, in order of position, by all threads.
__device__ void Select(const uint32_t* keys, int n, int k, int32_t* list, int* partial) {
  int mine = 0;
  for (int i = threadIdx.x; i < n; i += kThreads) mine += keys[i] > kNothing;
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
    if (taken) list[at] = i;
    written += total;
    seen_equal += total_equal;
  }
  for (int i = written + static_cast<int>(threadIdx.x); i < k; i += kThreads) list[i] = -1;
}

__global__ void SelectKernel(const float* scores, int64_t columns, int k, int32_t* lists) {
  extern __shared__ uint32_t keys[];
  __shared__ int partial[kWarps];
  const int n = static_cast<int>(columns);
  scores += static_cast<int64_t>(blockIdx.x) * columns;
  for (int i = threadIdx.x; i < n; i += kThreads) keys[i] = Ordered(scores[i]);
  __syncthreads();
  Select(keys, n, k, lists + static_cast<int64_t>(blockIdx.x) * k, partial);
}

__global__ void RankKernel(RankRows in) {
  extern __shared__ uint32_t keys[];
  __shared__ int partial[kWarps];
  const int64_t set = blockIdx.x / in.rows, r = blockIdx.x % in.rows;  // set: of [batch, groups]
  const int64_t of_group = in.heads / in.groups;
  const int64_t plane = in.rows * in.columns;
  const float* scores = in.scores + set * of_group * plane + r * in.columns;
  const int block = static_cast<int>(in.block);
  const int n = static_cast<int>((in.columns + block - 1) / block);
  const int row = static_cast<int>(in.first + r);
  for (int i = threadIdx.x; i < n; i += kThreads) keys[i] = kNothing;
  __syncthreads();
  const int end = row - static_cast<int>(in.recent) + 1;
  for (int i = static_cast<int>(in.sink) + static_cast<int>(threadIdx.x); i < end; i += kThreads) {
    uint32_t best = kNothing;
    for (int64_t h = 0; h < of_group; ++h) {
      const float lse = in.lse == nullptr ? 0.0f : in.lse[(set * of_group + h) * in.n + row];
      best = max(best, Ordered(scores[h * plane + i] - lse));
    }
    if (block == 1) {
      keys[i] = best;
    } else {
      atomicMax(&keys[i / block], best);
    }
  }
  __syncthreads();
  Select(keys, n, static_cast<int>(in.k), in.lists + static_cast<int64_t>(blockIdx.x) * in.k,
         partial);
}

__global__ void BiasKernel(ListBias in) {
  extern __shared__ uint32_t bits[];
  const int64_t set = blockIdx.x / in.rows, r = blockIdx.x % in.rows;
  const int row = static_cast<int>(in.first + r);
  const int vectors = static_cast<int>(in.stride / 8), words = (vectors + 3) / 4;
  for (int i = threadIdx.x; i < words; i += kThreads) bits[i] = 0;
  __syncthreads();
  const int32_t* list = in.lists + (set * in.n + row) * in.k;
  const int block = static_cast<int>(in.block), tokens = static_cast<int>(in.k) * block;
  for (int i = threadIdx.x; i < tokens; i += kThreads) {
    const int entry = list[i / block], key = entry * block + i % block;
    if (entry >= 0 && key <= row) atomicOr(&bits[key / 32], 1u << key % 32);
  }
  const int sink = min(static_cast<int>(in.sink), row + 1);
  for (int i = threadIdx.x; i < sink; i += kThreads) atomicOr(&bits[i / 32], 1u << i % 32);
  for (int i = max(0, row - static_cast<int>(in.recent) + 1) + static_cast<int>(threadIdx.x);
       i <= row; i += kThreads)
    atomicOr(&bits[i / 32], 1u << i % 32);
  __syncthreads();
  auto* out = reinterpret_cast<uint4*>(in.out + static_cast<int64_t>(blockIdx.x) * in.stride);
  const uint32_t never = in.never;
  for (int v = threadIdx.x; v < vectors; v += kThreads) {
    const uint32_t seen = bits[v / 4] >> v % 4 * 8;
    const auto pair = [&](int i) {
      return (seen >> i & 1u ? 0u : never) | (seen >> (i + 1) & 1u ? 0u : never) << 16;
    };
    out[v] = make_uint4(pair(0), pair(2), pair(4), pair(6));
  }
}

void Check(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "list kernel: %s\n", cudaGetErrorString(status));
  std::abort();
}

unsigned Blocks(int64_t rows) { return static_cast<unsigned>(rows); }

// Bytes of so many words of shared memory, which the kernel is then allowed.
template <typename Kernel>
size_t Shared(Kernel kernel, int64_t words) {
  const size_t bytes = static_cast<size_t>(words) * sizeof(uint32_t);
  if (bytes > 48 * 1024)
    Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)));
  return bytes;
}

}  // namespace

void SelectRowsCuda(const float* scores, int64_t rows, int64_t columns, int64_t k, int32_t* lists) {
  if (rows == 0) return;
  SelectKernel<<<Blocks(rows), kThreads, Shared(SelectKernel, columns)>>>(
      scores, columns, static_cast<int>(k), lists);
  Check(cudaGetLastError());
}

void RankRowsCuda(const RankRows& in) {
  const int64_t entries = (in.columns + in.block - 1) / in.block;
  RankKernel<<<Blocks(in.batch * in.groups * in.rows), kThreads, Shared(RankKernel, entries)>>>(in);
  Check(cudaGetLastError());
}

void ListBiasCuda(const ListBias& in) {
  const int64_t words = (in.stride + 31) / 32;
  BiasKernel<<<Blocks(in.sets * in.rows), kThreads, Shared(BiasKernel, words)>>>(in);
  Check(cudaGetLastError());
}

}  // namespace baton::train
