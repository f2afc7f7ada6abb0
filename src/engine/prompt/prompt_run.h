// A prompt as a schedule of forward passes that can be run one at a time, so that other requests
// get their turn in between.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "engine/engine_impl.h"
#include "engine/prompt/prompt_pace.h"
#include "plan/prefill_schedule.h"

namespace baton {

class Routing;  // engine/prompt/routing.h

struct PromptParams {
  std::span<const int32_t> tokens;     // what is not in the cache yet; must outlive the run
  KvSequence* kv = nullptr;            // the tokens are appended to it
  const ResolvedPlan* plan = nullptr;  // its prefill mode applies; null: the model's own plan
  // Logits of the last `wanted` tokens, [n, vocab] pieces for wanted tokens first, first + 1, ...,
  // in order. May be empty: no logits are made.
  std::function<void(int64_t first, View<const float> logits)> on_logits;
  int64_t wanted = 1;
  // Where the prompt began, if not at the first of `tokens`: its passes are cut as if all of it
  // ran here, and give the bits that this gives. Negative: at the first of `tokens`.
  int64_t began = -1;
  // After each pass, before its rings drop anything. May be empty.
  std::function<void()> on_pass;
  PrefillOrder order = PrefillOrder::kTokenMajor;
  // Decides routed layers as their turn comes, in the plan that `plan` points at; null: none.
  Routing* routing = nullptr;
  // Rows from this one on are rotated as if `gap` positions lay before them.
  int64_t gap_at = 0, gap = 0;
  // Nothing but decisions is wanted of a layer-major run: a layer's cache goes with its last row.
  bool only_decide = false;
};

class PromptRun {
 public:
  PromptRun(Engine::Impl& engine, PromptParams params);

  int64_t passes_left() const { return static_cast<int64_t>(schedule_.passes.size() - next_); }
  bool done() const { return passes_left() == 0; }
  // Tokens that no further pass looks at, in proportion where passes are layers.
  int64_t tokens_done() const;

  // Whether the next step goes on within a pass.
  bool within_pass() const { return layer_ > 0; }

  // One forward pass, or the part of it that fits into `row_layers` rows times layers, but at least
  // one layer, or all between which index sets pass, of the fewest rows by which the prompt may be
  // cut (Engine::Impl::PromptUnit); any number gives the same bits. There must be a pass left.
  // Errors: the cache or the device's memory is full, or Transformer::Forward's; a run that failed
  // must not be continued.
  Status Step(int64_t row_layers = kWholePass);
  // What the latest step ran.
  PromptPart ran() const { return ran_; }
  Status RunAll();  // until done, or cancelled

 private:
  Status Begin(Pass* pass, int64_t row_layers);
  Status End(const Pass& pass);
  int PartEnd(const Pass& pass, int from, int64_t row_layers) const;
  Status Reserve(const Pass& pass);
  // The stream of rows that live from one pass to the next: [n, C] from `row` on.
  float* Kept(int64_t row) {
    return kept_.as<float>() + (row - schedule_.keep_from) * engine_.info.width;
  }

  Engine::Impl& engine_;
  PromptParams params_;
  int64_t begin_ = 0, end_ = 0, wanted_ = 0;  // positions
  PrefillSchedule schedule_;
  size_t next_ = 0;
  Pass pass_;      // at hand, where a step ended within it
  int layer_ = 0;  // that it goes on with; 0: it has not begun
  PromptPart ran_;
  Array<float> between_;  // the stream of its rows: [rows, C] on the device
  Buffer kept_;           // on the device
  std::vector<std::pair<int, int64_t>> suffix_rings_;  // cache, its first exact token
};

}  // namespace baton
