#include "base/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

namespace baton {
namespace {

std::string ErrnoText(int error) { return std::strerror(error); }

// Writes all of `text` and forces it to the disk. The descriptor stays open.
int WriteAndSync(int fd, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    done += static_cast<size_t>(n);
  }
  return ::fsync(fd) < 0 ? errno : 0;
}

}  // namespace

Status WriteFileAtomically(const std::string& path, const std::string& text) {
  const std::string temporary = fmt::format("{}.{}.tmp", path, ::getpid());
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return Error::Io("{}: cannot create: {}", temporary, ErrnoText(errno));
  int error = WriteAndSync(fd, text);
  // Network file systems report a full disk only here.
  if (::close(fd) < 0 && !error) error = errno;
  if (!error && ::rename(temporary.c_str(), path.c_str()) < 0) error = errno;
  if (error) {
    ::unlink(temporary.c_str());
    Error failure = Error::Io("{}: cannot write {} bytes: {}", path, text.size(), ErrnoText(error));
    if (error == ENOSPC || error == EDQUOT)
      return std::move(failure).Hint("the disk is full; the previous file is untouched");
    return failure;
  }
  std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (folder.empty()) folder = ".";
  // Makes the rename itself durable. Some file systems cannot sync a folder, and the file is
  // complete either way.
  if (const int dir = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); dir >= 0) {
    (void)::fsync(dir);
    ::close(dir);
  }
  return Status::Ok();
}

}  // namespace baton
