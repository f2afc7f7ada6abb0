// baton plan: search the cheapest plan for a target, or rank layers for windows; verify, write.
#include <algorithm>

#include "apps/command.h"
#include "apps/plan_windows.h"
#include "baton/profile.h"

namespace baton::apps {
namespace {

struct PlanFlags {
  EngineFlags engine;  // its model comes from --model or the profile
  std::string profile, output, search_json, cost = "bytes";
  PlanOptions options;
  WindowFlags windows;
  PrefillMode prefill = options.prefills.front();
  std::vector<double> fractions;
  bool no_scan = false, no_windows = false, no_local_search = false, dense_prompts = false;
  bool json = false;
  enum class For { kSpeed, kExact } purpose = For::kSpeed;
  CLI::Option* min_retrieval = nullptr;
  CLI::Option* max_kl = nullptr;
  CLI::Option* max_kl_mean = nullptr;
  CLI::Option* max_bytes = nullptr;
  CLI::Option* max_held = nullptr;
  CLI::Option* min_speedup = nullptr;
};

constexpr double kDefaultMaxBytes = 0.125;

void AddTarget(CLI::App* command, PlanFlags& o) {
  const std::string group = "Target";
  PlanTarget& t = o.options.target;
  o.max_kl = command
                 ->add_option("--max-kl", t.max_kl,
                              "Most nats of KL to dense on text, of the worst kind of text and of "
                              "the worst one left out")
                 ->check(Above(0))
                 ->group(group);
  o.max_kl_mean = command
                      ->add_option("--max-kl-mean", t.max_kl_mean,
                                   "Most nats of KL to dense on text, as the mean over its kinds")
                      ->check(Above(0))
                      ->group(group);
  o.max_bytes =
      command
          ->add_option("--max-bytes", t.max_bytes,
                       "Most KV bytes of a decode step, as a share of dense; 0.125 when no target "
                       "is given")
          ->check(AboveTo(0.0, 1.0))
          ->group(group);
  o.max_held =
      command
          ->add_option("--max-held", t.max_held,
                       "Most KV bytes held after the prompt, as a share of dense: windows evict")
          ->check(AboveTo(0.0, 1.0))
          ->group(group);
  o.min_speedup = command
                      ->add_option("--min-speedup", t.min_speedup,
                                   "Least speed-up of a decode step, by measured costs")
                      ->check(Above(0))
                      ->group(group);
  o.min_retrieval = command
                        ->add_option("--min-retrieval", t.min_retrieval,
                                     "Least share of the probes found that dense finds")
                        ->check(Between(0.0, 1.0))
                        ->capture_default_str()
                        ->group(group);
  command
      ->add_option("--for", o.purpose,
                   "speed: the plan answers (the default); exact: it drafts for --exact, and the "
                   "least expected time per token is looked for")
      ->transform(OneOf<PlanFlags::For>(
          {{"speed", PlanFlags::For::kSpeed}, {"exact", PlanFlags::For::kExact}}))
      ->option_text("speed|exact")
      ->group(group);
}

void AddSearch(CLI::App* command, PlanFlags& o) {
  const std::string group = "Search";
  PlanOptions& p = o.options;
  command
      ->add_option("--objective", p.objective,
                   "nats: priced loss (the default); mass: lost attention mass; paper: overlap")
      ->transform(OneOf<PlanObjective>({{"nats", PlanObjective::kNats},
                                        {"mass", PlanObjective::kMass},
                                        {"paper", PlanObjective::kPaper}}))
      ->group(group);
  command->add_option("--roles", p.roles, "Roles besides full, of select,scan,reuse,window (all)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->transform(OneOf<Role>({{"select", Role::kSelect},
                               {"scan", Role::kScan},
                               {"reuse", Role::kReuse},
                               {"window", Role::kWindow}}))
      ->group(group);
  command->add_flag("--no-scan", o.no_scan, "No scan layers")->group(group);
  command->add_flag("--no-windows", o.no_windows, "No window layers")->group(group);
  command->add_option("--forced", p.forced, "Layers that stay full or select, for example 0,1")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(AtLeast(0))
      ->group(group);
  command->add_option("--cost", o.cost, "What is minimised: bytes or measured time")
      ->check(OneWordOf({"bytes", "time"}))
      ->capture_default_str()
      ->group(group);
  command->add_option("--kinds", p.kinds, "Kinds of text to plan for; all without it")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->group(group);
  command->add_option("--max-evaluations", p.max_evaluations, "Candidates measured end to end")
      ->check(AtLeast(1))
      ->capture_default_str()
      ->group(group);
  command->add_flag("--no-local-search", o.no_local_search, "The exact fronts alone")->group(group);
  CLI::Option* dense_prompts =
      command->add_flag("--dense-prompts", o.dense_prompts, "Do not try sparse prompts")
          ->group(group);
  command->add_option("--tile", o.prefill.tile, "Sparse prompts: queries that share one set")
      ->check(AtLeast(1))
      ->capture_default_str()
      ->excludes(dense_prompts)
      ->group(group);
  for (const PrefillMode& prefill : p.prefills) o.fractions.push_back(prefill.fraction);
  command
      ->add_option("--fractions", o.fractions,
                   "Sparse prompts: shares of the keys in a set, tried in this order")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(AboveTo(0.0, 1.0))
      ->capture_default_str()
      ->excludes(dense_prompts)
      ->group(group);
}

void AddOptions(CLI::App* command, PlanFlags& o) {
  command->add_option("PROFILE", o.profile, "Profile (from `baton profile`)")->required();
  command->add_option("-m,--model", o.engine.model, "Model; without it: the one that was profiled");
  command->add_option("-o,--output", o.output, "Plan to write")->required();
  command->add_option("--search-json", o.search_json, "Also write every candidate, for the report")
      ->group("Search");
  AddJsonFlag(command, o.json);
  AddTarget(command, o);
  AddSearch(command, o);
  o.windows.Add(command, {"Target", "Search"});
  o.engine.Add(command, EngineFlags::Context::kOwnedByCommand);
}

// A ruler above the strip: the tens of the layer numbers.
std::string Ruler(size_t layers) {
  std::string ruler;
  while (ruler.size() < layers) ruler += fmt::format("{:<10}", ruler.size());
  ruler.resize(layers);
  return ruler;
}

std::vector<std::string> Row(const Candidate& c, const std::string& name) {
  return {name,
          Percent(c.kv_bytes_share),
          Percent(c.kv_held_share),
          fmt::format("{:.4f}", c.predicted_nats),
          fmt::format("{:.4f}", c.kl),
          fmt::format("{:.4f}", c.WorstKl()),
          c.left_out_kl.empty() ? "-" : fmt::format("{:.4f}", c.LeftOutKl()),
          fmt::format("{:.4f}", c.answer_kl),
          Percent(c.top1),
          fmt::format("{}/{}", c.found, c.dense_found),
          c.predicted_speedup > 0 ? fmt::format("{:.2f}x", c.predicted_speedup) : "-",
          results::Letters(c.plan)};
}

Table CandidateTable() {
  return Table({"origin", "KV read", "KV held", "predicted nats", "KL", "worst kind", "left out",
                "answer KL", "top-1", "found", "speed-up", "  layers"});
}

std::string KindTable(const PlanSearch& search) {
  Table table({"kind of text", "KL, search split", "left out", "KL, test split", "left out",
               "8 of 10 other texts"});
  for (size_t k = 0; k < search.kinds.size(); ++k) {
    std::vector<std::string> row = {search.kinds[k]};
    for (const Candidate* c : {&search.chosen, &search.test})
      for (const double kl : {c->kind_kl[k], c->left_out_kl[k]})
        row.push_back(fmt::format("{:.4f}", kl));
    const double kl = search.test.left_out_kl[k], spread = search.test.spread;
    row.push_back(spread > 1 ? fmt::format("{:.4f} to {:.4f}", kl / spread, kl * spread) : "-");
    table.Row(std::move(row));
  }
  return table.ToString();
}

std::string ToText(const PlanSearch& search, const PlanFlags& o) {
  std::vector<Candidate> front;
  for (const Candidate& c : search.candidates)
    if (c.on_front) front.push_back(c);
  std::sort(front.begin(), front.end(), [](const Candidate& a, const Candidate& b) {
    return a.bounded_share < b.bounded_share;
  });
  std::string out;
  if (!front.empty()) {
    Table table = CandidateTable();
    for (const Candidate& c : front) table.Row(Row(c, (c.meets_target ? "* " : "  ") + c.origin));
    out += fmt::format("Front of {} measured candidates (* meets the target):\n\n{}\n",
                       search.candidates.size(), table.ToString());
    std::vector<SketchPoint> points;
    for (const Candidate& c : search.candidates) points.push_back({c.bounded_share, c.kl, '.'});
    for (const Candidate& c : front) points.push_back({c.bounded_share, c.kl, 'o'});
    points.push_back({search.chosen.bounded_share, search.chosen.kl, '@'});
    const bool held = o.options.target.max_held > 0;
    out += Sketch(points, held ? "share of the KV bytes held," : "share of the KV bytes,",
                  "KL to dense, nats (o front, @ chosen)") +
           "\n";
  }
  Table figures = CandidateTable();
  figures.Row(Row(search.chosen, "search split"));
  figures.Row(Row(search.test, "test split"));
  out += fmt::format("Chosen ({}):\n\n{}\n", search.chosen.origin, figures.ToString());
  if (search.kinds.size() > 1) out += KindTable(search) + "\n";
  const size_t layers = search.chosen.plan.layers.size();
  out += fmt::format("layer  {}\nrole   {}   F full, S select, C scan, R reuse, W window\n",
                     Ruler(layers), results::Letters(search.chosen.plan));
  out += fmt::format(
      "loss   predicted {:.4f} nats, measured {:.4f} on text and {:.4f} at the answers\n",
      search.chosen.predicted_nats, search.chosen.kl, search.chosen.answer_kl);
  if (search.chosen.exact_time > 0)
    out +=
        fmt::format("exact  expected {:.2f} of dense's time per token, {} of the drafts accepted\n",
                    search.chosen.exact_time, Percent(search.chosen.top1));
  out += fmt::format("{}: {}   ({})\n", o.output, search.chosen.plan.Summary(),
                     Duration(search.seconds));
  return out;
}

PlanOptions SearchOptions(const PlanFlags& o) {
  PlanOptions options = o.options;
  const auto without = [&](Role role) { std::erase(options.roles, role); };
  if (o.no_scan) without(Role::kScan);
  if (o.no_windows) without(Role::kWindow);
  options.local_search = !o.no_local_search;
  options.cost_in_bytes = o.cost == "bytes";
  options.prefills.clear();
  for (double fraction : o.fractions) {
    if (o.dense_prompts) break;
    options.prefills.push_back(o.prefill);
    options.prefills.back().fraction = fraction;
  }
  if (o.purpose == PlanFlags::For::kExact) {
    // Dense attention decides: what a plan loses costs time alone.
    options.for_exact = true;
    if (o.min_retrieval->count() == 0) options.target.min_retrieval = 0;
    return options;
  }
  // Retrieval alone would be met by a plan that is cheap and bad at everything else.
  if (o.max_kl->count() + o.max_kl_mean->count() + o.max_bytes->count() + o.max_held->count() +
          o.min_speedup->count() ==
      0)
    options.target.max_bytes = kDefaultMaxBytes;
  return options;
}

Result<int> Run(const PlanFlags& o, const Invocation& invocation) {
  o.windows.CheckUse();
  BATON_TRY(CheckWritable(o.output));
  if (!o.search_json.empty()) BATON_TRY(CheckWritable(o.search_json));
  BATON_ASSIGN(const Profile profile, Profile::Load(o.profile));
  EngineFlags flags = o.engine;
  if (flags.model.empty()) flags.model = profile.model_path;
  if (flags.model.empty())
    return Error::InvalidArgument("{} does not name its model", o.profile).Hint("give --model");
  BATON_ASSIGN(auto engine, flags.Load());
  InterruptGuard guard(*engine);
  if (o.windows.Given()) {
    return RunPlanWindows(*engine, profile, o.windows.options, o.output, o.json, invocation);
  }
  const PlanOptions options = SearchOptions(o);
  std::optional<PlanSearch> search;
  {
    Progress progress;
    BATON_ASSIGN(search, SearchPlan(*engine, profile, options, progress.Callback()));
  }
  BATON_TRY(search->chosen.plan.Save(o.output));
  if (search->kinds.size() == 1)
    Note("baton: warning: one kind of text was measured: on others the plan may lose much more");
  if (!search->test.meets_target)
    Note(
        "baton: warning: the plan misses the target on the test split, which it was not chosen on");
  const double most =
      std::max(search->test.WorstKl(), search->test.LeftOutKl()) * search->test.spread;
  if (search->test.meets_target && options.target.max_kl > 0 && most > options.target.max_kl)
    Note(
        fmt::format("baton: warning: contexts of one kind differ: on other text of these kinds the "
                    "KL may be {:.4f}, above the bound",
                    most));
  Json json =
      results::ToJson(results::SearchRecord{.origin = OriginOf("search", *engine, invocation),
                                            .search = *search,
                                            .target = options.target});
  for (const Plan& plan : search->left_out_plans)
    json["left_out_plans"].push_back(Json::parse(plan.ToJson()));
  if (!o.search_json.empty()) BATON_TRY(WriteFile(o.search_json, json.dump(2) + "\n"));
  BATON_TRY(o.json ? PrintJson(json) : Print(ToText(*search, o)));
  return 0;
}

}  // namespace

void AddPlan(CLI::App& app, Action& action) {
  CLI::App* command = AddCommand(
      app, "plan",
      "Search the cheapest plan that meets a target, or rank layers for windows; verify, write",
      "  baton plan profile.json --max-bytes 0.125 -o plan.json\n"
      "  baton plan profile.json --max-kl 0.01 --no-scan -o plan.json --search-json search.json\n"
      "  baton plan profile.json --max-held 0.6 --max-kl 0.03 -o plan.json\n"
      "  baton plan profile.json --min-speedup 2 --cost time -o plan.json\n"
      "  baton plan profile.json --windows-only 0.5 --rank harm --window 512 --sink 64 -o "
      "plan.json");
  AddCommandWith<PlanFlags>(command, action, AddOptions, Run);
}

}  // namespace baton::apps
