// What a layer's attention does, as a value: the branches it reads, how they are joined, what it
// publishes, and which caches exist. A model yields one LayerPlan per layer; a user's plan replaces
// some of them (resolved.h). The attention code reads nothing else.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "baton/plan.h"

namespace baton {

// A page of the KV cache: no block of a ranking straddles two.
constexpr int64_t kPageTokens = 64;

// Which keys a branch reads, among those the query may see.
struct TokenSet {
  enum class Kind { kAll, kWindow, kIndex } kind = Kind::kAll;
  int64_t sink = 0, recent = 0;  // window: position < sink, or position > query - recent
  int publisher = -1;  // index: the layer whose ranking is used (may be the layer itself: scan)
  Budget k;            // index: tokens of the list
  std::vector<int> head_map;  // index: KV head -> KV head of the publisher; empty: the same
};

// A gate multiplies a branch's output before the output projection: sigmoid(W x), one value per
// head or per channel.
enum class Gate : uint8_t { kNone, kHead, kChannel };

struct Branch {
  int cache = -1;  // index into the model's caches
  TokenSet set;
  Gate gate = Gate::kNone;
  bool sink_logit = false;  // a learned term per head in the softmax denominator
};

// One softmax over the union of the branches, or a sum of gated outputs of separate softmaxes.
enum class Merge : uint8_t { kSoftmax, kGatedSum };

// A ranking of the visible keys, from which later layers take their lists.
struct Publish {
  enum class Ranking {
    kExact,    // by the layer's own attention
    kLowBit,   // by the 4-bit copy of K, before the layer attends
    kIndexer,  // by an indexer's scores, before the layer attends (arXiv 2606.06467)
  } ranking = Ranking::kExact;
  // Attention mass pooled over heads and summed over blocks; or log-probabilities, of which heads
  // and blocks count the largest (arXiv 2602.03560, eq. 3). An indexer's scores rank as they are.
  enum class Score { kMass, kLogProbability } score = Score::kMass;
  Scope scope = Scope::kAll;  // kAll: one list; otherwise one per KV head
  Pool pool = Pool::kSum;
  int64_t block = 1;             // tokens per unit of selection
  int64_t sink = 0, recent = 0;  // forced members of every list,
  bool forced_inside = true;     // counted inside k or on top of it
  int index_cache = -1;          // kIndexer: its keys
  float index_scale = 0;         // kIndexer: multiplies q . k
  bool index_bf16 = false;       // kIndexer: q and k are rounded to bf16 first
  std::vector<Budget> budgets;   // what the readers ask for, without repeats
};

// What a routed layer keeps when a request does not need it (arXiv 2604.07394).
struct RouteWindow {
  int64_t sink = 0, recent = 0;
};

struct LayerPlan {
  Role role = Role::kFull;
  std::vector<Branch> branches;
  Merge merge = Merge::kSoftmax;
  std::optional<Publish> publish;  // only when some layer uses it
  RouteWindow route;               // role route
  bool evict = false;  // after the first prompt the own cache keeps what the window reads, no more
  // A model's own layers hold for every row. A plan's layers hold for decode rows that see more
  // than its min_context keys, and for prompts where in_prompts.
  bool in_prompts = true;
  bool at_any_length = true;
};

// A KV cache: who owns it, which residual stream its K and V are projected from, how long its
// tokens live. Layers without own K and V have none; a memory is read by many layers.
struct CacheSpec {
  static constexpr int kMemory = -1;
  int owner = kMemory;  // layer
  int kv_input = 0;     // the layer at whose entry the stream is projected
  int kv_heads = 0;
  int64_t head_dim = 0;
  bool values = true;            // false: keys alone (an indexer)
  bool low_bit = false;          // carries the 4-bit copy of K
  int64_t sink = 0, recent = 0;  // recent > 0: only these tokens are kept; 0: all
  bool host_rows = false;        // K and V lie in host memory, whatever the device

  bool ring() const { return recent > 0; }
  bool operator==(const CacheSpec&) const = default;
  // Tokens that later rows may still read after `tokens` of the sequence.
  int64_t Held(int64_t tokens) const {
    return ring() && sink + recent < tokens ? sink + recent : tokens;
  }
};

// The facts of a model that a plan is checked against, and the model's own plan.
struct ModelShape {
  std::string architecture;
  std::string fingerprint;
  int layers = 0;
  int heads = 0, kv_heads = 0;
  int64_t head_dim = 0;
  std::vector<int64_t> window;  // [layers] the model's own window; 0 = none; may be empty
  // [layers] and the caches they read. Empty: every layer has a cache of its own and attends to all
  // of it, or to its window.
  std::vector<LayerPlan> plan;
  std::vector<CacheSpec> caches;
  int exit_layer = -1;  // prompts may leave rows nobody asks for here; -1: nowhere

  int64_t Window(int layer) const {
    return window.empty() ? 0 : window[static_cast<size_t>(layer)];
  }
  // Some layer borrows, shares, gates or publishes by design.
  bool trained_sparse() const { return exit_layer >= 0 || gated_or_borrowed; }
  bool gated_or_borrowed = false;
  // Fills plan and caches where they are empty.
  ModelShape Completed() const;
};

}  // namespace baton
