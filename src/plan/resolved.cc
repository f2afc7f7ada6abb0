#include "plan/resolved.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/sha256.h"
#include "plan/roles.h"

namespace baton {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 40;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tokens that the forced members of a set can cover: whole blocks, and the last `recent` tokens may
// straddle one more.
int64_t ForcedTokens(const Plan& plan) {
  const int64_t b = plan.block;
  const int64_t tail = plan.recent > 0 ? (CeilDiv(plan.recent - 1, b) + 1) * b : 0;
  return CeilDiv(plan.sink, b) * b + tail;
}

bool Publishes(Role role) { return RowOf(role).publishes; }

std::string Describe(const Budget& k) {
  return k.fraction > 0 ? fmt::format("{:.4g} % of the context", 100 * k.fraction)
                        : fmt::format("{} tokens", k.tokens);
}

Status CheckModel(const Plan& plan, const ModelShape& model) {
  const int listed = static_cast<int>(plan.layers.size());
  const bool changes = std::any_of(plan.layers.begin(), plan.layers.end(),
                                   [](const LayerRole& l) { return l.role != Role::kFull; });
  if (model.trained_sparse() && changes)
    return Error::Unsupported(
               "a {} model is trained for its own attention; a plan can only leave it as it is",
               model.architecture)
        .Hint("run it without --plan");
  if (model.layers <= 0 || model.kv_heads <= 0 || model.head_dim <= 0 ||
      (!model.window.empty() && static_cast<int>(model.window.size()) != model.layers))
    return Error::InvalidArgument("model has {} layers, {} KV heads of {}, {} window sizes",
                                  model.layers, model.kv_heads, model.head_dim,
                                  model.window.size());
  const char* hint = "make a plan for this model with `baton plan`";
  if (!plan.architecture.empty() && plan.architecture != model.architecture)
    return Error::InvalidArgument(
               "plan was made for another model: architecture {}, this one is {}",
               plan.architecture, model.architecture)
        .Hint(hint);
  if (listed != model.layers)
    return Error::InvalidArgument("plan has {} layers, the model {}", listed, model.layers)
        .Hint(hint);
  if (!plan.fingerprint.empty() && plan.fingerprint != model.fingerprint)
    return Error::InvalidArgument("plan was made for another model: fingerprint {}, this one is {}",
                                  plan.fingerprint,
                                  model.fingerprint.empty() ? "unknown" : model.fingerprint)
        .Hint(hint);
  return Status::Ok();
}

Status CheckGlobals(const Plan& plan, const ModelShape& model) {
  if (plan.sink < 0 || plan.sink > kMaxTokens || plan.recent < 0 || plan.recent > kMaxTokens)
    return Error::InvalidArgument("budget: sink {} and recent {} must be 0 or more", plan.sink,
                                  plan.recent);
  if (plan.block < 1 || plan.block > kPageTokens || (plan.block & (plan.block - 1)))
    return Error::InvalidArgument("unit: block {} must be a power of two up to {}", plan.block,
                                  kPageTokens)
        .Hint("a page of the KV cache holds 64 tokens, and no block may straddle two");
  if (plan.min_context < -1 || plan.min_context > kMaxTokens)
    return Error::InvalidArgument("min_context {} must be 0 or more", plan.min_context);
  for (int l : plan.forced)
    if (l < 0 || l >= model.layers)
      return Error::InvalidArgument("forced: layer {} does not exist, the model has {}", l,
                                    model.layers);
  const PrefillMode& p = plan.prefill;
  if (p.sparse && plan.evict)
    return Error::Unsupported("evict: prompts that evict run layer by layer, and are dense")
        .Hint("leave out prefill, or evict");
  if (plan.evict && std::none_of(plan.layers.begin(), plan.layers.end(),
                                 [](const LayerRole& l) { return l.role == Role::kWindow; }))
    return Error::InvalidArgument("evict: the plan has no window layer")
        .Hint("leave out evict, or give layers a window");
  if (p.sparse) {
    if (p.tile < 1 || p.tile > kMaxTokens || !(p.fraction > 0 && p.fraction <= 1) || p.min < 1 ||
        p.min > kMaxTokens)
      return Error::InvalidArgument("prefill: tile {}, fraction {}, min {} out of range", p.tile,
                                    p.fraction, p.min);
    if (p.min < ForcedTokens(plan))
      return Error::InvalidArgument("prefill: min {} is less than the {} forced tokens", p.min,
                                    ForcedTokens(plan))
          .Hint("raise min, or lower budget.sink and budget.recent");
  }
  if (plan.scope != Scope::kHeadMap && !plan.head_map.empty())
    return Error::InvalidArgument("head_map is given, but scope is not \"head_map\"");
  if (plan.scope == Scope::kHeadMap && static_cast<int>(plan.head_map.size()) != model.layers)
    return Error::InvalidArgument("head_map has {} rows, the model {} layers", plan.head_map.size(),
                                  model.layers)
        .Hint("one row per layer; rows of layers that do not reuse may be empty");
  return Status::Ok();
}

// What a reader of rankings asks its publishers for.
void AddBudget(const LayerPlan& reader, std::vector<LayerPlan>* layers) {
  for (const Branch& b : reader.branches) {
    if (b.set.kind != TokenSet::Kind::kIndex) continue;
    std::vector<Budget>& budgets = (*layers)[b.set.publisher].publish->budgets;
    if (std::find(budgets.begin(), budgets.end(), b.set.k) == budgets.end())
      budgets.push_back(b.set.k);
  }
}

class Resolver {
 public:
  Resolver(const Plan& plan, const ModelShape& model, std::vector<std::string>* warnings)
      : plan_(plan), model_(model), warnings_(warnings) {}

  Result<ResolvedPlan> Run();

 private:
  int64_t ModelWindow(int l) const { return model_.Window(l); }
  std::string Name(int l) const {
    return fmt::format("layer {} ({})", l, ToString(plan_.layers[l].role));
  }
  void Warn(std::string line) const {
    if (warnings_) warnings_->push_back(std::move(line));
  }

  Result<Budget> SetSize(int l) const;
  Result<int> Source(int l) const;
  Status CheckHeadMap(int l) const;
  Status CheckPlace(int l) const;
  Status CheckScan(int l) const;
  Status CheckWindow(int l) const;
  Status Index(int l, TokenSet* set);
  Status Layer(int l, LayerPlan* out, CacheSpec* cache);
  void SetPublishers(ResolvedPlan* out);
  int64_t MinContext() const;

  const Plan& plan_;
  const ModelShape& model_;
  std::vector<std::string>* warnings_;
  std::vector<bool> used_;     // publishers that some layer reads
  int64_t least_visible_ = 0;  // below this a fractional budget would not hold the forced tokens
};

// The tokens of a reuse or scan layer's own set.
Result<Budget> Resolver::SetSize(int l) const {
  const LayerRole& role = plan_.layers[l];
  Budget k = role.k == Budget{} ? plan_.budget : role.k;
  const int64_t forced = ForcedTokens(plan_);
  if (k.fraction != 0) {
    if (!(k.fraction > 0 && k.fraction <= 1))
      return Error::InvalidArgument("{}: budget fraction {} must be above 0 and up to 1", Name(l),
                                    k.fraction);
    return Budget{0, k.fraction};
  }
  if (k.tokens < 1 || k.tokens > kMaxTokens)
    return Error::InvalidArgument("{}: k {} must be from 1 to {}", Name(l), k.tokens, kMaxTokens);
  if (k.tokens < forced)
    return Error::InvalidArgument(
               "{}: k {} is less than the {} forced tokens (sink {}, recent {}{})", Name(l),
               k.tokens, forced, plan_.sink, plan_.recent,
               plan_.block > 1 ? fmt::format(", blocks of {}", plan_.block) : "")
        .Hint("raise k, or lower budget.sink and budget.recent");
  if (k.tokens % plan_.block)
    return Error::InvalidArgument("{}: k {} is no multiple of the block {}", Name(l), k.tokens,
                                  plan_.block)
        .Hint(fmt::format("use {}", CeilDiv(k.tokens, plan_.block) * plan_.block));
  // Of a plan that was measured the evidence says what that costs.
  if (2 * forced > k.tokens && !plan_.evidence.present)
    Warn(fmt::format("{}: sink + recent take {} of k = {} tokens, few are left to choose", Name(l),
                     forced, k.tokens));
  return k;
}

Result<int> Resolver::Source(int l) const {
  const int source = plan_.layers[l].source;
  if (source == -1) {
    for (int i = l - 1; i >= 0; --i)
      if (Publishes(plan_.layers[i].role)) return i;
    return Error::InvalidArgument("{}: no earlier layer publishes a ranking", Name(l))
        .Hint("make an earlier layer select or scan");
  }
  if (source < 0 || source >= model_.layers)
    return Error::InvalidArgument("{}: unknown source layer {}, the model has {}", Name(l), source,
                                  model_.layers);
  if (source >= l)
    return Error::InvalidArgument("{}: source layer {} is not earlier", Name(l), source)
        .Hint("layers are counted from 0; a ranking exists only after its layer ran");
  if (!Publishes(plan_.layers[source].role))
    return Error::InvalidArgument("{}: source layer {} is {} and publishes nothing", Name(l),
                                  source, ToString(plan_.layers[source].role))
        .Hint(fmt::format("make layer {} select or scan", source));
  return source;
}

Status Resolver::CheckHeadMap(int l) const {
  if (plan_.scope != Scope::kHeadMap) return Status::Ok();
  const std::vector<int>& row = plan_.head_map[l];
  if (static_cast<int>(row.size()) != model_.kv_heads)
    return Error::InvalidArgument("{}: head_map row has {} entries, the model {} KV heads", Name(l),
                                  row.size(), model_.kv_heads);
  for (int head : row)
    if (head < 0 || head >= model_.kv_heads)
      return Error::InvalidArgument("{}: head_map names KV head {}, the model has {}", Name(l),
                                    head, model_.kv_heads);
  return Status::Ok();
}

// Whether the role may stand at this layer at all.
Status Resolver::CheckPlace(int l) const {
  const LayerRole& role = plan_.layers[l];
  const bool forced = std::find(plan_.forced.begin(), plan_.forced.end(), l) != plan_.forced.end();
  if (forced && role.role != Role::kFull && role.role != Role::kSelect)
    return Error::InvalidArgument("{}: the layer is forced and must be full or select", Name(l))
        .Hint("change its role, or take it out of \"forced\"");
  const int64_t limit = ModelWindow(l);
  if (limit <= 0 || role.role == Role::kFull) return Status::Ok();
  if (role.role != Role::kWindow)
    return Error::InvalidArgument(
               "{}: the model limits this layer to {} tokens, so it must be full "
               "or a window within them",
               Name(l), limit)
        .Hint("make it full");
  if (role.recent > limit)
    return Error::InvalidArgument("{}: recent {} is wider than the model's own window of {}",
                                  Name(l), role.recent, limit)
        .Hint("make it full, or a narrower window");
  return Status::Ok();
}

Status Resolver::CheckScan(int l) const {
  const LayerRole& role = plan_.layers[l];
  if (role.role != Role::kScan) return Status::Ok();
  if (role.bits != 4)
    return Error::Unsupported("{}: a copy of K with {} bits, this build has 4", Name(l), role.bits);
  if (model_.head_dim % 32)
    return Error::Unsupported(
               "{}: the low-bit copy of K needs a head size that is a multiple "
               "of 32, this model has {}",
               Name(l), model_.head_dim)
        .Hint("use select");
  return Status::Ok();
}

Status Resolver::CheckWindow(int l) const {
  const LayerRole& role = plan_.layers[l];
  if (!(RowOf(role.role).fields & kWindowField)) return Status::Ok();
  if (role.sink < 0 || role.recent < 1 || role.sink > kMaxTokens || role.recent > kMaxTokens)
    return Error::InvalidArgument("{}: sink {} must be 0 or more and recent {} 1 or more", Name(l),
                                  role.sink, role.recent);
  return Status::Ok();
}

// The list that layer l reads: its own or another's.
Status Resolver::Index(int l, TokenSet* set) {
  int source = l;
  if (plan_.layers[l].role == Role::kReuse) {
    BATON_ASSIGN(source, Source(l));
    BATON_TRY(CheckHeadMap(l));
    if (plan_.scope == Scope::kHeadMap) set->head_map = plan_.head_map[l];
  }
  BATON_TRY(CheckScan(l));
  BATON_ASSIGN(const Budget k, SetSize(l));
  if (k.fraction > 0) {
    const double need = static_cast<double>(ForcedTokens(plan_)) / k.fraction;
    if (need > static_cast<double>(kMaxTokens))
      return Error::InvalidArgument("{}: {} never holds the {} forced tokens", Name(l), Describe(k),
                                    ForcedTokens(plan_));
    least_visible_ = std::max(least_visible_, static_cast<int64_t>(std::ceil(need)));
  }
  used_[source] = true;
  set->kind = TokenSet::Kind::kIndex;
  set->publisher = source;
  set->k = k;
  return Status::Ok();
}

// What the plan makes of a layer; the model's own branches stay where it leaves them alone.
Status Resolver::Layer(int l, LayerPlan* out, CacheSpec* cache) {
  const LayerRole& role = plan_.layers[l];
  BATON_TRY(CheckPlace(l));
  BATON_TRY(CheckWindow(l));
  if (role.role == Role::kFull) return Status::Ok();
  out->role = role.role;
  out->evict = plan_.evict && role.role == Role::kWindow;
  // Keys that are gone cannot be read again at some other length.
  out->at_any_length = role.role == Role::kRoute || out->evict;
  // What a plan's windows hide from a prompt is missing in every later key and value: answers lose
  // more than by all other sparse layers together (docs/quality.md).
  out->in_prompts = plan_.prefill.sparse && role.role != Role::kWindow;
  TokenSet& set = out->branches[0].set;
  if (role.role == Role::kRoute) out->route = {role.sink, role.recent};
  if (role.role == Role::kWindow) {
    set = {.kind = TokenSet::Kind::kWindow, .sink = role.sink, .recent = role.recent};
    // A ring of the model keeps the plan's sink as well.
    if (cache->ring()) cache->sink = std::max(cache->sink, role.sink);
  }
  if (RowOf(role.role).branches[0].tokens == TokenSet::Kind::kIndex) BATON_TRY(Index(l, &set));
  return Status::Ok();
}

// Rankings that somebody reads, and the lists that are read from them.
void Resolver::SetPublishers(ResolvedPlan* out) {
  for (int l = 0; l < model_.layers; ++l) {
    LayerPlan& layer = out->layers[l];
    const bool scan = plan_.layers[l].role == Role::kScan;
    if (!used_[l]) {
      if (plan_.layers[l].role == Role::kSelect)
        Warn(fmt::format("{}: no layer reuses its ranking, it runs as full", Name(l)));
      continue;
    }
    layer.publish = Publish{.ranking = scan ? Publish::Ranking::kLowBit : Publish::Ranking::kExact,
                            .scope = plan_.scope == Scope::kAll ? Scope::kAll : Scope::kGroup,
                            .pool = plan_.pool,
                            .block = plan_.block,
                            .sink = plan_.sink,
                            .recent = plan_.recent};
    if (scan) out->caches[out->OwnCache(l)].low_bit = true;
  }
  for (const LayerPlan& reader : out->layers) AddBudget(reader, &out->layers);
}

int64_t Resolver::MinContext() const {
  const int64_t wanted = plan_.min_context >= 0      ? plan_.min_context
                         : plan_.budget.fraction > 0 ? ForcedTokens(plan_)
                                                     : plan_.budget.tokens;
  if (least_visible_ <= wanted) return wanted;
  if (plan_.min_context >= 0)
    Warn(
        fmt::format("min_context {} is raised to {}: below it a fractional budget does not hold "
                    "the {} forced tokens",
                    wanted, least_visible_, ForcedTokens(plan_)));
  return least_visible_;
}

// Text of everything that changes results; not the plan's name for a role, not its evidence.
std::string Canonical(const ResolvedPlan& p) {
  std::string s = fmt::format("baton-resolved 2;{};", p.min_context);
  if (p.prefill.sparse)
    s += fmt::format("tile {},{:a},{};", p.prefill.tile, p.prefill.fraction, p.prefill.min);
  for (const LayerPlan& layer : p.layers) {
    s += fmt::format("L{},{},{},{}", static_cast<int>(layer.merge), layer.in_prompts,
                     layer.at_any_length, layer.role == Role::kRoute);
    if (layer.evict) s += ",E";
    s += fmt::format(",{},{}", layer.route.sink, layer.route.recent);
    if (layer.publish) {
      const Publish& r = *layer.publish;
      s += fmt::format(",P{},{},{},{},{},{},{},{},{},{:a},{}", static_cast<int>(r.ranking),
                       static_cast<int>(r.score), static_cast<int>(r.scope),
                       static_cast<int>(r.pool), r.block, r.sink, r.recent, r.forced_inside,
                       r.index_cache, r.index_scale, r.index_bf16);
    }
    for (const Branch& b : layer.branches) {
      s += fmt::format("|{},{},{},{},{},{},{},{},{:a},{}", b.cache, static_cast<int>(b.gate),
                       b.sink_logit, static_cast<int>(b.set.kind), b.set.sink, b.set.recent,
                       b.set.publisher, b.set.k.tokens, b.set.k.fraction,
                       fmt::join(b.set.head_map, "/"));
    }
    s += ';';
  }
  for (const CacheSpec& c : p.caches)
    s += fmt::format("C{},{},{},{},{},{}", c.owner, c.kv_input, c.low_bit, c.values, c.sink,
                     c.recent);
  return s;
}

Result<ResolvedPlan> Resolver::Run() {
  BATON_TRY(CheckModel(plan_, model_));
  BATON_TRY(CheckGlobals(plan_, model_));
  used_.assign(model_.layers, false);
  ResolvedPlan out = ModelPlan(model_);
  for (int l = 0; l < model_.layers; ++l) {
    BATON_TRY(Layer(l, &out.layers[l], &out.caches[out.layers[l].branches[0].cache]));
    out.changes_layers |= plan_.layers[l].role != Role::kFull;
  }
  if (!out.changes_layers) return out;
  SetPublishers(&out);
  out.min_context = MinContext();
  out.prefill = plan_.prefill;
  out.hash = Sha256Hex(Canonical(out));
  return out;
}

}  // namespace

int ResolvedPlan::OwnCache(int layer) const {
  for (const Branch& b : layers[layer].branches)
    if (b.cache >= 0 && caches[b.cache].owner == layer) return b.cache;
  return -1;
}

bool ResolvedPlan::IsDense() const {
  return std::all_of(layers.begin(), layers.end(), [](const LayerPlan& l) {
    return l.role == Role::kFull || l.role == Role::kSelect;
  });
}

void ResolvedPlan::ReadList(int reader, int publisher, Budget k) {
  layers[reader].branches[0].set = {.kind = TokenSet::Kind::kIndex, .publisher = publisher, .k = k};
  AddBudget(layers[reader], &layers);
}

bool ResolvedPlan::Routes() const {
  return std::any_of(layers.begin(), layers.end(),
                     [](const LayerPlan& l) { return l.role == Role::kRoute; });
}

bool ResolvedPlan::Evicts() const {
  return std::any_of(layers.begin(), layers.end(), [](const LayerPlan& l) { return l.evict; });
}

// The layer's cache keeps what its window reads.
void ResolvedPlan::NarrowCache(int layer) {
  const Branch& window = layers[layer].branches[0];
  caches[window.cache].sink = window.set.sink;
  caches[window.cache].recent = window.set.recent;
}

void ResolvedPlan::Evict(int layer) {
  if (!layers[layer].evict) return;
  layers[layer].evict = false;
  layers[layer].in_prompts = true;
  NarrowCache(layer);
}

ResolvedPlan ResolvedPlan::AfterPrompt() const {
  ResolvedPlan after = *this;
  for (size_t l = 0; l < layers.size(); ++l) after.Evict(static_cast<int>(l));
  return after;
}

bool ResolvedPlan::ReadsListsOf(int cache) const {
  bool read = false;
  for (const LayerPlan& layer : layers) {
    if (layer.publish && layer.publish->index_cache == cache) return false;
    for (const Branch& b : layer.branches) {
      if (b.cache != cache) continue;
      if (b.set.kind != TokenSet::Kind::kIndex) return false;
      read = true;
    }
  }
  return read;
}

void ResolvedPlan::Decide(int layer, bool full, const ModelShape& model, bool in_prompts) {
  LayerPlan& decided = layers[layer];
  BATON_CHECK(decided.role == Role::kRoute);
  if (full) {
    decided.role = decided.publish ? Role::kSelect : Role::kFull;
    decided.at_any_length = false;
    return;
  }
  const RouteWindow window = decided.route;
  decided = model.plan[layer];
  decided.role = Role::kWindow;
  decided.in_prompts = in_prompts;
  decided.branches[0].set = {
      .kind = TokenSet::Kind::kWindow, .sink = window.sink, .recent = window.recent};
  NarrowCache(layer);
  for (size_t l = layer + 1; l < layers.size(); ++l) {
    TokenSet& set = layers[l].branches[0].set;
    if (layers[l].role != Role::kReuse || set.publisher != layer) continue;
    int left = layer - 1;
    while (left >= 0 && !layers[left].publish) --left;
    if (left < 0) {
      layers[l] = model.plan[l];
      continue;
    }
    set.publisher = left;
    set.head_map.clear();  // it was for the other publisher's lists
    AddBudget(layers[l], &layers);
  }
}

ModelShape ModelShape::Completed() const {
  ModelShape out = *this;
  if (!out.plan.empty()) return out;
  for (int l = 0; l < layers; ++l) {
    Branch branch{.cache = l};
    const int64_t limit = Window(l);
    if (limit > 0) branch.set = {.kind = TokenSet::Kind::kWindow, .recent = limit};
    out.plan.push_back({.branches = {branch}});
    out.caches.push_back(
        {.owner = l, .kv_input = l, .kv_heads = kv_heads, .head_dim = head_dim, .recent = limit});
  }
  return out;
}

std::vector<CacheSpec> Together(const std::vector<CacheSpec>& a, const std::vector<CacheSpec>& b) {
  BATON_CHECK_EQ(a.size(), b.size());
  std::vector<CacheSpec> out = a;
  for (size_t c = 0; c < b.size(); ++c) {
    out[c].low_bit |= b[c].low_bit;
    out[c].host_rows |= b[c].host_rows;
    if (!a[c].ring() || !b[c].ring()) out[c].sink = out[c].recent = 0;
    out[c].sink = out[c].ring() ? std::max(a[c].sink, b[c].sink) : 0;
    out[c].recent = out[c].ring() ? std::max(a[c].recent, b[c].recent) : 0;
  }
  return out;
}

ResolvedPlan ModelPlan(const ModelShape& model) {
  const ModelShape complete = model.Completed();
  ResolvedPlan plan;
  plan.layers = complete.plan;
  plan.caches = complete.caches;
  return plan;
}

Result<ResolvedPlan> Resolve(const Plan& plan, const ModelShape& model,
                             std::vector<std::string>* warnings) {
  return Resolver(plan, model, warnings).Run();
}

}  // namespace baton
