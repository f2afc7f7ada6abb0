#include "baton/plan.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace baton {
namespace {

constexpr int64_t kMaxFileBytes =
    16 << 20;  // a plan is kilobytes; anything larger is another kind of file

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

// The name appears only once the content is on the disk, so a reader sees the old file or the whole
// new one.
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

}  // namespace

std::string ToString(Role role) {
  switch (role) {
    case Role::kFull:
      return "full";
    case Role::kSelect:
      return "select";
    case Role::kScan:
      return "scan";
    case Role::kReuse:
      return "reuse";
    case Role::kWindow:
      return "window";
  }
  return "unknown";
}

Plan Plan::Dense(int layers) {
  Plan plan;
  plan.layers.resize(layers);
  return plan;
}

Result<Plan> Plan::Load(const std::string& path) {
  std::error_code ec;
  const auto bytes = std::filesystem::file_size(path, ec);
  if (ec) {
    return Error(ec == std::errc::no_such_file_or_directory ? Error::Code::kNotFound
                                                            : Error::Code::kIo,
                 fmt::format("{}: cannot read: {}", path, ec.message()))
        .Hint("a plan is a JSON file written by `baton plan`");
  }
  if (bytes > static_cast<uintmax_t>(kMaxFileBytes))
    return Error::InvalidArgument("{}: {} bytes, a plan has at most {}", path, bytes, kMaxFileBytes)
        .Hint("is this the model file?");
  std::ifstream file(path, std::ios::binary);
  std::string text(bytes, '\0');
  if (!file.read(text.data(), static_cast<std::streamsize>(bytes)))
    return Error::Io("{}: cannot read {} bytes", path, bytes);
  auto plan = Parse(text);
  if (!plan.ok()) return std::move(plan).error().At(path);
  return plan;
}

Status Plan::Save(const std::string& path) const {
  const std::string text = ToJson();
  // What cannot be read back (a NaN among the evidence, details that are no JSON) must not replace
  // a good file.
  if (auto back = Parse(text); !back.ok())
    return std::move(back).error().At(path + ": the plan cannot be saved");
  return WriteFileAtomically(path, text);
}

std::string Plan::Summary() const {
  int count[5] = {};
  for (const LayerRole& layer : layers) ++count[static_cast<int>(layer.role)];
  std::string out = fmt::format("{} layers: ", layers.size());
  for (Role role : {Role::kFull, Role::kSelect, Role::kScan, Role::kReuse, Role::kWindow})
    out += fmt::format("{}{} {}", role == Role::kFull ? "" : ", ", count[static_cast<int>(role)],
                       ToString(role));
  out += budget.fraction > 0 ? fmt::format(" | {:.4g} % of the context", 100 * budget.fraction)
                             : fmt::format(" | {} tokens", budget.tokens);
  const char* scopes[] = {"all", "group", "head_map"};
  out += fmt::format(", sink {}, recent {}, scope {}, {}", sink, recent,
                     scopes[static_cast<int>(scope)], pool == Pool::kSum ? "sum" : "max");
  if (block > 1) out += fmt::format(", blocks of {}", block);
  if (prefill.sparse)
    out += fmt::format(", prompt in tiles of {} with {:.4g} % of the context, at least {}",
                       prefill.tile, 100 * prefill.fraction, prefill.min);
  return out;
}

}  // namespace baton
