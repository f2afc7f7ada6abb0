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
  // Drops those pages of `part` that lie in the file from the process's resident memory; they stay
  // readable through the page cache.
  void Release(std::span<const std::byte> part) const;

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Takes over SIGBUS, so it is for programs only: if a mapped file was truncated after it was
// opened, reading the lost bytes ends the program with status 1 and one error line that names the
// file.
void ExitOnTruncatedFiles();

}  // namespace baton
