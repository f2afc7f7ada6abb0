// The JSON form of a plan (docs/plan-format.md).
#include <nlohmann/json.hpp>

#include "baton/plan.h"
#include "plan/json_fields.h"
#include "plan/roles.h"

namespace baton {
namespace {

using internal::ExpectObject;
using internal::Find;
using internal::Fraction;
using internal::Integer;
using internal::Json;
using internal::NearestHint;
using internal::Number;
using internal::Shown;
using internal::Text;
using OrderedJson = nlohmann::ordered_json;

constexpr int kVersion = 1;
constexpr int64_t kMaxTokens = int64_t{1}
                               << 40;  // far above any context, far below overflow in bytes
constexpr int64_t kMaxLayers = 1 << 16;

Result<Budget> ParseBudget(const Json& value, const std::string& where) {
  if (value.is_object()) {
    BATON_TRY(ExpectObject(value, where, {"fraction"}));
    const Json* fraction = Find(value, "fraction");
    if (!fraction)
      return Error::InvalidArgument("{}: expected {{\"fraction\":F}}, got an empty object", where);
    BATON_ASSIGN(const double f, Fraction(*fraction, where + ".fraction"));
    return Budget{0, f};
  }
  BATON_ASSIGN(const int64_t tokens, Integer(value, where, 1, kMaxTokens));
  return Budget{tokens, 0};
}

Status ParseWindow(const Json& value, const std::string& where, LayerRole* role) {
  BATON_TRY(ExpectObject(value, where, {"sink", "recent"}));
  const Json* recent = Find(value, "recent");
  if (!recent)
    return Error::InvalidArgument("{}: \"recent\" is missing", where)
        .Hint(fmt::format("{{\"{}\":{{\"sink\":4,\"recent\":1020}}}}", ToString(role->role)));
  BATON_ASSIGN(role->recent, Integer(*recent, where + ".recent", 1, kMaxTokens));
  if (const Json* sink = Find(value, "sink")) {
    BATON_ASSIGN(role->sink, Integer(*sink, where + ".sink", 0, kMaxTokens));
  }
  return Status::Ok();
}

Status ParseScan(const Json& value, const std::string& where, LayerRole* role) {
  BATON_TRY(ExpectObject(value, where, {"bits", "k"}));
  if (const Json* bits = Find(value, "bits")) {
    BATON_ASSIGN(role->bits, Integer(*bits, where + ".bits", 1, 16));
  }
  if (const Json* k = Find(value, "k")) {
    BATON_ASSIGN(role->k, ParseBudget(*k, where + ".k"));
  }
  return Status::Ok();
}

Status ParseReuse(const Json& value, const std::string& where, LayerRole* role) {
  if (value.is_object()) {
    BATON_TRY(ExpectObject(value, where, {"source", "k"}));
    if (const Json* source = Find(value, "source")) {
      BATON_ASSIGN(role->source, Integer(*source, where + ".source", 0, kMaxLayers));
    }
    if (const Json* k = Find(value, "k")) {
      BATON_ASSIGN(role->k, ParseBudget(*k, where + ".k"));
    }
    return Status::Ok();
  }
  BATON_ASSIGN(role->source, Integer(value, where, 0, kMaxLayers));
  return Status::Ok();
}

// Names of the roles in plans; only those with fields, or those that may stand without.
std::vector<std::string_view> RoleNames(bool with_fields) {
  std::vector<std::string_view> names;
  for (const RoleRow& row : Roles()) {
    const bool fits = with_fields ? row.fields != kNoField : !(row.fields & kWindowField);
    if (row.in_plans && fits) names.push_back(row.name);
  }
  return names;
}

Result<LayerRole> ParseRole(const Json& value, const std::string& where) {
  LayerRole role;
  if (value.is_string()) {
    const auto& name = value.get_ref<const std::string&>();
    const RoleRow* row = RoleByName(name);
    if (row != nullptr && row->in_plans && !(row->fields & kWindowField)) {
      role.role = row->role;
      return role;
    }
    return Error::InvalidArgument("{}: unknown role {}", where, Shown(value))
        .Hint(row != nullptr && row->in_plans
                  ? fmt::format("a {0} needs its size: {{\"{0}\":{{\"sink\":4,\"recent\":1020}}}}",
                                name)
                  : NearestHint(name, RoleNames(false)));
  }
  BATON_TRY(ExpectObject(value, where, RoleNames(true)));
  if (value.size() != 1)
    return Error::InvalidArgument("{}: expected one of {}, got {} keys", where,
                                  fmt::join(RoleNames(true), ", "), value.size());
  const auto entry = value.begin();
  const RoleRow& row = *RoleByName(entry.key());
  const std::string field = where + "." + entry.key();
  role.role = row.role;
  if (row.fields & kWindowField) {
    BATON_TRY(ParseWindow(entry.value(), field, &role));
  } else if (row.fields & kBitsField) {
    BATON_TRY(ParseScan(entry.value(), field, &role));
  } else {
    BATON_TRY(ParseReuse(entry.value(), field, &role));
  }
  return role;
}

Status ParsePlanBudget(const Json& value, Plan* plan) {
  BATON_TRY(ExpectObject(value, "budget", {"tokens", "fraction", "sink", "recent"}));
  const Json* tokens = Find(value, "tokens");
  const Json* fraction = Find(value, "fraction");
  if (tokens && fraction)
    return Error::InvalidArgument("budget: both \"tokens\" and \"fraction\" are given")
        .Hint("keep one of them");
  if (tokens) {
    BATON_ASSIGN(const int64_t t, Integer(*tokens, "budget.tokens", 1, kMaxTokens));
    plan->budget = {t, 0};
  }
  if (fraction) {
    BATON_ASSIGN(const double f, Fraction(*fraction, "budget.fraction"));
    plan->budget = {0, f};
  }
  if (const Json* sink = Find(value, "sink")) {
    BATON_ASSIGN(plan->sink, Integer(*sink, "budget.sink", 0, kMaxTokens));
  }
  if (const Json* recent = Find(value, "recent")) {
    BATON_ASSIGN(plan->recent, Integer(*recent, "budget.recent", 0, kMaxTokens));
  }
  return Status::Ok();
}

Status ParseModel(const Json& value, Plan* plan) {
  BATON_TRY(ExpectObject(value, "model", {"architecture", "layers", "fingerprint"}));
  if (const Json* architecture = Find(value, "architecture")) {
    BATON_ASSIGN(plan->architecture, Text(*architecture, "model.architecture"));
  }
  if (const Json* fingerprint = Find(value, "fingerprint")) {
    BATON_ASSIGN(plan->fingerprint, Text(*fingerprint, "model.fingerprint"));
    if (!plan->fingerprint.empty() && !plan->fingerprint.starts_with("sha256:"))
      return Error::InvalidArgument("model.fingerprint: expected \"sha256:<hex>\", got {}",
                                    Shown(*fingerprint));
  }
  if (const Json* layers = Find(value, "layers")) {
    BATON_ASSIGN(const int64_t n, Integer(*layers, "model.layers", 1, kMaxLayers));
    if (n != static_cast<int64_t>(plan->layers.size()))
      return Error::InvalidArgument("model.layers is {}, but \"layers\" lists {} roles", n,
                                    plan->layers.size());
  }
  return Status::Ok();
}

Status ParseModes(const Json& root, Plan* plan) {
  if (const Json* scope = Find(root, "scope")) {
    BATON_ASSIGN(const std::string name, Text(*scope, "scope"));
    if (name != "all" && name != "group" && name != "head_map")
      return Error::InvalidArgument("scope: unknown value {}", Shown(*scope))
          .Hint(NearestHint(name, {"all", "group", "head_map"}));
    plan->scope = name == "all" ? Scope::kAll : name == "group" ? Scope::kGroup : Scope::kHeadMap;
  }
  if (const Json* pool = Find(root, "pool")) {
    BATON_ASSIGN(const std::string name, Text(*pool, "pool"));
    if (name != "sum" && name != "max")
      return Error::InvalidArgument("pool: unknown value {}", Shown(*pool))
          .Hint(NearestHint(name, {"sum", "max"}));
    plan->pool = name == "sum" ? Pool::kSum : Pool::kMax;
  }
  if (const Json* unit = Find(root, "unit"); unit && *unit != "token") {
    const char* form = "\"token\" or {\"block\":16}";
    if (!unit->is_object())
      return Error::InvalidArgument("unit: expected {}, got {}", form, Shown(*unit));
    BATON_TRY(ExpectObject(*unit, "unit", {"block"}));
    const Json* block = Find(*unit, "block");
    if (!block) return Error::InvalidArgument("unit: expected {}, got an empty object", form);
    BATON_ASSIGN(plan->block, Integer(*block, "unit.block", 1, 64));
  }
  if (const Json* prefill = Find(root, "prefill"); prefill && *prefill != "dense") {
    if (!prefill->is_object())
      return Error::InvalidArgument("prefill: expected \"dense\" or an object, got {}",
                                    Shown(*prefill))
          .Hint("{\"tile\":64,\"fraction\":0.1,\"min\":512}");
    BATON_TRY(ExpectObject(*prefill, "prefill", {"tile", "fraction", "min"}));
    plan->prefill.sparse = true;
    if (const Json* tile = Find(*prefill, "tile")) {
      BATON_ASSIGN(plan->prefill.tile, Integer(*tile, "prefill.tile", 1, 1 << 16));
    }
    if (const Json* fraction = Find(*prefill, "fraction")) {
      BATON_ASSIGN(plan->prefill.fraction, Fraction(*fraction, "prefill.fraction"));
    }
    if (const Json* min = Find(*prefill, "min")) {
      BATON_ASSIGN(plan->prefill.min, Integer(*min, "prefill.min", 1, kMaxTokens));
    }
  }
  return Status::Ok();
}

Result<std::vector<int>> ParseIntegers(const Json& value, const std::string& where, int64_t high) {
  if (!value.is_array())
    return Error::InvalidArgument("{}: expected an array of integers, got {}", where, Shown(value));
  std::vector<int> out;
  for (const Json& item : value) {
    BATON_ASSIGN(const int64_t v, Integer(item, fmt::format("{}[{}]", where, out.size()), 0, high));
    out.push_back(static_cast<int>(v));
  }
  return out;
}

Status ParseRetrieval(const Json& value, Evidence* e) {
  BATON_ASSIGN(const std::string text, Text(value, "evidence.retrieval"));
  int end = 0;
  const bool short_enough = text.size() <= 19;  // two nine-digit numbers cannot overflow int
  if (!short_enough ||
      std::sscanf(text.c_str(), "%9d/%9d%n", &e->retrieval_found, &e->retrieval_dense_found,
                  &end) != 2 ||
      end != static_cast<int>(text.size()) || e->retrieval_found < 0 ||
      e->retrieval_dense_found < 0)
    return Error::InvalidArgument("evidence.retrieval: expected \"found/dense\", got {}",
                                  Shown(value));
  return Status::Ok();
}

Status ParseEvidence(const Json& value, Evidence* e) {
  e->present = true;
  BATON_TRY(ExpectObject(
      value, "evidence",
      {"context", "kv_bytes_share", "kl", "answer_kl", "top1", "retrieval", "retrieval_total",
       "predicted_nats", "latency_ratio", "text_sha256", "details"}));
  const std::pair<const char*, double*> numbers[] = {
      {"kv_bytes_share", &e->kv_bytes_share}, {"kl", &e->kl},
      {"answer_kl", &e->answer_kl},           {"top1", &e->top1},
      {"predicted_nats", &e->predicted_nats}, {"latency_ratio", &e->latency_ratio}};
  for (const auto& [key, target] : numbers) {
    if (const Json* field = Find(value, key)) {
      BATON_ASSIGN(*target, Number(*field, std::string("evidence.") + key));
    }
  }
  if (const Json* context = Find(value, "context")) {
    BATON_ASSIGN(e->context, Integer(*context, "evidence.context", 0, kMaxTokens));
  }
  if (const Json* total = Find(value, "retrieval_total")) {
    BATON_ASSIGN(e->retrieval_total, Integer(*total, "evidence.retrieval_total", 0, INT32_MAX));
  }
  if (const Json* retrieval = Find(value, "retrieval")) BATON_TRY(ParseRetrieval(*retrieval, e));
  if (const Json* digests = Find(value, "text_sha256")) {
    for (const Json& digest : digests->is_array() ? *digests : Json::array({*digests})) {
      BATON_ASSIGN(std::string hex, Text(digest, "evidence.text_sha256"));
      e->text_sha256.push_back(std::move(hex));
    }
  }
  if (const Json* details = Find(value, "details")) {
    if (!details->is_object())
      return Error::InvalidArgument("evidence.details: expected an object, got {}",
                                    Shown(*details));
    e->details = details->dump();
  }
  return Status::Ok();
}

Status ParseHeader(const Json& root) {
  const Json* format = Find(root, "format");
  if (!format || *format != "baton-plan")
    return Error::InvalidArgument("format: expected \"baton-plan\", got {}",
                                  format ? Shown(*format) : "nothing")
        .Hint("is this a plan file?");
  const Json* version = Find(root, "version");
  if (!version || *version != kVersion)
    return Error::Unsupported("version: this build reads plan version {}, got {}", kVersion,
                              version ? Shown(*version) : "nothing");
  return Status::Ok();
}

Result<Plan> ParseRoot(const Json& root) {
  if (root.is_object()) BATON_TRY(ParseHeader(root));
  BATON_TRY(
      ExpectObject(root, "plan",
                   {"format", "version", "model", "budget", "scope", "pool", "unit", "min_context",
                    "forced", "prefill", "evict", "head_map", "layers", "evidence"}));
  Plan plan;
  const Json* layers = Find(root, "layers");
  if (!layers || !layers->is_array() || layers->empty() ||
      layers->size() > static_cast<size_t>(kMaxLayers))
    return Error::InvalidArgument("layers: expected an array of 1 to {} roles, got {}", kMaxLayers,
                                  layers ? Shown(*layers) : "nothing");
  for (const Json& layer : *layers) {
    BATON_ASSIGN(LayerRole role, ParseRole(layer, fmt::format("layer {}", plan.layers.size())));
    plan.layers.push_back(role);
  }
  if (const Json* model = Find(root, "model")) BATON_TRY(ParseModel(*model, &plan));
  if (const Json* budget = Find(root, "budget")) BATON_TRY(ParsePlanBudget(*budget, &plan));
  BATON_TRY(ParseModes(root, &plan));
  if (const Json* min_context = Find(root, "min_context")) {
    BATON_ASSIGN(plan.min_context, Integer(*min_context, "min_context", 0, kMaxTokens));
  }
  if (const Json* evict = Find(root, "evict")) {
    if (!evict->is_boolean())
      return Error::InvalidArgument("evict: expected true or false, got {}", Shown(*evict));
    plan.evict = evict->get<bool>();
  }
  if (const Json* forced = Find(root, "forced")) {
    BATON_ASSIGN(plan.forced, ParseIntegers(*forced, "forced", kMaxLayers));
  }
  if (const Json* head_map = Find(root, "head_map")) {
    if (!head_map->is_array())
      return Error::InvalidArgument("head_map: expected [layers][kv_heads], got {}",
                                    Shown(*head_map));
    for (const Json& row : *head_map) {
      const std::string where = fmt::format("head_map[{}]", plan.head_map.size());
      BATON_ASSIGN(std::vector<int> heads, ParseIntegers(row, where, kMaxLayers));
      plan.head_map.push_back(std::move(heads));
    }
  }
  if (const Json* evidence = Find(root, "evidence"))
    BATON_TRY(ParseEvidence(*evidence, &plan.evidence));
  return plan;
}

OrderedJson BudgetJson(const Budget& budget) {
  if (budget.fraction > 0) return {{"fraction", budget.fraction}};
  return budget.tokens;
}

OrderedJson RoleJson(const LayerRole& role) {
  const RoleRow& row = RowOf(role.role);
  const std::string name(row.name);
  const bool own_k = role.k != Budget{};
  if (row.fields == kNoField) return name;
  if (row.fields & kWindowField) return {{name, {{"sink", role.sink}, {"recent", role.recent}}}};
  OrderedJson fields = OrderedJson::object();
  if (row.fields & kBitsField) fields["bits"] = role.bits;
  if ((row.fields & kSourceField) && !own_k)
    return role.source < 0 ? OrderedJson(name) : OrderedJson{{name, role.source}};
  if ((row.fields & kSourceField) && role.source >= 0) fields["source"] = role.source;
  if (own_k) fields["k"] = BudgetJson(role.k);
  return {{name, fields}};
}

OrderedJson EvidenceJson(const Evidence& e) {
  OrderedJson json = {
      {"context", e.context},
      {"kv_bytes_share", e.kv_bytes_share},
      {"kl", e.kl},
      {"answer_kl", e.answer_kl},
      {"top1", e.top1},
      {"retrieval", fmt::format("{}/{}", e.retrieval_found, e.retrieval_dense_found)},
      {"retrieval_total", e.retrieval_total},
      {"predicted_nats", e.predicted_nats},
      {"latency_ratio", e.latency_ratio}};
  if (e.text_sha256.size() == 1) json["text_sha256"] = e.text_sha256[0];
  if (e.text_sha256.size() > 1) json["text_sha256"] = e.text_sha256;
  if (!e.details.empty()) {
    // Broken details become a string, which Parse (and so Save) rejects: a late error instead of an
    // abort or a silent loss.
    OrderedJson details = OrderedJson::parse(e.details, nullptr, false);
    json["details"] = details.is_discarded() ? OrderedJson(e.details) : std::move(details);
  }
  return json;
}

std::string Dump(const OrderedJson& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

}  // namespace

Result<Plan> Plan::Parse(const std::string& json) {
  BATON_ASSIGN(const Json root, internal::ParseJson(json));
  return ParseRoot(root);
}

std::string Plan::ToJson() const {
  OrderedJson model = OrderedJson::object();
  if (!architecture.empty()) model["architecture"] = architecture;
  model["layers"] = layers.size();
  if (!fingerprint.empty()) model["fingerprint"] = fingerprint;
  OrderedJson sets = OrderedJson::object();
  if (budget.fraction > 0) {
    sets["fraction"] = budget.fraction;
  } else {
    sets["tokens"] = budget.tokens;
  }
  sets["sink"] = sink;
  sets["recent"] = recent;
  const char* scopes[] = {"all", "group", "head_map"};

  // One role a line, so that a diff of two plans shows the layers that changed.
  std::string out = "{\"format\":\"baton-plan\",\"version\":1,\n";
  const auto put = [&](const char* key, const OrderedJson& value) {
    out += fmt::format(" \"{}\":{},\n", key, Dump(value));
  };
  put("model", model);
  put("budget", sets);
  put("scope", scopes[static_cast<int>(scope)]);
  put("pool", pool == Pool::kSum ? "sum" : "max");
  put("unit", block == 1 ? OrderedJson("token") : OrderedJson{{"block", block}});
  if (min_context >= 0) put("min_context", min_context);
  put("forced", forced);
  put("prefill", prefill.sparse ? OrderedJson{{"tile", prefill.tile},
                                              {"fraction", prefill.fraction},
                                              {"min", prefill.min}}
                                : OrderedJson("dense"));
  if (evict) put("evict", true);
  if (!head_map.empty()) put("head_map", head_map);
  out += " \"layers\":[";
  for (size_t l = 0; l < layers.size(); ++l)
    out += (l ? ",\n  " : "\n  ") + Dump(RoleJson(layers[l]));
  out += "]";
  if (evidence.present) out += ",\n \"evidence\":" + Dump(EvidenceJson(evidence));
  return out + "}\n";
}

}  // namespace baton
