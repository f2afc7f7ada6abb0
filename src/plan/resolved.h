// A plan laid over a model: what the attention code reads. There is always one; without a user's
// plan it is the model's own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "baton/plan.h"
#include "plan/layer_plan.h"

namespace baton {

struct ResolvedPlan {
  std::vector<LayerPlan> layers;
  std::vector<CacheSpec> caches;
  // Layers whose `at_any_length` is false hold for decode rows that see more keys than this.
  int64_t min_context = 0;
  PrefillMode prefill;
  bool changes_layers = false;  // some layer differs from the model's own
  std::string hash;             // sha256 over everything that changes results

  const LayerPlan& layer(int l) const { return layers[static_cast<size_t>(l)]; }
  bool NeedsLowBit(int layer) const {
    const auto& publish = layers[static_cast<size_t>(layer)].publish;
    return publish && publish->ranking == Publish::Ranking::kLowBit;
  }
  // The cache that a layer writes, its first branch's where it has several; -1: none.
  int OwnCache(int layer) const;
  // Every layer attends as the model defines it.
  bool IsDense() const;
  bool Routes() const;
  bool Evicts() const;
  // Makes a layer read `k` of what `publisher`, which has a Publish, ranks.
  void ReadList(int reader, int publisher, Budget k);
  // A routed layer's decision for this request: full, as before, or a window for the rest of it.
  // Readers of its ranking turn to the latest earlier publisher that is left, or become full.
  // `in_prompts`: the window already holds for the prompt's rows (exact routing).
  void Decide(int layer, bool full, const ModelShape& model, bool in_prompts);
  // The layer's window, if it evicts, holds for prompts too from now on, and its cache is a ring.
  void Evict(int layer);
  // Every layer that evicts has done so.
  ResolvedPlan AfterPrompt() const;
  // Whether decode steps past min_context read nothing but lists of a cache (4-bit copies aside),
  // so that its rows may lie where reading is slow.
  bool ReadsListsOf(int cache) const;

 private:
  void NarrowCache(int layer);
};

// Caches that serve either plan: low-bit copies of both, the longer lifetimes.
std::vector<CacheSpec> Together(const std::vector<CacheSpec>& a, const std::vector<CacheSpec>& b);

// The model's own plan.
ResolvedPlan ModelPlan(const ModelShape& model);

// Checks a plan against a model and resolves it. Errors name the layer: unknown source, source not
// earlier, source publishes nothing, k < sink + recent, sparse role at a forced layer, a role other
// than full or a narrower window at a layer whose window the model itself limits, wrong length,
// other model, a model whose layers are sparse by training. `warnings` (may be null) receives one
// line each, for example k < 2 (sink + recent).
Result<ResolvedPlan> Resolve(const Plan& plan, const ModelShape& model,
                             std::vector<std::string>* warnings);

}  // namespace baton
