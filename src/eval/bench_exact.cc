#include "eval/bench_exact.h"

#include <algorithm>

#include "engine/draft_length.h"

namespace baton {
namespace {

void Add(std::vector<int64_t>& sum, const std::vector<int64_t>& more) {
  sum.resize(std::max(sum.size(), more.size()));
  for (size_t i = 0; i < more.size(); ++i) sum[i] += more[i];
}

void Add(ExactReport& sum, const ExactReport& r) {
  sum.drafted += r.drafted;
  sum.looked_up += r.looked_up;
  sum.accepted += r.accepted;
  sum.verifications += r.verifications;
  sum.draft_seconds += r.draft_seconds;
  sum.verify_seconds += r.verify_seconds;
  Add(sum.drafted_at, r.drafted_at);
  Add(sum.accepted_at, r.accepted_at);
}

// Of the drafts whose predecessors were all accepted.
double AcceptedShare(const ExactReport& r) {
  int64_t judged = 0;
  for (size_t i = 0; i < r.drafted_at.size(); ++i)
    judged += i == 0 ? r.drafted_at[0] : std::min(r.drafted_at[i], r.accepted_at[i - 1]);
  return judged > 0 ? static_cast<double>(r.accepted) / static_cast<double>(judged) : 0;
}

// Rows come as dense ones, each followed by the plan's where there is a plan.
std::vector<ExactBench::Expected> Expect(const std::vector<BenchRow>& rows, double accepted,
                                         const ExactOptions& exact) {
  std::vector<ExactBench::Expected> expected;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].verify.empty()) continue;
    PassTimes times;
    times.Verified(1, 1 / rows[i].decode_tokens_per_s);
    for (const RowsTime& t : rows[i].verify) times.Verified(t.rows, t.seconds);
    const bool free = !exact.plan;
    if (!free) times.Drafted(1 / rows[i + 1].decode_tokens_per_s);
    const int64_t drafts = CheapestDrafts(times, free, accepted, kMostDrafts);
    expected.push_back({rows[i].depth, drafts, DraftCost(times, free, accepted, drafts)});
  }
  return expected;
}

// Prompts begin at even distances in the text and have the length of the largest depth that the
// text and the context allow.
Result<int64_t> PromptLength(const Engine& engine, const BenchOptions& o, int64_t text) {
  int64_t longest = 0;
  for (const int64_t depth : o.depths) {
    if (depth <= text && depth + o.decode <= engine.options().context)
      longest = std::max(longest, depth);
  }
  if (longest > 0) return longest;
  return Error::InvalidArgument(
             "bench: no depth is as long as a prompt: the text has {} tokens, the context {}", text,
             engine.options().context)
      .Hint("give more text, or a --depth between them and 0");
}

}  // namespace

Result<ExactBench> BenchExact(Engine& engine, const BenchOptions& o,
                              const std::vector<BenchRow>& rows, Steps& steps) {
  const std::vector<int32_t> text = engine.Tokenize(o.text, true, false);
  ExactBench result;
  BATON_ASSIGN(result.depth, PromptLength(engine, o, std::ssize(text)));
  result.prompts = o.repeats;
  const int64_t room = std::ssize(text) - result.depth;
  const std::string what = fmt::format("answers to prompts of {} tokens", result.depth);
  for (int64_t i = 0; i < result.prompts; ++i) {
    steps.Begin(what);
    Request dense;
    dense.tokens = TextWindow(text, room * i / std::max<int64_t>(1, result.prompts - 1),
                              result.depth, BosToken(engine));
    dense.max_tokens = o.decode;
    dense.ignore_end = true;
    Request exact = dense;
    exact.exact = o.exact;
    if (o.exact->plan) exact.plan = o.plan;
    BATON_ASSIGN(const Generation want, engine.Generate(dense));
    BATON_ASSIGN(const Generation got, engine.Generate(exact));
    if (got.stop == Generation::Stop::kCancelled) return Error::Cancelled();
    // The prompt's pass makes the first token.
    result.tokens += o.decode - 1;
    result.dense_seconds_per_token += want.stats.decode_seconds;
    result.exact_seconds_per_token += got.stats.decode_seconds;
    result.different +=
        want.tokens != got.tokens || want.stats.logits_hash != got.stats.logits_hash;
    Add(result.report, *got.stats.exact);
    steps.Done(1 / static_cast<double>(result.prompts), what);
  }
  const auto tokens = static_cast<double>(std::max<int64_t>(1, result.tokens));
  result.dense_seconds_per_token /= tokens;
  result.exact_seconds_per_token /= tokens;
  result.accepted = AcceptedShare(result.report);
  result.expected = Expect(rows, result.accepted, *o.exact);
  return result;
}

}  // namespace baton
