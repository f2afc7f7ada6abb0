// Plans against the same model's dense attention: teacher-forced text, retrieval probes, and,
// on request, a free-running decode. docs/quality.md has the method.
#include <algorithm>
#include <bit>
#include <cmath>

#include "baton/eval.h"
#include "eval/retrieval.h"
#include "eval/steps.h"
#include "profile/measure.h"

namespace baton {
namespace {

// Fewer scored positions leave a standard error that hides the differences between good plans.
constexpr int64_t kMinPositions = 1000;
constexpr int kGridDepths = 8;
// A page holds 64 tokens: grid texts end at, just after, in the middle of and just before a page
// boundary in turn, because mistakes at page edges show at some lengths only.
constexpr int64_t kPageOffsets[] = {0, 1, 31, 63};

Status CheckOptions(const Engine& engine, const EvalOptions& o) {
  if (o.plans.empty()) return Error::InvalidArgument("eval: no plan to judge");
  const int64_t limit = engine.options().context;
  if (o.context < 16 || o.context > limit) {
    return Error::InvalidArgument("eval: context must be between 16 and {} tokens, got {}", limit,
                                  o.context)
        .Hint("the upper limit is the model's own context");
  }
  if (o.rows < 1 || o.rows >= o.context) {
    return Error::InvalidArgument(
        "eval: rows must be at least 1 and less than the context of {}, got {}", o.context, o.rows);
  }
  if (o.max_windows < 0 || o.needles < 0 || o.self_generated < 0) {
    return Error::InvalidArgument(
        "eval: windows, needles and self-generated tokens must be 0 or more, got {}, {} and {}",
        o.max_windows, o.needles, o.self_generated);
  }
  for (int64_t length : o.grid_lengths) {
    if (length < 2 * kQuestionTokens || length > limit) {
      return Error::InvalidArgument("eval: a grid length must be between {} and {} tokens, got {}",
                                    2 * kQuestionTokens, limit, length);
    }
  }
  if (o.needles > 0 && o.context < 2 * kQuestionTokens) {
    return Error::InvalidArgument("eval: probes need a context of at least {} tokens, got {}",
                                  2 * kQuestionTokens, o.context)
        .Hint("raise --context, or --needles 0");
  }
  return Status::Ok();
}

// A standard error that holds when positions of one window resemble each other: that of the window
// means where it is the larger one.
double StandardError(const std::vector<double>& values, const std::vector<double>& window_means) {
  const double apart = MeanOf(values).standard_error;
  return std::max(apart, MeanOf(window_means).standard_error);
}

class Evaluation {
 public:
  Evaluation(Engine& engine, const EvalOptions& options, std::vector<ResolvedPlan> plans,
             std::vector<int32_t> tokens, Session session, const OnProgress& progress)
      : engine_(engine),
        options_(options),
        plans_(std::move(plans)),
        tokens_(std::move(tokens)),
        session_(std::move(session)),
        bos_(BosToken(engine)),
        windows_(static_cast<int64_t>(tokens_.size()) / options.context),
        rows_(options.rows),
        steps_(progress, 0),
        judged_(plans_.size()) {
    if (options.max_windows > 0) windows_ = std::min(windows_, options.max_windows);
    const int64_t wanted = (kMinPositions + windows_ - 1) / windows_;
    if (rows_ < wanted) rows_ = std::max(rows_, std::min(wanted, options.context / 2));
    steps_ = Steps(progress, Work());
  }

  Result<std::vector<EvalResult>> Run() {
    BATON_TRY(Text());
    for (size_t p = 0; p < plans_.size() && options_.self_generated > 0; ++p) {
      BATON_TRY(SelfGenerated(plans_[p], judged_[p].result));
    }
    if (options_.needles > 0) BATON_TRY(Needles());
    BATON_TRY(Grid());
    std::vector<EvalResult> results;
    for (size_t p = 0; p < judged_.size(); ++p) {
      if (plans_[p].Evicts()) {
        BATON_ASSIGN(judged_[p].result.kv_held_share,
                     engine_.KvHeldShare(options_.plans[p], options_.context));
      }
      const Evidence& evidence = options_.plans[p].evidence;
      if (evidence.present) judged_[p].result.predicted_nats = evidence.predicted_nats;
      results.push_back(std::move(judged_[p].result));
    }
    return results;
  }

 private:
  // What one plan did so far.
  struct Judged {
    EvalResult result;
    std::vector<double> kl, window_kl, dense_nll, nll_delta;
    int64_t same = 0;
    double bytes_share = 0;
  };

  // Tokens of all prompts, the unit of progress. Plans of dense prompts share the dense run's.
  double Work() const {
    int64_t work = windows_ * options_.context;
    if (options_.needles > 0)
      work += RetrievalContexts(NeedleParams()) * (options_.context - kQuestionTokens);
    for (size_t i = 0; i < options_.grid_lengths.size(); ++i) {
      const RetrievalParams p = GridParams(i);
      work += RetrievalContexts(p) * p.length;
    }
    work *= 1 + std::count_if(plans_.begin(), plans_.end(),
                              [](const ResolvedPlan& p) { return p.prefill.sparse; });
    if (options_.self_generated > 0) work += options_.context * static_cast<int64_t>(plans_.size());
    return static_cast<double>(work);
  }

  RetrievalParams NeedleParams() const {
    return {.needles = options_.needles,
            .length = options_.context - kQuestionTokens,
            .per_context = 6,
            .seed = options_.seed};
  }
  RetrievalParams GridParams(size_t i) const {
    const int64_t length =
        options_.grid_lengths[i] - kQuestionTokens + kPageOffsets[i % std::size(kPageOffsets)];
    // A power of two, so that every length has the same eight depths.
    const auto fit = static_cast<unsigned>(std::max<int64_t>(1, length / 512));
    return {.needles = kGridDepths,
            .length = length,
            .per_context = static_cast<int>(std::min(8u, std::bit_floor(fit))),
            .seed = options_.seed + 1 + i};
  }

  Status Text() {
    for (int64_t w = 0; w < windows_; ++w) BATON_TRY(Window(w));
    for (Judged& j : judged_) {
      const auto positions = static_cast<double>(j.kl.size());
      EvalResult& r = j.result;
      r.positions = static_cast<int64_t>(j.kl.size());
      r.windows = windows_;
      r.kl_mean = MeanOf(j.kl).mean;
      r.kl_standard_error = StandardError(j.kl, j.window_kl);
      r.top1_agreement = static_cast<double>(j.same) / positions;
      r.dense_nll = MeanOf(j.dense_nll).mean;
      r.nll_delta = MeanOf(j.nll_delta).mean;
      r.kv_bytes_share = j.bytes_share / positions;
    }
    return Status::Ok();
  }

  Status Window(int64_t w) {
    const std::string what = fmt::format("text, window {} of {}", w + 1, windows_);
    steps_.Begin(what);
    const int64_t begin = w * options_.context, prefix = options_.context - rows_;
    const std::vector<int32_t> window = TextWindow(tokens_, begin, options_.context, bos_);
    const auto prompt = std::span<const int32_t>(window).first(static_cast<size_t>(prefix));
    const auto tail = std::span<const int32_t>(window).subspan(static_cast<size_t>(prefix));

    session_.Truncate(0);
    BATON_TRY(session_.Prefill(prompt));
    RowLogits dense;
    BATON_TRY(DecodeRows(session_, {.tokens = tail}, [&](int64_t, View<const float> logits) {
      dense.Append(engine_.impl().pool, logits);
    }));
    steps_.Done(static_cast<double>(options_.context), what);

    for (size_t p : DensePromptsFirst(plans_)) {
      if (plans_[p].prefill.sparse) {
        session_.Truncate(0);
        BATON_TRY(session_.Prefill(prompt, &plans_[p]));
        steps_.Done(static_cast<double>(options_.context), what);
      }
      session_.Truncate(prefix);
      BATON_TRY(Judge(plans_[p], dense, tail, begin + prefix, judged_[p]));
    }
    return Status::Ok();
  }

  // Decodes `tail`, which follows the cached part of a window and begins at token `at` of the text.
  Status Judge(const ResolvedPlan& plan, const RowLogits& dense, std::span<const int32_t> tail,
               int64_t at, Judged& j) {
    const ModelShape& shape = engine_.impl().shape();
    std::vector<double> kl;
    const auto score = [&](int64_t first, View<const float> logits) {
      const std::vector<RowComparison> rows = Compare(engine_.impl().pool, dense, first, logits);
      for (size_t i = 0; i < rows.size(); ++i) {
        const int64_t row = first + static_cast<int64_t>(i);
        kl.push_back(rows[i].kl);
        j.same += rows[i].same_best;
        const int64_t visible = options_.context - rows_ + row + 1;
        j.bytes_share += static_cast<double>(KvBytesPerToken(plan, shape, visible)) /
                         static_cast<double>(DenseKvBytesPerToken(shape, visible));
        // The text's very last token has no successor to be scored on.
        const int64_t next = at + row + 1;
        if (next >= static_cast<int64_t>(tokens_.size())) continue;
        const int32_t target = tokens_[static_cast<size_t>(next)];
        const double dense_nll = -dense.LogProbability(row, target);
        j.dense_nll.push_back(dense_nll);
        j.nll_delta.push_back(rows[i].lse - logits.row(static_cast<int64_t>(i))[target] -
                              dense_nll);
      }
    };
    BATON_TRY(DecodeRows(session_, {.tokens = tail, .plan = &plan}, score));
    j.kl.insert(j.kl.end(), kl.begin(), kl.end());
    j.window_kl.push_back(MeanOf(kl).mean);
    return Status::Ok();
  }

  // Greedy text under the plan after the first window. Dense attention is shown the same text: up
  // to the first token where it would have said something else, its own greedy text is the same.
  Status SelfGenerated(const ResolvedPlan& plan, EvalResult& result) {
    const std::string what = "free-running decode";
    steps_.Begin(what);
    const std::vector<int32_t> window = TextWindow(tokens_, 0, options_.context, bos_);
    const int64_t prefix = options_.context - 1;
    session_.Truncate(0);
    BATON_TRY(session_.Prefill(std::span<const int32_t>(window).first(static_cast<size_t>(prefix)),
                               &plan));
    std::vector<int32_t> text = {window.back()};
    double nll = 0;
    for (int64_t i = 0; i < options_.self_generated; ++i) {
      const std::span<const int32_t> last(&text.back(), 1);
      int32_t next = 0;
      BATON_TRY(DecodeRows(session_, {.tokens = last, .plan = &plan},
                           [&](int64_t, View<const float> logits) {
                             next = ArgMax(logits.data(), logits.dim(1));
                             nll += LogSumExp(logits.data(), logits.dim(1)) - logits.data()[next];
                           }));
      text.push_back(next);
    }

    if (plan.prefill.sparse) {
      session_.Truncate(0);
      BATON_TRY(
          session_.Prefill(std::span<const int32_t>(window).first(static_cast<size_t>(prefix))));
    }
    session_.Truncate(prefix);
    double dense_nll = 0;
    int64_t difference = -1;
    const auto score = [&](int64_t first, View<const float> logits) {
      for (int64_t i = 0; i < logits.dim(0); ++i) {
        const int32_t said = text[static_cast<size_t>(first + i + 1)];
        dense_nll += LogSumExp(logits.row(i), logits.dim(1)) - logits.row(i)[said];
        if (difference < 0 && ArgMax(logits.row(i), logits.dim(1)) != said) difference = first + i;
      }
    };
    BATON_TRY(DecodeRows(session_, {.tokens = std::span(text).first(text.size() - 1)}, score));
    const auto n = static_cast<double>(options_.self_generated);
    result.self_generated = options_.self_generated;
    result.self_first_difference = difference;
    result.self_nll_plan = nll / n;
    result.self_nll_dense = dense_nll / n;
    steps_.Done(static_cast<double>(options_.context), what);
    return Status::Ok();
  }

  Status Needles() {
    BATON_ASSIGN(std::vector<RetrievalResult> found,
                 Retrieve(engine_, session_, plans_, tokens_, NeedleParams(), steps_));
    for (size_t p = 0; p < plans_.size(); ++p) {
      EvalResult& r = judged_[p].result;
      for (const NeedleResult& n : found[p].needles) {
        r.retrieval_total++;
        r.retrieval_dense_found += n.dense_found;
        r.retrieval_found += n.found;
        if (n.found_later)
          r.retrieval_found_later = r.retrieval_found_later.value_or(0) + *n.found_later;
      }
      r.answer_kl = MeanOf(found[p].answer_kl).mean;
      r.needles = std::move(found[p].needles);
    }
    return Status::Ok();
  }

  Status Grid() {
    for (size_t i = 0; i < options_.grid_lengths.size(); ++i) {
      BATON_ASSIGN(std::vector<RetrievalResult> found,
                   Retrieve(engine_, session_, plans_, tokens_, GridParams(i), steps_));
      for (size_t p = 0; p < plans_.size(); ++p) {
        for (NeedleResult& n : found[p].needles) {
          n.length =
              options_.grid_lengths[i];  // the cell's name; question and page offset included
          judged_[p].result.grid.push_back(std::move(n));
        }
      }
    }
    return Status::Ok();
  }

  Engine& engine_;
  const EvalOptions& options_;
  std::vector<ResolvedPlan> plans_;
  std::vector<int32_t> tokens_;
  Session session_;
  std::optional<int32_t> bos_;
  int64_t windows_, rows_;
  Steps steps_;
  std::vector<Judged> judged_;  // [plans]
};

}  // namespace

Result<std::vector<EvalResult>> Evaluate(Engine& engine, const std::string& text,
                                         const EvalOptions& options, const OnProgress& progress) {
  BATON_TRY(CheckOptions(engine, options));
  std::vector<ResolvedPlan> plans;
  std::vector<CacheSpec> caches = engine.impl().model_plan.caches;
  for (const Plan& p : options.plans) {
    BATON_ASSIGN(ResolvedPlan plan, engine.impl().ResolveUnrouted(p));
    caches = Together(caches, plan.caches);
    plans.push_back(std::move(plan));
  }
  std::vector<int32_t> tokens = engine.Tokenize(text, false, false);
  const auto found = static_cast<int64_t>(tokens.size());
  if (found < options.context) {
    return Error::InvalidArgument("eval: the text has {} tokens, one window of context {} needs {}",
                                  found, options.context, options.context)
        .Hint("give more --text or lower --context");
  }
  int64_t longest = options.context + options.self_generated;
  for (int64_t length : options.grid_lengths) longest = std::max(longest, length);
  BATON_ASSIGN(Session session, Session::Create(engine, caches, longest + 2 * kQuestionTokens));
  return Evaluation(engine, options, std::move(plans), std::move(tokens), std::move(session),
                    progress)
      .Run();
}

}  // namespace baton
