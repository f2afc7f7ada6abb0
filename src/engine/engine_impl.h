// What an Engine holds: the model, its backend, and the KV store that requests share.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "baton/engine.h"
#include "engine/draft_length.h"
#include "engine/prompt/prefix_cache.h"
#include "engine/scheduler.h"
#include "formats/chat_source.h"
#include "formats/grammar.h"
#include "kv/kv_store.h"
#include "model/run/router_weights.h"
#include "model/run/transformer.h"
#include "model/spec/checkpoint.h"
#include "plan/kv_bytes.h"

namespace baton {

struct Engine::Impl {
  explicit Impl(int threads) : pool(threads) {}

  EngineOptions options;
  ModelInfo info;
  ThreadPool pool;
  std::unique_ptr<Ops> ops;
  Checkpoint checkpoint;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<GrammarCompiler> grammars;  // of answers
  ChatSource chat;
  std::unique_ptr<Transformer> model;
  ResolvedPlan model_plan;       // what runs without a user's plan
  std::optional<Router> router;  // of layers of role route
  std::atomic<bool> cancelled{false};
  std::map<std::string, DraftHistory> draft_history;  // of exact requests, by hash of their plan
  std::unique_ptr<PrefixCache> prefix;                // null: off
  Scheduler scheduler{*this};                         // after what its requests use

  const ModelShape& shape() const { return model->shape(); }
  Result<ResolvedPlan> ResolvePlan(const Plan& plan, std::vector<std::string>* warnings) const;
  // The plan, its caches placed as the options say.
  ResolvedPlan Placed(ResolvedPlan plan) const;
  // For what runs without a request: an error where layers are routed.
  Result<ResolvedPlan> ResolveUnrouted(const Plan& plan) const;
  // Where a prompt may be cut without changing its bits: at multiples of this many tokens.
  int64_t PromptUnit(const ResolvedPlan& plan) const;
  KvElement cache_element() const;
  KvLayout LayoutOf(const CacheSpec& cache) const;
  // The shared store when its caches are exactly these and it has room for `tokens` more;
  // otherwise a new one takes its place (the old one lives as long as its sequences).
  // Its rings hold `rollback` more tokens than their lifetime.
  Result<std::shared_ptr<KvStore>> Store(const std::vector<CacheSpec>& caches, int64_t tokens,
                                         int64_t rollback);
  // A store of its own, for measurements. Rings hold `rollback` more tokens than their lifetime, so
  // that a sequence can be cut back by as many; negative: no cache drops anything.
  Result<std::shared_ptr<KvStore>> NewStore(const std::vector<CacheSpec>& caches, int64_t tokens,
                                            KvStoreOptions options = {},
                                            int64_t rollback = 0) const;

 private:
  std::shared_ptr<KvStore> store_;
  std::vector<CacheSpec> store_caches_;
  int64_t store_rollback_ = 0;
};

// What a model's layers are and what its caches take, from its shape and its own plan.
void DescribeLayers(const Engine::Impl& engine, ModelInfo& info);

// Of a row of logits, as statistics show it: 8 hex digits.
std::string HashText(uint32_t hash);

}  // namespace baton
