#include "base/buffer.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "base/check.h"

namespace baton {

Buffer::Buffer(Buffer&& o) noexcept { *this = std::move(o); }

Buffer& Buffer::operator=(Buffer&& o) noexcept {
  std::swap(device_, o.device_);
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  return *this;
}

Buffer::~Buffer() {
  if (data_) device_->Free(data_, size_);
}

Result<Buffer> Buffer::Allocate(int64_t bytes, Device& device) {
  Buffer b;
  BATON_ASSIGN(b.data_, device.Allocate(bytes));
  b.device_ = &device;
  b.size_ = bytes;
  return b;
}

Result<Buffer> Buffer::Reserve(int64_t bytes, Device& device) {
  Buffer b;
  BATON_ASSIGN(b.data_, device.Reserve(bytes));
  b.device_ = &device;
  b.size_ = bytes;
  return b;
}

Status Buffer::Commit(int64_t begin, int64_t bytes) {
  BATON_CHECK(begin >= 0 && bytes >= 0 && bytes <= size_ - begin);
  return bytes > 0 ? device_->Commit(data_, begin, bytes) : Status::Ok();
}

Buffer Buffer::AllocateOrDie(int64_t bytes, Device& device) {
  Result<Buffer> b = Allocate(bytes, device);
  BATON_CHECK(b.ok());
  return std::move(b).value();
}

int64_t Buffer::Discard(int64_t begin, int64_t bytes) {
  BATON_CHECK(begin >= 0 && bytes >= 0 && bytes <= size_ - begin);
  return device_->Discard(data_, size_, begin, bytes);
}

Result<Arena::Piece> Arena::Take(int64_t bytes) {
  // Large enough that the unused rest of a buffer is negligible; untouched pages take no memory.
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

// The value of a line "NAME N kB" of a file of the kernel's.
static std::optional<int64_t> BytesOf(const char* file, std::string_view name) {
  std::optional<int64_t> bytes;
  if (FILE* f = std::fopen(file, "r")) {
    char line[256];
    while (!bytes && std::fgets(line, sizeof(line), f)) {
      if (std::string_view(line).starts_with(name))
        bytes = std::strtoll(line + name.size(), nullptr, 10) * 1024;
    }
    std::fclose(f);
  }
  return bytes;
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

int64_t AvailableMemoryBytes() {
  return BytesOf("/proc/meminfo", "MemAvailable:").value_or(int64_t{8} << 30);
}

int64_t PeakResidentBytes() { return BytesOf("/proc/self/status", "VmHWM:").value_or(0); }

void ResetPeakResidentBytes() {
  if (FILE* f = std::fopen("/proc/self/clear_refs", "w")) {
    std::fputs("5", f);
    std::fclose(f);
  }
}

}  // namespace baton
