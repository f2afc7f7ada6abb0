// The commands of baton-train.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "baton/error.h"

namespace baton::train {

using Action = std::function<Status()>;

void AddEncode(CLI::App& app, Action& action);
void AddLm(CLI::App& app, Action& action);
void AddEval(CLI::App& app, Action& action);
void AddBench(CLI::App& app, Action& action);
void AddExport(CLI::App& app, Action& action);
void AddRouter(CLI::App& app, Action& action);
void AddRouterEval(CLI::App& app, Action& action);

}  // namespace baton::train
