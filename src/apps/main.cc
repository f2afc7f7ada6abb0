// The program `baton`: parses the command line, runs one command, turns errors into one line and an
// exit status (1: an error, 2: a usage error, 130: interrupted).
#include <malloc.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <new>
#include <numeric>

#include "apps/command.h"
#include "base/mapped_file.h"

namespace baton::apps {
namespace {

constexpr const char* kFooter =
    "Examples:\n"
    "  baton run model.gguf --prompt 'Why is the sky blue?'\n"
    "  baton profile model.gguf --text book.txt --context 8192 -o profile.json\n"
    "  baton plan profile.json --max-bytes 0.125 -o plan.json\n"
    "  baton run model.gguf --plan plan.json --file question.txt --stats\n\n"
    "`baton help COMMAND` lists a command's options with examples.";

std::string ShellWord(const std::string& word) {
  const bool plain = !word.empty() && word.find_first_not_of(
                                          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                          "0123456789_-./,:=+@%") == std::string::npos;
  if (plain) return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({change, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

// The name a typo meant, or nothing.
std::string Nearest(const std::string& typo, const std::vector<std::string>& names) {
  size_t best = std::max<size_t>(2, typo.size() / 3) + 1;
  std::string nearest;
  for (const std::string& name : names)
    if (const size_t d = EditDistance(typo, name); d < best) best = d, nearest = name;
  return nearest;
}

std::vector<std::string> OptionNames(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

// Word that the parser could not place. An unknown option comes first: it is the likely cause of
// whatever else is reported, for example of a model that seems to be missing.
std::string Stray(const CLI::App& command) {
  const auto words = command.remaining();
  for (const std::string& word : words)
    if (word.starts_with("-") && word.size() > 1) return word.substr(0, word.find('='));
  return words.empty() ? "" : words.front();
}

// "--kv" or a sentence, in front of "see baton run --help".
std::string AdviceHint(const std::string& advice) {
  return advice.starts_with("--") ? "here it is " + advice + "; " : advice + "; ";
}

// Other engines have options of several letters behind one dash, which this parser would take
// apart.
std::string ForeignOption(const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    if (word.size() > 2 && word[0] == '-' && word[1] != '-' && !AdviceFor(word).empty())
      return word;
  }
  return "";
}

// `baton help`, `baton help run`: as --help.
std::vector<std::string> Words(int argc, char** argv) {
  std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
  if (!words.empty() && words[0] == "help") {
    words.erase(words.begin());
    if (words.size() > 1) words.resize(1);
    words.push_back("--help");
  }
  return words;
}

// An empty text, as an unset variable of a shell gives, must not count as "not given".
void RefuseEmptyTexts(const CLI::App& command) {
  for (const CLI::Option* option : command.get_options()) {
    const std::string name = option->get_name();
    if (name == "--prompt" || name == "--system") continue;
    for (const std::string& given : option->results()) {
      if (given.empty()) throw CLI::ValidationError(name, "expected a value, got an empty text");
    }
  }
}

int ReportUsage(const CLI::App& app, const CLI::ParseError& error) {
  const auto commands = app.get_subcommands();
  const CLI::App& where = commands.empty() ? app : *commands.front();
  const std::string name = commands.empty() ? "baton" : "baton " + where.get_name();
  std::string message, hint;
  const std::string stray = Stray(where);
  if (!stray.empty() &&
      (stray.starts_with("-") || commands.empty() || error.get_name() == "ExtrasError")) {
    const bool option = stray.starts_with("-");
    std::vector<std::string> known = OptionNames(where);
    if (commands.empty() && !option) {
      known.clear();
      for (const CLI::App* command : app.get_subcommands(nullptr))
        known.push_back(command->get_name());
    }
    message = commands.empty() && !option
                  ? fmt::format("unknown command {}", stray)
                  : fmt::format("{} {} of `{}`", option ? "unknown option" : "unexpected argument",
                                stray, name);
    const std::string advice = AdviceFor(stray), nearest = Nearest(stray, known);
    if (!advice.empty()) {
      hint = AdviceHint(advice);
    } else if (!nearest.empty()) {
      hint = "did you mean " + nearest + "? ";
    }
  } else {
    message = error.what();
    std::replace(message.begin(), message.end(), '\n', ' ');
    if (message == "--model is required") message = "MODEL is required, a GGUF file or a folder";
    message = name + ": " + message;
  }
  fmt::print(stderr, "baton: error: {} (hint: {}see {} --help)\n", message, hint, name);
  return 2;
}

int Finish(const Result<int>& status) {
  if (status.ok()) return *status;
  if (status.error().code() == Error::Code::kCancelled) {
    Note("baton: interrupted");
    return kExitInterrupted;
  }
  PrintError(status.error());
  return 1;
}

int Main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is a write error, reported like any other
  ExitOnTruncatedFiles();
  // Each arena of the allocator sets 64 MB of addresses aside.
  struct rlimit addresses {};
  if (getrlimit(RLIMIT_AS, &addresses) == 0 && addresses.rlim_cur != RLIM_INFINITY)
    mallopt(M_ARENA_MAX, 1);
  CLI::App app("Long-context inference in which layers pass on what they attended to.", "baton");
  app.set_version_flag("--version", "baton " BATON_VERSION);
  app.footer(kFooter);
  app.require_subcommand(1);
  Action action;
  for (auto add : {AddRun, AddInfo, AddTokenize, AddDetokenize, AddProfile, AddPlan, AddEval,
                   AddPerplexity, AddBench, AddReport, AddServe, AddCompletion, AddMan})
    add(app, action);
  Invocation invocation{"baton"};
  for (int i = 1; i < argc; ++i) invocation.command_line += " " + ShellWord(argv[i]);
  std::vector<std::string> words = Words(argc, argv);
  // `baton help nonesuch`: an unknown command, not the general help.
  if (words.size() == 2 && words[1] == "--help" && !words[0].starts_with("-") &&
      app.get_subcommands([&](CLI::App* c) { return c->get_name() == words[0]; }).empty())
    words.pop_back();
  if (const std::string foreign = ForeignOption(words); !foreign.empty()) {
    fmt::print(stderr, "baton: error: unknown option {} (hint: {}see baton --help)\n", foreign,
               AdviceHint(AdviceFor(foreign)));
    return 2;
  }
  try {
    std::reverse(words.begin(), words.end());  // the parser takes them from the end
    app.parse(std::move(words));
    for (const CLI::App* command : app.get_subcommands()) RefuseEmptyTexts(*command);
    return Finish(action(invocation));
  } catch (const std::bad_alloc&) {
    PrintError(Error::Io("out of memory").Hint("give less text or a smaller --context"));
    return 1;
  } catch (const CLI::Success& wish) {  // --help, --version
    const int status = app.exit(wish);
    if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return status;
    PrintError(Error::Io("cannot write standard output"));
    return 1;
  } catch (const CLI::ParseError& error) {
    return ReportUsage(app, error);
  }
}

}  // namespace
}  // namespace baton::apps

int main(int argc, char** argv) { return baton::apps::Main(argc, argv); }
