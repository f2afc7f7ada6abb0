#include "engine/prompt_run.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "engine/routing.h"

namespace baton {

PromptRun::PromptRun(Engine::Impl& engine, PromptParams params)
    : engine_(engine), params_(std::move(params)), kept_(engine.ops->device()) {
  if (params_.plan == nullptr) params_.plan = &engine.model_plan;
  begin_ = params_.kv->length();
  end_ = begin_ + static_cast<int64_t>(params_.tokens.size());
  wanted_ = end_ - std::clamp<int64_t>(params_.wanted, 1, std::max<int64_t>(1, end_ - begin_));
  if (begin_ == end_) return;
  schedule_ =
      MakePrefillSchedule(engine.shape(), {.begin = params_.began < 0 ? begin_ : params_.began,
                                           .end = end_,
                                           .wanted = wanted_,
                                           .chunk = engine.options.prompt_chunk,
                                           .order = params_.order,
                                           .done = begin_});
  kept_.Reserve((end_ - schedule_.keep_from) * engine.info.width);
}

int64_t PromptRun::tokens_done() const {
  if (done()) return end_ - begin_;
  const Pass& pass = schedule_.passes[next_];
  if (params_.order == PrefillOrder::kTokenMajor)
    return pass.first_layer == 0 ? pass.first_row - begin_ : end_ - begin_ - 1;
  return (end_ - begin_) * static_cast<int64_t>(next_) /
         static_cast<int64_t>(schedule_.passes.size());
}

// Room in the caches that the pass writes.
Status PromptRun::Reserve(const Pass& pass) {
  const std::vector<CacheSpec>& caches = engine_.shape().caches;
  const bool all = pass.first_layer == 0 && pass.end_layer == engine_.info.layers;
  if (all && params_.order == PrefillOrder::kTokenMajor) return params_.kv->Reserve(pass.end_row);
  for (size_t i = 0; i < caches.size(); ++i) {
    if (!pass.Writes(caches[i])) continue;
    const int c = static_cast<int>(i);
    // What a ring of a suffix holds of the first rows is only good enough for the suffix.
    const bool starts = pass.first_row > params_.kv->length(c);
    BATON_TRY(params_.kv->Reserve(c, pass.first_row, pass.end_row));
    if (starts)
      suffix_rings_.push_back({c, FirstExactRow(engine_.shape(), pass.first_layer, pass.first_row,
                                                caches[i].kv_input)});
  }
  return Status::Ok();
}

Status PromptRun::Step() {
  BATON_CHECK(!done());
  const Pass pass = schedule_.passes[next_];
  if (params_.routing) BATON_TRY(params_.routing->Before(pass, kept_.data()));
  BATON_TRY(Reserve(pass));
  SegmentFailure failure;
  const AttentionSegment segment{.rows = {0, pass.rows(), pass.first_row},
                                 .kv = params_.kv,
                                 .plan = params_.plan,
                                 .prompt = true,
                                 .watch = nullptr,
                                 .failure = &failure};
  ForwardBatch batch;
  batch.tokens = params_.tokens.subspan(static_cast<size_t>(pass.first_row - begin_),
                                        static_cast<size_t>(pass.rows()));
  batch.segments = std::span(&segment, 1);
  batch.first_layer = pass.first_layer;
  batch.end_layer = pass.end_layer;
  batch.fed = pass.fed;
  batch.feed_end = pass.feed_end;
  if (pass.first_layer > 0) batch.hidden = Kept(pass.first_row);
  const int64_t keep = std::max(schedule_.keep_from, pass.first_row);
  if (pass.end_layer < engine_.info.layers && keep < pass.end_row) {
    batch.leave = Kept(keep);
    batch.leave_from = keep - pass.first_row;
  }
  std::vector<Rows> rotated;
  if (params_.gap > 0) {
    const int64_t before = std::clamp<int64_t>(params_.gap_at - pass.first_row, 0, pass.rows());
    rotated = {{0, before, pass.first_row},
               {before, pass.rows() - before, pass.first_row + before + params_.gap}};
    batch.rotated = rotated;
  }
  std::vector<int64_t> rows;
  const int64_t wanted = std::max(wanted_, pass.first_row);
  if (params_.on_logits && pass.end_layer == engine_.info.layers && wanted < pass.end_row) {
    rows.resize(static_cast<size_t>(pass.end_row - wanted));
    std::iota(rows.begin(), rows.end(), wanted - pass.first_row);
    batch.logit_rows = rows;
    batch.on_logits = [&](int64_t first, View<const float> logits) {
      if (!failure.failed()) params_.on_logits(wanted - wanted_ + first, logits);
    };
  }
  engine_.model->Forward(batch);
  if (failure.failed()) return failure.ToError();
  ++next_;
  if (params_.on_pass) params_.on_pass();
  if (params_.routing) params_.routing->After(pass);
  if (params_.only_decide && pass.end_row == end_) {
    const int cache = params_.plan->OwnCache(pass.first_layer);
    if (cache >= 0) params_.kv->Keep(cache, 0, 1);
  }
  params_.kv->Evict();
  if (!done()) return Status::Ok();
  for (const auto& [cache, exact] : suffix_rings_) params_.kv->MarkInexact(cache, exact);
  // All caches have come to the prompt's end.
  return params_.kv->Reserve(end_);
}

Status PromptRun::RunAll() {
  while (!done()) {
    if (engine_.cancelled.load(std::memory_order_relaxed)) return Error::Cancelled();
    BATON_TRY(Step());
  }
  return Status::Ok();
}

}  // namespace baton
