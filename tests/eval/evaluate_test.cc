#include <cmath>
#include <set>

#include "baton/eval.h"
#include "tests/eval/eval_test_util.h"

namespace baton {
namespace {

using testing::LoadSynthetic;
using testing::MadeUpText;

EvalOptions TextOnly(Plan plan) {
  EvalOptions options;
  options.plans = {std::move(plan)};
  options.context = 128;
  options.rows = 32;
  options.needles = 0;
  return options;
}

std::vector<EvalResult> MustRunAll(const EvalOptions& options, size_t bytes,
                                   const EngineOptions& backend) {
  auto engine = LoadSynthetic(backend);
  auto result = Evaluate(*engine, MadeUpText(bytes), options);
  EXPECT_TRUE(result.ok()) << result.error().ToString();
  return std::move(result).value();
}

EvalResult MustRun(const EvalOptions& options, size_t bytes = 400,
                   const EngineOptions& backend = {.backend = Backend::kReference,
                                                   .kv = KvType::kF32}) {
  return MustRunAll(options, bytes, backend)[0];
}

TEST(Evaluate, DensePlanIsExactlyDense) {
  const EvalResult r = MustRun(TextOnly(Plan::Dense(4)));
  EXPECT_EQ(r.kl_mean, 0);
  EXPECT_EQ(r.kl_standard_error, 0);
  EXPECT_EQ(r.top1_agreement, 1);
  EXPECT_EQ(r.nll_delta, 0);
  EXPECT_EQ(r.kv_bytes_share, 1);
  EXPECT_GT(r.dense_nll, 0);
}

TEST(Evaluate, BudgetThatCoversTheContextIsDense) {
  for (bool scan : {false, true}) {
    Plan plan = testing::ReusePlan(1024);
    if (scan) plan.layers[1].role = Role::kScan;
    const EvalResult r = MustRun(TextOnly(plan));
    EXPECT_LT(r.kl_mean, 1e-6) << scan;
    EXPECT_EQ(r.top1_agreement, 1) << scan;
  }
}

TEST(Evaluate, SparsePlanDiffersAndReadsLess) {
  const EvalResult r = MustRun(TextOnly(testing::WindowPlan(4, 12)));
  EXPECT_GT(r.kl_mean, 1e-4);
  EXPECT_GT(r.kl_standard_error, 0);
  EXPECT_LT(r.kl_standard_error, r.kl_mean);
  // Every layer reads 16 of the visible keys; rows start half way, see RowsAreRaised.
  double share = 0;
  for (int visible = 65; visible <= 128; ++visible) share += 16.0 / visible / 64;
  EXPECT_NEAR(r.kv_bytes_share, share, 1e-9);
}

TEST(Evaluate, RowsAreRaisedTowardsAThousandPositions) {
  EvalOptions options = TextOnly(Plan::Dense(4));
  EXPECT_EQ(MustRun(options).positions, 3 * 64);  // half of each window is the most
  options.max_windows = 1;
  EXPECT_EQ(MustRun(options).positions, 64);
  options.rows = 100;  // asked for: kept
  EXPECT_EQ(MustRun(options).positions, 100);
  options.max_windows = 0;
  options.rows = 32;
  const EvalResult r = MustRun(options, 128 * 33);
  EXPECT_EQ(r.windows, 33);
  EXPECT_EQ(r.positions, 33 * 32);  // enough already
}

TEST(Evaluate, NeedlesLieAtSpreadDepthsAndDensePlanFindsWhatDenseFinds) {
  EvalOptions options = TextOnly(Plan::Dense(4));
  options.context = 1280;
  options.max_windows = 1;
  options.needles = 5;
  const EvalResult r = MustRun(options, 1300, testing::Quick());
  EXPECT_EQ(r.retrieval_total, 5);
  EXPECT_EQ(r.retrieval_found, r.retrieval_dense_found);
  EXPECT_EQ(r.answer_kl, 0);
  std::set<double> depths;
  for (const NeedleResult& n : r.needles) {
    depths.insert(n.depth);
    EXPECT_EQ(n.found, n.dense_found);
    EXPECT_EQ(n.kind, "digits");
    EXPECT_EQ(n.length, 1280 - 256);
  }
  EXPECT_EQ(depths.size(), 5u);
  EXPECT_LT(*depths.begin(), 0.2);
  EXPECT_GT(*depths.rbegin(), 0.8);
}

TEST(Evaluate, GridHasEightDepthsAtEveryLength) {
  EvalOptions options = TextOnly(testing::ReusePlan(64));
  options.grid_lengths = {600, 1500};
  const EvalResult r = MustRun(options, 1300, testing::Quick());
  ASSERT_EQ(r.grid.size(), 16u);
  std::set<double> depths[2];
  for (const NeedleResult& n : r.grid) {
    ASSERT_TRUE(n.length == 600 || n.length == 1500);
    depths[n.length == 1500].insert(n.depth);
  }
  EXPECT_EQ(depths[0].size(), 8u);
  EXPECT_EQ(depths[0], depths[1]);
  EXPECT_EQ(r.retrieval_total, 0);
}

TEST(Evaluate, SelfGeneratedTextOfADensePlanNeverDiffers) {
  EvalOptions options = TextOnly(Plan::Dense(4));
  options.self_generated = 20;
  const EvalResult r = MustRun(options);
  EXPECT_EQ(r.self_generated, 20);
  EXPECT_EQ(r.self_first_difference, -1);
  EXPECT_NEAR(r.self_nll_plan, r.self_nll_dense, 1e-5);
  EXPECT_GT(r.self_nll_plan, 0);
}

TEST(Evaluate, SelfGeneratedTextUnderANarrowWindowDiffersAndDenseLikesItLess) {
  EvalOptions options = TextOnly(testing::WindowPlan(0, 2));
  options.self_generated = 40;
  const EvalResult r = MustRun(options);
  EXPECT_GE(r.self_first_difference, 0);
  EXPECT_GT(r.self_nll_dense, r.self_nll_plan);
}

TEST(Evaluate, SparsePromptsOfFullLayersAreDense) {
  Plan plan = Plan::Dense(4);
  plan.sink = 2;
  plan.recent = 8;
  plan.prefill = {.sparse = true, .tile = 16, .fraction = 0.1, .min = 32};
  EvalOptions options = TextOnly(plan);
  options.context = 1024;
  options.needles = 2;
  options.self_generated = 4;
  const EvalResult r = MustRun(options, 1100, testing::Quick());
  EXPECT_LT(r.kl_mean, 1e-6);
  EXPECT_EQ(r.retrieval_found, r.retrieval_dense_found);
  EXPECT_EQ(r.self_first_difference, -1);
}

TEST(Evaluate, SparsePromptsCountInTheResult) {
  Plan plan = testing::ReusePlan(256);  // decode keeps every key
  plan.prefill = {.sparse = true, .tile = 16, .fraction = 0.1, .min = 32};
  EXPECT_GT(MustRun(TextOnly(plan)).kl_mean, 1e-6);
}

TEST(Evaluate, ResultsRepeat) {
  EvalOptions options = TextOnly(testing::ReusePlan(24));
  options.context = 1024;
  options.needles = 3;
  const EvalResult a = MustRun(options, 1100, testing::Quick()),
                   b = MustRun(options, 1100, testing::Quick());
  EXPECT_EQ(a.kl_mean, b.kl_mean);
  EXPECT_EQ(a.answer_kl, b.answer_kl);
}

TEST(Evaluate, PlansJudgedTogetherEqualPlansJudgedAlone) {
  Plan sparse_prompts = testing::ReusePlan(64), scan = testing::ReusePlan(48);
  sparse_prompts.prefill = {.sparse = true, .tile = 16, .fraction = 0.1, .min = 32};
  scan.layers[1].role = Role::kScan;
  const std::vector<Plan> plans = {sparse_prompts, testing::WindowPlan(4, 12), scan};
  EvalOptions options = TextOnly(Plan::Dense(4));
  options.context = 1024;
  options.needles = 3;
  options.grid_lengths = {600};
  options.self_generated = 8;
  options.plans = plans;
  const std::vector<EvalResult> together = MustRunAll(options, 1100, testing::Quick());
  ASSERT_EQ(together.size(), plans.size());
  for (size_t i = 0; i < plans.size(); ++i) {
    options.plans = {plans[i]};
    const EvalResult alone = MustRun(options, 1100, testing::Quick());
    EXPECT_GT(alone.kl_mean, 1e-6) << i;
    EXPECT_EQ(together[i].kl_mean, alone.kl_mean) << i;
    EXPECT_EQ(together[i].answer_kl, alone.answer_kl) << i;
    EXPECT_EQ(together[i].nll_delta, alone.nll_delta) << i;
    EXPECT_EQ(together[i].kv_bytes_share, alone.kv_bytes_share) << i;
    for (const auto list : {&EvalResult::needles, &EvalResult::grid}) {
      ASSERT_EQ((together[i].*list).size(), (alone.*list).size()) << i;
      for (size_t n = 0; n < (alone.*list).size(); ++n) {
        EXPECT_EQ((together[i].*list)[n].found, (alone.*list)[n].found) << i;
        EXPECT_EQ((together[i].*list)[n].kl, (alone.*list)[n].kl) << i;
        EXPECT_GT((alone.*list)[n].kl, 0) << i;
      }
    }
    EXPECT_EQ(together[i].self_nll_plan, alone.self_nll_plan) << i;
  }
}

TEST(Evaluate, ModelsWithWindowsOfTheirOwn) {
  auto engine = LoadSynthetic({.backend = Backend::kReference, .kv = KvType::kF32}, "gemma3");
  const auto r = Evaluate(*engine, MadeUpText(400), TextOnly(Plan::Dense(4)));
  ASSERT_TRUE(r.ok()) << r.error().ToString();
  EXPECT_EQ(r->at(0).kl_mean, 0);
  EXPECT_EQ(r->at(0).kv_bytes_share, 1);
}

TEST(Evaluate, BadInputIsAnErrorThatSaysWhatIsNeeded) {
  auto engine = LoadSynthetic();
  const auto message = [&](const EvalOptions& options, const std::string& text) {
    const auto r = Evaluate(*engine, text, options);
    EXPECT_FALSE(r.ok());
    return r.ok() ? "" : r.error().ToString();
  };
  const auto expect = [&](const std::string& got, const std::string& part) {
    EXPECT_NE(got.find(part), std::string::npos) << got;
  };
  EvalOptions options = TextOnly(Plan::Dense(4));
  options.plans = {};
  expect(message(options, MadeUpText(300)), "plan");
  options = TextOnly(Plan::Dense(4));
  expect(message(options, "short"), "needs 128");
  options.context = 1 << 20;
  expect(message(options, MadeUpText(300)), "2048");
  options = TextOnly(Plan::Dense(4));
  options.rows = 128;
  expect(message(options, MadeUpText(300)), "rows");
  options = TextOnly(Plan::Dense(5));
  message(options, MadeUpText(300));
  options = TextOnly(Plan::Dense(4));
  options.needles = 4;
  expect(message(options, MadeUpText(300)), "512");
  options.needles = 0;
  options.grid_lengths = {100};
  expect(message(options, MadeUpText(300)), "grid length");
}

TEST(Evaluate, InterruptStops) {
  auto engine = LoadSynthetic();
  engine->Cancel();
  const auto r = Evaluate(*engine, MadeUpText(300), TextOnly(Plan::Dense(4)));
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.error().code(), Error::Code::kCancelled);
}

}  // namespace
}  // namespace baton
