// The options of exact requests, and what became of them.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "baton/engine.h"

namespace baton::apps {

struct ExactFlags {
  bool exact = false;
  ExactOptions options;
  CLI::Option* drafts = nullptr;

  void Add(CLI::App* command);
  std::optional<ExactOptions> Given() const;
};

// What was drafted, and what became of it.
std::vector<std::string> ExactLines(const ExactReport& r, int64_t generated);

}  // namespace baton::apps
