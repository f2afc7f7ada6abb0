#include "base/device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/host_copies.h"

namespace baton {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

int64_t MappedBytes(int64_t bytes) {
  return (std::max<int64_t>(bytes, 1) + kHugePage - 1) / kHugePage * kHugePage;
}

// Address space is reserved, memory is used when touched.
class HostDevice final : public HostCopies {
 public:
  bool host() const override { return true; }

 private:
  Result<std::byte*> Allocate(int64_t bytes) override {
    if (bytes < 0 || bytes > int64_t{1} << 46) {
      return Error::Resource("cannot allocate {} bytes", bytes);
    }
    const int64_t size = MappedBytes(bytes);
    // One huge page more than needed, so that an aligned range fits; the surplus is returned at
    // once.
    void* p = mmap(nullptr, static_cast<size_t>(size + kHugePage), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      return Error::Resource("cannot allocate {:.1f} MB of memory",
                             static_cast<double>(bytes) / 1e6)
          .Hint("use a smaller model or --context");
    }
    auto* base = static_cast<std::byte*>(p);
    const auto address = reinterpret_cast<uintptr_t>(base);
    const int64_t head = static_cast<int64_t>((kHugePage - address % kHugePage) % kHugePage);
    if (head > 0) munmap(base, static_cast<size_t>(head));
    if (head < kHugePage) munmap(base + head + size, static_cast<size_t>(kHugePage - head));
    // A small buffer would waste most of a huge page.
    if (bytes >= kHugePage / 4) madvise(base + head, static_cast<size_t>(size), MADV_HUGEPAGE);
    return base + head;
  }

  void Free(std::byte* data, int64_t bytes) override {
    munmap(data, static_cast<size_t>(MappedBytes(bytes)));
  }

  int64_t Discard(std::byte* data, int64_t size, int64_t begin, int64_t bytes) override {
    // The rest of the allocation's last page belongs to no other allocation.
    const int64_t end = begin + bytes == size ? MappedBytes(size) : begin + bytes;
    const int64_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
    const int64_t inner = end / kHugePage * kHugePage - first;
    if (inner <= 0) return 0;
    return madvise(data + first, static_cast<size_t>(inner), MADV_DONTNEED) == 0 ? inner : 0;
  }
};

}  // namespace

Device& Device::Host() {
  static HostDevice device;
  return device;
}

}  // namespace baton
