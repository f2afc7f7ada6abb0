// Lines typed or pasted on a terminal, with editing and history (libedit).
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "baton/error.h"

namespace baton::apps {

class LineEditor {
 public:
  // Standard input must be a terminal. One editor at a time.
  static Result<std::unique_ptr<LineEditor>> Create(const std::string& prompt);
  ~LineEditor();

  // The next line without its newline; with line breaks inside where several lines were pasted at
  // once. Nothing: the input has ended. While it waits, Ctrl-C ends the program with status 130.
  std::optional<std::string> Read();

 private:
  struct Impl;
  explicit LineEditor(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace baton::apps
