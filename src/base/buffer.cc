#include "base/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace baton {
namespace {
constexpr int64_t kHugePage = int64_t{2} << 20;
}

Buffer::Buffer(Buffer&& o) noexcept { *this = std::move(o); }

Buffer& Buffer::operator=(Buffer&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  std::swap(mapped_, o.mapped_);
  return *this;
}

Buffer::~Buffer() {
  if (data_) munmap(data_, static_cast<size_t>(mapped_));
}

Result<Buffer> Buffer::Allocate(int64_t bytes) {
  Buffer b;
  if (bytes < 0 || bytes > int64_t{1} << 46) {
    return Error::Resource("cannot allocate {} bytes", bytes);
  }
  const int64_t size = (std::max<int64_t>(bytes, 1) + kHugePage - 1) / kHugePage * kHugePage;
  // One huge page more than needed, so that an aligned range fits; the surplus is returned at once.
  void* p = mmap(nullptr, static_cast<size_t>(size + kHugePage), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    return Error::Resource("cannot allocate {:.1f} MB of memory", static_cast<double>(bytes) / 1e6)
        .Hint("use a smaller model or --context");
  }
  auto* base = static_cast<std::byte*>(p);
  const auto address = reinterpret_cast<uintptr_t>(base);
  const int64_t head = static_cast<int64_t>((kHugePage - address % kHugePage) % kHugePage);
  if (head > 0) munmap(base, static_cast<size_t>(head));
  if (head < kHugePage) munmap(base + head + size, static_cast<size_t>(kHugePage - head));
  b.data_ = base + head;
  b.size_ = bytes;
  b.mapped_ = size;
  // A small buffer would waste most of a huge page.
  if (bytes >= kHugePage / 4) madvise(b.data_, static_cast<size_t>(size), MADV_HUGEPAGE);
  return b;
}

Buffer Buffer::AllocateOrDie(int64_t bytes) {
  Result<Buffer> b = Allocate(bytes);
  BATON_CHECK(b.ok());
  return std::move(b).value();
}

int64_t Buffer::Discard(int64_t begin, int64_t bytes) {
  BATON_CHECK(begin >= 0 && bytes >= 0 && bytes <= size_ - begin);
  // What follows the last byte belongs to nobody else.
  const int64_t end = begin + bytes == size_ ? mapped_ : begin + bytes;
  const int64_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const int64_t size = end / kHugePage * kHugePage - first;
  if (size <= 0) return 0;
  return madvise(data_ + first, static_cast<size_t>(size), MADV_DONTNEED) == 0 ? size : 0;
}

Result<Arena::Piece> Arena::Take(int64_t bytes) {
  // Large enough that the unused ends do not count; what is not touched takes no memory.
  constexpr int64_t kBuffer = int64_t{64} << 20;
  if (!buffer_ || buffer_->size() - used_ < bytes) {
    BATON_ASSIGN(Buffer buffer, Buffer::Allocate(std::max(bytes, kBuffer)));
    buffer_ = std::make_shared<Buffer>(std::move(buffer));
    used_ = 0;
  }
  Piece piece{buffer_, buffer_->data() + used_};
  used_ += (bytes + 63) / 64 * 64;
  return piece;
}

HugePageUse MeasureHugePages() {
  HugePageUse use;
  if (FILE* f = std::fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r")) {
    char text[128] = {};
    const size_t n = std::fread(text, 1, sizeof(text) - 1, f);
    use.advised = n > 0 && std::strstr(text, "[never]") == nullptr;
    std::fclose(f);
  }
  if (FILE* f = std::fopen("/proc/self/smaps_rollup", "r")) {
    char line[256];
    long long kib = 0;
    while (std::fgets(line, sizeof(line), f)) {
      if (std::sscanf(line, "AnonHugePages: %lld kB", &kib) == 1) use.huge_bytes = kib * 1024;
      if (std::sscanf(line, "Anonymous: %lld kB", &kib) == 1) use.total_bytes = kib * 1024;
    }
    std::fclose(f);
  }
  return use;
}

int64_t PeakResidentBytes() {
  long long kib = 0;
  if (FILE* f = std::fopen("/proc/self/status", "r")) {
    char line[256];
    while (std::fgets(line, sizeof(line), f)) {
      if (std::sscanf(line, "VmHWM: %lld kB", &kib) == 1) break;
    }
    std::fclose(f);
  }
  return kib * 1024;
}

void ResetPeakResidentBytes() {
  if (FILE* f = std::fopen("/proc/self/clear_refs", "w")) {
    std::fputs("5", f);
    std::fclose(f);
  }
}

}  // namespace baton
