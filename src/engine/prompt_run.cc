#include "engine/prompt_run.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace baton {

PromptRun::PromptRun(Engine::Impl& engine, PromptParams params)
    : engine_(engine), params_(std::move(params)) {}

int64_t PromptRun::passes_left() const {
  const int64_t chunk = engine_.options.prompt_chunk;
  const int64_t left = total() - tokens_done_;
  return left / chunk + (left % chunk != 0);
}

Status PromptRun::Step() {
  BATON_CHECK(!done());
  const int64_t count = std::min(engine_.options.prompt_chunk, total() - tokens_done_);
  const int64_t position = params_.kv->length();
  BATON_TRY(params_.kv->Reserve(position + count));
  const AttentionSegment segment{.rows = {0, count, position},
                                 .kv = params_.kv,
                                 .plan = params_.plan,
                                 .prompt = true,
                                 .watch = nullptr};
  const int64_t last_row = count - 1;
  ForwardBatch batch;
  batch.tokens =
      params_.tokens.subspan(static_cast<size_t>(tokens_done_), static_cast<size_t>(count));
  batch.segments = std::span(&segment, 1);
  if (params_.on_logits && tokens_done_ + count == total()) {
    batch.logit_rows = std::span(&last_row, 1);
    batch.on_logits = params_.on_logits;
  }
  BATON_TRY(engine_.model->Forward(batch));
  tokens_done_ += count;
  return Status::Ok();
}

}  // namespace baton
