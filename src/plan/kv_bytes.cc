#include "plan/kv_bytes.h"

#include <algorithm>

#include "base/check.h"

namespace baton {
namespace {

// Keys that a branch reads at `visible` keys. `publisher` is where its list comes from.
int64_t KeysRead(const TokenSet& set, const Publish* publisher, int64_t visible) {
  switch (set.kind) {
    case TokenSet::Kind::kAll:
      return visible;
    case TokenSet::Kind::kWindow:
      return std::min(visible, set.sink + set.recent);
    case TokenSet::Kind::kIndex: {
      int64_t k = set.k.At(visible);
      if (publisher != nullptr && !publisher->forced_inside) {
        k = (k + publisher->block - 1) / publisher->block * publisher->block;
        k += publisher->sink + publisher->recent;
      }
      return std::min(visible, k);
    }
  }
  return visible;
}

int64_t LayerBytes(const std::vector<LayerPlan>& layers, const std::vector<CacheSpec>& caches,
                   const LayerPlan& layer, int64_t visible, KvElement element) {
  int64_t bytes = 0;
  for (const Branch& b : layer.branches) {
    const Publish* publisher = nullptr;
    if (b.set.kind == TokenSet::Kind::kIndex && b.set.publisher >= 0) {
      const auto& publish = layers[static_cast<size_t>(b.set.publisher)].publish;
      publisher = publish ? &*publish : nullptr;
    }
    bytes += KeysRead(b.set, publisher, visible) *
             RowBytes(caches[static_cast<size_t>(b.cache)], element);
  }
  if (!layer.publish) return bytes;
  const CacheSpec& own = caches[static_cast<size_t>(layer.branches[0].cache)];
  if (layer.publish->ranking == Publish::Ranking::kLowBit)
    bytes += visible * LowBitBytes(own.head_dim) * own.kv_heads;
  if (layer.publish->ranking == Publish::Ranking::kIndexer)
    bytes += visible * RowBytes(caches[static_cast<size_t>(layer.publish->index_cache)], element);
  return bytes;
}

}  // namespace

int64_t RowBytes(const CacheSpec& c, KvElement element) {
  return (c.values ? 2 : 1) * c.kv_heads * (c.head_dim * element.bytes + element.scale_bytes);
}

int64_t LayerKvBytes(const ResolvedPlan& plan, int layer, int64_t visible, KvElement element) {
  return LayerBytes(plan.layers, plan.caches, plan.layer(layer), visible, element);
}

int64_t DenseKvBytesPerToken(const ModelShape& model, int64_t visible, KvElement element) {
  if (model.plan.empty()) return DenseKvBytesPerToken(model.Completed(), visible, element);
  int64_t bytes = 0;
  for (const LayerPlan& layer : model.plan)
    bytes += LayerBytes(model.plan, model.caches, layer, visible, element);
  return bytes;
}

int64_t KvBytesPerToken(const ResolvedPlan& plan, const ModelShape& model, int64_t visible,
                        KvElement element) {
  BATON_CHECK_EQ(static_cast<int>(plan.layers.size()), model.layers);
  if (model.plan.empty()) return KvBytesPerToken(plan, model.Completed(), visible, element);
  int64_t bytes = 0;
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    const bool planned = visible > plan.min_context || plan.layers[l].at_any_length;
    bytes += LayerBytes(planned ? plan.layers : model.plan, plan.caches,
                        planned ? plan.layers[l] : model.plan[l], visible, element);
  }
  return bytes;
}

int64_t KvBytesHeld(const std::vector<CacheSpec>& caches, int64_t tokens, KvElement element) {
  int64_t bytes = 0;
  for (const CacheSpec& c : caches) {
    bytes += c.Held(tokens) * RowBytes(c, element);
    if (c.low_bit) bytes += c.Held(tokens) * LowBitBytes(c.head_dim) * c.kv_heads;
  }
  return bytes;
}

int64_t FullKvBytes(const ModelShape& model, int64_t tokens, KvElement element) {
  const CacheSpec full{.kv_heads = model.kv_heads, .head_dim = model.head_dim};
  return model.layers * tokens * RowBytes(full, element);
}

}  // namespace baton
