#include "base/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

namespace baton {
namespace {

// Write-back starts every kFlushBytes, so at most twice as much is dirty at any time. Otherwise
// Commit, whose sync cannot be interrupted, would wait for gigabytes.
constexpr int64_t kFlushBytes = int64_t{64} << 20;

// The path behind symbolic links; the target of the last one need not exist.
Result<std::string> Target(const std::string& path) {
  namespace fs = std::filesystem;
  constexpr int kMaxLinks = 40;  // the kernel's limit
  fs::path at = path;
  std::error_code ec;
  for (int links = 0; fs::is_symlink(fs::symlink_status(at, ec)); ++links) {
    const fs::path to = fs::read_symlink(at, ec);
    if (ec || links == kMaxLinks)
      return Error::Io("cannot write {}: its symbolic link leads nowhere", path);
    at = to.is_absolute() ? to : at.parent_path() / to;
  }
  return at.string();
}

}  // namespace

Result<AtomicFile> AtomicFile::Create(const std::string& given) {
  BATON_ASSIGN(const std::string path, Target(given));
  std::string temporary = fmt::format("{}.{}.tmp", path, ::getpid());
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  struct stat there {};
  if (fd >= 0 && ::stat(path.c_str(), &there) == 0) (void)::fchmod(fd, there.st_mode & 07777);
  if (fd < 0)
    return Error::Io("cannot write {}: {}", path, std::strerror(errno))
        .Hint("does the folder exist, and is it writable?");
  return AtomicFile(path, std::move(temporary), fd);
}

AtomicFile::AtomicFile(std::string path, std::string temporary, int fd)
    : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd) {}

AtomicFile::AtomicFile(AtomicFile&& o) noexcept
    : path_(std::move(o.path_)),
      temporary_(std::move(o.temporary_)),
      fd_(std::exchange(o.fd_, -1)),
      written_(o.written_) {}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

Error AtomicFile::Failure(int error) const {
  Error failure = Error::Io("{}: cannot write: {}", path_, std::strerror(error));
  if (error == ENOSPC || error == EDQUOT)
    return std::move(failure).Hint("the disk is full; what was there is untouched");
  return failure;
}

Status AtomicFile::Write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const int64_t window = written_ / kFlushBytes * kFlushBytes;
    const auto room = static_cast<size_t>(window + kFlushBytes - written_);
    const ssize_t n = ::write(fd_, bytes.data(), std::min(bytes.size(), room));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Failure(errno);
    written_ += n;
    bytes = bytes.subspan(static_cast<size_t>(n));
    if (written_ < window + kFlushBytes) continue;
    // Errors are ignored here: Commit reports them.
    (void)::sync_file_range(fd_, window, kFlushBytes, SYNC_FILE_RANGE_WRITE);
    if (window > 0)
      (void)::sync_file_range(fd_, window - kFlushBytes, kFlushBytes, SYNC_FILE_RANGE_WAIT_BEFORE);
  }
  return Status::Ok();
}

Status AtomicFile::Commit() {
  int error = ::fsync(fd_) < 0 ? errno : 0;
  // Network file systems report a full disk only here.
  if (::close(std::exchange(fd_, -1)) < 0 && !error) error = errno;
  if (!error && ::rename(temporary_.c_str(), path_.c_str()) < 0) error = errno;
  if (error) {
    ::unlink(temporary_.c_str());
    return Failure(error);
  }
  std::filesystem::path folder = std::filesystem::path(path_).parent_path();
  if (folder.empty()) folder = ".";
  // Makes the rename itself durable. Some file systems cannot sync a folder, and the file is
  // complete either way.
  if (const int dir = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); dir >= 0) {
    (void)::fsync(dir);
    ::close(dir);
  }
  return Status::Ok();
}

Status WriteFileAtomically(const std::string& path, const std::string& text) {
  BATON_ASSIGN(AtomicFile file, AtomicFile::Create(path));
  BATON_TRY(file.Write(std::as_bytes(std::span(text))));
  return file.Commit();
}

}  // namespace baton
