// The memory of a device, which a backend's operations read and write. Code above the operations
// allocates, copies and clears through this interface and dereferences pointers only into host
// memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "baton/error.h"

namespace baton {

class Device {
 public:
  virtual ~Device() = default;

  // The process's own memory, on huge pages.
  static Device& Host();

  // Whether pointers into this memory may be dereferenced by the host.
  virtual bool host() const = 0;

  // Copy into, out of and within this memory, and zero it. All are ordered with the operations:
  // after those called before, ahead of those called later. `from` of an upload may change on
  // return; a download is complete on return.
  virtual void Upload(std::byte* to, const void* from, int64_t bytes) = 0;
  virtual void Download(void* to, const std::byte* from, int64_t bytes) = 0;
  virtual void Copy(std::byte* to, const std::byte* from, int64_t bytes) = 0;
  virtual void Zero(std::byte* at, int64_t bytes) = 0;

  // Host memory that this device's operations read and write in place, over a bus: larger and
  // slower than its own. Copies and zeroing of this device work on it too.
  virtual Device& host_memory() { return *this; }

  // Returns when the operations called so far have run: whoever times them needs it.
  virtual void Wait() {}

 private:
  friend class Buffer;
  // Zeroed, aligned for any operation. Errors: Resource.
  virtual Result<std::byte*> Allocate(int64_t bytes) = 0;
  // See Buffer::Reserve and Buffer::Commit. Here: memory that is used when touched needs neither.
  virtual Result<std::byte*> Reserve(int64_t bytes) { return Allocate(bytes); }
  virtual Status Commit(std::byte*, int64_t, int64_t) { return Status::Ok(); }
  virtual void Free(std::byte* data, int64_t bytes) = 0;
  // See Buffer::Discard; `data` and `size` describe one allocation.
  virtual int64_t Discard(std::byte* data, int64_t size, int64_t begin, int64_t bytes) = 0;
};

}  // namespace baton
