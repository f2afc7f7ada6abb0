#include "eval/retrieval.h"

#include <algorithm>

#include "profile/measure.h"
#include "profile/probes.h"

namespace baton {
namespace {

// The dense prompt pass would otherwise read the fact for the plan: by the time the answer starts,
// what the question attended to is in the residual stream of its last tokens.
constexpr int64_t kPlannedQuestionTokens = 8;

int PerContext(const RetrievalParams& p) {
  // In a short text the facts would crowd out what they hide in.
  const int64_t fit = std::max<int64_t>(1, p.length / 512);
  return static_cast<int>(std::min<int64_t>(p.per_context, fit));
}

struct Asked {
  RowLogits dense;  // at the answer's tokens
  bool dense_found = false;
};

class Questions {
 public:
  Questions(Engine& engine, Session& session, const ProbeContext& context)
      : pool_(engine.impl().pool), session_(session), context_(context) {}

  // Greedy decoding says the answer exactly when each answer token is the likeliest one after those
  // before it, so one teacher-forced pass decides it.
  Status Ask(size_t question, const ResolvedPlan* prefill, const ResolvedPlan* plan,
             const Session::OnLogits& on_answer) {
    const ProbeContext::Question& q = context_.questions[question];
    session_.Truncate(text_tokens());
    const auto ask = static_cast<int64_t>(q.ask.size());
    const int64_t planned = std::min(kPlannedQuestionTokens, ask);
    const std::span<const int32_t> all(q.ask);
    BATON_TRY(session_.Prefill(all.first(static_cast<size_t>(ask - planned)), prefill));
    std::vector<int32_t> rows(q.ask.end() - planned, q.ask.end());
    rows.insert(rows.end(), q.answer.begin(), q.answer.end() - 1);
    return DecodeRows(
        session_, {.tokens = rows, .plan = plan, .first_wanted = planned - 1},
        [&](int64_t row, View<const float> logits) { on_answer(row - (planned - 1), logits); });
  }

  Status AskDense(size_t question, Asked& asked) {
    BATON_TRY(Ask(question, nullptr, nullptr,
                  [&](int64_t, View<const float> logits) { asked.dense.Append(pool_, logits); }));
    asked.dense_found = true;
    for (int64_t i = 0; i < asked.dense.rows(); ++i) {
      asked.dense_found &= asked.dense.Best(i) == answer(question)[static_cast<size_t>(i)];
    }
    return Status::Ok();
  }

  Status AskPlanned(size_t question, const ResolvedPlan& plan, const Asked& asked,
                    NeedleResult& needle, std::vector<double>& answer_kl) {
    needle.found = true;
    std::vector<double> kl;
    BATON_TRY(Ask(question, &plan, &plan, [&](int64_t first, View<const float> logits) {
      const std::vector<RowComparison> rows = Compare(pool_, asked.dense, first, logits);
      for (size_t i = 0; i < rows.size(); ++i) {
        needle.found &= rows[i].best == answer(question)[static_cast<size_t>(first) + i];
        kl.push_back(rows[i].kl);
      }
    }));
    needle.kl = MeanOf(kl).mean;
    if (asked.dense_found) answer_kl.insert(answer_kl.end(), kl.begin(), kl.end());
    return Status::Ok();
  }

  Status PrefillText(const ResolvedPlan* plan) {
    session_.Truncate(0);
    return session_.Prefill(context_.tokens, plan);
  }
  int64_t text_tokens() const { return static_cast<int64_t>(context_.tokens.size()); }

 private:
  const std::vector<int32_t>& answer(size_t question) const {
    return context_.questions[question].answer;
  }
  ThreadPool& pool_;
  Session& session_;
  const ProbeContext& context_;
};

}  // namespace

int64_t RetrievalContexts(const RetrievalParams& p) {
  const int per_context = PerContext(p);
  return (p.needles + per_context - 1) / per_context;
}

Result<std::vector<RetrievalResult>> Retrieve(Engine& engine, Session& session,
                                              std::span<const ResolvedPlan> plans,
                                              std::span<const int32_t> text,
                                              const RetrievalParams& params, Steps& steps) {
  std::vector<RetrievalResult> results(plans.size());
  const int64_t contexts = RetrievalContexts(params);
  for (int64_t c = 0; c < contexts; ++c) {
    const std::string what = fmt::format("probes, text {} of {}", c + 1, contexts);
    steps.Begin(what);
    const auto count =
        static_cast<int>(params.needles / contexts + (c < params.needles % contexts));
    std::vector<Probe> probes =
        MakeProbes(count, params.seed * 1000 + static_cast<uint64_t>(c), true);
    for (int i = 0; i < count; ++i) {
      probes[static_cast<size_t>(i)].depth =
          (i + (static_cast<double>(c) + 0.5) / static_cast<double>(contexts)) / count;
    }
    // Another stretch of the text around each context's facts.
    std::vector<int32_t> filler(text.begin(), text.end());
    const auto start = static_cast<int64_t>(text.size()) * c / contexts;
    std::rotate(filler.begin(), filler.begin() + start, filler.end());
    BATON_ASSIGN(ProbeContext context, HideProbes(engine, probes, filler, params.length));

    Questions questions(engine, session, context);
    BATON_TRY(questions.PrefillText(nullptr));
    std::vector<Asked> asked(context.questions.size());
    for (size_t q = 0; q < asked.size(); ++q) BATON_TRY(questions.AskDense(q, asked[q]));
    steps.Done(static_cast<double>(params.length), what);
    for (size_t p : DensePromptsFirst(plans)) {
      if (plans[p].prefill.sparse) {
        BATON_TRY(questions.PrefillText(&plans[p]));
        steps.Done(static_cast<double>(params.length), what);
      }
      for (size_t q = 0; q < asked.size(); ++q) {
        NeedleResult needle{.length = params.length,
                            .depth = context.questions[q].depth,
                            .kind = ToString(context.questions[q].kind),
                            .dense_found = asked[q].dense_found};
        BATON_TRY(questions.AskPlanned(q, plans[p], asked[q], needle, results[p].answer_kl));
        if (plans[p].Evicts()) {
          // In a second turn the windows of the first are all that is left.
          NeedleResult later;
          std::vector<double> not_reported;
          BATON_TRY(questions.AskPlanned(q, plans[p].AfterPrompt(), asked[q], later, not_reported));
          needle.found_later = later.found;
        }
        results[p].needles.push_back(std::move(needle));
      }
    }
  }
  return results;
}

}  // namespace baton
