// baton perplexity: of a text, in disjoint chunks, dense or under a plan.
#include "apps/command.h"
#include "baton/eval.h"

namespace baton::apps {
namespace {

struct PerplexityFlags {
  EngineFlags engine;
  std::string file, token_file, plan, score = "half";
  PerplexityOptions options;
  bool json = false;
};

void AddOptions(CLI::App* command, PerplexityFlags& o) {
  o.engine.AddModel(command);
  auto* source = command->add_option_group("input", "One of these");
  source->add_option("-f,--file", o.file, "Text");
  AddTokenFileFlag(source, o.token_file);
  source->require_option(1);
  command->add_option("--context", o.options.context, "Tokens of a chunk")
      ->check(AtLeast(8))
      ->capture_default_str();
  command->add_option("--chunks", o.options.chunks, "Chunks to score; 0: all")->check(AtLeast(0));
  command
      ->add_option("--score", o.score,
                   "half: the second half of each chunk, as llama.cpp does; all: every position")
      ->check(OneWordOf({"half", "all"}))
      ->capture_default_str();
  command->add_flag("--logprobs", o.options.logprobs,
                    "Also print the log-probability of every scored token (with --json)");
  AddPlanFlag(command, o.plan);
  AddJsonFlag(command, o.json);
  o.engine.Add(command, EngineFlags::Context::kOwnedByCommand);
}

Result<int> Run(const PerplexityFlags& o, const Invocation& invocation) {
  Texts text;
  PerplexityOptions options = o.options;
  if (o.token_file.empty()) {
    BATON_ASSIGN(text, ReadTexts({o.file}));
  } else {
    BATON_ASSIGN(options.tokens, ReadTokens(o.token_file));
  }
  EngineFlags flags = o.engine;
  flags.options.context = o.options.context;
  BATON_ASSIGN(auto engine, flags.Load());
  options.score_all = o.score == "all";
  BATON_ASSIGN(options.plan, LoadPlan(*engine, o.plan));
  if (options.plan) {
    BATON_ASSIGN(const std::string line, PlanLine(*engine, *options.plan, {options.context}));
    Note(line);
  }
  InterruptGuard guard(*engine);
  Progress progress;
  BATON_ASSIGN(const PerplexityResult r,
               MeasurePerplexity(*engine, text.all, options, progress.Callback()));
  if (!o.json) {
    BATON_TRY(Print(fmt::format(
        "perplexity {:.4f} +/- {:.4f}  ({} tokens scored in {} chunks of {})\n", r.perplexity,
        r.standard_error, Count(r.tokens_scored), r.chunks, Count(options.context))));
    return 0;
  }
  results::PerplexityRecord record = {.origin = OriginOf("perplexity", *engine, invocation),
                                      .context = options.context,
                                      .score = o.score,
                                      .plan = options.plan ? options.plan->Summary() : "dense",
                                      .result = r};
  record.origin.texts = text.sources;
  BATON_TRY(PrintJson(results::ToJson(record)));
  return 0;
}

}  // namespace

void AddPerplexity(CLI::App& app, Action& action) {
  CLI::App* command = AddCommand(
      app, "perplexity", "Perplexity of a text, dense or under a plan",
      "  baton perplexity model.gguf --file book.txt --context 1024 --chunks 4\n"
      "  baton perplexity model.gguf --file book.txt --plan plan.json --score all --json\n"
      "  baton perplexity model.gguf --token-file ids.json --score all --logprobs --json");
  AddCommandWith<PerplexityFlags>(command, action, AddOptions, Run);
}

}  // namespace baton::apps
