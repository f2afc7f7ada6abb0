// One forward pass of decode rows: the newest tokens of one sequence or of many. The one place that
// lays out such a pass, for the scheduler, sessions and bench.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "attention/attention.h"
#include "kv/kv_store.h"
#include "model/run/transformer.h"
#include "plan/resolved.h"

namespace baton {

class DecodeStep {
 public:
  struct Part {
    KvSequence* kv = nullptr;
    const ResolvedPlan* plan = nullptr;
    std::span<const int32_t> tokens;  // follow what `kv` holds; each attends as in decode
    Watch* watch = nullptr;
    bool rows_alone = false;  // see AttentionSegment
    bool logits = false;      // Sample brings them to the host too
  };

  // Makes room for the part's tokens. An error (the cache is full) leaves the step without it.
  Status Add(const Part& part);

  bool empty() const { return segments_.empty(); }
  int64_t rows() const { return static_cast<int64_t>(tokens_.size()); }
  int64_t rows(size_t part) const { return segments_[part].rows.count; }

  // [n, vocab] logits of the part's wanted rows first .. first + n.
  using OnLogits = std::function<void(size_t part, int64_t first, View<const float> logits)>;

  // Runs the pass and drops what rings no longer keep. on_logits sees the wanted rows of parts that
  // did not fail, in order; null: no logits are made. batch.logit_rows: the wanted rows of the
  // step; empty: all. `batch` may also bring an observer, layers and what enters or is captured
  // there.
  void Forward(Transformer& model, const OnLogits& on_logits, ForwardBatch batch = {});

  struct SampleCalls {
    // Fills in how the part's rows pick their tokens; left as they are, or null, they take the
    // largest logit. Before the pass.
    std::function<void(size_t part, std::span<SampleRow> rows)> before;
    // What the rows of a part that did not fail picked, after the pass; or null. logits: [n, vocab]
    // where the part wants them, else empty.
    std::function<void(size_t part, std::span<const SampledRow> sampled, View<const float> logits)>
        after;
  };
  // The same with a token picked for every row. Calls for different parts come from several threads
  // at once: the masks and log-probabilities of many requests take as long as those of one.
  void Sample(Transformer& model, const SampleCalls& calls);

  // After Forward or Sample, by part.
  const SegmentFailure& failure(size_t part) const { return failures_[part]; }

 private:
  void Run(Transformer& model, ForwardBatch batch);

  std::vector<int32_t> tokens_;
  std::vector<AttentionSegment> segments_;
  std::vector<KvSequence*> sequences_;
  std::vector<bool> logits_wanted_;
  std::vector<SegmentFailure> failures_;
};

}  // namespace baton
