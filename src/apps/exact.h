// The options of exact requests, and what became of them.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>

#include "baton/engine.h"

namespace baton::apps {

struct ExactFlags {
  bool exact = false;
  ExactOptions options;
  CLI::Option* drafts = nullptr;

  void Add(CLI::App* command);
  std::optional<ExactOptions> Given() const;
};

void PrintExact(const ExactReport& r, int64_t generated);

}  // namespace baton::apps
