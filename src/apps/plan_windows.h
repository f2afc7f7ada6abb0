// baton plan --windows-only: a static list of window layers in place of a search.
#pragma once

#include "apps/command.h"
#include "baton/profile.h"

namespace baton::apps {

struct WindowFlags {
  WindowOptions options;
  CLI::Option* given = nullptr;        // --windows-only
  std::vector<CLI::Option*> excluded;  // what does not go with it

  // Its options. Those already there of the groups `others` are a search's.
  void Add(CLI::App* command, const std::vector<std::string>& others);
  bool Given() const { return given->count() > 0; }
  // Ends the program where a list is asked for together with an option of a search.
  void CheckUse() const;
};

// Makes the plan, writes it to `output` and prints its figures.
Result<int> RunPlanWindows(Engine& engine, const Profile& profile, const WindowOptions& options,
                           const std::string& output, bool json, const Invocation& invocation);

}  // namespace baton::apps
