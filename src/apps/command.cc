#include "apps/command.h"

#include <atomic>
#include <csignal>
#include <fstream>

#include "base/sha256.h"

namespace baton::apps {
namespace {

// A signal handler can reach nothing but a global.
std::atomic<Engine*> g_interruptible{nullptr};
volatile std::sig_atomic_t g_interrupted = 0;

extern "C" void OnInterrupt(int) {
  g_interrupted = 1;
  if (Engine* engine = g_interruptible.load()) engine->Cancel();
}

std::string CpuName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

}  // namespace

CLI::App* AddCommand(CLI::App& app, const std::string& name, const std::string& description,
                     const std::string& examples) {
  CLI::App* command = app.add_subcommand(name, description);
  command->footer("Examples:\n" + examples);
  return command;
}

void UsageError(const std::string& option, const std::string& message) {
  throw CLI::ValidationError(option, message);
}

namespace {

constexpr double kMost = 2147483647;

CLI::Validator Number(std::function<bool(double)> fits, const std::string& expected,
                      const std::string& help) {
  return CLI::Validator(
      [fits = std::move(fits), expected](const std::string& text) {
        double value = 0;
        if (CLI::detail::lexical_cast(text, value) && fits(value) && value <= kMost)
          return std::string();
        return fmt::format("expected a number {}, got {}",
                           value > kMost ? "up to 2147483647" : expected, text);
      },
      help);
}

}  // namespace

CLI::Validator AtLeast(double least) {
  return Number([=](double x) { return x >= least; }, fmt::format("of at least {:g}", least),
                fmt::format(">= {:g}", least));
}

CLI::Validator Above(double bound) {
  return Number([=](double x) { return x > bound; }, fmt::format("above {:g}", bound),
                fmt::format("> {:g}", bound));
}

CLI::Validator Between(double least, double most) {
  return Number([=](double x) { return x >= least && x <= most; },
                fmt::format("from {:g} to {:g}", least, most),
                fmt::format("{:g} to {:g}", least, most));
}

CLI::Validator AboveTo(double bound, double most) {
  return Number([=](double x) { return x > bound && x <= most; },
                fmt::format("above {:g}, up to {:g}", bound, most),
                fmt::format("above {:g}, to {:g}", bound, most));
}

CLI::Validator FromBelow(double least, double bound) {
  return Number([=](double x) { return x >= least && x < bound; },
                fmt::format("from {:g}, below {:g}", least, bound),
                fmt::format("{:g} to below {:g}", least, bound));
}

std::string WordList(const std::vector<std::string>& words) {
  std::string list;
  for (size_t i = 0; i < words.size(); ++i)
    list += (i == 0 ? "" : i + 1 == words.size() ? " or " : ", ") + words[i];
  return list;
}

CLI::Validator OneWordOf(const std::vector<std::string>& words) {
  return CLI::Validator(
      [words, list = WordList(words)](const std::string& text) {
        return std::find(words.begin(), words.end(), text) != words.end()
                   ? std::string()
                   : fmt::format("expected {}, got {}", list, text);
      },
      "");
}

void EngineFlags::AddModel(CLI::App* command) {
  command
      ->add_option("MODEL,-m,--model", model, "GGUF file, or folder of a Hugging Face checkpoint")
      ->required();
}

void EngineFlags::Add(CLI::App* command, Context context) {
  const std::string group = "Engine";
  command->add_option("-t,--threads", options.threads, "Threads; 0: one per processor")
      ->check(Between(0, 1024))
      ->group(group);
  command
      ->add_option("--backend", options.backend,
                   "ref: slow and obvious; cpu: fast (the default); cuda: an NVIDIA GPU")
      ->transform(OneOf<Backend>(
          {{"ref", Backend::kReference}, {"cpu", Backend::kCpu}, {"cuda", Backend::kCuda}}))
      ->option_text("ref|cpu|cuda")
      ->group(group);
  command
      ->add_flag("--portable", options.portable,
                 "Single-precision kernels that any x86-64 runs, instead of those for AVX2, "
                 "AVX-512 or AMX")
      ->group(group);
  command->add_option("--kv", options.kv, "Type of the KV cache: f32, bf16 (the default) or int8")
      ->transform(
          OneOf<KvType>({{"f32", KvType::kF32}, {"bf16", KvType::kBF16}, {"int8", KvType::kInt8}}))
      ->option_text("f32|bf16|int8")
      ->group(group);
  command
      ->add_flag("--kv-host", options.kv_host,
                 "With cuda: keys and values of which a plan reads lists alone lie in host memory")
      ->group(group);
  if (context == Context::kOption)
    command
        ->add_option("-c,--context,--ctx-size", options.context,
                     "Longest sequence; 0: the model's own")
        ->check(AtLeast(0))
        ->group(group);
}

Result<std::unique_ptr<Engine>> EngineFlags::Load() const {
  BATON_ASSIGN(auto engine, Engine::Load(model, options));
  const ModelInfo& info = engine->info();
  if (info.threads < options.threads)
    Note(fmt::format("baton: warning: the system lets only {} of {} threads run", info.threads,
                     options.threads));
  for (const std::string& note : info.notes) Note("baton: warning: " + note);
  return engine;
}

void AddPlanFlag(CLI::App* command, std::string& path) {
  command->add_option("--plan", path, "Attention plan (from `baton plan`); without it: dense");
}

void AddJsonFlag(CLI::App* command, bool& json) {
  command->add_flag("--json", json, "Print one JSON object on standard output");
}

void AddTokenFileFlag(CLI::App* command, std::string& path) {
  command->add_option("--token-file", path,
                      "JSON array of token ids, one document; no BOS is added; -: standard input");
}

Result<std::vector<int32_t>> ReadTokens(const std::string& path) {
  BATON_ASSIGN(const std::string text, path == "-" ? ReadStdin() : ReadFile(path));
  const auto json = nlohmann::json::parse(text, nullptr, false);
  const char* hint = "expected a JSON array of token ids, such as [1, 2, 3]";
  if (!json.is_array() || json.empty())
    return Error::InvalidArgument("{}: {}", path,
                                  json.is_discarded() ? "no JSON"
                                  : json.is_array()   ? "an empty array"
                                                      : "no array")
        .Hint(hint);
  std::vector<int32_t> tokens;
  for (const auto& item : json) {
    if (!item.is_number_integer() || item < 0 || item > INT32_MAX)
      return Error::InvalidArgument("{}: item {} is no token id", path, tokens.size()).Hint(hint);
    tokens.push_back(item.get<int32_t>());
  }
  return tokens;
}

void AddTextFlag(CLI::App* command, std::vector<std::string>& paths) {
  command->add_option("--text", paths, "Text files, read in this order")->required();
}

void TextSource::Add(CLI::App* command, const std::string& prompt_names) {
  prompt_option = command->add_option(prompt_names, prompt, "Text");
  file_option = command->add_option("-f,--file", file, "Text from a file; -: standard input");
  file_option->excludes(prompt_option);
}

Result<std::string> TextSource::Read() const {
  if (prompt_option->count() > 0) return prompt;
  if (file_option->count() > 0 && file != "-") return ReadFile(file);
  return ReadStdin();
}

void DropTrailingNewline(std::string& text) {
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
}

Result<Texts> ReadTexts(const std::vector<std::string>& paths) {
  Texts texts;
  for (const std::string& path : paths) {
    BATON_ASSIGN(const std::string text, ReadFile(path));
    texts.sources.push_back({path, static_cast<int64_t>(text.size()), Sha256Hex(text)});
    texts.all += text;
  }
  return texts;
}

Result<std::optional<Plan>> LoadPlan(const Engine& engine, const std::string& path) {
  if (path.empty()) return std::optional<Plan>();
  auto plan = Plan::Load(path);
  if (!plan.ok()) return std::move(plan).error();
  std::vector<std::string> warnings;
  if (auto fits = engine.CheckPlan(*plan, &warnings); !fits.ok())
    return std::move(fits).error().At(path);
  for (const std::string& warning : warnings) Note("baton: warning: " + path + ": " + warning);
  return std::optional<Plan>(std::move(*plan));
}

Result<std::string> PlanLine(const Engine& engine, const Plan& plan,
                             const std::vector<int64_t>& visible) {
  std::string line = "plan: " + plan.Summary() + " | a decode step reads";
  for (size_t i = 0; i < visible.size(); ++i) {
    BATON_ASSIGN(const double share, engine.KvBytesShare(plan, visible[i]));
    line += fmt::format("{} {}{} at {} tokens", i ? "," : "", Percent(share),
                        i ? "" : " of the KV bytes", Count(visible[i]));
  }
  if (!visible.empty()) {
    BATON_ASSIGN(const double held, engine.KvHeldShare(plan, visible.back()));
    line += fmt::format("; {} held", Percent(held));
  }
  if (std::any_of(plan.layers.begin(), plan.layers.end(),
                  [](const LayerRole& l) { return l.role == Role::kRoute; }))
    line += " (routed layers counted as full)";
  return line;
}

std::string LayersLine(const ModelInfo& model) {
  std::vector<std::pair<std::string, int>> kinds;  // in order of appearance
  for (const LayerInfo& layer : model.layer) {
    const auto same = [&](const auto& k) { return k.first == layer.kind; };
    const auto at = std::find_if(kinds.begin(), kinds.end(), same);
    if (at == kinds.end()) {
      kinds.emplace_back(layer.kind, 1);
    } else {
      ++at->second;
    }
  }
  std::string line;
  for (const auto& [kind, count] : kinds)
    line += fmt::format("{}{} {}", line.empty() ? "" : ", ", count, kind);
  if (model.exit_layer >= 0) line += fmt::format(" | exit {}", model.exit_layer);
  if (model.suffix_rows >= 0) line += fmt::format(", suffix {} rows", Count(model.suffix_rows));
  return line;
}

results::Origin OriginOf(const std::string& kind, const Engine& engine,
                         const Invocation& invocation) {
  const char* kv[] = {"f32", "bf16", "int8"};
  return {.format = "baton-" + kind,
          .command = invocation.command_line,
          .cpu = CpuName(),
          .kv = kv[static_cast<int>(engine.options().kv)],
          .model = engine.info()};
}

InterruptGuard::InterruptGuard(Engine* engine) {
  g_interrupted = 0;
  g_interruptible = engine;
  struct sigaction action {};
  action.sa_handler = OnInterrupt;
  // The second signal finds the default again and ends the program.
  action.sa_flags = SA_RESETHAND;
  sigaction(SIGINT, &action, nullptr);
}

InterruptGuard::~InterruptGuard() {
  std::signal(SIGINT, SIG_DFL);
  g_interruptible = nullptr;
}

bool InterruptGuard::Interrupted() const { return g_interrupted != 0; }

}  // namespace baton::apps
