#include <algorithm>

#include "kernels/cuda/scratch.h"

namespace baton::cuda {

Scratch::~Scratch() {
  for (const Memory& m : slots_) cudaFree(m.data);
}

void* Scratch::Grow(Slot slot, int64_t bytes) {
  Memory& m = slots_[slot];
  if (bytes > m.bytes) {
    recorder_.Wait();
    BATON_CUDA(cudaFree(m.data));
    m.bytes = std::max(bytes, m.bytes * 3 / 2);
    if (cudaMalloc(&m.data, static_cast<size_t>(m.bytes)) != cudaSuccess) {
      cudaGetLastError();  // otherwise the next launch would report it
      m = {};
    }
  }
  return m.data;
}

}  // namespace baton::cuda
