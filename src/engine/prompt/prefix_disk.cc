#include "engine/prompt/prefix_disk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <optional>
#include <regex>
#include <utility>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/checksum.h"

namespace baton {
namespace {

constexpr const char* kExtension = ".prefix";
// Jobs that may wait; their pages stay in memory until they are written.
constexpr size_t kMostJobs = 8;

class OpenFile {
 public:
  explicit OpenFile(const std::string& path) : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~OpenFile() {
    if (fd_ >= 0) ::close(fd_);
  }
  OpenFile(const OpenFile&) = delete;

  bool ok() const { return fd_ >= 0; }
  bool Read(std::span<std::byte> to, int64_t offset) const {
    while (!to.empty()) {
      const ssize_t n = ::pread(fd_, to.data(), to.size(), offset);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      to = to.subspan(static_cast<size_t>(n));
      offset += n;
    }
    return true;
  }
  // The size; -1: no regular file.
  int64_t Size(int64_t* modified) const {
    struct stat s {};
    if (fd_ < 0 || ::fstat(fd_, &s) != 0 || !S_ISREG(s.st_mode)) return -1;
    *modified = s.st_mtim.tv_sec * int64_t{1'000'000'000} + s.st_mtim.tv_nsec;
    return s.st_size;
  }

 private:
  int fd_;
};

// Whether a file has the name of one that Write makes, or that it was making: nobody else's is
// touched.
bool IsOurs(const std::filesystem::path& path) {
  static const std::regex pattern(R"([0-9a-f]{32}-[0-9]+-[0-9]+\.prefix(\..*\.tmp)?)");
  return std::regex_match(path.filename().string(), pattern);
}

int64_t Now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// The header of a whole file; an error for one that is not what it says.
Result<PrefixFileHeader> ReadHeader(const OpenFile& file, int64_t size, int64_t* payload) {
  std::vector<std::byte> bytes(kPrefixFileStart);
  if (size < kPrefixFileStart || !file.Read(bytes, 0)) return Error::Corrupt("cut short");
  BATON_ASSIGN(*payload, PrefixFilePayload(bytes));
  if (*payload > size) return Error::Corrupt("cut short");
  bytes.resize(static_cast<size_t>(*payload));
  if (!file.Read(bytes, 0)) return Error::Corrupt("cut short");
  BATON_ASSIGN(PrefixFileHeader header, ParsePrefixFile(bytes));
  if (header.PayloadBytes() != size - *payload) return Error::Corrupt("payload of another size");
  return header;
}

uint64_t ChecksumOf(const PrefixDisk::Page& page) { return Checksum(page[1], Checksum(page[0])); }

std::vector<std::string> HashesOf(const PrefixFileHeader& header) {
  std::vector<std::string> hashes;
  std::string hash = header.before;
  for (const PrefixFileBlock& b : header.blocks) {
    hash = PrefixHash(hash, b.tokens);
    hashes.push_back(hash);
  }
  return hashes;
}

}  // namespace

PrefixDisk::PrefixDisk(std::string folder, int64_t most_bytes) : folder_(std::move(folder)) {
  counts_.most_bytes = most_bytes;
}

Result<std::unique_ptr<PrefixDisk>> PrefixDisk::Open(const std::string& folder,
                                                     int64_t most_bytes) {
  std::error_code ec;
  std::filesystem::create_directories(folder, ec);
  if (!std::filesystem::is_directory(folder, ec) || ::access(folder.c_str(), W_OK) != 0)
    return Error::Io("prefix cache: cannot write to the folder {}", folder)
        .Hint("does it exist, and is it writable?");
  std::unique_ptr<PrefixDisk> disk(new PrefixDisk(folder, most_bytes));
  BATON_TRY(disk->ReadFolder());
  disk->thread_ = std::thread([d = disk.get()] { d->WriteJobs(); });
  return disk;
}

PrefixDisk::~PrefixDisk() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

Status PrefixDisk::ReadFolder() {
  std::error_code ec;
  std::filesystem::directory_iterator entries(folder_, ec);
  if (ec) return Error::Io("prefix cache: cannot read {}: {}", folder_, ec.message());
  std::vector<std::string> paths;
  for (const auto& entry : entries)
    if (IsOurs(entry.path())) paths.push_back(entry.path().string());
  const std::lock_guard lock(mutex_);
  for (const std::string& path : paths) {
    // What a process that was killed left of its last file.
    if (!path.ends_with(kExtension)) {
      std::filesystem::remove(path, ec);
      continue;
    }
    auto file = std::make_shared<File>(File{.path = path});
    int64_t payload = 0;
    const OpenFile open(path);
    if (!open.ok()) continue;
    file->bytes = open.Size(&file->used);
    Result<PrefixFileHeader> header = ReadHeader(open, file->bytes, &payload);
    if (!header.ok()) {
      // Of another version: perhaps another build's, which shares the folder.
      if (header.error().code() == Error::Code::kUnsupported) continue;
      std::filesystem::remove(path, ec);
      ++counts_.damaged;
      continue;
    }
    file->header = std::move(header).value();
    file->hashes = HashesOf(file->header);
    file->offsets.push_back(payload);
    Add(std::move(file));
  }
  Shrink();
  return Status::Ok();
}

void PrefixDisk::Add(std::shared_ptr<File> file) {
  for (size_t b = 0; b < file->header.blocks.size(); ++b) {
    file->offsets.push_back(file->offsets[b] + file->header.PayloadBytes(b));
    places_[file->hashes[b]].push_back({file, b});
  }
  counts_.bytes += file->bytes;
  counts_.files++;
  files_.push_back(std::move(file));
}

void PrefixDisk::Forget(const std::shared_ptr<File>& file) {
  for (const std::string& hash : file->hashes) {
    const auto at = places_.find(hash);
    if (at == places_.end()) continue;
    std::erase_if(at->second, [&](const Place& p) { return p.first == file; });
    if (at->second.empty()) places_.erase(at);
  }
  counts_.bytes -= file->bytes;
  counts_.files--;
  std::error_code ignored;
  std::filesystem::remove(file->path, ignored);
  std::erase(files_, file);
}

void PrefixDisk::Shrink() {
  while (counts_.bytes > counts_.most_bytes && !files_.empty()) {
    const auto oldest =
        std::min_element(files_.begin(), files_.end(),
                         [](const auto& a, const auto& b) { return a->used < b->used; });
    Forget(std::shared_ptr<File>(*oldest));
  }
}

bool PrefixDisk::Save(Job job) {
  {
    const std::lock_guard lock(mutex_);
    if (jobs_.size() >= kMostJobs) {
      ++counts_.skipped;
      written_.push_back(std::move(job.path));
      return false;
    }
    jobs_.push_back(std::move(job));
  }
  changed_.notify_all();
  return true;
}

std::vector<PrefixPath> PrefixDisk::Written(bool wait) {
  std::unique_lock lock(mutex_);
  if (wait) changed_.wait(lock, [&] { return jobs_.empty() && !writing_; });
  return std::exchange(written_, {});
}

void PrefixDisk::WriteJobs() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    writing_ = true;
    lock.unlock();
    const Status status = Write(job);
    lock.lock();
    if (!status.ok()) ++counts_.skipped;
    writing_ = false;
    written_.push_back(std::move(job.path));
    changed_.notify_all();
  }
}

Status PrefixDisk::Write(Job& job) {
  for (size_t b = 0; b < job.pages.size(); ++b) {
    PrefixFileBlock& block = job.header.blocks[b];
    block.checksums.assign(block.has.size(), 0);
    auto page = job.pages[b].begin();
    for (size_t c = 0; c < block.has.size(); ++c)
      if (block.has[c]) block.checksums[c] = ChecksumOf(*page++);
  }
  auto file = std::make_shared<File>();
  {
    const std::lock_guard lock(mutex_);
    // Named by what it holds; another process may share the folder.
    file->path = fmt::format("{}/{}-{}-{}{}", folder_, job.hashes.back().substr(0, 32), ::getpid(),
                             ++last_name_, kExtension);
  }
  const std::vector<std::byte> head = EncodePrefixFile(job.header);
  BATON_ASSIGN(AtomicFile out, AtomicFile::Create(file->path));
  BATON_TRY(out.Write(head));
  for (const std::vector<Page>& block : job.pages) {
    for (const Page& page : block)
      for (const std::span<std::byte>& part : page) BATON_TRY(out.Write(part));
  }
  BATON_TRY(out.Commit());
  file->header = std::move(job.header);
  file->hashes = std::move(job.hashes);
  file->offsets.push_back(std::ssize(head));
  file->bytes = std::ssize(head) + file->header.PayloadBytes();
  file->used = Now();
  const std::lock_guard lock(mutex_);
  counts_.written_bytes += file->bytes;
  Add(std::move(file));
  Shrink();
  return Status::Ok();
}

bool PrefixDisk::Has(const std::string& hash) const {
  const std::lock_guard lock(mutex_);
  return places_.contains(hash);
}

bool PrefixDisk::Has(const std::string& hash, int cache) const {
  const std::lock_guard lock(mutex_);
  const auto at = places_.find(hash);
  return at != places_.end() &&
         std::any_of(at->second.begin(), at->second.end(), [&](const Place& p) {
           const PrefixFileBlock& b = p.first->header.blocks[p.second];
           return static_cast<size_t>(cache) < b.has.size() && b.has[static_cast<size_t>(cache)];
         });
}

void PrefixDisk::Read(const std::string& hash, std::span<const int32_t> tokens,
                      const std::vector<Page>& wanted, std::vector<bool>* read) {
  std::vector<Place> places;
  {
    const std::lock_guard lock(mutex_);
    if (const auto at = places_.find(hash); at != places_.end()) places = at->second;
  }
  read->assign(wanted.size(), false);
  for (const auto& [file, index] : places) {
    const PrefixFileHeader& h = file->header;
    const PrefixFileBlock& block = h.blocks[index];
    if (h.page_bytes.size() != wanted.size() ||
        !std::equal(tokens.begin(), tokens.end(), block.tokens.begin(), block.tokens.end()))
      continue;
    std::optional<OpenFile> open;
    int64_t bytes = 0, at = file->offsets[index];
    bool whole = true;
    for (size_t c = 0; c < wanted.size() && whole; ++c) {
      if (!block.has[c]) continue;
      const int64_t from = std::exchange(at, at + h.page_bytes[c]);
      const auto rows = std::ssize(wanted[c][0]), copy = std::ssize(wanted[c][1]);
      if (rows == 0 || (*read)[c] || rows + copy != h.page_bytes[c]) continue;
      if (!open) {
        open.emplace(file->path);
        if (!open->ok() && errno != ENOENT) break;  // too many open files, say: it may be good
      }
      whole = open->Read(wanted[c][0], from) && open->Read(wanted[c][1], from + rows) &&
              ChecksumOf(wanted[c]) == block.checksums[c];
      (*read)[c] = whole;
      bytes += rows + copy;
    }
    const std::lock_guard lock(mutex_);
    counts_.read_bytes += bytes;
    if (!whole && std::find(files_.begin(), files_.end(), file) != files_.end()) {
      ++counts_.damaged;
      Forget(file);
    } else if (bytes > 0 && file->used < Now() - 1'000'000'000) {
      file->used = Now();
      (void)::utimensat(AT_FDCWD, file->path.c_str(), nullptr, 0);
    }
  }
}

PrefixDisk::Counts PrefixDisk::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

}  // namespace baton
