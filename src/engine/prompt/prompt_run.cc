#include "engine/prompt/prompt_run.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "engine/prompt/routing.h"

namespace baton {

PromptRun::PromptRun(Engine::Impl& engine, PromptParams params)
    : engine_(engine), params_(std::move(params)), between_(engine.ops->device()) {
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

// Room for the next pass, or for so many of its first rows that a layer of them fits into
// `row_layers`.
Status PromptRun::Begin(Pass* pass, int64_t row_layers) {
  *pass = schedule_.passes[next_];
  const int64_t kept = (end_ - schedule_.keep_from) * engine_.info.width;
  if (kept > 0 && !kept_) {
    const auto bytes = kept * static_cast<int64_t>(sizeof(float));
    BATON_ASSIGN(kept_, Buffer::Allocate(bytes, engine_.ops->device()));
  }
  if (params_.routing) BATON_TRY(params_.routing->Before(*pass, kept_.as<float>()));
  // Tiles begin at multiples of the unit: from elsewhere, a cut would change them.
  const int64_t unit = engine_.PromptUnit(*params_.plan);
  if (row_layers < pass->rows() && pass->first_row % unit == 0) {
    pass->end_row =
        std::min(pass->end_row, pass->first_row + std::max(unit, row_layers / unit * unit));
  }
  return Reserve(*pass);
}

// The layer before which a part ends that begins with layer `from`: lists do not outlive it.
int PromptRun::PartEnd(const Pass& pass, int from, int64_t row_layers) const {
  if (row_layers == kWholePass) return pass.end_layer;
  const auto layers =
      static_cast<int>(std::clamp<int64_t>(row_layers / pass.rows(), 1, pass.end_layer));
  int end = std::min(from + layers, pass.end_layer);
  const auto cuts_list = [&](int layer) {
    return !MayBeginAt(engine_.shape().plan, layer) ||
           (params_.plan->prefill.sparse && !MayBeginAt(params_.plan->layers, layer));
  };
  while (end < pass.end_layer && cuts_list(end)) ++end;
  return end;
}

Status PromptRun::Step(int64_t row_layers) {
  BATON_CHECK(!done());
  ran_ = {};
  const bool begins = !within_pass();
  if (begins) {
    BATON_TRY(Begin(&pass_, row_layers));
    layer_ = pass_.first_layer;
  }
  const Pass pass = pass_;
  const int end_layer = PartEnd(pass, layer_, row_layers);
  const bool ends = end_layer == pass.end_layer;
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
  batch.first_layer = layer_;
  batch.end_layer = end_layer;
  batch.fed = begins && pass.fed;
  batch.feed_end = ends && pass.feed_end;
  if (!begins) {
    batch.hidden = between_.data();
  } else if (pass.first_layer > 0) {
    batch.hidden = Kept(pass.first_row);
  }
  const int64_t keep = std::max(schedule_.keep_from, pass.first_row);
  if (!ends) {
    batch.leave = between_.Reserve(pass.rows() * engine_.info.width);
  } else if (pass.end_layer < engine_.info.layers && keep < pass.end_row) {
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
  if (params_.on_logits && end_layer == engine_.info.layers && wanted < pass.end_row) {
    rows.resize(static_cast<size_t>(pass.end_row - wanted));
    std::iota(rows.begin(), rows.end(), wanted - pass.first_row);
    batch.logit_rows = rows;
    batch.on_logits = [&](int64_t first, View<const float> logits) {
      if (!failure.failed()) params_.on_logits(wanted - wanted_ + first, logits);
    };
  }
  engine_.model->Forward(batch);
  if (row_layers != kWholePass) engine_.ops->device().Wait();  // whoever asks for a part times it
  if (failure.failed()) return failure.ToError();
  ran_ = {pass.rows(), end_layer - layer_};
  layer_ = ends ? 0 : end_layer;
  return ends ? End(pass) : Status::Ok();
}

Status PromptRun::End(const Pass& pass) {
  Pass& scheduled = schedule_.passes[next_];
  if (pass.end_row == scheduled.end_row) {
    ++next_;
  } else {
    scheduled.first_row = pass.end_row;
  }
  if (params_.on_pass) params_.on_pass();
  if (params_.routing) params_.routing->After(pass);
  if (params_.only_decide && pass.end_row == end_) {
    const int cache = params_.plan->OwnCache(pass.first_layer);
    if (cache >= 0) params_.kv->Keep(cache, 0, 1);
  }
  params_.kv->Evict();
  if (!done()) return Status::Ok();
  kept_ = {};
  between_ = Array<float>(engine_.ops->device());
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
