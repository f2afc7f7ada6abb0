// Owning memory of a device. Host memory is on huge pages where the system grants them: 4 KiB pages
// halve the read bandwidth of a virtual machine with nested paging (docs/performance.md), so
// everything that decode streams is in such memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/device.h"
#include "baton/error.h"

namespace baton {

class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& o) noexcept;
  Buffer& operator=(Buffer&& o) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  // Zeroed. On the host 2 MiB aligned and advised as huge pages; address space is reserved, memory
  // is used when touched.
  static Result<Buffer> Allocate(int64_t bytes, Device& device = Device::Host());
  // The same without the memory: only what Commit was called for may be used. On the host both are
  // Allocate, whose memory is used when touched.
  static Result<Buffer> Reserve(int64_t bytes, Device& device = Device::Host());
  // Gives [begin, begin + bytes) memory, zeroed where it has none. Errors: Resource.
  Status Commit(int64_t begin, int64_t bytes);
  // As Allocate, for sizes that fail only when the machine is out of memory; aborts then.
  static Buffer AllocateOrDie(int64_t bytes, Device& device = Device::Host());

  // Returns the whole 2 MiB pages (of reserved memory: what its device maps at a time) within
  // [begin, begin + bytes) to the system. On the host they then read as zeros and take memory again
  // when touched; reserved memory of other devices has to be committed again. Smaller pieces are
  // kept: returning them would split huge pages. Result: the bytes returned, 0 also where the
  // system declines.
  int64_t Discard(int64_t begin, int64_t bytes);

  std::byte* data() const { return data_; }
  int64_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  Device* device_ = nullptr;
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

// Elements in a device's memory: scratch and small tables. Grows when needed and never shrinks.
template <typename T>
class Array {
 public:
  explicit Array(Device& device = Device::Host()) : device_(&device) {}

  // Makes room for n elements; the content is lost when the array has to grow.
  T* Reserve(int64_t n) {
    const auto size = static_cast<int64_t>(sizeof(T));
    if (n * size > buffer_.size())
      buffer_ = Buffer::AllocateOrDie(std::max(n * size, buffer_.size() * 3 / 2), *device_);
    return data();
  }
  void Upload(std::span<const T> values, int64_t at = 0) {
    device_->Upload(bytes(at), values.data(), static_cast<int64_t>(values.size_bytes()));
  }
  void Download(std::span<T> to, int64_t at = 0) const {
    device_->Download(to.data(), bytes(at), static_cast<int64_t>(to.size_bytes()));
  }
  // The first n elements on the host: the array itself where it is host memory, otherwise `copy`.
  std::span<const T> OnHost(int64_t n, std::vector<T>& copy) const {
    if (device_->host()) return {data(), static_cast<size_t>(n)};
    copy.resize(static_cast<size_t>(n));
    Download(copy);
    return copy;
  }

  T* data() const { return buffer_.as<T>(); }
  int64_t capacity() const { return buffer_.size() / static_cast<int64_t>(sizeof(T)); }
  bool empty() const { return capacity() == 0; }
  Device& device() const { return *device_; }

 private:
  std::byte* bytes(int64_t at) const {
    return buffer_.data() + at * static_cast<int64_t>(sizeof(T));
  }

  Device* device_;
  Buffer buffer_;
};

// An array with these elements.
template <typename T>
Array<T> UploadArray(std::span<const T> values, Device& device) {
  Array<T> array(device);
  array.Reserve(static_cast<int64_t>(values.size()));
  array.Upload(values);
  return array;
}

// Cuts large buffers into zeroed, 64-byte aligned pieces: one Buffer per weight matrix would round
// each up to whole huge pages. A piece keeps its buffer alive; memory is not reused.
class Arena {
 public:
  struct Piece {
    std::shared_ptr<const Buffer> owner;
    std::byte* data = nullptr;
  };
  Result<Piece> Take(int64_t bytes);

 private:
  std::shared_ptr<Buffer> buffer_;
  int64_t used_ = 0;
};

struct HugePageUse {
  int64_t huge_bytes = 0;   // AnonHugePages of this process
  int64_t total_bytes = 0;  // resident anonymous memory
  bool advised = false;     // the system allows huge pages on request
};
HugePageUse MeasureHugePages();

// What the system can still give without swapping; 8 GiB where it does not say.
int64_t AvailableMemoryBytes();

// The peak resident memory of this process, mapped files included (VmHWM); 0 where the system does
// not report it. Reset sets the peak to the current value.
int64_t PeakResidentBytes();
void ResetPeakResidentBytes();

}  // namespace baton
