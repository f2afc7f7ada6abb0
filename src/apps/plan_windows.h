// baton plan --windows-only: a static list of window layers in place of a search.
#pragma once

#include "apps/command.h"
#include "baton/profile.h"

namespace baton::apps {

struct WindowFlags {
  WindowOptions options;
  CLI::Option* given = nullptr;  // --windows-only

  // Its options; those of the groups `others` do not go with it.
  void Add(CLI::App* command, const std::vector<std::string>& others);
};

// Makes the plan, writes it to `output` and prints its figures.
Result<int> RunPlanWindows(Engine& engine, const Profile& profile, const WindowOptions& options,
                           const std::string& output, bool json, const Invocation& invocation);

}  // namespace baton::apps
