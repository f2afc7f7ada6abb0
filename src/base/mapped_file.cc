#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>
#include <utility>

namespace baton {
namespace {

// What the signal handler reads, which must neither lock nor allocate. Files that do not fit into
// the table are reported without their name.
struct Mapping {
  std::atomic<const std::byte*> data{nullptr};  // null: free
  std::atomic<size_t> size{0};
  char path[240];
};
constexpr size_t kMappings = 1024;
Mapping mappings[kMappings];
std::atomic<bool> reported{false};

void Remember(const std::byte* data, size_t size, const std::string& path) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  for (Mapping& m : mappings) {
    if (m.data.load(std::memory_order_relaxed) != nullptr) continue;
    size_t n = 0;
    for (; n + 1 < sizeof(m.path) && n < path.size(); ++n)
      m.path[n] = path[n] >= 0x20 && path[n] < 0x7f ? path[n] : '?';
    m.path[n] = 0;
    m.size.store(size, std::memory_order_relaxed);
    m.data.store(data, std::memory_order_release);
    return;
  }
}

void Forget(const std::byte* data) {
  for (Mapping& m : mappings) {
    if (m.data.load(std::memory_order_relaxed) == data)
      m.data.store(nullptr, std::memory_order_release);
  }
}

void Say(const char* text) { (void)!::write(STDERR_FILENO, text, std::strlen(text)); }

void OnBusError(int, siginfo_t* info, void*) {
  const auto* at = static_cast<const std::byte*>(info->si_addr);
  for (const Mapping& m : mappings) {
    const std::byte* data = m.data.load(std::memory_order_acquire);
    if (data == nullptr || at < data || at >= data + m.size.load(std::memory_order_relaxed))
      continue;
    if (reported.exchange(true)) {
      for (;;) ::pause();  // another thread is ending the program
    }
    Say("baton: error: ");
    Say(m.path);
    Say(": the file became shorter, or its disk failed, while it was being read (hint: write "
        "models under another name and rename them)\n");
    ::_exit(1);
  }
  ::signal(SIGBUS, SIG_DFL);  // not in a mapped file: the default action
}

}  // namespace

void ExitOnTruncatedFiles() {
  struct sigaction action {};
  action.sa_sigaction = OnBusError;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, nullptr);
}

MappedFile::MappedFile(MappedFile&& o) noexcept
    : data_(std::exchange(o.data_, nullptr)), size_(std::exchange(o.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) return;
  Forget(data_);
  ::munmap(const_cast<std::byte*>(data_), size_);
}

Result<MappedFile> MappedFile::Open(const std::string& path) {
  // Non-blocking, so that a pipe without a writer is refused below instead of blocking here.
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
    Remember(file.data_, file.size_, path);
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
  // These are read-only pages of a file: no data is lost, and on failure they only stay resident.
  (void)::madvise(const_cast<std::byte*>(begin), static_cast<size_t>(end - begin), MADV_DONTNEED);
}

}  // namespace baton
