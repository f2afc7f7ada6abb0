// What the measurements share: windows of text, teacher-forced rows, progress.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "baton/engine.h"
#include "engine/session.h"

namespace baton {

// Rows decoded in one pass under a plan. Each row has sets of its own, and their scores take memory
// by the row.
constexpr int64_t kPlannedRows = 192;
// Rows of one pass where every layer attends as the model defines it.
constexpr int64_t kDenseRows = 512;

// The token that the model wants in front of every text, if it wants one.
std::optional<int32_t> BosToken(const Engine& engine);

// Tokens [begin, begin + count) with BOS in place of the first one, for models that add it.
std::vector<int32_t> TextWindow(std::span<const int32_t> tokens, int64_t begin, int64_t count,
                                std::optional<int32_t> bos);

// Decodes `tokens` (each with its own sets) in passes of `rows`; `on_logits` sees those of rows
// from `first_wanted` on, its `first` counting from tokens[0].
struct DecodeRowsParams {
  std::span<const int32_t> tokens;
  const ResolvedPlan* plan = nullptr;
  int64_t rows = kPlannedRows;
  int64_t first_wanted = 0;
};
Status DecodeRows(Session& session, const DecodeRowsParams& params,
                  const Session::OnLogits& on_logits);

// The order in which plans are judged on one session: those of dense prompts first, while the dense
// run's prompt is in the cache.
std::vector<size_t> DensePromptsFirst(std::span<const ResolvedPlan> plans);

// Progress over a known amount of work, in any unit.
class Steps {
 public:
  Steps(const OnProgress& progress, double total) : progress_(&progress), total_(total) {}
  void Begin(std::string_view what) { Report(what); }
  void Done(double amount, std::string_view what) {
    done_ += amount;
    Report(what);
  }

 private:
  void Report(std::string_view what) {
    if (*progress_) (*progress_)(total_ > 0 ? std::min(done_ / total_, 1.0) : 1.0, what);
  }
  const OnProgress* progress_;
  double total_ = 0, done_ = 0;
};

}  // namespace baton
