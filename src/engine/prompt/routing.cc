#include "engine/prompt/routing.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace baton {

Status CheckRouteOptions(const RouteOptions& o, int layers) {
  if (!(o.margin >= 0) || !std::isfinite(o.margin))
    return Error::InvalidArgument("routing: margin must be 0 or more, got {}", o.margin);
  if (o.mask.empty() || o.mask == "full" || o.mask == "sparse") return Status::Ok();
  if (static_cast<int>(o.mask.size()) != layers)
    return Error::InvalidArgument("routing: the mask has {} letters, the model {} layers",
                                  o.mask.size(), layers)
        .Hint("give full, sparse, or one letter a layer: F, S, or ? for the router");
  const size_t bad = o.mask.find_first_not_of("FS?");
  if (bad != std::string::npos)
    return Error::InvalidArgument("routing: expected F, S or ? for layer {} of the mask, got '{}'",
                                  bad, o.mask[bad]);
  return Status::Ok();
}

Plan RouteEveryLayer(const ModelShape& model, const RouterSettings& settings) {
  Plan plan = Plan::Dense(model.layers);
  for (int l = 0; l < model.layers; ++l) {
    if (model.Window(l) > 0) continue;
    plan.layers[static_cast<size_t>(l)] = {
        .role = Role::kRoute, .sink = settings.sink, .recent = settings.window};
  }
  return plan;
}

Routing::Routing(Engine::Impl& engine, const Router* router, const RouteOptions& options,
                 std::span<const int32_t> tokens, ResolvedPlan* plan, KvSequence* kv)
    : engine_(engine),
      router_(router),
      options_(options),
      tokens_(tokens),
      plan_(plan),
      kv_(kv),
      decisions_(plan->layers.size(), Decision::kOpen),
      logits_(plan->layers.size()),
      rows_(plan->layers.size()),
      x_(engine.ops->device()),
      q_(engine.ops->device()),
      answer_(engine.ops->device()) {
  for (size_t l = 0; l < plan->layers.size(); ++l) {
    routed_.push_back(plan->layers[l].role == Role::kRoute);
    if (plan->layers[l].evict) decisions_[l] = Decision::kSparse;
  }
}

Routing::Decision Routing::Forced(int layer) const {
  const std::string& mask = options_.mask;
  if (mask.empty()) return Decision::kOpen;
  const char letter = mask == "full"     ? 'F'
                      : mask == "sparse" ? 'S'
                                         : mask[static_cast<size_t>(layer)];
  return letter == 'F' ? Decision::kFull : letter == 'S' ? Decision::kSparse : Decision::kOpen;
}

bool Routing::forced() const {
  for (size_t l = 0; l < routed_.size(); ++l) {
    if (routed_[l] && Forced(static_cast<int>(l)) == Decision::kOpen) return false;
  }
  return true;
}

bool Routing::open() const {
  for (size_t l = 0; l < routed_.size(); ++l) {
    if (routed_[l] && decisions_[l] == Decision::kOpen) return true;
  }
  return false;
}

void Routing::DecideForced() {
  for (int l = 0; l < engine_.info.layers; ++l) {
    if (!Routed(l)) continue;
    Decide(l, Forced(l) == Decision::kFull);
    Narrow(l);
  }
}

void Routing::DecideAs(const Routing& other) {
  for (int l = 0; l < engine_.info.layers; ++l) {
    if (!Routed(l)) continue;
    Decide(l, other.decisions_[static_cast<size_t>(l)] == Decision::kFull);
    Narrow(l);
  }
  logits_ = other.logits_;
  asked_ = other.asked_;
  rows_pooled_ = other.rows_pooled_;
}

void Routing::Decide(int layer, bool full) {
  decisions_[static_cast<size_t>(layer)] = full ? Decision::kFull : Decision::kSparse;
  // A dense prompt runs through the layer first.
  if (options_.mode == RouteOptions::Mode::kDense && !full) return;
  plan_->Decide(layer, full, engine_.shape(), /*in_prompts=*/true);
}

// Frees what a layer that has become a window does not read.
void Routing::Narrow(int layer) {
  if (decisions_[static_cast<size_t>(layer)] != Decision::kSparse) return;
  // After a dense prompt: later prompts, of a chat's next turns, find the window alone.
  if (plan_->layer(layer).role == Role::kRoute)
    plan_->Decide(layer, false, engine_.shape(), /*in_prompts=*/true);
  plan_->Evict(layer);
  if (keeps_caches_) return;
  const int cache = plan_->OwnCache(layer);
  const CacheSpec& spec = plan_->caches[static_cast<size_t>(cache)];
  kv_->Keep(cache, spec.sink, spec.recent);
}

void Routing::Resume(int64_t done, std::shared_ptr<const RoutedPrefix> prefix) {
  done_ = done;
  prefix_ = std::move(prefix);
}

bool Routing::CanResume(const RoutedPrefix& prefix) const {
  for (size_t l = 1; l < routed_.size(); ++l) {
    const bool asks = routed_[l] && Forced(static_cast<int>(l)) == Decision::kOpen;
    if (asks && (l >= prefix.rows.size() || prefix.rows[l].empty())) return false;
  }
  return true;
}

RoutedPrefix Routing::Recorded() const { return {.bitmap = Report().bitmap, .rows = rows_}; }

Status Routing::Before(const Pass& pass, const float* kept) {
  const int l = pass.first_layer;
  if (pass.end_layer != l + 1 || pass.first_row > done_ || !Routed(l)) return Status::Ok();
  if (decisions_[static_cast<size_t>(l)] != Decision::kOpen) return Status::Ok();
  const Decision forced = Forced(l);
  if (forced == Decision::kOpen) {
    BATON_TRY(Ask(l, kept));
  } else {
    Decide(l, forced == Decision::kFull);
  }
  if (options_.mode == RouteOptions::Mode::kDense) return Status::Ok();
  const char decided = decisions_[static_cast<size_t>(l)] == Decision::kSparse ? 'S' : 'F';
  if (done_ > 0 && prefix_->bitmap[static_cast<size_t>(l)] != decided) {
    diverged_ = l;
    return Error::Unsupported("layer {} is routed otherwise", l);
  }
  Narrow(l);
  return Status::Ok();
}

void Routing::After(const Pass& pass) {
  const int l = pass.first_layer;
  if (pass.end_row < static_cast<int64_t>(tokens_.size()) || pass.end_layer != l + 1) return;
  if (plan_->layer(l).evict || (Routed(l) && options_.mode == RouteOptions::Mode::kDense))
    Narrow(l);
}

// The router's answer for layer l, from the first and the last rows of the prompt.
Status Routing::Ask(int l, const float* kept) {
  const auto total = static_cast<int64_t>(tokens_.size());
  const int64_t pool = router_->settings.pool;
  std::vector<int64_t> rows(static_cast<size_t>(std::min(total, pool)));
  std::iota(rows.begin(), rows.end(), int64_t{0});
  // Between P and 2 P rows, those in both count twice.
  for (int64_t row = std::max<int64_t>(0, total - pool); total > pool && row < total; ++row)
    rows.push_back(row);
  const auto n = static_cast<int64_t>(rows.size());
  const ModelConfig& c = engine_.model->config();
  const View<float> x(x_.Reserve(n * c.width), {n, c.width});
  const View<float> q(q_.Reserve(n * c.heads * c.head_dim), {n, c.heads, c.head_dim});
  Ops& ops = *engine_.ops;
  if (l == 0) {
    std::vector<int32_t> tokens;
    for (const int64_t row : rows) tokens.push_back(tokens_[static_cast<size_t>(row)]);
    ops.Embed({.table = &engine_.model->weights().embedding,
               .tokens = tokens,
               .scale = c.embedding_scale,
               .x = x});
  } else if (done_ == 0) {
    ops.CopyRows({.from = View<const float>(kept, {total, c.width}), .rows = rows, .to = x});
  } else {
    x_.Upload(prefix_->rows[static_cast<size_t>(l)]);
    std::vector<int64_t> latest(rows.begin() + pool, rows.end());
    for (int64_t& row : latest) row -= done_;
    ops.CopyRows({.from = View<const float>(kept, {total - done_, c.width}),
                  .rows = latest,
                  .to = x.Slice(pool, n)});
  }
  if (record_ && l > 0) {
    std::vector<float>& first = rows_[static_cast<size_t>(l)];
    first.resize(static_cast<size_t>(std::min(total, pool) * c.width));
    x_.Download(std::span(first));
  }
  engine_.model->Queries(l, x, q);
  std::array<float, 2>& z = logits_[static_cast<size_t>(l)];
  ops.Route(
      {.q = q, .weights = &router_->layers[static_cast<size_t>(l)], .logits = answer_.Reserve(2)});
  answer_.Download(z);
  if (!std::isfinite(z[0]) || !std::isfinite(z[1]))
    return Error::InvalidArgument("router of layer {}: logits {} and {} are no numbers", l, z[0],
                                  z[1])
        .Hint("the router file or the model is damaged");
  asked_ = true;
  rows_pooled_ = n;
  Decide(l, !(static_cast<double>(z[0]) - z[1] >= options_.margin));
  return Status::Ok();
}

RoutingReport Routing::Report() const {
  constexpr const char* kSources[] = {"exact", "probe", "two_pass", "dense"};
  RoutingReport report;
  report.source = asked_                  ? kSources[static_cast<int>(options_.mode)]
                  : options_.mask.empty() ? "plan"
                                          : "forced";
  report.logits = logits_;
  report.rows_pooled = rows_pooled_;
  for (const Decision decision : decisions_)
    report.bitmap += decision == Decision::kSparse ? 'S' : 'F';
  return report;
}

void CountHeld(const ResolvedPlan& plan, const KvSequence& kv, RoutingReport& report) {
  report.held_token_equivalents.clear();
  report.dense_token_equivalents = 0;
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    const int cache = plan.OwnCache(static_cast<int>(l));
    report.held_token_equivalents.push_back(kv.held_tokens(cache));
    report.dense_token_equivalents += kv.length();
  }
}

}  // namespace baton
