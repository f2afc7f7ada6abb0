#include "report/inputs.h"

#include <algorithm>
#include <sstream>

#include "results/profile_fields.h"

namespace baton {
namespace {

using results::Json;

constexpr size_t kMostTrainings = 8;  // colours of the page

std::string KindOf(const Json& j) {
  const auto has = [&](const char* key) { return j.is_object() && j.contains(key); };
  const auto is = [&](const char* format) { return has("format") && j["format"] == format; };
  if (is("baton-plan")) return "plan";
  if (is("baton-run")) return "run";
  if (is("baton-info")) return "info";
  if (has("chosen") && has("candidates")) return "search";
  if (has("kl_mean")) return "eval";
  if (has("plans")) return "eval of several plans";
  if (has("rows") && j["rows"].is_array()) return "bench";
  if (has("own_kl") || has("price_text") || is("baton-profile")) return "profile";
  return "";
}

std::string WriterOf(const std::string& kind) {
  if (kind == "search") return "baton plan --search-json";
  if (kind == "eval" || kind == "bench" || kind == "run" || kind == "info")
    return "baton " + kind + " --json";
  return "baton " + kind;
}

// The option of `baton report` for a kind of file; for what run and info print it ends in -json.
std::string OptionOf(const std::string& kind) {
  return kind == "run" || kind == "info" ? "--" + kind + "-json" : "--" + kind;
}

Result<Json> ParseAs(const std::string& kind, const std::string& text) {
  Json j = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (j.is_discarded())
    return Error::InvalidArgument("{}: not a JSON file", OptionOf(kind))
        .Hint("give the file that `" + WriterOf(kind) + "` wrote");
  const std::string found = KindOf(j);
  if (found == kind) return j;
  return Error::InvalidArgument(
             "{}: expected a file from `{}`, got {}", OptionOf(kind), WriterOf(kind),
             found.empty() ? "JSON of another kind" : "one from `" + WriterOf(found) + "`")
      .Hint(found.empty() ? "see baton report --help" : "give it to " + OptionOf(found));
}

template <typename T>
Result<T> ReadAs(const std::string& kind, const std::string& text) {
  BATON_ASSIGN(const Json j, ParseAs(kind, text));
  T record;
  results::Read(j, record);  // what is absent is left out of the page
  return record;
}

Result<Profile> ReadProfile(const std::string& text) {
  BATON_ASSIGN(Profile p, ReadAs<Profile>("profile", text));
  if (p.layers < 1 || p.layers > 4096)
    return Error::Corrupt("profile: expected \"layers\" from 1 to 4096, got {}", p.layers);
  const results::SizeCheck wrong(p, /*may_be_empty=*/true);
  if (wrong.key.empty()) return p;
  return Error::Corrupt("profile: \"{}\" holds {} numbers, its layers call for {}", wrong.key,
                        wrong.held, wrong.lists.value_or(1) * wrong.numbers);
}

// A request that was routed; its lists hold one entry per layer.
Result<RunRecord> ReadRun(const std::string& text) {
  BATON_ASSIGN(RunRecord run, ReadAs<RunRecord>("run", text));
  const auto& routing = run.generation.stats.routing;
  if (!routing)
    return Error::InvalidArgument("--run-json: the request was not routed")
        .Hint("run it with --router or --route-mask");
  const size_t layers = routing->bitmap.size();
  if (layers == 0 || layers > 4096 || routing->bitmap.find_first_not_of("FS") != std::string::npos)
    return Error::Corrupt("--run-json: \"bitmap\" must be letters F and S, one per layer");
  if (routing->logits.size() != layers || routing->held_token_equivalents.size() != layers)
    return Error::Corrupt(
        "--run-json: the bitmap has {} layers, \"logits\" {} and \"held_token_equivalents\" {}",
        layers, routing->logits.size(), routing->held_token_equivalents.size());
  return run;
}

// What a continuation does again was done by the run that was stopped.
template <typename Record>
void DropAfter(std::vector<Record>& records, int64_t step) {
  std::erase_if(records, [step](const Record& r) { return r.step > step; });
}

Result<TrainingRun> ReadTrainLog(const std::string& text) {
  TrainingRun run;
  std::istringstream lines(text);
  std::string line;
  bool started = false;
  while (std::getline(lines, line)) {
    const Json j = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    const auto is = [&](const char* event) {
      return j.is_object() && j.contains("event") && j["event"] == event;
    };
    if (is("start")) {
      started = true;
      results::Read(j, run.start);
      DropAfter(run.lm, run.start.step);
      DropAfter(run.gates, run.start.step);
      DropAfter(run.tests, run.start.step);
    } else if (is("losses")) {
      if (j.contains("windows")) {
        results::Read(j, run.gates.emplace_back());
      } else {
        results::Read(j, run.lm.emplace_back());
      }
    } else if (is("test") || is("result")) {
      results::Read(j, run.tests.emplace_back());
    }
  }
  if (!started) {
    const std::string found = KindOf(Json::parse(text, nullptr, /*allow_exceptions=*/false));
    return Error::InvalidArgument(
               "--train-log: expected a log of `baton-train`, got {}",
               found.empty() ? "a file of another kind" : "one from `" + WriterOf(found) + "`")
        .Hint(found.empty() ? "give log.jsonl of a run" : "give it to " + OptionOf(found));
  }
  if (run.lm.empty() && run.gates.empty())
    return Error::InvalidArgument("--train-log: a log without losses");
  return run;
}

Origin OriginOf(const Profile& p) {
  Origin origin;
  origin.model.path = p.model_path;
  origin.model.fingerprint = p.fingerprint;
  const auto& paths = p.options.texts;
  origin.texts.resize(std::max(paths.size(), p.text_sha256.size()));
  for (size_t i = 0; i < paths.size(); ++i) origin.texts[i].path = paths[i];
  for (size_t i = 0; i < p.text_sha256.size(); ++i) origin.texts[i].sha256 = p.text_sha256[i];
  return origin;
}

}  // namespace

Result<ReportData> ReadInputs(const ReportInputs& inputs) {
  ReportData data;
  data.title = inputs.title;
  if (!inputs.profile_json.empty()) {
    BATON_ASSIGN(data.profile, ReadProfile(inputs.profile_json));
    data.profile_origin = OriginOf(*data.profile);
  }
  if (!inputs.plan_json.empty()) {
    BATON_TRY([&]() -> Status {
      BATON_ASSIGN(const Json unused, ParseAs("plan", inputs.plan_json));
      (void)unused;
      return Status::Ok();
    }());
    auto plan = Plan::Parse(inputs.plan_json);
    if (!plan.ok()) return std::move(plan).error().At("--plan");
    data.plan = std::move(*plan);
  }
  if (!inputs.search_json.empty()) {
    BATON_ASSIGN(data.search, ReadAs<SearchRecord>("search", inputs.search_json));
  }
  for (const std::string& text : inputs.eval_json) {
    BATON_ASSIGN(EvalRecord eval, ReadAs<EvalRecord>("eval", text));
    data.evals.push_back(std::move(eval));
  }
  for (const std::string& text : inputs.bench_json) {
    BATON_ASSIGN(BenchRecord bench, ReadAs<BenchRecord>("bench", text));
    data.benches.push_back(std::move(bench));
  }
  for (const std::string& text : inputs.run_json) {
    BATON_ASSIGN(RunRecord run, ReadRun(text));
    data.runs.push_back(std::move(run));
  }
  if (!inputs.info_json.empty()) {
    BATON_ASSIGN(data.info, ReadAs<InfoRecord>("info", inputs.info_json));
  }
  for (const std::string& text : inputs.train_logs) {
    BATON_ASSIGN(TrainingRun run, ReadTrainLog(text));
    data.trainings.push_back(std::move(run));
  }
  if (data.trainings.size() > kMostTrainings)
    return Error::InvalidArgument("--train-log: {} runs, at most {} can be told apart",
                                  data.trainings.size(), kMostTrainings);
  std::stable_sort(data.evals.begin(), data.evals.end(),
                   [](const EvalRecord& a, const EvalRecord& b) {
                     return a.options.context < b.options.context;
                   });
  if (!data.profile && !data.plan && !data.search && !data.info && data.evals.empty() &&
      data.benches.empty() && data.runs.empty() && data.trainings.empty())
    return Error::InvalidArgument("a report needs at least one result")
        .Hint(
            "give --profile, --plan, --search, --eval, --bench, --run-json, --info-json or "
            "--train-log");
  if (data.profile && data.plan &&
      data.plan->layers.size() != static_cast<size_t>(data.profile->layers))
    return Error::InvalidArgument("the plan has {} layers, the profile {}",
                                  data.plan->layers.size(), data.profile->layers)
        .Hint("are they of the same model?");
  return data;
}

}  // namespace baton
