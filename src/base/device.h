// Where a backend computes: the memory that its operations read and write. Everything above the
// operations allocates, copies and clears through this, and never looks into memory that is not the
// host's.
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

  // Copies into, out of and within this memory, and zeroes, all after the operations called before
  // and ahead of those called later. `from` of an upload may change on return; a download is
  // complete on return.
  virtual void Upload(std::byte* to, const void* from, int64_t bytes) = 0;
  virtual void Download(void* to, const std::byte* from, int64_t bytes) = 0;
  virtual void Copy(std::byte* to, const std::byte* from, int64_t bytes) = 0;
  virtual void Zero(std::byte* at, int64_t bytes) = 0;

 private:
  friend class Buffer;
  // Zeroed, aligned for any operation. Errors: Resource.
  virtual Result<std::byte*> Allocate(int64_t bytes) = 0;
  virtual void Free(std::byte* data, int64_t bytes) = 0;
  // See Buffer::Discard; `data` and `size` are an allocation's.
  virtual int64_t Discard(std::byte* data, int64_t size, int64_t begin, int64_t bytes) = 0;
};

}  // namespace baton
