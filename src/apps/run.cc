// baton run: one answer, or a chat.
#include <algorithm>
#include <array>
#include <cstdio>
#include <iostream>
#include <numeric>

#include "apps/command.h"
#include "apps/exact.h"

namespace baton::apps {
namespace {

struct RunOptions {
  EngineFlags engine;
  TextSource text;
  std::string plan, system, token_file;
  RouteOptions route;
  ExactFlags exact;
  Request request;  // everything but what it asks and the plan
  CLI::Option* watch_interval = nullptr;
  CLI::Option* watch_threshold = nullptr;
  std::array<CLI::Option*, 2> route_how{};  // mode and margin
  bool raw = false, stats = false, json = false;
};

void AddSampling(CLI::App* command, Request& request) {
  const std::string group = "Sampling";
  Sampling& s = request.sampling;
  const auto add = [&](const std::string& name, auto& value, const std::string& help) {
    return command->add_option(name, value, help)->group(group);
  };
  add("--temp,--temperature", s.temperature, "Temperature; 0: the likeliest token (the default)")
      ->check(Between(0.0, 100.0));
  add("--top-k", s.top_k, "Sample from the k likeliest; 0: all")->check(AtLeast(0));
  add("--top-p", s.top_p, "Sample from the likeliest that hold this probability; 1: all")
      ->check(Between(0.0, 1.0));
  add("--min-p", s.min_p, "Drop tokens below this share of the likeliest's probability")
      ->check(Between(0.0, 1.0));
  add("--repeat-penalty", s.repetition_penalty, "Penalty on recent tokens; 1: none")
      ->check(Between(0.01, 100.0));
  add("--repeat-window", s.penalty_window, "Latest tokens that the penalty looks at")
      ->check(AtLeast(0));
  add("--seed", s.seed, "Seed of the sampler");
  add("-n,--max-tokens", request.max_tokens, "Longest answer in tokens")
      ->check(AtLeast(1))
      ->capture_default_str();
  add("--stop", request.stop, "Text that ends the answer; may be given several times")
      ->allow_extra_args(false);
  command->add_flag("--ignore-end", request.ignore_end, "Go on past the model's end token")
      ->group(group);
}

void AddRouting(CLI::App* command, RunOptions& o) {
  const std::string group = "Routing";
  using Mode = RouteOptions::Mode;
  command
      ->add_option("--router", o.engine.options.router,
                   "Layer routers (safetensors, or the folder of a published checkpoint): each "
                   "layer becomes full or a window, once per request")
      ->group(group);
  command
      ->add_option("--router-flavour", o.engine.options.router_flavour,
                   "Which method a published checkpoint's routers are of: flux")
      ->group(group);
  o.route_how[0] =
      command
          ->add_option(
              "--route-mode", o.route.mode,
              "exact: layer by layer on the whole prompt (the default); probe: from its ends; "
              "two_pass: exact decisions, then chunks; dense: the prompt attends fully")
          ->transform(
              CLI::CheckedTransformer(std::map<std::string, Mode>{{"exact", Mode::kExact},
                                                                  {"probe", Mode::kProbe},
                                                                  {"two_pass", Mode::kTwoPass},
                                                                  {"dense", Mode::kDense}}))
          ->option_text("exact|probe|two_pass|dense")
          ->group(group);
  o.route_how[1] =
      command
          ->add_option("--route-margin", o.route.margin,
                       "A layer becomes a window only if its logits differ by at least this")
          ->check(AtLeast(0))
          ->group(group);
  command
      ->add_option("--route-mask", o.route.mask,
                   "full, sparse, or one letter a layer: F, S, or ? for the router")
      ->group(group);
}

void AddOptions(CLI::App* command, RunOptions& o) {
  o.engine.AddModel(command);
  o.text.Add(command);
  AddTokenFileFlag(command, o.token_file);
  AddPlanFlag(command, o.plan);
  AddRouting(command, o);
  o.exact.Add(command);
  command->add_flag("--raw", o.raw,
                    "No chat template: the text itself, control tokens parsed, BOS where the model "
                    "adds one");
  command->add_option("--system", o.system, "System turn of the chat");
  command->add_flag("--stats", o.stats, "Speed, KV bytes and layers on standard error");
  o.watch_interval =
      command
          ->add_option(
              "--watch", o.request.watch.interval,
              "With a plan: check every N steps that reuse layers still catch their attention; "
              "0: never")
          ->check(AtLeast(0))
          ->capture_default_str();
  o.watch_threshold =
      command
          ->add_option("--watch-threshold", o.request.watch.threshold,
                       "Least share of its attention that a watched layer may catch; below, it "
                       "attends to all keys from then on")
          ->check(Between(0.0, 1.0))
          ->capture_default_str();
  AddJsonFlag(command, o.json);
  AddSampling(command, o.request);
  o.engine.Add(command);
}

double PerSecond(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

// New prompt tokens: those whose cache a chat still held cost nothing.
int64_t ProcessedPrompt(const RequestStats& s) { return s.prompt_tokens - s.reused_tokens; }

void PrintRouting(const RoutingReport& r) {
  const auto sparse = std::count(r.bitmap.begin(), r.bitmap.end(), 'S');
  const int64_t held =
      std::accumulate(r.held_token_equivalents.begin(), r.held_token_equivalents.end(), int64_t{0});
  const std::string by = r.source == "forced"   ? "by the mask"
                         : r.source == "cached" ? "by an earlier turn"
                                                : fmt::format("by the router ({}, {} prompt rows)",
                                                              r.source, r.rows_pooled);
  Note(fmt::format("routing  {}", r.bitmap));
  Note(
      fmt::format("         {} of {} layers are windows, decided {}", sparse, r.bitmap.size(), by));
  Note(fmt::format("         holds {} of {} token-equivalents, {}", Count(held),
                   Count(r.dense_token_equivalents),
                   Percent(static_cast<double>(held) /
                           static_cast<double>(std::max<int64_t>(1, r.dense_token_equivalents)))));
}

void PrintStats(const Generation& g) {
  const RequestStats& s = g.stats;
  Note(fmt::format("prompt   {} tokens{}, {} tok/s", Count(s.prompt_tokens),
                   s.reused_tokens ? fmt::format(" ({} cached)", Count(s.reused_tokens)) : "",
                   Number(PerSecond(ProcessedPrompt(s), s.prompt_seconds))));
  Note(fmt::format("decode   {} tokens, {} tok/s, stopped by {}", Count(s.generated_tokens),
                   Number(PerSecond(s.generated_tokens, s.decode_seconds)),
                   results::StopName(g.stop)));
  const double dense = s.kv_bytes_per_token_dense;
  if (s.kv_bytes_per_token > 0)
    Note(fmt::format("KV read  {} per token{}", Bytes(s.kv_bytes_per_token),
                     dense > 0 ? ", " + Percent(s.kv_bytes_per_token / dense) + " of dense" : ""));
  if (s.kv_bytes_held > 0)
    Note(fmt::format("KV held  {}", Bytes(static_cast<double>(s.kv_bytes_held))));
  if (s.routing) PrintRouting(*s.routing);
  if (s.exact) PrintExact(*s.exact, s.generated_tokens);
  const MemoryUse memory = Engine::Memory();
  Note(fmt::format("memory   {}, {} on huge pages{}",
                   Bytes(static_cast<double>(memory.anonymous_bytes)),
                   Bytes(static_cast<double>(memory.huge_bytes)),
                   memory.huge_pages_allowed ? "" : " (not allowed on this system)"));
  Note("logits   " + (s.logits_hash.empty() ? "-" : s.logits_hash));
  if (s.watched.empty()) return;
  std::string watched;
  int promoted = 0;
  for (const LayerWatch& w : s.watched) {
    watched += fmt::format(" {}:{}{}", w.layer, Percent(w.captured), w.promoted ? "!" : "");
    promoted += w.promoted;
  }
  Note(fmt::format("watched  {} layers, {} promoted to full attention (!):{}", s.watched.size(),
                   promoted, watched));
}

results::RunRecord RecordOf(const Engine& engine, const Generation& g,
                            const Invocation& invocation) {
  const RequestStats& s = g.stats;
  return {.origin = OriginOf("run", engine, invocation),
          .generation = g,
          .prompt_tokens_per_s = PerSecond(ProcessedPrompt(s), s.prompt_seconds),
          .decode_tokens_per_s = PerSecond(s.generated_tokens, s.decode_seconds),
          .memory = Engine::Memory()};
}

// Generates with the text going out as it comes. A write error stops the request and is returned.
Result<Generation> Stream(Engine& engine, const Request& request) {
  Status written;
  auto generation = engine.Generate(request, [&](std::string_view piece) {
    written = Print(piece);
    return written.ok();
  });
  BATON_TRY(written);
  if (generation.ok() && !generation->text.ends_with('\n')) BATON_TRY(Print("\n"));
  return generation;
}

Result<int> Answer(Engine& engine, const RunOptions& o, const Request& request,
                   const Invocation& invocation) {
  InterruptGuard guard(engine);
  auto generation = o.json ? engine.Generate(request) : Stream(engine, request);
  if (!generation.ok()) return std::move(generation).error();
  if (o.json) {
    BATON_TRY(PrintJson(results::ToJson(RecordOf(engine, *generation, invocation))));
  }
  if (o.stats) PrintStats(*generation);
  return guard.Interrupted() ? kExitInterrupted : 0;
}

Result<int> Chat(Engine& engine, const RunOptions& o, const Request& base) {
  const std::vector<ChatTurn> opening = base.chat;
  std::vector<ChatTurn> turns = opening;
  std::optional<Generation> last;
  Note("/quit ends, /reset forgets the conversation, /stats shows the last answer's cost");
  std::string line;
  while (true) {
    BATON_TRY(Print("> "));
    if (!std::getline(std::cin, line)) {
      BATON_TRY(Print("\n"));
      return 0;
    }
    if (line.empty()) continue;
    if (line == "/quit") return 0;
    if (line == "/reset") {
      turns = opening, last.reset();
      continue;
    }
    if (line == "/stats") {
      if (last) PrintStats(*last);
      continue;
    }
    if (line.starts_with("/")) {
      Note("unknown command " + line + "; there are /quit, /reset and /stats");
      continue;
    }
    Request request = base;
    turns.push_back({"user", line});
    request.chat = turns;
    InterruptGuard guard(engine);
    auto generation = Stream(engine, request);
    engine.ResetCancel();
    if (!generation.ok()) {
      // The conversation stands as before the question, for example when it outgrew the context.
      turns.pop_back();
      PrintError(generation.error());
      if (generation.error().code() == Error::Code::kIo) return 1;
      continue;
    }
    turns.push_back({"assistant", generation->text});
    if (o.stats) PrintStats(*generation);
    last = std::move(*generation);
  }
}

// What the text asks for, and how many tokens that is.
Result<int64_t> Ask(const Engine& engine, const RunOptions& o, std::string text, Request& request) {
  if (o.raw) {
    request.tokens = engine.Tokenize(text, /*bos=*/true, /*special=*/true);
    if (request.tokens.empty())
      return Error::InvalidArgument("the prompt is empty").Hint("give --prompt or --file");
    return static_cast<int64_t>(request.tokens.size());
  }
  request.chat.push_back({"user", std::move(text)});
  BATON_ASSIGN(const std::string rendered, engine.RenderChat(request.chat));
  return static_cast<int64_t>(engine.Tokenize(rendered, /*bos=*/true, /*special=*/true).size());
}

Result<int> Run(const RunOptions& o, const Invocation& invocation) {
  const bool tokens = !o.token_file.empty();
  const bool interactive = !tokens && !o.text.Given() && StdinIsTerminal();
  if (tokens && o.text.Given()) UsageError("--token-file", "stands in place of a text");
  for (const CLI::Option* watch : {o.watch_interval, o.watch_threshold}) {
    if (o.plan.empty() && watch->count() > 0)
      UsageError(watch->get_name(), "there is nothing to watch without --plan");
  }
  const bool routed = !o.engine.options.router.empty() || !o.route.mask.empty();
  for (const CLI::Option* how : o.route_how) {
    if (!routed && how->count() > 0)
      UsageError(how->get_name(), "there is nothing to route by without --router or --route-mask");
  }
  if (interactive && o.json) UsageError("--json", "needs --prompt, --file or piped input");
  if (interactive && o.raw) UsageError("--raw", "needs --prompt, --file or piped input");
  if (o.raw && !o.system.empty()) UsageError("--system", "is part of a chat, --raw has none");
  std::string text;
  if (!interactive && !tokens) {
    BATON_ASSIGN(text, o.text.Read());
  }
  BATON_ASSIGN(auto engine, o.engine.Load());
  if (!tokens && !engine->info().has_tokenizer)
    return Error::NotFound("{}: the model has no tokenizer", o.engine.model)
        .Hint("give --token-file instead of a text");
  if (!o.raw && !tokens && !engine->info().has_chat_template)
    return Error::Unsupported("{}: the model has no chat template", o.engine.model)
        .Hint("use --raw to continue the text itself");
  Request request = o.request;
  BATON_ASSIGN(request.plan, LoadPlan(*engine, o.plan));
  if (!o.system.empty()) request.chat.push_back({"system", o.system});
  std::vector<int64_t> visible;
  if (routed) request.route = o.route;
  request.exact = o.exact.Given();
  if (tokens) {
    BATON_ASSIGN(request.tokens, ReadTokens(o.token_file));
    visible.push_back(static_cast<int64_t>(request.tokens.size()));
  } else if (!interactive) {
    BATON_ASSIGN(const int64_t prompt_tokens, Ask(*engine, o, std::move(text), request));
    visible.push_back(prompt_tokens);
  }
  if (engine->info().trained_sparse) Note("layers: " + LayersLine(engine->info()));
  if (request.plan) {
    const int64_t limit = engine->options().context;
    visible.push_back(limit > 0 ? limit : engine->info().context);
    BATON_ASSIGN(const std::string plan_line, PlanLine(*engine, *request.plan, visible));
    Note(plan_line);
  }
  return interactive ? Chat(*engine, o, request) : Answer(*engine, o, request, invocation);
}

}  // namespace

void AddRun(CLI::App& app, Action& action) {
  CLI::App* command = AddCommand(
      app, "run", "Generate text: an answer to --prompt, --file or piped text, or a chat",
      "  baton run model.gguf                                      chat\n"
      "  baton run model.gguf --prompt 'Why is the sky blue?' -n 100\n"
      "  baton run model.gguf --plan plan.json --file book.txt --stats\n"
      "  baton run model.gguf --raw --prompt 'The capital of France is' --json\n"
      "  baton run model.gguf --router router.safetensors --file book.txt --stats");
  AddCommandWith<RunOptions>(command, action, AddOptions, Run);
}

}  // namespace baton::apps
