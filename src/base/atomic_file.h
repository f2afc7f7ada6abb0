// Replaces a file atomically: a reader sees either the old content or the complete new one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "baton/error.h"

namespace baton {

// Writes a temporary file beside `path`, which replaces it on Commit and is removed without one. A
// symbolic link is kept and its target replaced. The permissions of an existing file are kept. A
// full disk is an error and leaves the existing file unchanged.
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
