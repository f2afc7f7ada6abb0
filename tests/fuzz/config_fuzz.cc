// Any bytes as config.json: refused, or a config whose sizes, rotary frequencies, plan and tensors
// are usable.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "formats/hf_config.h"
#include "model/spec/architectures.h"
#include "model/spec/tensors.h"
#include "plan/kv_bytes.h"

namespace {

using namespace baton;

void CheckPlan(const ModelConfig& c) {
  const ModelShape shape = ShapeOf(c, "");
  BATON_CHECK_EQ(static_cast<int>(shape.plan.size()), c.layers);
  const int caches = static_cast<int>(shape.caches.size());
  for (const LayerPlan& l : shape.plan) {
    BATON_CHECK(!l.branches.empty() && l.branches.size() <= 2);
    for (const Branch& b : l.branches) {
      BATON_CHECK(b.cache >= 0 && b.cache < caches);
      const CacheSpec& cache = shape.caches[static_cast<size_t>(b.cache)];
      BATON_CHECK(cache.owner < c.layers && cache.kv_input >= 0 && cache.kv_input < c.layers);
      if (cache.ring()) BATON_CHECK(b.set.kind == TokenSet::Kind::kWindow);
      if (b.set.kind != TokenSet::Kind::kIndex) continue;
      BATON_CHECK(b.set.publisher >= 0 && b.set.publisher < c.layers && b.set.k.tokens > 0);
      BATON_CHECK(shape.plan[static_cast<size_t>(b.set.publisher)].publish.has_value());
    }
    if (l.publish && l.publish->ranking == Publish::Ranking::kIndexer)
      BATON_CHECK(l.publish->index_cache >= 0 && l.publish->index_cache < caches);
  }
  BATON_CHECK(KvBytesHeld(shape.caches, 1 << 20) > 0);
  for (const TensorSlot& slot : TensorSlots(c)) {
    for (int64_t d : slot.rule->Shape(c)) BATON_CHECK(d >= 0 && d <= (int64_t{1} << 30));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto metadata = ParseHfConfig(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!metadata.ok()) return 0;
  const auto architecture = FindArchitecture(FileKind::kHuggingFace, *metadata);
  if (!architecture.ok()) return 0;
  const auto config = ReadConfig(FileKind::kHuggingFace, **architecture, *metadata);
  if (!config.ok()) return 0;
  BATON_CHECK_EQ(static_cast<int>(config->layer.size()), config->layers);
  for (const LayerConfig& l : config->layer)
    BATON_CHECK(l.rope < static_cast<int>(config->rope.size()));
  CheckPlan(*config);
  for (const RopeConfig& r : config->rope) {
    for (float f : RopeFrequencies(r, config->rope_dims)) BATON_CHECK(std::isfinite(f));
  }
  return 0;
}
