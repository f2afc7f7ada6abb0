// A plan against a model: what is rejected, what it becomes, and what a step of it reads.
#include "plan/resolved.h"

#include <gtest/gtest.h>

#include "plan/cost.h"
#include "plan/kv_bytes.h"
#include "plan/search.h"

namespace baton {
namespace {

ModelShape Shape(int layers) {
  return {.architecture = "llama",
          .fingerprint = "sha256:aa",
          .layers = layers,
          .heads = 9,
          .kv_heads = 3,
          .head_dim = 64,
          .window = std::vector<int64_t>(layers, 0)};
}

const LayerRole kFull{};
const LayerRole kSelect{.role = Role::kSelect};
LayerRole Scan(int64_t k = 0) { return {.role = Role::kScan, .k = {k, 0}}; }
LayerRole Reuse(int source = -1, int64_t k = 0) {
  return {.role = Role::kReuse, .source = source, .k = {k, 0}};
}
LayerRole Window(int64_t sink, int64_t recent) {
  return {.role = Role::kWindow, .sink = sink, .recent = recent};
}

Plan Of(std::vector<LayerRole> layers) {
  Plan plan = Plan::Dense(static_cast<int>(layers.size()));
  plan.layers = std::move(layers);
  return plan;
}

std::string ErrorOf(const Plan& plan, const ModelShape& model) {
  const auto result = Resolve(plan, model, nullptr);
  return result.ok() ? "resolved" : result.error().ToString();
}
std::string ErrorOf(const Plan& plan) {
  return ErrorOf(plan, Shape(static_cast<int>(plan.layers.size())));
}

TEST(Validator, ReuseWithoutEarlierPublisherIsRejected) {
  EXPECT_EQ(ErrorOf(Of({kFull, Reuse(), kSelect})),
            "layer 1 (reuse): no earlier layer publishes a ranking (hint: make an earlier layer "
            "select or scan)");
  EXPECT_EQ(ErrorOf(Of({Reuse()})).substr(0, 48),
            "layer 0 (reuse): no earlier layer publishes a ra");
}

TEST(Validator, SourceThatIsNotEarlierIsRejected) {
  EXPECT_EQ(ErrorOf(Of({kSelect, Reuse(1)})).substr(0, 48),
            "layer 1 (reuse): source layer 1 is not earlier (");
  EXPECT_EQ(ErrorOf(Of({kFull, Reuse(2), kSelect})).substr(0, 46),
            "layer 1 (reuse): source layer 2 is not earlier");
}

TEST(Validator, UnknownSourceIsRejected) {
  EXPECT_EQ(ErrorOf(Of({kSelect, Reuse(7)})),
            "layer 1 (reuse): unknown source layer 7, the model has 2");
  EXPECT_EQ(ErrorOf(Of({kSelect, Reuse(-2)})),
            "layer 1 (reuse): unknown source layer -2, the model has 2");
}

TEST(Validator, SourceThatPublishesNothingIsRejected) {
  EXPECT_EQ(ErrorOf(Of({kSelect, kFull, Reuse(1)})),
            "layer 2 (reuse): source layer 1 is full and publishes nothing (hint: make layer 1 "
            "select or scan)");
  EXPECT_EQ(ErrorOf(Of({kSelect, Reuse(0), Reuse(1)})).substr(0, 64),
            "layer 2 (reuse): source layer 1 is reuse and publishes nothing (");
  EXPECT_EQ(ErrorOf(Of({Window(4, 60), Reuse(0)})).substr(0, 63),
            "layer 1 (reuse): source layer 0 is window and publishes nothing");
}

TEST(Validator, SparseRoleAtForcedLayerIsRejected) {
  for (const LayerRole& role : {Reuse(0), Scan(), Window(4, 60)}) {
    Plan plan = Of({kSelect, role, Reuse(0)});
    plan.forced = {1};
    EXPECT_EQ(ErrorOf(plan), "layer 1 (" + ToString(role.role) +
                                 "): the layer is forced and must be full or select (hint: change "
                                 "its role, or take it out of \"forced\")");
  }
  Plan plan = Of({kSelect, kSelect, Reuse()});
  plan.forced = {0, 1};
  EXPECT_EQ(ErrorOf(plan), "resolved");
  plan.forced = {3};
  EXPECT_EQ(ErrorOf(plan), "forced: layer 3 does not exist, the model has 3");
}

TEST(Validator, BudgetBelowTheForcedTokensIsRejected) {
  EXPECT_EQ(ErrorOf(Of({kSelect, Reuse(0, 67)})),
            "layer 1 (reuse): k 67 is less than the 68 forced tokens (sink 4, recent 64) (hint: "
            "raise k, or lower budget.sink and budget.recent)");
  EXPECT_EQ(ErrorOf(Of({kSelect, Reuse(0, 68)})), "resolved");
  EXPECT_EQ(ErrorOf(Of({kFull, Scan(10)})).substr(0, 31), "layer 1 (scan): k 10 is less th");
  Plan plan = Of({kSelect, Reuse()});
  plan.budget = {32, 0};
  EXPECT_EQ(ErrorOf(plan).substr(0, 31), "layer 1 (reuse): k 32 is less t") << "the plan's budget";
}

TEST(Validator, PlanOfAnotherModelIsRejected) {
  Plan plan = Plan::Dense(2);
  plan.fingerprint = "sha256:bb";
  EXPECT_EQ(ErrorOf(plan),
            "plan was made for another model: fingerprint sha256:bb, this one is sha256:aa (hint: "
            "make a plan for this model with `baton plan`)");
  plan.fingerprint = "sha256:aa";
  EXPECT_EQ(ErrorOf(plan), "resolved");
  plan.architecture = "gemma3";
  EXPECT_EQ(ErrorOf(plan).substr(0, 54), "plan was made for another model: architecture gemma3, ");
  EXPECT_EQ(ErrorOf(Plan::Dense(2), Shape(3)).substr(0, 32), "plan has 2 layers, the model 3 (");
}

TEST(Validator, RoleAtLayerTheModelLimitsMustStayWithinItsWindow) {
  ModelShape model = Shape(3);
  model.window = {0, 512, 0};
  EXPECT_EQ(ErrorOf(Of({kSelect, kFull, Reuse()}), model), "resolved");
  EXPECT_EQ(ErrorOf(Of({kSelect, Window(0, 512), Reuse()}), model), "resolved");
  EXPECT_EQ(ErrorOf(Of({kSelect, Window(4, 513), Reuse()}), model).substr(0, 75),
            "layer 1 (window): recent 513 is wider than the model's own window of 512 (h");
  for (const LayerRole& role : {Reuse(0), Scan(), kSelect})
    EXPECT_EQ(ErrorOf(Of({kSelect, role, Reuse(0)}), model),
              "layer 1 (" + ToString(role.role) +
                  "): the model limits this layer to 512 tokens, so it must be full or a window "
                  "within them (hint: make it full)");
}

TEST(Validator, ScanNeedsFourBitsAndWholeGroupsOfChannels) {
  LayerRole scan = Scan();
  scan.bits = 8;
  EXPECT_EQ(ErrorOf(Of({kFull, scan})),
            "layer 1 (scan): a copy of K with 8 bits, this build has 4");
  ModelShape model = Shape(2);
  model.head_dim = 80;
  EXPECT_EQ(ErrorOf(Of({kFull, Scan()}), model).substr(0, 93),
            "layer 1 (scan): the low-bit copy of K needs a head size that is a multiple of 32, "
            "this model ");
  EXPECT_EQ(ErrorOf(Of({kSelect, Reuse()}), model), "resolved");
}

TEST(Validator, BlocksMustDividePagesAndBudgets) {
  Plan plan = Of({kSelect, Reuse(0, 520)});
  plan.block = 16;
  EXPECT_EQ(ErrorOf(plan), "layer 1 (reuse): k 520 is no multiple of the block 16 (hint: use 528)");
  plan.layers[1].k = {528, 0};
  EXPECT_EQ(ErrorOf(plan), "resolved");
  for (int64_t block : {0, 3, 24, 128, -16}) {
    plan.block = block;
    EXPECT_EQ(ErrorOf(plan).substr(0, 12), "unit: block ");
  }
  // 4 sink tokens touch one block of 64, the last 64 tokens up to two.
  plan.block = 64;
  plan.layers[1].k = {128, 0};
  EXPECT_EQ(ErrorOf(plan).substr(0, 59),
            "layer 1 (reuse): k 128 is less than the 192 forced tokens (");
}

TEST(Validator, HeadMapFitsTheModel) {
  Plan plan = Of({kSelect, Reuse()});
  plan.head_map = {{}, {0, 1, 2}};
  EXPECT_EQ(ErrorOf(plan), "head_map is given, but scope is not \"head_map\"");
  plan.scope = Scope::kHeadMap;
  EXPECT_EQ(ErrorOf(plan), "resolved");
  plan.head_map[1] = {0, 1};
  EXPECT_EQ(ErrorOf(plan), "layer 1 (reuse): head_map row has 2 entries, the model 3 KV heads");
  plan.head_map[1] = {0, 1, 3};
  EXPECT_EQ(ErrorOf(plan), "layer 1 (reuse): head_map names KV head 3, the model has 3");
  plan.head_map.pop_back();
  EXPECT_EQ(ErrorOf(plan).substr(0, 35), "head_map has 1 rows, the model 2 la");
}

TEST(Validator, ValuesOutOfRangeAreErrorsAlsoWithoutAFile) {
  EXPECT_NE(ErrorOf(Of({Window(-1, 5)})), "resolved");
  EXPECT_NE(ErrorOf(Of({Window(4, 0)})), "resolved");
  EXPECT_NE(ErrorOf(Of({kSelect, Reuse(0, -5)})), "resolved");
  Plan plan = Of({kSelect, Reuse()});
  plan.budget = {0, 1.5};
  EXPECT_NE(ErrorOf(plan), "resolved");
  plan.budget = {0, std::numeric_limits<double>::quiet_NaN()};
  EXPECT_NE(ErrorOf(plan), "resolved");
  plan.budget = {0, 1e-300};
  EXPECT_NE(ErrorOf(plan), "resolved");
  plan = Of({kSelect, Reuse()});
  plan.sink = -1;
  EXPECT_NE(ErrorOf(plan), "resolved");
  plan = Of({kSelect, Reuse()});
  plan.prefill = {true, 64, 0.1, 60};
  EXPECT_EQ(ErrorOf(plan).substr(0, 52), "prefill: min 60 is less than the 68 forced tokens (h");
  EXPECT_NE(ErrorOf(Plan::Dense(0), Shape(0)), "resolved");
}

TEST(Resolve, RolesBecomeBranches) {
  const auto plan =
      *Resolve(Of({Window(4, 1020), kSelect, Scan(1024), Reuse(), Reuse(1, 256), kFull, kSelect}),
               Shape(7), nullptr);
  using Kind = TokenSet::Kind;
  const auto set = [&](int l) { return plan.layers[l].branches.at(0).set; };
  for (const LayerPlan& layer : plan.layers) EXPECT_EQ(layer.branches.size(), 1u);
  EXPECT_EQ(set(0).kind, Kind::kWindow);
  EXPECT_EQ(set(0).sink, 4);
  EXPECT_EQ(set(0).recent, 1020);
  EXPECT_EQ(set(1).kind, Kind::kAll);
  EXPECT_EQ(set(2).kind, Kind::kIndex);
  EXPECT_EQ(set(2).publisher, 2);
  EXPECT_EQ(set(2).k, (Budget{1024, 0}));
  EXPECT_EQ(set(3).publisher, 2) << "the latest earlier publisher";
  EXPECT_EQ(set(3).k, (Budget{512, 0})) << "the plan's budget";
  EXPECT_EQ(set(4).publisher, 1);
  EXPECT_EQ(set(4).k, (Budget{256, 0}));
  EXPECT_EQ(set(5).kind, Kind::kAll);
  EXPECT_EQ(plan.layers[1].publish->ranking, Publish::Ranking::kExact);
  EXPECT_EQ(plan.layers[2].publish->ranking, Publish::Ranking::kLowBit);
  EXPECT_FALSE(plan.layers[5].publish);
  EXPECT_FALSE(plan.layers[6].publish) << "nobody uses it";
  EXPECT_TRUE(plan.NeedsLowBit(2));
  EXPECT_FALSE(plan.NeedsLowBit(1));
  EXPECT_FALSE(plan.IsDense());
  EXPECT_EQ(plan.min_context, 512);
}

TEST(Resolve, ScanWithoutReusersStillRanksForItself) {
  const auto plan = *Resolve(Of({kFull, Scan()}), Shape(2), nullptr);
  EXPECT_TRUE(plan.NeedsLowBit(1));
}

TEST(Resolve, RingOfTheModelKeepsTheSinkOfAPlansWindow) {
  ModelShape model = Shape(3);
  model.window = {0, 512, 512};
  auto plan = Resolve(Of({kFull, Window(4, 256), Window(0, 512)}), model, nullptr);
  ASSERT_TRUE(plan.ok()) << plan.error().ToString();
  EXPECT_EQ(plan->caches[1].sink, 4);
  EXPECT_EQ(plan->caches[1].recent, 512);
  EXPECT_EQ(plan->caches[2].sink, 0);
  EXPECT_FALSE(plan->caches[0].ring());
}

TEST(Resolve, DensePlansAreDense) {
  EXPECT_TRUE(Resolve(Plan::Dense(3), Shape(3), nullptr)->IsDense());
  EXPECT_TRUE(Resolve(Of({kSelect, kFull, kFull}), Shape(3), nullptr)->IsDense());
  EXPECT_FALSE(Resolve(Of({kFull, Window(4, 60)}), Shape(2), nullptr)->IsDense());
}

TEST(Resolve, FractionalBudgetsRunDenseUntilTheyHoldTheForcedTokens) {
  Plan plan = Of({kSelect, Reuse()});
  plan.budget = {0, 0.06};
  const auto resolved = *Resolve(plan, Shape(2), nullptr);
  EXPECT_EQ(resolved.min_context, 1134);
  for (int64_t n = resolved.min_context; n < 5000; ++n) EXPECT_GE(plan.budget.At(n), 68) << n;
  plan.min_context = 200;
  std::vector<std::string> warnings;
  EXPECT_EQ(Resolve(plan, Shape(2), &warnings)->min_context, 1134);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_EQ(warnings[0].substr(0, 38), "min_context 200 is raised to 1134: bel");
  plan.layers[1] = kFull;
  EXPECT_EQ(Resolve(plan, Shape(2), nullptr)->min_context, 200);
  plan.min_context = -1;
  EXPECT_EQ(Resolve(plan, Shape(2), nullptr)->min_context, 68);
}

TEST(Resolve, WarnsOfSetsThatAreMostlyForcedAndOfUselessSelects) {
  std::vector<std::string> warnings;
  ASSERT_TRUE(Resolve(Of({kSelect, Reuse(0, 100), kSelect}), Shape(3), &warnings).ok());
  ASSERT_EQ(warnings.size(), 2u);
  EXPECT_EQ(warnings[0],
            "layer 1 (reuse): sink + recent take 68 of k = 100 tokens, few are left to choose");
  EXPECT_EQ(warnings[1], "layer 2 (select): no layer reuses its ranking, it runs as full");
}

TEST(Resolve, APlanWithEvidenceIsNotWarnedOfItsBudgets) {
  Plan plan = Of({kSelect, Reuse(0, 100)});
  plan.evidence.present = true;
  std::vector<std::string> warnings;
  ASSERT_TRUE(Resolve(plan, Shape(2), &warnings).ok());
  EXPECT_TRUE(warnings.empty());
}

TEST(Resolve, HashFollowsResultsAndNothingElse) {
  const Plan base = Of({kSelect, Reuse(0, 256), Scan(512), Reuse(2)});
  const auto hash = [](const Plan& p) { return Resolve(p, Shape(4), nullptr)->hash; };
  const std::string h = hash(base);
  EXPECT_EQ(h.size(), 64u);
  Plan same = base;
  same.evidence.present = true;
  same.forced = {0};
  same.architecture = "llama";
  same.layers[3].source = -1;
  same.layers[3].k = same.budget;
  same.min_context = 512;
  EXPECT_EQ(hash(same), h);
  const auto changed = [&](auto change) {
    Plan p = base;
    change(p);
    EXPECT_NE(hash(p), h);
  };
  changed([](Plan& p) { p.layers[1].k = {257, 0}; });
  changed([](Plan& p) { p.layers[3].source = 0; });
  changed([](Plan& p) { p.layers[2] = kSelect; });
  changed([](Plan& p) { p.layers[1] = Window(4, 252); });
  changed([](Plan& p) { p.budget = {1024, 0}; });
  changed([](Plan& p) { p.sink = 5; });
  changed([](Plan& p) { p.recent = 65; });
  changed([](Plan& p) { p.block = 16; });
  changed([](Plan& p) { p.min_context = 100; });
  changed([](Plan& p) { p.scope = Scope::kGroup; });
  changed([](Plan& p) { p.pool = Pool::kMax; });
  changed([](Plan& p) { p.prefill.sparse = true; });
}

TEST(KvBytes, HandComputedPlan) {
  ModelShape model = Shape(6);
  model.window[5] = 1024;
  const int64_t row = 768;  // K and V of 3 heads of 64 in bf16
  const auto plan = *Resolve(
      Of({Window(4, 1020), kSelect, Scan(1024), Reuse(), Reuse(1, 256), kFull}), model, nullptr);
  EXPECT_EQ(DenseKvBytesPerToken(model, 8192), (5 * 8192 + 1024) * row);
  // A low-bit row: 3 heads of 32 bytes of nibbles and two f16 scales.
  EXPECT_EQ(KvBytesPerToken(plan, model, 8192),
            (1024 + 8192 + 1024 + 512 + 256 + 1024) * row + 8192 * 3 * 36);
  EXPECT_EQ(KvBytesPerToken(plan, model, 600),
            (600 + 600 + 600 + 512 + 256 + 600) * row + 600 * 108);
  EXPECT_EQ(KvBytesPerToken(plan, model, 512), 6 * 512 * row) << "at min_context all is dense";
  EXPECT_EQ(KvBytesPerToken(plan, model, 0), 0);
}

TEST(KvBytes, LowBitCopyIsFourteenPercentOfTheRow) {
  EXPECT_NEAR(static_cast<double>(LowBitBytes(64)) / (2 * 2 * 64), 0.141, 0.001);
}

TEST(KvBytes, CostTableAgreesWithTheResolvedPlan) {
  const ModelShape model = Shape(5);
  const std::vector<LayerRole> roles = {kSelect, Reuse(0, 256), Scan(1024), Window(4, 508),
                                        Reuse(2, 1024)};
  const auto plan = *Resolve(Of(roles), model, nullptr);
  const LayerCosts costs = ByteCosts(model, {256, 1024}, {{4, 508}}, 8192);
  EXPECT_TRUE(CheckCosts(costs, 5, 2, 1).ok());
  EXPECT_FALSE(CheckCosts(costs, 5, 3, 1).ok());
  const double sum = costs.select[0] + costs.reuse[0][1] + costs.scan[1][2] + costs.window[0][3] +
                     costs.reuse[1][4];
  EXPECT_EQ(sum, static_cast<double>(KvBytesPerToken(plan, model, 8192)));
}

TEST(KvBytes, PlannedRolesResolve) {
  const ModelShape model = Shape(8);
  PlanProblem p;
  p.layers = 8;
  p.budgets = {256, 1024};
  p.windows = {{4, 508}};
  for (int b = 0; b < 2; ++b) {
    p.loss.emplace_back(8, std::vector<double>(8, 0.02 / (1 + b)));
    p.scan_loss.emplace_back(8, 0.005 / (1 + b));
  }
  p.window_loss.emplace_back(8, 0.05);
  p.costs = ByteCosts(model, p.budgets, p.windows, 8192);
  const auto sweep = SweepPrice(p, DefaultPrices());
  ASSERT_TRUE(sweep.ok());
  ASSERT_GT(sweep->size(), 3u);
  for (const PlanCandidate& c : *sweep) {
    Plan plan = Of(c.layers);
    const auto resolved = Resolve(plan, model, nullptr);
    ASSERT_TRUE(resolved.ok()) << resolved.error().ToString();
    EXPECT_EQ(static_cast<double>(KvBytesPerToken(*resolved, model, 8192)), c.cost);
    EXPECT_NEAR(c.share, c.cost / static_cast<double>(DenseKvBytesPerToken(model, 8192)), 1e-12);
  }
}

// Where steps read more than lists, rows have to lie near.
TEST(Resolved, ReadsListsOfReuseAndScanAlone) {
  const ModelShape model = Shape(6);
  const auto plan =
      Resolve(Of({kFull, kSelect, Reuse(), Scan(), Window(4, 64), Reuse(1)}), model, nullptr);
  ASSERT_TRUE(plan.ok()) << plan.error().ToString();
  std::string lists;
  for (int cache = 0; cache < 6; ++cache) lists += plan->ReadsListsOf(cache) ? '1' : '0';
  EXPECT_EQ(lists, "001101");
  EXPECT_FALSE(ModelPlan(model).ReadsListsOf(0));
}

}  // namespace
}  // namespace baton
