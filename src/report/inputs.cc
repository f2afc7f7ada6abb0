#include "report/inputs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

namespace baton {
namespace {

using Json = nlohmann::json;

const Json* Find(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() ? nullptr : &*it;
}

Maybe Num(const Json& object, const char* key) {
  const Json* value = Find(object, key);
  if (!value || !value->is_number()) return std::nullopt;
  const auto number = value->get<double>();
  return std::isfinite(number) ? Maybe(number) : std::nullopt;
}

int64_t Int(const Json& object, const char* key) {
  const double value = Num(object, key).value_or(0);
  return std::abs(value) < 9e15 ? static_cast<int64_t>(value) : 0;
}

std::string Str(const Json& object, const char* key) {
  const Json* value = Find(object, key);
  return value && value->is_string() ? value->get<std::string>() : "";
}

bool Bool(const Json& object, const char* key) {
  const Json* value = Find(object, key);
  return value && value->is_boolean() && value->get<bool>();
}

std::vector<std::string> Strings(const Json& object, const char* key) {
  std::vector<std::string> list;
  const Json* value = Find(object, key);
  if (value && value->is_array())
    for (const Json& item : *value)
      if (item.is_string()) list.push_back(item.get<std::string>());
  return list;
}

// Numbers of an array, or of an array of arrays in its order; null, as JSON writes what is not
// finite, reads as NaN.
void Flatten(const Json& value, std::vector<double>& out) {
  if (value.is_array()) {
    for (const Json& item : value) Flatten(item, out);
  } else {
    out.push_back(value.is_number() ? value.get<double>()
                                    : std::numeric_limits<double>::quiet_NaN());
  }
}

// Absent is empty; another size is an error.
Result<std::vector<double>> Numbers(const Json& object, const char* key, size_t size) {
  std::vector<double> numbers;
  const Json* value = Find(object, key);
  if (!value || value->is_null()) return numbers;
  Flatten(*value, numbers);
  if (numbers.empty() || numbers.size() == size) return numbers;
  return Error::Corrupt("profile: \"{}\" holds {} numbers, its layers call for {}", key,
                        numbers.size(), size);
}

std::vector<int64_t> Integers(const Json& object, const char* key) {
  std::vector<double> numbers;
  if (const Json* value = Find(object, key)) Flatten(*value, numbers);
  std::vector<int64_t> integers;
  for (const double n : numbers)
    if (std::abs(n) < 9e15) integers.push_back(static_cast<int64_t>(n));
  return integers;
}

std::string KindOf(const Json& j) {
  const std::string format = Str(j, "format");
  if (format == "baton-plan") return "plan";
  if (Find(j, "chosen") && Find(j, "candidates")) return "search";
  if (Find(j, "kl_mean")) return "eval";
  if (Find(j, "plans")) return "eval of several plans";
  if (Find(j, "rows") && Find(j, "rows")->is_array()) return "bench";
  if (Find(j, "own_kl") || Find(j, "price_text") || format == "baton-profile") return "profile";
  return "";
}

std::string WriterOf(const std::string& kind) {
  if (kind == "search") return "baton plan --search-json";
  if (kind == "eval" || kind == "bench") return "baton " + kind + " --json";
  return "baton " + kind;
}

Result<Json> ParseAs(const std::string& kind, const std::string& text) {
  Json j = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (j.is_discarded())
    return Error::InvalidArgument("--{}: not a JSON file", kind)
        .Hint("give the file that `" + WriterOf(kind) + "` wrote");
  const std::string found = KindOf(j);
  if (found == kind) return j;
  return Error::InvalidArgument(
             "--{}: expected a file from `{}`, got {}", kind, WriterOf(kind),
             found.empty() ? "JSON of another kind" : "one from `" + WriterOf(found) + "`")
      .Hint(found.empty() ? "see baton report --help" : "give it to --" + found);
}

Origin ReadOrigin(const Json& j) {
  Origin o;
  o.command = Str(j, "command");
  if (const Json* machine = Find(j, "machine")) {
    o.cpu = Str(*machine, "cpu");
    o.backend = Str(*machine, "backend");
    o.threads = static_cast<int>(Int(*machine, "threads"));
  }
  if (const Json* model = Find(j, "model")) {
    o.model_name = Str(*model, "name");
    o.model_path = Str(*model, "path");
    o.fingerprint = Str(*model, "fingerprint");
  }
  if (const Json* texts = Find(j, "text"); texts && texts->is_array())
    for (const Json& t : *texts)
      if (t.is_object()) o.texts.emplace_back(Str(t, "path"), Str(t, "sha256"));
  return o;
}

// [budget][L * L]; one level may be flat or nested.
Result<std::vector<std::vector<double>>> Tables(const Json& j, const char* key, size_t budgets,
                                                size_t size) {
  std::vector<std::vector<double>> tables;
  BATON_ASSIGN(const auto all, Numbers(j, key, budgets * size));
  for (size_t b = 0; all.size() == budgets * size && b < budgets; ++b)
    tables.emplace_back(all.begin() + static_cast<int64_t>(b * size),
                        all.begin() + static_cast<int64_t>((b + 1) * size));
  return tables;
}

Result<ProfileData> ReadProfile(const std::string& text) {
  BATON_ASSIGN(const Json j, ParseAs("profile", text));
  ProfileData p;
  const Json* nested = Find(j, "model");
  const Json& model = nested && nested->is_object() ? *nested : j;
  p.origin = ReadOrigin(j);
  p.origin.model_path = Str(j, "model_path").empty() ? Str(model, "path") : Str(j, "model_path");
  p.origin.fingerprint = Str(model, "fingerprint");
  p.architecture = Str(model, "architecture");
  p.layers = static_cast<int>(Int(model, "layers"));
  if (p.layers < 1 || p.layers > 4096)
    return Error::Corrupt("profile: expected \"layers\" from 1 to 4096, got {}", p.layers);
  p.heads = static_cast<int>(Int(model, "heads"));
  p.kv_heads = static_cast<int>(Int(model, "kv_heads"));
  p.head_dim = Int(model, "head_dim");
  p.model_window = Integers(model, "model_window");
  p.seconds = Num(j, "seconds");
  const Json* found = Find(j, "options");
  const Json& options = found && found->is_object() ? *found : j;
  p.context = Int(options, "context");
  p.probes = Int(options, "probes");
  p.seed = Int(options, "seed");
  p.sink = Int(options, "sink");
  p.recent = Int(options, "recent");
  p.budgets = Integers(options, "budgets");
  p.windows = Integers(options, "windows");
  const auto paths = Strings(options, "texts"), digests = Strings(j, "text_sha256");
  p.origin.texts.clear();
  for (size_t i = 0; i < std::max(paths.size(), digests.size()); ++i)
    p.origin.texts.emplace_back(i < paths.size() ? paths[i] : "",
                                i < digests.size() ? digests[i] : "");
  const auto layers = static_cast<size_t>(p.layers);
  BATON_ASSIGN(p.text, Tables(j, "text", p.budgets.size(), layers * layers));
  BATON_ASSIGN(p.answer, Tables(j, "answer", p.budgets.size(), layers * layers));
  BATON_ASSIGN(p.own_kl, Numbers(j, "own_kl", layers));
  BATON_ASSIGN(p.rnmse, Numbers(j, "rnmse", layers));
  BATON_ASSIGN(p.price_text, Numbers(j, "price_text", layers));
  BATON_ASSIGN(p.price_answer, Numbers(j, "price_answer", layers));
  return p;
}

CandidateData ReadCandidate(const Json& j) {
  return {.origin = Str(j, "origin"),
          .roles = Str(j, "roles"),
          .predicted_nats = Num(j, "predicted_nats"),
          .kv_bytes_share = Num(j, "kv_bytes_share"),
          .speedup = Num(j, "predicted_speedup"),
          .kl = Num(j, "kl"),
          .answer_kl = Num(j, "answer_kl"),
          .top1 = Num(j, "top1"),
          .found = Num(j, "found"),
          .dense_found = Num(j, "dense_found"),
          .on_front = Bool(j, "on_front"),
          .meets_target = Bool(j, "meets_target")};
}

Result<SearchData> ReadSearch(const std::string& text) {
  BATON_ASSIGN(const Json j, ParseAs("search", text));
  SearchData s{.origin = ReadOrigin(j)};
  s.chosen = ReadCandidate(*Find(j, "chosen"));
  if (const Json* test = Find(j, "test"); test && test->is_object()) s.test = ReadCandidate(*test);
  if (const Json* list = Find(j, "candidates"); list->is_array())
    for (const Json& c : *list) s.candidates.push_back(ReadCandidate(c));
  s.seconds = Num(j, "seconds");
  if (const Json* target = Find(j, "target")) {
    s.max_kl = Num(*target, "max_kl");
    s.max_bytes = Num(*target, "max_bytes");
  }
  return s;
}

Result<EvalData> ReadEval(const std::string& text) {
  BATON_ASSIGN(const Json j, ParseAs("eval", text));
  EvalData e{.origin = ReadOrigin(j),
             .context = Int(j, "context"),
             .rows = Int(j, "rows"),
             .seed = Int(j, "seed"),
             .kl = Num(j, "kl_mean"),
             .kl_error = Num(j, "kl_standard_error"),
             .top1 = Num(j, "top1_agreement"),
             .nll_delta = Num(j, "nll_delta"),
             .found = Num(j, "retrieval_found"),
             .dense_found = Num(j, "retrieval_dense_found"),
             .total = Num(j, "retrieval_total"),
             .answer_kl = Num(j, "answer_kl"),
             .kv_bytes_share = Num(j, "kv_bytes_share"),
             .predicted_nats = Num(j, "predicted_nats"),
             .positions = Num(j, "positions")};
  if (const Json* grid = Find(j, "grid"); grid && grid->is_array())
    for (const Json& n : *grid)
      e.grid.push_back({.length = Int(n, "length"),
                        .depth = Num(n, "depth").value_or(0),
                        .dense_found = Bool(n, "dense_found"),
                        .found = Bool(n, "found")});
  return e;
}

Result<BenchData> ReadBench(const std::string& text) {
  BATON_ASSIGN(const Json j, ParseAs("bench", text));
  BenchData b{.origin = ReadOrigin(j), .read_bandwidth = Num(j, "read_bandwidth")};
  const auto positive = [](Maybe value) { return value && *value > 0 ? value : std::nullopt; };
  for (const Json& row : *Find(j, "rows"))
    b.rows.push_back({.depth = Int(row, "depth"),
                      .planned = Str(row, "plan") != "dense",
                      .prompt = positive(Num(row, "prompt_tokens_per_s")),
                      .decode = positive(Num(row, "decode_tokens_per_s")),
                      .kv_bytes = positive(Num(row, "kv_bytes_per_token")),
                      .share_of_bandwidth = Num(row, "share_of_read_bandwidth")});
  return b;
}

}  // namespace

Result<ReportData> ReadInputs(const ReportInputs& inputs) {
  ReportData data;
  data.title = inputs.title;
  if (!inputs.profile_json.empty()) {
    BATON_ASSIGN(data.profile, ReadProfile(inputs.profile_json));
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
    BATON_ASSIGN(data.search, ReadSearch(inputs.search_json));
  }
  for (const std::string& text : inputs.eval_json) {
    BATON_ASSIGN(EvalData eval, ReadEval(text));
    data.evals.push_back(std::move(eval));
  }
  for (const std::string& text : inputs.bench_json) {
    BATON_ASSIGN(BenchData bench, ReadBench(text));
    data.benches.push_back(std::move(bench));
  }
  std::stable_sort(data.evals.begin(), data.evals.end(),
                   [](const EvalData& a, const EvalData& b) { return a.context < b.context; });
  if (!data.profile && !data.plan && !data.search && data.evals.empty() && data.benches.empty())
    return Error::InvalidArgument("a report needs at least one result")
        .Hint("give --profile, --plan, --search, --eval or --bench");
  if (data.profile && data.plan &&
      data.plan->layers.size() != static_cast<size_t>(data.profile->layers))
    return Error::InvalidArgument("the plan has {} layers, the profile {}",
                                  data.plan->layers.size(), data.profile->layers)
        .Hint("are they of the same model?");
  return data;
}

}  // namespace baton
