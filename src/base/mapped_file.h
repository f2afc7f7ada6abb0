// A file mapped read-only. Pages come from the page cache, so opening costs nothing until the bytes
// are read.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "baton/error.h"

namespace baton {

class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(MappedFile&& o) noexcept;
  MappedFile& operator=(MappedFile&& o) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  // Errors: no such file, not a regular file, not readable. An empty file gives empty bytes.
  static Result<MappedFile> Open(const std::string& path);

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // Takes the part of these bytes that lies in the file out of the process's resident memory; they
  // stay readable, from the page cache.
  void Release(std::span<const std::byte> part) const;

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// For programs, as it takes over SIGBUS: a read of bytes that a mapped file has lost since it was
// opened ends the program with one error line that names the file, and status 1.
void ExitOnTruncatedFiles();

}  // namespace baton
