#include <cmath>

#include "baton/eval.h"
#include "engine/session.h"
#include "tests/eval/eval_test_util.h"

namespace baton {
namespace {

using testing::LoadSynthetic;
using testing::MadeUpText;

// The definition: one token after the other, log-softmax in double.
struct Direct {
  double nll = 0, square = 0;
  int64_t count = 0;
  double mean() const { return nll / static_cast<double>(count); }
  double standard_error() const {
    const auto n = static_cast<double>(count);
    return std::sqrt((square / n - mean() * mean()) / (n - 1));
  }
};

Direct DirectNll(Engine& engine, const std::string& text, int64_t context, bool all,
                 const Plan* plan) {
  Direct sum;
  std::vector<int32_t> tokens = engine.Tokenize(text, true, false);
  const std::vector<int32_t> bos = engine.Tokenize("", true, false);
  std::optional<ResolvedPlan> resolved;
  if (plan) resolved = engine.impl().ResolvePlan(*plan, nullptr).value();
  const ResolvedPlan* p = resolved ? &*resolved : nullptr;
  for (int64_t c = 0; (c + 1) * context <= static_cast<int64_t>(tokens.size()); ++c) {
    std::vector<int32_t> chunk(tokens.begin() + c * context, tokens.begin() + (c + 1) * context);
    if (!bos.empty()) chunk[0] = bos[0];
    Session session =
        Session::Create(engine, p ? p->caches : engine.impl().model_plan.caches, context).value();
    const int64_t first = all ? 0 : context / 2;
    EXPECT_TRUE(session.Prefill(std::span(chunk).first(static_cast<size_t>(first)), p).ok());
    for (int64_t i = first; i + 1 < context; ++i) {
      Session::DecodeOptions options;
      options.plan = p;
      options.on_logits = [&](int64_t, View<const float> logits) {
        double total = 0;
        for (int64_t v = 0; v < logits.dim(1); ++v) total += std::exp(double{logits.data()[v]});
        const double nll =
            std::log(total) - double{logits.data()[chunk[static_cast<size_t>(i + 1)]]};
        sum.nll += nll;
        sum.square += nll * nll;
        sum.count++;
      };
      EXPECT_TRUE(
          session.Decode(std::span(chunk).subspan(static_cast<size_t>(i), 1), options).ok());
    }
  }
  return sum;
}

void ExpectEqualsDirect(const PerplexityOptions& options) {
  auto engine = LoadSynthetic();
  const std::string text = MadeUpText(330);
  const auto result = MeasurePerplexity(*engine, text, options);
  ASSERT_TRUE(result.ok()) << result.error().ToString();
  const Direct direct = DirectNll(*engine, text, options.context, options.score_all,
                                  options.plan ? &*options.plan : nullptr);
  EXPECT_EQ(result->tokens_scored, direct.count);
  EXPECT_EQ(result->chunks, 3);
  EXPECT_NEAR(result->mean_nll, direct.mean(), 1e-5);
  EXPECT_NEAR(result->perplexity, std::exp(direct.mean()), 1e-4 * result->perplexity);
  EXPECT_NEAR(result->standard_error, std::exp(direct.mean()) * direct.standard_error(),
              1e-3 * result->standard_error);
}

TEST(Perplexity, SecondHalvesEqualTheDefinition) { ExpectEqualsDirect({.context = 100}); }

TEST(Perplexity, AllPositionsEqualTheDefinition) {
  ExpectEqualsDirect({.context = 100, .score_all = true});
}

TEST(Perplexity, PlannedRowsDecodeUnderThePlan) {
  PerplexityOptions options{.context = 100};
  options.plan = testing::ReusePlan(16);
  ExpectEqualsDirect(options);
  auto engine = LoadSynthetic();
  const std::string text = MadeUpText(330);
  EXPECT_NE(MeasurePerplexity(*engine, text, options)->mean_nll,
            MeasurePerplexity(*engine, text, {.context = 100})->mean_nll);
}

TEST(Perplexity, DensePlanChangesNothing) {
  auto engine = LoadSynthetic();
  PerplexityOptions options{.context = 64};
  const std::string text = MadeUpText(300);
  const double dense = MeasurePerplexity(*engine, text, options)->mean_nll;
  options.plan = Plan::Dense(4);
  EXPECT_NEAR(MeasurePerplexity(*engine, text, options)->mean_nll, dense, 1e-6);
}

TEST(Perplexity, OneFinalNewlineIsDropped) {
  auto engine = LoadSynthetic();
  const std::string text = MadeUpText(300);
  // As many tokens as the text has without the newline: with it, they would be one too many.
  const auto tokens = static_cast<int64_t>(engine->Tokenize(text, true, false).size());
  const auto result = MeasurePerplexity(*engine, text + "\n", {.context = tokens});
  ASSERT_TRUE(result.ok()) << result.error().ToString();
  EXPECT_EQ(result->mean_nll, MeasurePerplexity(*engine, text, {.context = tokens})->mean_nll);
  EXPECT_FALSE(MeasurePerplexity(*engine, text + "\n", {.context = tokens + 1}).ok());
}

TEST(Perplexity, ChunksLimitTheWork) {
  auto engine = LoadSynthetic();
  const auto result = MeasurePerplexity(*engine, MadeUpText(600), {.context = 64, .chunks = 2});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->chunks, 2);
  EXPECT_EQ(result->tokens_scored, 2 * (64 - 1 - 32));
}

TEST(Perplexity, ShortTextNamesTokensFoundAndNeeded) {
  auto engine = LoadSynthetic();
  const auto result = MeasurePerplexity(*engine, "short", {.context = 512});
  ASSERT_FALSE(result.ok());
  const auto found = engine->Tokenize("short", true, false).size();
  EXPECT_NE(result.error().message().find(fmt::format("has {} tokens", found)), std::string::npos)
      << result.error().ToString();
  EXPECT_NE(result.error().message().find("needs 512"), std::string::npos);
}

TEST(Perplexity, PlanOfAnotherModelIsAnError) {
  auto engine = LoadSynthetic();
  PerplexityOptions options{.context = 64};
  options.plan = Plan::Dense(7);
  EXPECT_FALSE(MeasurePerplexity(*engine, MadeUpText(300), options).ok());
}

TEST(Perplexity, InterruptStops) {
  auto engine = LoadSynthetic();
  engine->Cancel();
  const auto result = MeasurePerplexity(*engine, MadeUpText(300), {.context = 64});
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code(), Error::Code::kCancelled);
}

}  // namespace
}  // namespace baton
