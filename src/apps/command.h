// What the commands share: their registration, the options that load an engine, Ctrl-C.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "apps/output.h"
#include "baton/engine.h"
#include "baton/error.h"
#include "baton/plan.h"
#include "results/records.h"

namespace baton::apps {

constexpr int kExitInterrupted = 130;  // as shells report a program that SIGINT ended

// What a result says about where it came from.
struct Invocation {
  std::string command_line;
};

// What a command does once its options are parsed; the value is the exit status.
using Action = std::function<Result<int>(const Invocation&)>;

// Each registers one command, which sets `action` when it is the one that was asked for.
void AddRun(CLI::App& app, Action& action);
void AddInfo(CLI::App& app, Action& action);
void AddTokenize(CLI::App& app, Action& action);
void AddDetokenize(CLI::App& app, Action& action);
void AddPerplexity(CLI::App& app, Action& action);
void AddEval(CLI::App& app, Action& action);
void AddBench(CLI::App& app, Action& action);
void AddProfile(CLI::App& app, Action& action);
void AddPlan(CLI::App& app, Action& action);
void AddReport(CLI::App& app, Action& action);
void AddServe(CLI::App& app, Action& action);
void AddCompletion(CLI::App& app, Action& action);
void AddMan(CLI::App& app, Action& action);

// A subcommand with examples under its help.
CLI::App* AddCommand(CLI::App& app, const std::string& name, const std::string& description,
                     const std::string& examples);

// Registers the command's options and its work in one go: `Options` is default-constructed, given
// to `add`, and to `run` when the command was asked for.
template <typename Options>
void AddCommandWith(CLI::App* command, Action& action, void (*add)(CLI::App*, Options&),
                    Result<int> (*run)(const Options&, const Invocation&)) {
  auto options = std::make_shared<Options>();
  add(command, *options);
  command->callback([options, run, &action] {
    action = [options, run](const Invocation& invocation) { return run(*options, invocation); };
  });
}

// A mistake in how the command was called, found after parsing: exit status 2, as for any other.
[[noreturn]] void UsageError(const std::string& option, const std::string& message);

// Checks of numbers; the library's own ones print the limits of the type. None takes more than
// 2^31 - 1, which every option's type holds.
CLI::Validator AtLeast(double least);
CLI::Validator Above(double bound);
CLI::Validator Between(double least, double most);
CLI::Validator AboveTo(double bound, double most);     // (bound, most]
CLI::Validator FromBelow(double least, double bound);  // [least, bound)

// "a, b or c".
std::string WordList(const std::vector<std::string>& words);
// The option is one of these words; the error lists them.
CLI::Validator OneWordOf(const std::vector<std::string>& words);

// The same with the values that the words stand for, in any case of letters.
template <typename T>
CLI::Validator OneOf(const std::vector<std::pair<std::string, T>>& words) {
  std::vector<std::string> names;
  for (const auto& [word, value] : words) names.push_back(word);
  return CLI::Validator(
      [words, list = WordList(names)](std::string& text) {
        for (const auto& [word, value] : words) {
          if (CLI::detail::to_lower(text) != word) continue;
          text = std::to_string(static_cast<std::underlying_type_t<T>>(value));
          return std::string();
        }
        return fmt::format("expected {}, got {}", list, text);
      },
      "");
}

// The options by which a command gets its engine.
struct EngineFlags {
  std::string model;
  EngineOptions options;

  enum class Context { kOption, kOwnedByCommand };
  void AddModel(CLI::App* command);
  void Add(CLI::App* command, Context context = Context::kOption);
  Result<std::unique_ptr<Engine>> Load() const;
};

void AddPlanFlag(CLI::App* command, std::string& path);
void AddJsonFlag(CLI::App* command, bool& json);
// A JSON array of token ids: one document, taken as it is; "-": standard input.
void AddTokenFileFlag(CLI::App* command, std::string& path);
Result<std::vector<int32_t>> ReadTokens(const std::string& path);
// One file or several; the text is that of all, in order.
void AddTextFlag(CLI::App* command, std::vector<std::string>& paths);
// --prompt, --file, or what is piped in.
struct TextSource {
  std::string prompt, file;
  CLI::Option* prompt_option = nullptr;
  CLI::Option* file_option = nullptr;
  void Add(CLI::App* command, const std::string& prompt_names = "-p,--prompt");
  bool Given() const { return prompt_option->count() + file_option->count() > 0; }
  Result<std::string> Read() const;  // standard input when neither was given, or --file is "-"
};

// A file that was written by a text editor, or a pipe from echo, ends with a newline that nobody
// meant: drops one.
void DropTrailingNewline(std::string& text);

// A word that another engine's command line has, in this one's terms: "--context", or what to do
// without. Empty: not known.
std::string AdviceFor(const std::string& option);

struct Texts {
  std::string all;
  std::vector<results::TextFile> sources;
};
Result<Texts> ReadTexts(const std::vector<std::string>& paths);

// Loads and checks a plan; its warnings go to standard error.
Result<std::optional<Plan>> LoadPlan(const Engine& engine, const std::string& path);
// The start-up line: roles, and what a decode step reads at each of `visible` keys.
Result<std::string> PlanLine(const Engine& engine, const Plan& plan,
                             const std::vector<int64_t>& visible);

// What every JSON result starts with; `kind` is its format's name after "baton-".
// "24 window, 1 full, 4 cross full, 20 sparse shared | exit 25, suffix 1,525 rows".
std::string LayersLine(const ModelInfo& model);

results::Origin OriginOf(const std::string& kind, const Engine& engine,
                         const Invocation& invocation);

// While it lives, the first Ctrl-C makes the engine, if there is one, stop after its current step
// and the second ends the program.
class InterruptGuard {
 public:
  explicit InterruptGuard(Engine* engine);
  explicit InterruptGuard(Engine& engine) : InterruptGuard(&engine) {}
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  bool Interrupted() const;
};

}  // namespace baton::apps
