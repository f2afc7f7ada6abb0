#include "tests/ops/gpu_memory.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#include "base/host_copies.h"
#include "kernels/cuda/cuda_ops_impl.h"

namespace baton::test {
namespace {

// One pinned region, cut into blocks of powers of two that are reused by size. A block begins with
// 64 bytes that hold its size class.
class Region {
 public:
  static constexpr size_t kBytes = size_t{1} << 30;
  static constexpr size_t kHeader = 64;

  bool Start() {
    const std::lock_guard lock(mutex_);
    if (begin_) return true;
    int devices = 0;
    void* memory = nullptr;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0 ||
        cudaHostAlloc(&memory, kBytes, 0) != cudaSuccess) {
      cudaGetLastError();
      return false;
    }
    begin_ = static_cast<std::byte*>(memory);
    return true;
  }
  bool started() const { return begin_ != nullptr; }

  void* Take(size_t bytes, size_t alignment) {
    const size_t needed = std::bit_ceil(bytes + std::max(alignment, kHeader) + kHeader);
    const auto size_class = static_cast<size_t>(std::countr_zero(needed));
    const std::lock_guard lock(mutex_);
    Free*& free = free_[size_class];
    std::byte* block;
    if (free) {
      block = reinterpret_cast<std::byte*>(free);
      free = free->next;
    } else {
      if (used_ + needed > kBytes) {
        std::fprintf(stderr, "tests: the memory shared with the GPU is used up\n");
        std::abort();
      }
      block = begin_ + used_;
      used_ += needed;
    }
    // The size class and the address of the block's begin are stored in front of the returned
    // memory.
    auto at = reinterpret_cast<uintptr_t>(block) + kHeader;
    at = (at + alignment - 1) / alignment * alignment;
    auto* header = reinterpret_cast<size_t*>(at) - 2;
    header[0] = size_class;
    header[1] = at - reinterpret_cast<uintptr_t>(block);
    return reinterpret_cast<void*>(at);
  }
  bool Holds(const void* p) const { return begin_ && p >= begin_ && p < begin_ + kBytes; }
  void Give(void* p) {
    const size_t* header = static_cast<size_t*>(p) - 2;
    const size_t size_class = header[0];
    auto* block = reinterpret_cast<Free*>(static_cast<std::byte*>(p) - header[1]);
    const std::lock_guard lock(mutex_);
    block->next = free_[size_class];
    free_[size_class] = block;
  }

 private:
  struct Free {
    Free* next;
  };
  std::atomic<std::byte*> begin_ = nullptr;
  size_t used_ = 0;
  std::array<Free*, 64> free_ = {};
  std::mutex mutex_;
};

// Never destroyed, because static objects free memory after it would be.
Region& TheRegion() {
  alignas(Region) static std::byte storage[sizeof(Region)];
  static Region* region = new (storage) Region;
  return *region;
}

class SharedDevice final : public HostCopies {
 public:
  bool host() const override { return true; }

 private:
  Result<std::byte*> Allocate(int64_t bytes) override {
    auto* data = static_cast<std::byte*>(TheRegion().Take(static_cast<size_t>(bytes), 4096));
    std::memset(data, 0, static_cast<size_t>(bytes));
    return data;
  }
  void Free(std::byte* data, int64_t) override { TheRegion().Give(data); }
  int64_t Discard(std::byte*, int64_t, int64_t, int64_t) override { return 0; }
};

void* Allocate(size_t bytes, size_t alignment) {
  Region& region = TheRegion();
  void* p = region.started()
                ? region.Take(bytes, alignment)
                : std::aligned_alloc(alignment, (bytes + alignment) / alignment * alignment);
  if (p == nullptr) std::abort();
  return p;
}

void Release(void* p) {
  if (p == nullptr) return;
  Region& region = TheRegion();
  if (region.Holds(p)) return region.Give(p);
  std::free(p);
}

}  // namespace

bool ShareMemoryWithGpu() { return TheRegion().Start(); }

Device& SharedMemory() {
  static SharedDevice device;
  return TheRegion().started() ? static_cast<Device&>(device) : Device::Host();
}

int64_t GraphReplays(const Ops& ops) {
  return dynamic_cast<const cuda::CudaOps&>(ops).counts().replays;
}

}  // namespace baton::test

void* operator new(size_t bytes) { return baton::test::Allocate(bytes, 64); }
void* operator new[](size_t bytes) { return baton::test::Allocate(bytes, 64); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return baton::test::Allocate(bytes, std::max<size_t>(64, static_cast<size_t>(alignment)));
}
void* operator new[](size_t bytes, std::align_val_t alignment) {
  return baton::test::Allocate(bytes, std::max<size_t>(64, static_cast<size_t>(alignment)));
}
void operator delete(void* p) noexcept { baton::test::Release(p); }
void operator delete[](void* p) noexcept { baton::test::Release(p); }
void operator delete(void* p, size_t) noexcept { baton::test::Release(p); }
void operator delete[](void* p, size_t) noexcept { baton::test::Release(p); }
void operator delete(void* p, std::align_val_t) noexcept { baton::test::Release(p); }
void operator delete[](void* p, std::align_val_t) noexcept { baton::test::Release(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { baton::test::Release(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { baton::test::Release(p); }
