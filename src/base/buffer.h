// Owning memory on huge pages where the system grants them: 4 KiB pages halve the read bandwidth of
// a virtual machine with nested paging (docs/performance.md), so everything that decode streams
// lives here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

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

  // Zeroed on first touch, 2 MiB aligned, advised as huge pages; address space is reserved, memory
  // is used when touched.
  static Result<Buffer> Allocate(int64_t bytes);
  // As above for sizes that cannot fail but for a full machine; aborts then.
  static Buffer AllocateOrDie(int64_t bytes);

  // Returns the memory of the whole 2 MiB pages within [begin, begin + bytes) to the system; those
  // read as zeros then, and take memory again when touched. Smaller pieces stay: returning them
  // would split huge pages. The bytes returned, 0 also where the system declines.
  int64_t Discard(int64_t begin, int64_t bytes);

  std::byte* data() const { return data_; }
  int64_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
  int64_t mapped_ = 0;
};

// Cuts buffers into pieces, zeroed and 64-byte aligned: a Buffer each would round every weight
// matrix up to whole huge pages. A piece keeps the buffer that it lies in; nothing is reused.
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

// The most memory that this process had at once, mapped files included (VmHWM); 0 where the system
// does not say. Reset starts again from what it has now.
int64_t PeakResidentBytes();
void ResetPeakResidentBytes();

}  // namespace baton
