// Writing a file so that a reader sees the old content or the whole new one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "baton/error.h"

namespace baton {

// A temporary file beside `path` that takes its place on Commit, and is removed without one. A
// symbolic link stays, and what it points to is replaced. The permissions of a file that was there
// stay. A full disk is an error and leaves what was there.
class AtomicFile {
 public:
  static Result<AtomicFile> Create(const std::string& path);
  AtomicFile(AtomicFile&& o) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  Status Write(std::span<const std::byte> bytes);
  // Forces the file to the disk and renames it.
  Status Commit();

 private:
  AtomicFile(std::string path, std::string temporary, int fd);
  Error Failure(int error) const;

  std::string path_, temporary_;
  int fd_ = -1;  // -1: closed, and the temporary file is gone
  int64_t written_ = 0;
};

Status WriteFileAtomically(const std::string& path, const std::string& text);

}  // namespace baton
