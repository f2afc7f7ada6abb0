#include "apps/output.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "base/atomic_file.h"

namespace baton::apps {
namespace {

// Columns that a string takes on a terminal, near enough: one per UTF-8 character.
size_t Columns(std::string_view s) {
  return static_cast<size_t>(
      std::count_if(s.begin(), s.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string Repeat(std::string_view piece, size_t n) {
  std::string s;
  while (n-- > 0) s += piece;
  return s;
}

Result<std::string> ReadAll(std::FILE* file, const std::string& name) {
  std::string text;
  char buffer[1 << 16];
  size_t n = 0;
  while ((n = std::fread(buffer, 1, sizeof buffer, file)) > 0) text.append(buffer, n);
  if (std::ferror(file)) return Error::Io("cannot read {}: {}", name, std::strerror(errno));
  return text;
}

// A device or a pipe cannot be replaced by renaming, and should not be.
bool Replaceable(const std::string& path) {
  std::error_code code;
  return !std::filesystem::exists(path, code) || std::filesystem::is_regular_file(path, code);
}

}  // namespace

Status Print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0)
    return Status::Ok();
  return Error::Io("cannot write standard output: {}", std::strerror(errno));
}

Status PrintJson(const Json& object) {
  return Print(object.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

void Note(std::string_view line) { fmt::print(stderr, "{}\n", line); }

void PrintError(const Error& error) {
  std::string line = error.ToString();
  std::replace(line.begin(), line.end(), '\n', ' ');
  fmt::print(stderr, "baton: error: {}\n", line);
}

Result<std::string> ReadFile(const std::string& path) {
  std::error_code code;
  if (std::filesystem::is_directory(path, code))
    return Error::InvalidArgument("{} is a directory, expected a file", path);
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (!file) return Error::NotFound("cannot open {}: {}", path, std::strerror(errno));
  auto text = ReadAll(file, path);
  std::fclose(file);
  return text;
}

Result<std::string> ReadStdin() { return ReadAll(stdin, "standard input"); }

Status CheckWritable(const std::string& path) {
  if (!Replaceable(path)) return Status::Ok();
  auto file = AtomicFile::Create(path);  // gone again without a Commit
  return file.ok() ? Status::Ok() : Status(std::move(file).error());
}

Status WriteFile(const std::string& path, const std::string& text) {
  if (Replaceable(path)) return WriteFileAtomically(path, text);
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (!file) return Error::Io("cannot write {}: {}", path, std::strerror(errno));
  bool ok = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  ok = std::fflush(file) == 0 && ok;
  int problem = ok ? 0 : errno;
  if (std::fclose(file) != 0 && ok) ok = false, problem = errno;
  return ok ? Status::Ok() : Error::Io("cannot write {}: {}", path, std::strerror(problem));
}

bool StdinIsTerminal() { return isatty(STDIN_FILENO) == 1; }

Table::Table(std::vector<std::string> heads, int left) : left_(left) {
  rows_.push_back(std::move(heads));
}

void Table::Row(std::vector<std::string> cells) {
  cells.resize(rows_[0].size());
  rows_.push_back(std::move(cells));
}

std::string Table::ToString() const {
  std::vector<size_t> widths(rows_[0].size());
  for (const auto& row : rows_)
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], Columns(row[c]));
  std::string out;
  for (size_t r = 0; r < rows_.size(); ++r) {
    std::string line;
    for (size_t c = 0; c < widths.size(); ++c) {
      const std::string pad(widths[c] - Columns(rows_[r][c]), ' ');
      line += c ? "  " : "";
      line += static_cast<int>(c) < left_ ? rows_[r][c] + pad : pad + rows_[r][c];
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
    if (r > 0) continue;
    for (size_t c = 0; c < widths.size(); ++c) out += (c ? "  " : "") + std::string(widths[c], '-');
    out += "\n";
  }
  return out;
}

Progress::Progress() : terminal_(isatty(STDERR_FILENO) == 1), start_(Clock::now()) {
  if (!terminal_) speaker_ = std::thread([this] { SayAgain(); });
}

Progress::~Progress() {
  if (drawn_) fmt::print(stderr, "\r\033[K");
  if (!speaker_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    end_ = true;
  }
  ended_.notify_one();
  speaker_.join();
}

OnProgress Progress::Callback() {
  if (terminal_) return [this](double fraction, std::string_view what) { Draw(fraction, what); };
  return [this](double fraction, std::string_view what) {
    const std::lock_guard lock(mutex_);
    fraction_ = fraction;
    what_ = what;
  };
}

void Progress::SayAgain() {
  std::unique_lock lock(mutex_);
  while (!ended_.wait_for(lock, std::chrono::seconds(30), [this] { return end_; })) {
    if (!what_.empty())
      Note(fmt::format("baton: {:.0f} %  {}  {}", fraction_ * 100, TimeLeft(fraction_), what_));
  }
}

// "3 min left", or nothing: the first few percent say little about the rest.
std::string Progress::TimeLeft(double fraction) const {
  const double elapsed = std::chrono::duration<double>(Clock::now() - start_).count();
  return fraction > 0.03 && elapsed > 2
             ? fmt::format("{} left", Duration(elapsed / fraction - elapsed))
             : "";
}

void Progress::Draw(double fraction, std::string_view what) {
  const auto now = Clock::now();
  if (drawn_ && now - last_ < std::chrono::milliseconds(100)) return;
  last_ = now, drawn_ = true;
  fraction = std::clamp(std::isfinite(fraction) ? fraction : 0.0, 0.0, 1.0);
  winsize size{};
  const int columns =
      ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
  constexpr int kBar = 24;
  const auto filled = static_cast<size_t>(fraction * kBar);
  std::string tail = fmt::format(" {:3.0f} %  {}  ", fraction * 100, TimeLeft(fraction));
  const int room = columns - kBar - static_cast<int>(Columns(tail)) - 3;
  tail += what.substr(0, static_cast<size_t>(std::max(room, 0)));
  fmt::print(stderr, "\r\033[K[{}{}]{}", Repeat("#", filled), Repeat(".", kBar - filled), tail);
  std::fflush(stderr);
}

std::string Sketch(const std::vector<SketchPoint>& points, std::string_view x_label,
                   std::string_view y_label) {
  constexpr int kWidth = 64, kHeight = 14;
  double x_max = 0, low = 0, high = 0;
  for (const auto& p : points) {
    x_max = std::max(x_max, p.x);
    if (p.y <= 0 || !std::isfinite(p.y)) continue;
    low = low == 0 ? p.y : std::min(low, p.y);
    high = std::max(high, p.y);
  }
  if (points.empty() || x_max <= 0 || high <= 0) return "";
  // Whole decades would leave a narrow front in one corner.
  low /= 1.2, high = std::max(high * 1.2, low * 2);
  std::vector<std::string> grid(kHeight, std::string(kWidth, ' '));
  for (const auto& p : points) {
    if (!std::isfinite(p.x) || !std::isfinite(p.y)) continue;
    const double y = p.y <= low ? 0 : std::log(p.y / low) / std::log(high / low);
    const int column = std::clamp(static_cast<int>(p.x / x_max * (kWidth - 1)), 0, kWidth - 1);
    const int row = kHeight - 1 - std::clamp(static_cast<int>(y * kHeight), 0, kHeight - 1);
    grid[static_cast<size_t>(row)][static_cast<size_t>(column)] = p.mark;
  }
  std::string out = fmt::format("{}\n", y_label);
  for (int r = 0; r < kHeight; ++r) {
    std::string axis(9, ' ');
    if (r == 0) axis = fmt::format("{:>9}", Number(high));
    if (r == kHeight - 1) axis = fmt::format("{:>9}", Number(low));
    std::string line = fmt::format("{} |{}", axis, grid[static_cast<size_t>(r)]);
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  out += fmt::format("{:>9} +{}\n", "", std::string(kWidth, '-'));
  out +=
      fmt::format("{:>10} 0{:>{}}\n", "", fmt::format("{} {}", x_label, Number(x_max)), kWidth - 1);
  return out;
}

}  // namespace baton::apps
