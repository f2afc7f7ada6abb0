// Models that are trained for sparse attention: their keys say each layer's branches, caches and
// rankings (baton-clsa: arXiv 2606.06467 and dense YOCO, 2405.05254; baton-hysparse: 2602.03560;
// baton-hysparse2: 2609.26368; baton-dense: their baselines).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/spec/architectures.h"
#include "model/spec/problems.h"
#include "plan/roles.h"

namespace baton {

// The keys' values as the file has them; what is not read yet, or out of range, is empty.
struct NativeKeys {
  static constexpr int kNone = -2;    // no such layer
  static constexpr int kShared = -1;  // the memory, or its indexer

  // [layers] each
  std::vector<const RoleRow*> kind;
  std::vector<int> kv_source, kv_input, index_source;
  std::vector<std::string> publish;  // none, tokens, blocks
  std::vector<bool> rope, sink_logit;
  std::vector<Gate> gate;
  bool arrays_are_valid = false;

  std::optional<int64_t> window, sink_tokens;  // attention.*
  std::optional<int64_t> top_k, block, recent, sink, exit_layer, memory_layer, indexers;
  std::optional<float> indexer_scale;
  Scope scope = Scope::kAll;
  Pool pool = Pool::kMax;
  bool qk_norm = false, bridge_norm_own = false;
  bool has_memory = false;  // the architecture has the memory's keys

  bool OwnsCache(int l) const;
  bool ReadsMemory(int l) const;
  bool HasIndexer() const { return indexers.value_or(0) > 0; }
};

// Keys that contradict each other; needs valid arrays.
void CheckNativePlan(const NativeKeys& keys, Problems& problems);
// Plan and caches of keys without problems.
void BuildNativePlan(const NativeKeys& keys, ModelConfig& config);

// All keys of the architecture are required and no other is accepted. Missing, unknown and
// contradictory keys and values out of range are one error that lists them all. `vocab` stays 0:
// it is the rows of the embedding.
Result<ModelConfig> ReadNativeConfig(FileKind kind, const Architecture& architecture,
                                     const Metadata& metadata);

// config.json of a folder and the copy of it in the weights' file ("baton.config", a JSON object)
// must be the same. The error lists every difference.
Status CompareConfigs(const Metadata& config_json, const Metadata& stored);

}  // namespace baton
