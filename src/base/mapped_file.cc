#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace baton {

MappedFile::MappedFile(MappedFile&& o) noexcept
    : data_(std::exchange(o.data_, nullptr)), size_(std::exchange(o.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

Result<MappedFile> MappedFile::Open(const std::string& path) {
  // Non-blocking: a pipe without a writer is refused below instead of waited for.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    if (errno == ENOENT || errno == ENOTDIR) return Error::NotFound("{}: no such file", path);
    return Error::Io("{}: cannot open: {}", path, std::strerror(errno));
  }
  struct stat st {};
  if (::fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
    ::close(fd);
    return Error::Io("{}: expected a regular file", path);
  }
  MappedFile file;
  if (st.st_size > 0) {
    void* p = ::mmap(nullptr, static_cast<size_t>(st.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED) {
      const int code = errno;
      ::close(fd);
      return Error::Io("{}: cannot map {} bytes: {}", path, st.st_size, std::strerror(code));
    }
    file.data_ = static_cast<const std::byte*>(p);
    file.size_ = static_cast<size_t>(st.st_size);
  }
  ::close(fd);
  return file;
}

void MappedFile::Release(std::span<const std::byte> part) const {
  const std::byte* begin = std::max(part.data(), data_);
  const std::byte* end = std::min(part.data() + part.size(), data_ + size_);
  if (begin >= end) return;
  const int64_t page = ::sysconf(_SC_PAGESIZE);
  begin -= (begin - data_) % page;
  // Read-only pages of a file: nothing can be lost, and a failure costs memory only.
  (void)::madvise(const_cast<std::byte*>(begin), static_cast<size_t>(end - begin), MADV_DONTNEED);
}

}  // namespace baton
