#include "engine/session.h"

#include <algorithm>
#include <numeric>

#include "engine/prompt_run.h"

namespace baton {

Result<Session> Session::Create(Engine& engine, const std::vector<CacheSpec>& caches,
                                int64_t max_tokens) {
  return Create(engine, caches, max_tokens, Options{});
}

Result<Session> Session::Create(Engine& engine, const std::vector<CacheSpec>& caches,
                                int64_t max_tokens, const Options& options) {
  BATON_ASSIGN(std::shared_ptr<KvStore> store,
               engine.impl().NewStore(caches, max_tokens, options.store, options.rollback));
  return Session(engine.impl(), std::move(store));
}

Status Session::Prefill(std::span<const int32_t> tokens, const ResolvedPlan* plan,
                        const OnLogits& last) {
  PromptRun run(*engine_, {.tokens = tokens,
                           .kv = &sequence_,
                           .plan = plan ? plan : &engine_->model_plan,
                           .on_logits = last});
  return run.RunAll();
}

Status Session::Decode(std::span<const int32_t> tokens, const DecodeOptions& options) {
  if (engine_->cancelled.load(std::memory_order_relaxed)) return Error::Cancelled();
  const auto count = static_cast<int64_t>(tokens.size());
  const int64_t position = length();
  BATON_TRY(sequence_.Reserve(position + count));
  SegmentFailure failure;
  const AttentionSegment segment{.rows = {0, count, position},
                                 .kv = &sequence_,
                                 .plan = options.plan ? options.plan : &engine_->model_plan,
                                 .prompt = false,
                                 .watch = options.watch,
                                 .failure = &failure};
  std::vector<int64_t> all;
  ForwardBatch batch;
  batch.tokens = tokens;
  batch.segments = std::span(&segment, 1);
  batch.logit_rows = options.logit_rows;
  if (options.on_logits && batch.logit_rows.empty()) {
    all.resize(static_cast<size_t>(count));
    std::iota(all.begin(), all.end(), int64_t{0});
    batch.logit_rows = all;
  }
  if (options.on_logits) {
    batch.on_logits = [&](int64_t first, View<const float> logits) {
      if (!failure.failed()) options.on_logits(first, logits);
    };
  }
  batch.observer = options.observer;
  batch.first_layer = options.first_layer;
  batch.end_layer = options.end_layer;
  batch.hidden = options.hidden;
  batch.capture = options.capture;
  batch.tap_layer = options.tap_layer;
  batch.tap = options.tap;
  engine_->model->Forward(batch);
  if (failure.failed()) return failure.ToError();
  sequence_.Evict();
  return Status::Ok();
}

Status Session::FillSynthetic(int64_t length, uint64_t seed) {
  return baton::FillSynthetic(*store_, sequence_, length, seed, &engine_->pool);
}

void Session::Truncate(int64_t tokens) { sequence_.Truncate(tokens); }

}  // namespace baton
