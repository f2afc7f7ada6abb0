// baton eval: plans against the same model's dense attention.
#include "baton/eval.h"

#include <map>

#include "apps/command.h"

namespace baton::apps {
namespace {

struct EvalFlags {
  EngineFlags engine;
  std::vector<std::string> plans, texts;
  EvalOptions options;
  bool json = false;
};

void AddOptions(CLI::App* command, EvalFlags& o) {
  o.engine.AddModel(command);
  command
      ->add_option("--plan", o.plans,
                   "Attention plan to judge; given several times, all share the dense runs")
      ->allow_extra_args(false)
      ->required();
  AddTextFlag(command, o.texts);
  const auto count = [&](const std::string& name, int64_t& value, const std::string& help) {
    return command->add_option(name, value, help)->check(AtLeast(0))->capture_default_str();
  };
  count("--context", o.options.context, "Tokens of a window of text");
  count("--rows", o.options.rows, "Last positions of each window, decoded under the plan");
  count("--max-windows", o.options.max_windows, "Windows of text; 0: as many as it has");
  command->add_option("--needles", o.options.needles, "Retrieval probes; 0: none")
      ->check(AtLeast(0))
      ->capture_default_str();
  command->add_option("--seed", o.options.seed, "Seed of the probes")->capture_default_str();
  command
      ->add_option("--grid", o.options.grid_lengths,
                   "Also probe by depth at these lengths, for example 1024,2048,4096")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(AtLeast(1));
  count("--self", o.options.self_generated, "Also compare a free-running decode of N tokens");
  AddJsonFlag(command, o.json);
  o.engine.Add(command, EngineFlags::Context::kOwnedByCommand);
}

// A cell per depth (rows) and length (columns): found of those that dense finds.
std::string Grid(const std::vector<NeedleResult>& grid) {
  std::map<int64_t, std::map<int64_t, std::pair<int, int>>>
      cells;  // depth in % -> length -> counts
  std::map<int64_t, int> lengths;
  for (const NeedleResult& n : grid) {
    auto& cell = cells[std::llround(n.depth * 100)][n.length];
    cell.first += n.dense_found && n.found, cell.second += n.dense_found;
    lengths[n.length] = 0;
  }
  std::vector<std::string> heads = {"depth"};
  for (const auto& [length, unused] : lengths) heads.push_back(Count(length));
  Table table(heads);
  for (auto& [depth, row] : cells) {
    std::vector<std::string> line = {fmt::format("{} %", depth)};
    for (const auto& [length, unused] : lengths) {
      const auto it = row.find(length);
      line.push_back(it == row.end() ? ""
                                     : fmt::format("{}/{}", it->second.first, it->second.second));
    }
    table.Row(line);
  }
  return table.ToString();
}

std::string ToText(const EvalResult& r) {
  Table table({"measure", "planned", "dense"});
  table.Row({"KV bytes a decode step reads", Percent(r.kv_bytes_share), "100 %"});
  if (r.kv_held_share)
    table.Row({"KV bytes held after the prompt", Percent(*r.kv_held_share), "100 %"});
  table.Row(
      {"KL to dense, nats", fmt::format("{:.4f} +/- {:.4f}", r.kl_mean, r.kl_standard_error), "0"});
  table.Row({"same likeliest token", Percent(r.top1_agreement), "100 %"});
  table.Row({"NLL, nats", fmt::format("{:.4f}", r.dense_nll + r.nll_delta),
             fmt::format("{:.4f}", r.dense_nll)});
  if (r.retrieval_total > 0) {
    table.Row({fmt::format("probes found of {}", r.retrieval_total),
               std::to_string(r.retrieval_found), std::to_string(r.retrieval_dense_found)});
    if (r.retrieval_found_later)
      table.Row({"found by a second turn", std::to_string(*r.retrieval_found_later), ""});
    table.Row({"KL at the answers, nats", fmt::format("{:.4f}", r.answer_kl), "0"});
  }
  if (r.predicted_nats)
    table.Row(
        {"loss that the planner predicted, nats", fmt::format("{:.4f}", *r.predicted_nats), "0"});
  std::string out = table.ToString();
  out += fmt::format("over {} positions in {} windows\n", Count(r.positions), Count(r.windows));
  if (r.self_generated > 0)
    out += fmt::format(
        "free-running {} tokens: {}; NLL of the planned text {:.4f} planned, {:.4f} dense\n",
        Count(r.self_generated),
        r.self_first_difference < 0
            ? std::string("same as dense")
            : fmt::format("first difference at {}", Count(r.self_first_difference)),
        r.self_nll_plan, r.self_nll_dense);
  if (!r.grid.empty()) out += "\nfound of what dense finds, by depth and length:\n" + Grid(r.grid);
  return out;
}

Result<int> Run(const EvalFlags& o, const Invocation& invocation) {
  BATON_ASSIGN(const Texts text, ReadTexts(o.texts));
  BATON_ASSIGN(auto engine, o.engine.Load());
  EvalOptions options = o.options;
  for (const std::string& path : o.plans) {
    BATON_ASSIGN(const auto plan, LoadPlan(*engine, path));
    BATON_ASSIGN(const std::string line, PlanLine(*engine, *plan, {options.context}));
    Note(line);
    options.plans.push_back(*plan);
  }
  InterruptGuard guard(*engine);
  Progress progress;
  BATON_ASSIGN(const std::vector<EvalResult> results,
               Evaluate(*engine, text.all, options, progress.Callback()));
  const bool several = results.size() > 1;
  if (!o.json) {
    std::string out;
    for (size_t i = 0; i < results.size(); ++i) {
      if (several) out += fmt::format("{}{}\n", i > 0 ? "\n" : "", o.plans[i]);
      out += ToText(results[i]);
    }
    BATON_TRY(Print(out));
    return 0;
  }
  results::EvalRecord record = {
      .origin = OriginOf("eval", *engine, invocation), .options = options, .plans = {}};
  record.origin.texts = text.sources;
  for (size_t i = 0; i < results.size(); ++i)
    record.plans.push_back({.plan = options.plans[i].Summary(),
                            .file = several ? o.plans[i] : "",
                            .result = results[i]});
  BATON_TRY(PrintJson(results::ToJson(record)));
  return 0;
}

}  // namespace

void AddEval(CLI::App& app, Action& action) {
  CLI::App* command = AddCommand(
      app, "eval", "Compare a plan with the dense model: KL, top-1, retrieval probes",
      "  baton eval model.gguf --plan plan.json --text held-out.txt --context 8192\n"
      "  baton eval model.gguf --plan plan.json --text a.txt b.txt --context 4096 --needles 100 "
      "--grid 1024,2048,4096 --json\n"
      "  baton eval model.gguf --plan a.json --plan b.json --text held-out.txt");
  AddCommandWith<EvalFlags>(command, action, AddOptions, Run);
}

}  // namespace baton::apps
