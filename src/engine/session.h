// One sequence at the level of tokens and logits: what measurements are built from. A session may
// be cut back to any earlier length and continued differently, so many plans can be tried on one
// prompt.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "baton/engine.h"
#include "engine/engine_impl.h"

namespace baton {

class Session {
 public:
  struct Options {
    KvStoreOptions store;
    // Tokens by which the session will be cut back; rings hold so many more. Negative: any number.
    int64_t rollback = -1;
  };
  // `caches`: of a plan, of several (Together), or the model's own.
  static Result<Session> Create(Engine& engine, const std::vector<CacheSpec>& caches,
                                int64_t max_tokens);
  static Result<Session> Create(Engine& engine, const std::vector<CacheSpec>& caches,
                                int64_t max_tokens, const Options& options);

  Session(Session&&) = default;
  // Memberwise assignment would free the store before the sequence that holds its pages.
  Session& operator=(Session&& o) noexcept {
    sequence_ = std::move(o.sequence_);
    store_ = std::move(o.store_);
    engine_ = o.engine_;
    hidden_ = std::move(o.hidden_);
    return *this;
  }

  // [n, vocab] logits of wanted rows first .. first + n.
  using OnLogits = std::function<void(int64_t first, View<const float> logits)>;

  // Appends prompt tokens in the engine's chunks, under the plan's prefill mode (null: dense).
  // `last` sees the logits of the final token.
  Status Prefill(std::span<const int32_t> tokens, const ResolvedPlan* plan = nullptr,
                 const OnLogits& last = nullptr);

  struct DecodeOptions {
    const ResolvedPlan* plan = nullptr;
    std::span<const int64_t> logit_rows;  // of the given tokens; empty with on_logits set: all
    OnLogits on_logits;
    AttentionObserver* observer = nullptr;
    int first_layer = 0;
    int end_layer = -1;
    const float* hidden = nullptr;  // on the host: [T, C]
    float* capture = nullptr;
    int tap_layer = -1;
    float* tap = nullptr;
    Watch* watch = nullptr;
  };
  // Appends tokens, each attending as in decode (its own sets), all in one pass: teacher forcing.
  Status Decode(std::span<const int32_t> tokens, const DecodeOptions& options);

  // Makes the sequence `length` tokens long with synthetic K and V.
  Status FillSynthetic(int64_t length, uint64_t seed);

  void Truncate(int64_t tokens);
  int64_t length() const { return sequence_.length(); }
  KvStore& store() { return *store_; }
  KvSequence& sequence() { return sequence_; }

 private:
  Session(Engine::Impl& engine, std::shared_ptr<KvStore> store)
      : engine_(&engine),
        store_(std::move(store)),
        sequence_(store_->NewSequence()),
        hidden_(store_->device()) {}

  Engine::Impl* engine_;
  std::shared_ptr<KvStore> store_;
  KvSequence sequence_;
  Array<float> hidden_;  // on a device that is not the host
};

}  // namespace baton
