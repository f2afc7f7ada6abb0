// Perplexity by llama.cpp's convention, so that both engines' numbers can be laid side by side.
#include <algorithm>
#include <cmath>

#include "baton/eval.h"
#include "eval/steps.h"
#include "profile/measure.h"

namespace baton {
namespace {

Status CheckOptions(const Engine& engine, const PerplexityOptions& o) {
  const int64_t limit = engine.options().context;
  if (o.context < 4 || o.context > limit) {
    return Error::InvalidArgument("perplexity: context must be between 4 and {} tokens, got {}",
                                  limit, o.context)
        .Hint("the upper limit is the model's own context");
  }
  if (o.chunks < 0) {
    return Error::InvalidArgument("perplexity: chunks must be 0 (all) or more, got {}", o.chunks);
  }
  return Status::Ok();
}

// Appends the negative log-likelihoods of the scored targets of one chunk.
Status ScoreChunk(Engine& engine, Session& session, std::span<const int32_t> chunk,
                  const ResolvedPlan* plan, bool score_all, std::vector<double>& nll) {
  // Row i holds the logits for token i + 1, so the last token is a target only.
  const auto rows = static_cast<int64_t>(chunk.size()) - 1;
  const int64_t first = score_all ? 0 : static_cast<int64_t>(chunk.size()) / 2;
  const size_t at = nll.size();
  nll.resize(at + static_cast<size_t>(rows - first));
  const auto score = [&](int64_t row, const View<const float>& logits) {
    engine.impl().pool.For(logits.dim(0), [&](int64_t i, int) {
      const int32_t target = chunk[static_cast<size_t>(row + i + 1)];
      nll[at + static_cast<size_t>(row + i - first)] =
          LogSumExp(logits.row(i), logits.dim(1)) - logits.row(i)[target];
    });
  };
  session.Truncate(0);
  const auto inputs = chunk.first(static_cast<size_t>(rows));
  if (plan == nullptr) {
    return DecodeRows(session, {.tokens = inputs, .rows = kDenseRows, .first_wanted = first},
                      score);
  }
  BATON_TRY(session.Prefill(inputs.first(static_cast<size_t>(first)), plan));
  return DecodeRows(session, {.tokens = inputs.subspan(static_cast<size_t>(first)), .plan = plan},
                    [&](int64_t row, View<const float> logits) { score(first + row, logits); });
}

Result<std::vector<std::vector<int32_t>>> TextChunks(Engine& engine, const std::string& text,
                                                     const PerplexityOptions& options) {
  if (!engine.info().has_tokenizer)
    return Error::NotFound("{}: the model has no tokenizer", engine.info().path)
        .Hint("give --token-file instead of a text");
  std::string_view body = text;
  if (body.ends_with('\n')) body.remove_suffix(1);
  const std::vector<int32_t> tokens = engine.Tokenize(body, true, false);
  const auto found = static_cast<int64_t>(tokens.size());
  if (found < options.context) {
    return Error::InvalidArgument(
               "perplexity: the text has {} tokens, one chunk of context {} needs {}", found,
               options.context, options.context)
        .Hint("give a longer text or lower --context");
  }
  int64_t chunks = found / options.context;
  if (options.chunks > 0) chunks = std::min(chunks, options.chunks);
  const std::optional<int32_t> bos = BosToken(engine);
  std::vector<std::vector<int32_t>> windows;
  for (int64_t c = 0; c < chunks; ++c)
    windows.push_back(TextWindow(tokens, c * options.context, options.context, bos));
  return windows;
}

// The given tokens as they are, the last chunk as long as it comes.
Result<std::vector<std::vector<int32_t>>> TokenChunks(const Engine& engine,
                                                      const PerplexityOptions& options) {
  const std::vector<int32_t>& tokens = options.tokens;
  if (tokens.size() < 2)
    return Error::InvalidArgument("perplexity: {} token, at least 2 are needed", tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= engine.info().vocab)
      return Error::InvalidArgument("token {} at position {} is outside the vocabulary of {}",
                                    tokens[i], i, engine.info().vocab);
  }
  std::vector<std::vector<int32_t>> windows;
  const auto step = static_cast<size_t>(options.context);
  for (size_t at = 0; at + 1 < tokens.size(); at += step) {
    if (options.chunks > 0 && static_cast<int64_t>(windows.size()) == options.chunks) break;
    const auto begin = tokens.begin() + static_cast<int64_t>(at);
    windows.emplace_back(begin, begin + static_cast<int64_t>(std::min(step, tokens.size() - at)));
  }
  return windows;
}

}  // namespace

Result<PerplexityResult> MeasurePerplexity(Engine& engine, const std::string& text,
                                           const PerplexityOptions& options,
                                           const OnProgress& progress) {
  BATON_TRY(CheckOptions(engine, options));
  std::optional<ResolvedPlan> plan;
  if (options.plan) {
    BATON_ASSIGN(plan, engine.impl().ResolveUnrouted(*options.plan));
  }
  BATON_ASSIGN(
      const std::vector<std::vector<int32_t>> windows,
      options.tokens.empty() ? TextChunks(engine, text, options) : TokenChunks(engine, options));
  const auto chunks = static_cast<int64_t>(windows.size());

  BATON_ASSIGN(Session session,
               Session::Create(engine, plan ? plan->caches : engine.impl().model_plan.caches,
                               options.context));
  std::vector<double> nll;
  Steps steps(progress, static_cast<double>(chunks));
  for (int64_t c = 0; c < chunks; ++c) {
    const std::string what = fmt::format("chunk {} of {}", c + 1, chunks);
    steps.Begin(what);
    BATON_TRY(ScoreChunk(engine, session, windows[static_cast<size_t>(c)], plan ? &*plan : nullptr,
                         options.score_all, nll));
    steps.Done(1, what);
  }
  const MeanError mean = MeanOf(nll);
  PerplexityResult r;
  r.mean_nll = mean.mean;
  r.perplexity = std::exp(mean.mean);
  r.standard_error = r.perplexity * mean.standard_error;
  r.tokens_scored = static_cast<int64_t>(nll.size());
  r.chunks = chunks;
  if (options.logprobs) {
    for (const double x : nll) r.logprobs.push_back(-x);
  }
  return r;
}

}  // namespace baton
