// What people and --json are told of a model's layers and caches.
#include <algorithm>

#include "engine/engine_impl.h"
#include "plan/prefill_schedule.h"
#include "plan/roles.h"

namespace baton {
namespace {

std::string WindowText(int64_t sink, int64_t recent) {
  return sink > 0 ? fmt::format("{} + {}", sink, recent) : fmt::format("{}", recent);
}

std::string CacheName(const CacheSpec& cache, int layer) {
  if (cache.owner == CacheSpec::kMemory) return "shared";
  return cache.owner == layer ? "own" : fmt::format("layer {}", cache.owner);
}

std::string BudgetText(const Budget& k) {
  return k.fraction > 0 ? fmt::format("{} %", k.fraction * 100) : fmt::format("{}", k.tokens);
}

// "own window 512", "shared list 2048 of the indexer", "layer 25 list 1024 + recent 128".
std::string BranchText(const ModelShape& model, int layer, const Branch& branch) {
  const TokenSet& set = branch.set;
  const std::string cache = CacheName(model.caches[static_cast<size_t>(branch.cache)], layer);
  if (set.kind == TokenSet::Kind::kAll) return cache + " all";
  if (set.kind == TokenSet::Kind::kWindow)
    return fmt::format("{} window {}", cache, WindowText(set.sink, set.recent));
  std::string text = fmt::format("{} list {}", cache, BudgetText(set.k));
  const auto& publish = model.plan[static_cast<size_t>(set.publisher)].publish;
  if (!publish) return text;
  if (publish->ranking == Publish::Ranking::kIndexer) text += " of the indexer";
  if (!publish->forced_inside && publish->sink > 0)
    text += fmt::format(" + sink {}", publish->sink);
  if (!publish->forced_inside && publish->recent > 0)
    text += fmt::format(" + recent {}", publish->recent);
  return text;
}

std::string PublishText(const Publish& publish) {
  std::string text = publish.ranking == Publish::Ranking::kIndexer ? "indexer, " : "";
  for (size_t i = 0; i < publish.budgets.size(); ++i) {
    text += fmt::format("{}{} {}", i > 0 ? ", " : "", publish.block > 1 ? "blocks" : "tokens",
                        BudgetText(publish.budgets[i]));
    if (publish.block > 1) text += fmt::format(" of {}", publish.block);
  }
  return text;
}

// What a layer writes: its own cache, or the shared one that the stream at its entry feeds.
std::string CacheText(const ModelShape& model, int layer) {
  std::string text;
  for (const CacheSpec& c : model.caches) {
    const bool shared = c.owner == CacheSpec::kMemory;
    if (shared ? c.kv_input != layer || !c.values : c.owner != layer) continue;
    text = shared ? "shared " : "";
    text += c.ring() ? "ring " + WindowText(c.sink, c.recent) : "all";
    if (!shared && c.kv_input != layer)
      text += fmt::format(", of the stream at layer {}", c.kv_input);
  }
  return text.empty() ? "none" : text;
}

LayerInfo Describe(const ModelShape& model, const ModelConfig& config, int layer) {
  const auto at = static_cast<size_t>(layer);
  const LayerPlan& plan = model.plan[at];
  LayerInfo info{.kind = std::string(RowOf(plan.role).name),
                 .branches = "",
                 .cache = CacheText(model, layer),
                 .publishes = plan.publish ? PublishText(*plan.publish) : "",
                 .rope = config.layer[at].rope >= 0};
  // An ordinary model's window layers have role full: the window is the model's, not a plan's.
  if (plan.branches.size() == 1 && plan.branches[0].set.kind == TokenSet::Kind::kWindow)
    info.kind = std::string(RowOf(Role::kWindow).name);
  for (const Branch& b : plan.branches) {
    info.branches += (info.branches.empty() ? "" : ", ") + BranchText(model, layer, b);
    info.gated |= b.gate != Gate::kNone;
    info.sink_logits |= b.sink_logit;
  }
  return info;
}

// Powers of four from 4,096 up to the context, and the context itself.
std::vector<int64_t> Lengths(int64_t context) {
  std::vector<int64_t> lengths;
  for (int64_t n = 4096; n < context; n *= 4) lengths.push_back(n);
  lengths.push_back(context);
  return lengths;
}

}  // namespace

void DescribeLayers(const Engine::Impl& engine, ModelInfo& info) {
  const ModelShape& model = engine.shape();
  const KvElement element = engine.cache_element();
  // What the last token of a full context adds: rings are full by then.
  const std::vector<CacheSpec>& caches = engine.model_plan.caches;
  info.kv_bytes_per_token =
      KvBytesHeld(caches, info.context, element) - KvBytesHeld(caches, info.context - 1, element);
  for (int l = 0; l < model.layers; ++l)
    info.layer.push_back(Describe(model, engine.checkpoint.config, l));
  for (const int64_t n : Lengths(info.context)) {
    info.cache_bytes.push_back({.tokens = n,
                                .read = DenseKvBytesPerToken(model, n, element),
                                .held = KvBytesHeld(engine.model_plan.caches, n, element),
                                .dense = FullKvBytes(model, n, element)});
  }
  info.trained_sparse = model.trained_sparse();
  info.exit_layer = model.exit_layer;
  int from = 0;
  info.suffix_rows = SuffixRows(model, 1, &from);
  if (!engine.router) return;
  const RouterSettings& r = engine.router->settings;
  info.router = fmt::format("{} + {} rows, sink {}, window {}", r.pool, r.pool, r.sink, r.window);
}

Result<ModelInfo::CacheBytes> Engine::CacheBytes(const Plan& plan, int64_t visible) const {
  BATON_ASSIGN(ResolvedPlan resolved, impl_->ResolvePlan(plan, nullptr));
  const KvElement element = impl_->cache_element();
  return ModelInfo::CacheBytes{.tokens = visible,
                               .read = KvBytesPerToken(resolved, impl_->shape(), visible, element),
                               .held = KvBytesHeld(resolved.AfterPrompt().caches, visible, element),
                               .dense = FullKvBytes(impl_->shape(), visible, element)};
}

}  // namespace baton
