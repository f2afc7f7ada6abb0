// baton-train: trains the models that are born sparse, and routers of others, on LibTorch. Errors
// are one line; the exit status is 1 for an error and 2 for a usage error.
#include <cstdio>
#include <string_view>

#include "train/program/commands.h"

int main(int argc, char** argv) {
  CLI::App app(
      "Trains models whose layers share attention work, and routers of others; Baton runs what it "
      "writes.",
      "baton-train");
  app.require_subcommand(1);
  baton::train::Action action;
  baton::train::AddEncode(app, action);
  baton::train::AddLm(app, action);
  baton::train::AddEval(app, action);
  baton::train::AddBench(app, action);
  baton::train::AddExport(app, action);
  baton::train::AddRouter(app, action);
  baton::train::AddRouterEval(app, action);
  try {
    app.parse(argc, argv);
    if (const baton::Status s = action(); !s.ok()) {
      fmt::print(stderr, "baton-train: error: {}\n", s.error().ToString());
      return 1;
    }
  } catch (const CLI::Success& wish) {
    return app.exit(wish);
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "baton-train: error: {} (hint: see baton-train --help)\n", error.what());
    return 2;
  } catch (const std::exception& error) {        // LibTorch's: out of memory, a lost GPU
    const std::string_view what = error.what();  // a stack trace follows the first line
    fmt::print(stderr, "baton-train: error: {}\n", what.substr(0, what.find('\n')));
    return 1;
  }
  return 0;
}
