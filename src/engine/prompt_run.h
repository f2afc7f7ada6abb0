// A prompt as a schedule of forward passes that can be run one at a time, so that other requests
// get their turn in between.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "engine/engine_impl.h"

namespace baton {

struct PromptParams {
  std::span<const int32_t> tokens;     // what is not in the cache yet; must outlive the run
  KvSequence* kv = nullptr;            // the tokens are appended to it
  const ResolvedPlan* plan = nullptr;  // its prefill mode applies; null: dense
  // [1, vocab], of the last token; called within the last pass. May be empty: no logits are made.
  std::function<void(int64_t first, View<const float> logits)> on_logits;
};

// The schedule in use: token chunks of EngineOptions::prompt_chunk, every layer of one chunk before
// the next chunk. Any schedule has the same interface: a number of passes, each of which may fail.
class PromptRun {
 public:
  PromptRun(Engine::Impl& engine, PromptParams params);

  int64_t passes_left() const;
  bool done() const { return tokens_done_ == total(); }
  // Tokens that no further pass looks at.
  int64_t tokens_done() const { return tokens_done_; }

  // One forward pass; there must be one left. Errors: the cache is full (nothing has changed), or
  // Transformer::Forward's; a run that failed must not be continued.
  Status Step();

 private:
  int64_t total() const { return static_cast<int64_t>(params_.tokens.size()); }

  Engine::Impl& engine_;
  PromptParams params_;
  int64_t tokens_done_ = 0;
};

}  // namespace baton
