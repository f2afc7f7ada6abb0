// What every command prints with: checked standard output, tables, JSON, progress, sketches.
// Standard output carries the result alone; everything else goes to standard error.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "baton/engine.h"
#include "baton/error.h"
#include "report/format.h"

namespace baton::apps {

using Json = nlohmann::ordered_json;

// Writes and flushes: a full disk or a closed pipe is an error at the place where it happens.
Status Print(std::string_view text);
// One object and a newline. Text that is not UTF-8 (a token can end inside a character) gets
// U+FFFD.
Status PrintJson(const Json& object);
// One line on standard error.
void Note(std::string_view line);
// "baton: error: ..." on standard error.
void PrintError(const Error& error);

Result<std::string> ReadFile(const std::string& path);
Result<std::string> ReadStdin();
// An error if WriteFile would fail for want of a place: found out before minutes of work, not
// after.
Status CheckWritable(const std::string& path);
// Through a temporary file beside it, so that a full disk leaves no half file.
Status WriteFile(const std::string& path, const std::string& text);
bool StdinIsTerminal();

// Columns align themselves; the first `left` columns are flush left, the others flush right.
class Table {
 public:
  explicit Table(std::vector<std::string> heads, int left = 1);
  void Row(std::vector<std::string> cells);
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;
  int left_;
};

// On standard error: a bar while that is a terminal, which clears itself; otherwise a line every 30
// seconds that says what is being done, also when no news comes.
class Progress {
 public:
  Progress();
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  OnProgress Callback();

 private:
  void Draw(double fraction, std::string_view what);
  void SayAgain();
  std::string TimeLeft(double fraction) const;
  using Clock = std::chrono::steady_clock;
  bool terminal_, drawn_ = false;
  Clock::time_point start_, last_;
  // Of the lines: what was reported last, and the thread that writes it.
  std::mutex mutex_;
  std::condition_variable ended_;
  bool end_ = false;
  double fraction_ = 0;
  std::string what_;
  std::thread speaker_;
};

struct SketchPoint {
  double x = 0, y = 0;
  char mark = '.';
};
// A scatter plot in characters; y on a logarithmic axis, zeros at its foot. Later points cover
// earlier ones.
std::string Sketch(const std::vector<SketchPoint>& points, std::string_view x_label,
                   std::string_view y_label);

}  // namespace baton::apps
