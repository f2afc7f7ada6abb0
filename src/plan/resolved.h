// A plan after resolution: what the attention code reads. One entry per layer in the branch
// notation of docs/plan-format.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "baton/plan.h"

namespace baton {

// The facts of a model that a plan is checked against.
struct ModelShape {
  std::string architecture;
  std::string fingerprint;
  int layers = 0;
  int heads = 0, kv_heads = 0;
  int64_t head_dim = 0;
  std::vector<int64_t> window;  // [layers] the model's own window; 0 = none
};

// Which keys a branch reads, among those the query may see.
struct TokenSet {
  enum class Kind { kAll, kWindow, kIndex } kind = Kind::kAll;
  int64_t sink = 0, recent = 0;  // window: position < sink, or position > query - recent
  int publisher = -1;  // index: the layer whose ranking is used (may be the layer itself: scan)
  Budget k;            // index
};

struct Branch {
  enum class Kv { kOwn, kLayer, kShared } kv = Kv::kOwn;
  int kv_layer = -1;
  TokenSet set;
  enum class Gate { kNone, kSigmoid } gate = Gate::kNone;
};

struct Publish {
  enum class Ranking {
    kExact,
    kLowBit
  } ranking = Ranking::kExact;  // kLowBit: by the 4-bit copy of K
};

enum class Merge { kSoftmax, kGatedSum };

struct ResolvedLayer {
  Role role = Role::kFull;
  std::vector<Branch> branches;
  Merge merge = Merge::kSoftmax;
  std::optional<Publish> publish;  // only when some layer uses it
};

struct ResolvedPlan {
  std::vector<ResolvedLayer> layers;
  int64_t sink = 0, recent = 0, block = 1, min_context = 0;
  Scope scope = Scope::kAll;
  Pool pool = Pool::kSum;
  std::vector<std::vector<int>> head_map;
  PrefillMode prefill;
  std::string hash;  // sha256 over everything that changes results

  bool NeedsLowBit(int layer) const {
    return layers[layer].publish && layers[layer].publish->ranking == Publish::Ranking::kLowBit;
  }
  // True when every layer attends as the model defines it.
  bool IsDense() const;
};

// Checks a plan against a model and resolves it. Errors name the layer: unknown source, source not
// earlier, source publishes nothing, k < sink + recent, sparse role at a forced layer, a role other
// than full or a narrower window at a layer whose window the model itself limits, wrong length,
// other model. `warnings` (may be null) receives one line each, for example k < 2 (sink + recent).
Result<ResolvedPlan> Resolve(const Plan& plan, const ModelShape& model,
                             std::vector<std::string>* warnings);

// Bytes of K, V and low-bit copies one decode step reads at `visible` keys, bf16 cache.
int64_t KvBytesPerToken(const ResolvedPlan& plan, const ModelShape& model, int64_t visible);
int64_t DenseKvBytesPerToken(const ModelShape& model, int64_t visible);

// Bytes per token and KV head of the 4-bit copy of K: head_dim / 2 plus one f16 scale per 32
// channels.
inline int64_t LowBitBytes(int64_t head_dim) { return head_dim / 2 + head_dim / 32 * 2; }

}  // namespace baton
