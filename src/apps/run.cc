// baton run: one answer, or a chat.
#include <array>
#include <limits>
#include <random>

#include "apps/answer.h"
#include "apps/command.h"
#include "apps/exact.h"
#include "base/parse.h"

namespace baton::apps {
namespace {

struct RunOptions {
  EngineFlags engine;
  TextSource text;
  std::string plan, system, token_file, seed, chat_template, tools, json_schema;
  RouteOptions route;
  ExactFlags exact;
  Request request;  // everything but what it asks and the plan
  CLI::Option* watch_interval = nullptr;
  CLI::Option* watch_threshold = nullptr;
  std::array<CLI::Option*, 2> route_how{};   // mode and margin
  std::array<CLI::Option*, 4> chat_alone{};  // of the chat template, which --raw does without
  bool raw = false, stats = false, json = false, show_prompt = false;
};

constexpr const char* kRandomSeed = "-1";

CLI::Validator Seed() {
  return CLI::Validator(
      [](const std::string& text) {
        if (text == kRandomSeed || ParseWhole<uint64_t>(text)) return std::string();
        return fmt::format("expected a whole number from 0 to 2^64 - 1, or -1, got {}", text);
      },
      "");
}

CLI::Validator AnswerLength() {
  return CLI::Validator(
      [](const std::string& text) {
        const auto n = ParseWhole<int32_t>(text);
        if (n && (*n > 0 || n == -1)) return std::string();
        return fmt::format("expected 1 to 2147483647, or -1 for no limit, got {}", text);
      },
      "");
}

void AddSampling(CLI::App* command, RunOptions& o) {
  const std::string group = "Sampling";
  Request& request = o.request;
  Sampling& s = request.sampling;
  const auto add = [&](const std::string& name, auto& value, const std::string& help) {
    return command->add_option(name, value, help)->group(group);
  };
  add("--temp,--temperature", s.temperature, "Temperature; 0: the likeliest token (the default)")
      ->check(Between(0.0, 100.0));
  add("--top-k", s.top_k, "Sample from the k likeliest; 0: all")->check(AtLeast(0));
  add("--top-p", s.top_p, "Sample from the likeliest that hold this probability; 1: all")
      ->check(AboveTo(0.0, 1.0));
  add("--min-p", s.min_p, "Drop tokens below this share of the likeliest's probability")
      ->check(FromBelow(0.0, 1.0));
  add("--repeat-penalty,--repetition-penalty", s.repetition_penalty,
      "Divides the logits of recent tokens; 1: none")
      ->check(Between(0.01, 100.0));
  add("--presence-penalty", s.presence_penalty, "Subtracted from the logits of recent tokens")
      ->check(Between(-100.0, 100.0));
  add("--frequency-penalty", s.frequency_penalty, "The same, once per occurrence")
      ->check(Between(-100.0, 100.0));
  add("--repeat-window,--repeat-last-n", s.penalty_window,
      "Latest tokens that the penalties look at")
      ->check(AtLeast(0));
  add("-s,--seed", o.seed, "Seed of the sampler; -1, the default: another one each time")
      ->check(Seed());
  add("-n,--max-tokens,--n-predict,--predict", request.max_tokens,
      "Longest answer in tokens; -1: as long as the context allows")
      ->check(AnswerLength())
      ->capture_default_str();
  add("-r,--stop,--reverse-prompt", request.stop,
      "Text or special token that ends the answer; may be given several times")
      ->allow_extra_args(false);
  add("--logprobs", request.logprobs,
      "With --json: each token's log probability, and those of the N likeliest")
      ->check(Between(0, 1000));
  add("--json-schema", o.json_schema, "File with a JSON Schema that the answer obeys");
  command
      ->add_flag("--ignore-end,--ignore-eos", request.ignore_end,
                 "Go on past the model's end token")
      ->group(group);
}

void AddChat(CLI::App* command, RunOptions& o) {
  const std::string group = "Chat template";
  o.chat_alone[0] =
      command->add_option("--system,--system-prompt", o.system, "System turn of the chat")
          ->group(group);
  o.chat_alone[1] = command
                        ->add_option("--chat-template,--chat-template-file", o.chat_template,
                                     "File with a Jinja template, in place of the model's own")
                        ->group(group);
  o.chat_alone[2] =
      command->add_option("--tools", o.tools, "File with a JSON array of function descriptions")
          ->group(group);
  o.chat_alone[3] = command
                        ->add_option("--chat-template-kwargs", o.request.chat_options.variables,
                                     "JSON object of further variables, such as "
                                     "'{\"enable_thinking\": false}'")
                        ->group(group);
  command
      ->add_flag("--show-prompt", o.show_prompt,
                 "Print the prompt as the model gets it, and no answer")
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
          ->transform(OneOf<Mode>({{"exact", Mode::kExact},
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
  AddSampling(command, o);
  AddChat(command, o);
  o.engine.Add(command);
}

std::vector<results::TokenRecord> TokenRecords(const Engine& engine, const Generation& g) {
  const auto record = [&](const TokenLogprob& t) {
    return results::TokenRecord{.token = t.token,
                                .text = engine.Detokenize(std::span(&t.token, 1), /*special=*/true),
                                .logprob = t.logprob,
                                .top = {}};
  };
  std::vector<results::TokenRecord> tokens;
  for (const Generation::Logprobs& l : g.logprobs) {
    tokens.push_back(record(l.chosen));
    for (const TokenLogprob& t : l.top) tokens.back().top.push_back(record(t));
  }
  return tokens;
}

results::RunRecord RecordOf(const Engine& engine, const Generation& g, const Sampling& sampling,
                            const Invocation& invocation) {
  const RequestStats& s = g.stats;
  return {.origin = OriginOf("run", engine, invocation),
          .generation = g,
          .seed = sampling.seed,
          .logprobs = TokenRecords(engine, g),
          .prompt_tokens_per_s = PerSecond(ProcessedPrompt(s), s.prompt_seconds),
          .decode_tokens_per_s = PerSecond(s.generated_tokens, s.decode_seconds),
          .memory = Engine::Memory()};
}

Result<int> Answer(Engine& engine, const RunOptions& o, const Request& request,
                   const Invocation& invocation) {
  InterruptGuard guard(engine);
  auto generation = o.json ? engine.Generate(request) : Stream(engine, request);
  if (!generation.ok()) return std::move(generation).error();
  if (o.json) {
    BATON_TRY(
        PrintJson(results::ToJson(RecordOf(engine, *generation, request.sampling, invocation))));
  } else {
    NoteIfCut(*generation, request, engine);
  }
  if (o.stats) PrintStats(*generation, request.sampling);
  return guard.Interrupted() ? kExitInterrupted : 0;
}

// Templates without a place for a system turn leave it out, most of them without a word.
Status WarnOfLostSystem(const Engine& engine, const Request& request, const ChatPrompt& prompt) {
  if (request.chat.size() < 2 || request.chat[0].role != "system" ||
      prompt.text.find(request.chat[0].content) != std::string::npos)
    return Status::Ok();
  const std::vector<ChatTurn> rest(request.chat.begin() + 1, request.chat.end());
  BATON_ASSIGN(const ChatPrompt without, engine.MakeChatPrompt(rest, request.chat_options));
  if (without.text == prompt.text)
    Note("baton: warning: the model's chat template leaves the system turn out");
  return Status::Ok();
}

// Turns a text into a prompt: of --raw as it stands, else as the chat's next turn.
Result<ChatPrompt> Ask(const Engine& engine, const RunOptions& o, std::string text,
                       Request& request) {
  if (!o.raw) {
    DropTrailingNewline(text);
    request.chat.push_back({"user", std::move(text), ""});
    BATON_ASSIGN(ChatPrompt prompt, engine.MakeChatPrompt(request.chat, request.chat_options));
    BATON_TRY(WarnOfLostSystem(engine, request, prompt));
    return prompt;
  }
  ChatPrompt prompt{.text = text, .tokens = engine.Tokenize(text, /*bos=*/true, /*special=*/true)};
  if (prompt.tokens.empty())
    return Error::InvalidArgument("the prompt is empty").Hint("give --prompt or --file");
  request.tokens = prompt.tokens;
  return prompt;
}

Result<int> ShowPrompt(const ChatPrompt& prompt, bool json) {
  if (json) {
    BATON_TRY(PrintJson(Json{{"prompt", prompt.text}, {"tokens", prompt.tokens}}));
  } else {
    BATON_TRY(Print(prompt.text + (prompt.text.ends_with('\n') ? "" : "\n")));
  }
  return 0;
}

// What the parser cannot see: options that contradict each other.
void CheckTogether(const RunOptions& o, bool interactive) {
  const bool tokens = !o.token_file.empty();
  if (tokens && o.text.Given()) UsageError("--token-file", "stands in place of a text");
  for (const CLI::Option* watch : {o.watch_interval, o.watch_threshold}) {
    if (o.plan.empty() && watch->count() > 0)
      UsageError(watch->get_name(), "there is nothing to watch without --plan");
  }
  for (const CLI::Option* how : o.route_how) {
    if (o.engine.options.router.empty() && o.route.mask.empty() && how->count() > 0)
      UsageError(how->get_name(), "there is nothing to route by without --router or --route-mask");
  }
  for (const auto& [name, given] :
       {std::pair{"--json", o.json}, {"--raw", o.raw}, {"--show-prompt", o.show_prompt}}) {
    if (interactive && given) UsageError(name, "needs --prompt, --file or piped input");
  }
  if (o.request.logprobs >= 0 && !o.json) UsageError("--logprobs", "is part of --json");
  if (o.show_prompt && tokens) UsageError("--show-prompt", "needs a text");
  for (const CLI::Option* chat : o.chat_alone) {
    if ((o.raw || tokens) && chat->count() > 0)
      UsageError(chat->get_name(),
                 fmt::format("is part of a chat, {} has none", o.raw ? "--raw" : "--token-file"));
  }
}

// The request but for what it asks; a sampler that nobody seeded gets another seed each time.
Result<Request> BaseRequest(const RunOptions& o) {
  Request request = o.request;
  if (request.max_tokens < 0) request.max_tokens = std::numeric_limits<int64_t>::max();
  if (!o.system.empty()) request.chat.push_back({"system", o.system, ""});
  if (!o.tools.empty()) {
    BATON_ASSIGN(request.chat_options.tools, ReadFile(o.tools));
  }
  request.sampling.seed = o.seed.empty() || o.seed == kRandomSeed ? std::random_device()()
                                                                  : *ParseWhole<uint64_t>(o.seed);
  return request;
}

Result<std::unique_ptr<Engine>> LoadEngine(const RunOptions& o) {
  EngineFlags flags = o.engine;
  flags.options.weights = !o.show_prompt;
  if (!o.chat_template.empty()) {
    BATON_ASSIGN(flags.options.chat_template, ReadFile(o.chat_template));
    if (flags.options.chat_template.empty())
      return Error::InvalidArgument("{}: the file is empty", o.chat_template);
  }
  BATON_ASSIGN(auto engine, flags.Load());
  const ModelInfo& info = engine->info();
  const bool text = o.token_file.empty();
  if (text && !info.has_tokenizer)
    return Error::NotFound("{}: the model has no tokenizer", o.engine.model)
        .Hint("give --token-file instead of a text");
  if (text && !o.raw && !info.has_chat_template)
    return Error::Unsupported("{}: the model has no chat template", o.engine.model)
        .Hint("use --raw to continue the text itself, or --chat-template FILE");
  if (flags.options.context > info.context)
    Note(
        fmt::format("baton: warning: --context {} is beyond the {} tokens that the model was made "
                    "for",
                    flags.options.context, info.context));
  return engine;
}

Result<int> Run(const RunOptions& o, const Invocation& invocation) {
  const bool tokens = !o.token_file.empty();
  const bool interactive = !tokens && !o.text.Given() && StdinIsTerminal();
  CheckTogether(o, interactive);
  std::string text;
  if (!interactive && !tokens) {
    BATON_ASSIGN(text, o.text.Read());
  }
  BATON_ASSIGN(Request request, BaseRequest(o));
  BATON_ASSIGN(auto engine, LoadEngine(o));
  BATON_ASSIGN(request.plan, LoadPlan(*engine, o.plan));
  if (!o.json_schema.empty()) {
    BATON_ASSIGN(std::string schema, ReadFile(o.json_schema));
    BATON_ASSIGN(request.constraint, engine->CompileGrammar({std::move(schema), "", true}));
  }
  std::vector<int64_t> visible;
  if (!o.engine.options.router.empty() || !o.route.mask.empty()) request.route = o.route;
  request.exact = o.exact.Given();
  if (tokens) {
    BATON_ASSIGN(request.tokens, ReadTokens(o.token_file));
    visible.push_back(static_cast<int64_t>(request.tokens.size()));
  } else if (!interactive) {
    BATON_ASSIGN(const ChatPrompt prompt, Ask(*engine, o, std::move(text), request));
    if (o.show_prompt) return ShowPrompt(prompt, o.json);
    visible.push_back(static_cast<int64_t>(prompt.tokens.size()));
  } else {
    // A template that cannot be run is found now, not behind the first question.
    Request trial = request;
    BATON_TRY(Ask(*engine, o, "?", trial));
  }
  if (engine->info().trained_sparse) Note("layers: " + LayersLine(engine->info()));
  if (request.plan) {
    const int64_t limit = engine->options().context;
    visible.push_back(limit > 0 ? limit : engine->info().context);
    BATON_ASSIGN(const std::string plan_line, PlanLine(*engine, *request.plan, visible));
    Note(plan_line);
  }
  const bool random = o.seed.empty() || o.seed == kRandomSeed;
  if (random && request.sampling.temperature > 0 && !o.json)
    Note(fmt::format("baton: --seed {} repeats this", request.sampling.seed));
  return interactive ? Chat(*engine, request, o.stats) : Answer(*engine, o, request, invocation);
}

}  // namespace

void AddRun(CLI::App& app, Action& action) {
  CLI::App* command = AddCommand(
      app, "run", "Generate text: an answer to --prompt, --file or piped text, or a chat",
      "  baton run model.gguf                                      chat\n"
      "  baton run model.gguf --prompt 'Why is the sky blue?' -n 100\n"
      "  echo 'Name a colour.' | baton run model.gguf --system 'Be brief.'\n"
      "  baton run model.gguf --plan plan.json --file book.txt --stats\n"
      "  baton run model.gguf --raw --prompt 'The capital of France is' --json\n"
      "  baton run model.gguf --router router.safetensors --file book.txt --stats");
  AddCommandWith<RunOptions>(command, action, AddOptions, Run);
}

}  // namespace baton::apps
