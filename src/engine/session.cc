#include "engine/session.h"

#include "engine/decode_step.h"
#include "engine/prompt/prompt_run.h"

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
  DecodeStep step;
  BATON_TRY(step.Add({.kv = &sequence_,
                      .plan = options.plan ? options.plan : &engine_->model_plan,
                      .tokens = tokens,
                      .watch = options.watch}));
  ForwardBatch batch{.logit_rows = options.logit_rows,
                     .first_layer = options.first_layer,
                     .end_layer = options.end_layer,
                     .hidden = options.hidden,
                     .observer = options.observer,
                     .capture = options.capture,
                     .tap_layer = options.tap_layer,
                     .tap = options.tap};
  if (options.hidden && !store_->device().host()) {
    const int64_t size = step.rows() * engine_->info.width;
    batch.hidden = hidden_.Reserve(size);
    hidden_.Upload({options.hidden, static_cast<size_t>(size)});
  }
  DecodeStep::OnLogits on_logits;
  if (options.on_logits)
    on_logits = [&](size_t, int64_t first, View<const float> l) { options.on_logits(first, l); };
  step.Forward(*engine_->model, on_logits, batch);
  return step.failure(0).failed() ? step.failure(0).ToError() : Status::Ok();
}

Status Session::FillSynthetic(int64_t length, uint64_t seed) {
  return baton::FillSynthetic(*store_, sequence_, length, seed, &engine_->pool);
}

void Session::Truncate(int64_t tokens) { sequence_.Truncate(tokens); }

}  // namespace baton
