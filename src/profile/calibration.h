// One long context whose last rows are decoded again and again under different plans: text rows,
// and the answers to probes hidden in it. The dense run is made once; every other run restarts from
// its cache and, for one-layer changes, from the residual stream that enters the changed layer.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/session.h"
#include "profile/measure.h"
#include "profile/probes.h"

namespace baton {

// Figures of one plan over some contexts, against the dense run of the same rows.
struct PlanMeasure {
  std::vector<double> text_kl;    // [text rows]
  int64_t same_best = 0;          // text rows whose preferred token is the dense run's
  std::vector<double> answer_kl;  // [answer rows of probes that dense finds]
  int found = 0, dense_found = 0, probes = 0;
  void Add(const PlanMeasure& o);
};

class CalibrationContext {
 public:
  struct Spec {
    std::vector<int32_t> text;  // what fills the context; its beginning again where it is short
    int64_t length = 0;         // tokens of the whole context
    int64_t text_rows = 96;     // last rows of the text that are scored
    std::vector<Probe> probes;
  };
  // Prefills and runs the dense reference. `observer` sees the dense rows: it is told which group
  // they belong to first.
  class Observer : public AttentionObserver {
   public:
    // Rows [first, first + count) of the next pass are measured; `answer` for probe answers.
    virtual void BeginRows(bool answer, int64_t first, int64_t count) = 0;
  };
  static Result<std::unique_ptr<CalibrationContext>> Build(Engine& engine, const Spec& spec,
                                                           Observer* observer);
  // What Build prefills: the text with the probes' facts in it, and their questions.
  static Result<ProbeContext> Compose(const Engine& engine, const Spec& spec);

  // Sums over text rows of |o_dense - o|^2 and |o_dense|^2, o being a layer's attention output.
  struct OutputError {
    int layer = -1;
    double difference = 0, dense = 0;
  };
  struct RunOptions {
    int first_layer = 0;  // earlier layers must be dense in the plan; they are not run again
    bool only_dense_finds = false;  // skip the probes that dense fails
    bool only_text = false;         // skip all probes
    OutputError* error = nullptr;
  };
  // Decodes all groups under `plan` on the dense prefill. Under a plan that evicts, questions are a
  // second turn, after the eviction.
  Result<PlanMeasure> Run(const ResolvedPlan& plan, const RunOptions& run);
  // The same with the prompt processed in the plan's own prefill mode: a new prefill.
  Result<PlanMeasure> RunWithPrefill(const ResolvedPlan& plan, bool only_text = false);

  Session& session() { return session_; }
  int64_t length() const { return static_cast<int64_t>(tokens_.size()); }
  int64_t text_rows() const { return text_rows_; }
  int dense_found() const;  // probes

 private:
  // Rows decoded in one pass, with what they need to be decoded again.
  struct Group {
    bool probe = false;
    bool dense_found = false;
    int64_t position = 0;         // of the first row
    std::vector<int32_t> prefix;  // prompt tokens between the context and the rows
    std::vector<int32_t> rows;    // input tokens
    std::vector<int32_t> answer;  // expected after rows [first_scored, ...)
    int64_t first_scored = 0, scored = 0;
    RowLogits dense;            // of the scored rows
    std::vector<float> hidden;  // [L][rows, C]
    Array<std::byte> cache;     // pages from snapshot_from_ to the last row
  };
  CalibrationContext(Engine& engine, Session session)
      : engine_(engine), session_(std::move(session)) {}
  Status DenseRun(Group& group, Observer* observer);
  void CopyCache(Group& group, bool save);
  Status Score(Session& session, const Group& group, Session::DecodeOptions options,
               PlanMeasure& result);

  Engine& engine_;
  Session session_;
  std::vector<int32_t> tokens_;
  int64_t text_rows_ = 0;
  int64_t snapshot_from_ = 0;
  std::vector<Group> groups_;
};

}  // namespace baton
