// Decoding under a plan: rows together or one by one, rewinding, tiles of one query, the watch, and
// that a sparse plan is not silently dense.
#include "tests/attention/engine_test_util.h"

namespace baton {
namespace {

using namespace test;

constexpr int64_t kPrompt = 180;

// select, three reuse layers, a scan and a reuse of it; budget 24 of about 200 keys.
Plan SparsePlan(int64_t k = 24) {
  Plan plan = Plan::Dense(6);
  plan.budget = {k, 0};
  plan.sink = 2;
  plan.recent = 8;
  plan.min_context = 0;
  plan.layers = {{.role = Role::kSelect}, {.role = Role::kReuse},
                 {.role = Role::kReuse},  {.role = Role::kScan},
                 {.role = Role::kReuse},  {.role = Role::kReuse, .source = 0}};
  return plan;
}

class DecodeTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  DecodeTest() : engine_(LoadEngine(TinySpec(), GetParam())), tokens_(RandomTokens(400, 11)) {}

  std::span<const int32_t> Tokens(int64_t first, int64_t count) const {
    return std::span(tokens_).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
  }
  Session Prefilled(int64_t prompt = kPrompt) {
    Session session = NewSession(*engine_, 400);
    Prefill(session, Tokens(0, prompt));
    return session;
  }
  Logits OneByOne(Session& session, int64_t count, const ResolvedPlan* plan,
                  Watch* watch = nullptr) {
    Logits all;
    for (int64_t i = 0; i < count; ++i) {
      const Logits row = Decode(session, Tokens(session.length(), 1), plan, watch);
      all.insert(all.end(), row.begin(), row.end());
    }
    return all;
  }

  std::unique_ptr<Engine> engine_;
  std::vector<int32_t> tokens_;
};

double RootMeanSquare(const Logits& a, const Logits& b) {
  double sum = 0;
  for (size_t i = 0; i < b.size(); ++i) sum += (a[i] - b[i]) * static_cast<double>(a[i] - b[i]);
  return std::sqrt(sum / static_cast<double>(b.size()));
}

TEST_P(DecodeTest, RowsTogetherEqualRowsOneByOne) {
  std::vector<Plan> plans = {SparsePlan(), SparsePlan(), SparsePlan(32)};
  plans[1].scope = Scope::kGroup;
  plans[1].pool = Pool::kMax;
  plans[2].block = 8;
  for (const Plan& plan : plans) {
    const ResolvedPlan resolved = Resolved(*engine_, plan);
    Session session = Prefilled();
    const Logits alone = OneByOne(session, 40, &resolved);
    session.Truncate(kPrompt);
    const Logits dense = Decode(session, Tokens(kPrompt, 40), nullptr);
    // Up to 4 rows keep their scores for ranking, more recompute them.
    for (int64_t n : {2, 4, 5, 16, 40}) {
      session.Truncate(kPrompt);
      const Logits together = Decode(session, Tokens(kPrompt, n), &resolved);
      if (GetParam().backend == Backend::kReference) {
        EXPECT_LE(LargestDifference(
                      together, Logits(alone.begin(),
                                       alone.begin() + static_cast<ptrdiff_t>(together.size()))),
                  GetParam().tolerance)
            << n << " rows, " << plan.Summary();
      } else {
        // Random weights attend almost evenly, so with a bf16 cache two keys at the edge of a set
        // may be exchanged. The effect must be small compared with that of the plan itself.
        EXPECT_LE(RootMeanSquare(alone, together), 0.25 * RootMeanSquare(dense, together))
            << n << " rows, " << plan.Summary();
      }
    }
  }
}

TEST_P(DecodeTest, SparsePlanIsNotSilentlyDense) {
  Session session = Prefilled();
  const Logits dense = Decode(session, Tokens(kPrompt, 3), nullptr);
  for (int l = 1; l < 6; ++l) {
    for (Role role : {Role::kReuse, Role::kScan, Role::kWindow}) {
      Plan plan = Plan::Dense(6);
      plan.budget = {12, 0};
      plan.sink = 2;
      plan.recent = 8;
      plan.layers[0].role = Role::kSelect;
      plan.layers[static_cast<size_t>(l)] = {.role = role};
      if (role == Role::kWindow)
        plan.layers[static_cast<size_t>(l)] = {.role = role, .sink = 2, .recent = 10};
      const ResolvedPlan resolved = Resolved(*engine_, plan);
      session.Truncate(kPrompt);
      EXPECT_GT(LargestDifference(Decode(session, Tokens(kPrompt, 3), &resolved), dense),
                2 * GetParam().tolerance)
          << ToString(role) << " at layer " << l;
    }
  }
}

TEST_P(DecodeTest, SparsePromptIsNotSilentlyDense) {
  Plan plan = SparsePlan();
  plan.prefill = {.sparse = true, .tile = 16, .fraction = 0.05, .min = 16};
  const ResolvedPlan resolved = Resolved(*engine_, plan);
  Session dense = NewSession(*engine_, 400), sparse = NewSession(*engine_, 400);
  EXPECT_GT(
      LargestDifference(Prefill(dense, Tokens(0, 300)), Prefill(sparse, Tokens(0, 300), &resolved)),
      2 * GetParam().tolerance);
}

// A plan's windows are for decode: in a sparse prompt these layers attend as the model defines
// them.
TEST_P(DecodeTest, WindowLayersSeeTheWholeSparsePrompt) {
  Plan plan = Plan::Dense(6);
  plan.budget = {12, 0};
  plan.sink = 2;
  plan.recent = 8;
  for (LayerRole& layer : plan.layers) layer = {.role = Role::kWindow, .sink = 2, .recent = 10};
  plan.prefill = {.sparse = true, .tile = 16, .fraction = 0.05, .min = 16};
  const ResolvedPlan resolved = Resolved(*engine_, plan);
  Session dense = NewSession(*engine_, 400), sparse = NewSession(*engine_, 400);
  EXPECT_LE(
      LargestDifference(Prefill(dense, Tokens(0, 300)), Prefill(sparse, Tokens(0, 300), &resolved)),
      GetParam().tolerance);
}

// With min_context visible keys a row is dense to the bit; with one more key it is not.
TEST_P(DecodeTest, MinContextIsTheLastDenseLength) {
  Plan plan = SparsePlan(12);
  plan.min_context = kPrompt + 2;
  const ResolvedPlan resolved = Resolved(*engine_, plan);
  Session session = Prefilled();
  const Logits dense = OneByOne(session, 3, nullptr);
  session.Truncate(kPrompt);
  const Logits planned = OneByOne(session, 3, &resolved);
  const auto two = static_cast<ptrdiff_t>(2 * engine_->info().vocab);
  EXPECT_TRUE(std::equal(dense.begin(), dense.begin() + two, planned.begin()));
  EXPECT_FALSE(std::equal(dense.begin() + two, dense.end(), planned.begin() + two));
  // Rows that straddle the border in one pass.
  session.Truncate(kPrompt);
  EXPECT_LE(LargestDifference(Decode(session, Tokens(kPrompt, 3), &resolved), planned),
            GetParam().tolerance);
}

TEST_P(DecodeTest, RewindingAndDecodingAgainRepeatsEveryBit) {
  const ResolvedPlan plan = Resolved(*engine_, SparsePlan());
  Session session = Prefilled();
  const Logits first = OneByOne(session, 5, &plan);
  for (int64_t detour : {1, 30, 100}) {
    session.Truncate(kPrompt);
    Decode(session, Tokens(250, detour), nullptr);  // other tokens, other pages
    session.Truncate(kPrompt);
    EXPECT_EQ(OneByOne(session, 5, &plan), first) << "after a detour of " << detour;
  }
}

// Tiles of one query select the sets of decode at the same k: the tile's own key is its query's.
TEST_P(DecodeTest, TilesOfOneQueryEqualDecode) {
  if (GetParam().backend == Backend::kCuda)
    GTEST_SKIP() << "prompts round x to bf16, decode does not: near-ties of a ranking fall apart";
  for (Scope scope : {Scope::kAll, Scope::kGroup}) {
    Plan plan = SparsePlan();
    plan.scope = scope;
    plan.min_context = plan.budget.tokens;
    plan.prefill = {.sparse = true, .tile = 1, .fraction = 1e-9, .min = plan.budget.tokens};
    const ResolvedPlan resolved = Resolved(*engine_, plan);
    Session prompt = NewSession(*engine_, 400), decode = NewSession(*engine_, 400);
    const Logits by_tiles = Prefill(prompt, Tokens(0, 100), &resolved);
    const Logits by_rows = Decode(decode, Tokens(0, 100), &resolved);
    EXPECT_LE(
        LargestDifference(by_tiles, Logits(by_rows.end() - engine_->info().vocab, by_rows.end())),
        GetParam().tolerance);
  }
}

TEST_P(DecodeTest, OneKvHeadMakesScopesEqual) {
  SyntheticSpec spec = TinySpec();
  spec.kv_heads = 1;
  engine_ = LoadEngine(spec, GetParam());
  std::vector<Logits> logits;
  for (Scope scope : {Scope::kAll, Scope::kGroup, Scope::kHeadMap}) {
    Plan plan = SparsePlan();
    plan.scope = scope;
    if (scope == Scope::kHeadMap) plan.head_map.assign(6, {0});
    const ResolvedPlan resolved = Resolved(*engine_, plan);
    Session session = Prefilled();
    logits.push_back(OneByOne(session, 6, &resolved));
  }
  EXPECT_LE(LargestDifference(logits[0], logits[1]), GetParam().tolerance);
  EXPECT_EQ(logits[1], logits[2]);
}

TEST_P(DecodeTest, IdentityHeadMapEqualsGroups) {
  Plan plan = SparsePlan();
  plan.scope = Scope::kGroup;
  const ResolvedPlan group = Resolved(*engine_, plan);
  plan.scope = Scope::kHeadMap;
  plan.head_map.assign(6, {0, 1});
  const ResolvedPlan mapped = Resolved(*engine_, plan);
  Session session = Prefilled();
  const Logits a = OneByOne(session, 4, &group);
  session.Truncate(kPrompt);
  EXPECT_EQ(OneByOne(session, 4, &mapped), a);
}

// The map says which ranking a reuse layer borrows. A scan layer's row of the map, even an invalid
// one, has no effect.
TEST_P(DecodeTest, HeadMapRowsOfScanLayersAreNotRead) {
  Plan plan = SparsePlan();
  plan.scope = Scope::kHeadMap;
  plan.head_map.assign(6, {1, 0});
  plan.head_map[3] = {};
  const ResolvedPlan empty = Resolved(*engine_, plan);
  plan.head_map[3] = {1, 0};
  const ResolvedPlan swapped = Resolved(*engine_, plan);
  Session session = Prefilled();
  const Logits a = OneByOne(session, 4, &empty);
  session.Truncate(kPrompt);
  EXPECT_EQ(OneByOne(session, 4, &swapped), a);
}

Watch NewWatch(double threshold, int interval = 1) {
  Watch watch;
  watch.interval = interval;
  watch.threshold = threshold;
  watch.layers.resize(6);
  return watch;
}

TEST_P(DecodeTest, PromotedLayersAttendFully) {
  const ResolvedPlan plan = Resolved(*engine_, SparsePlan());
  Plan promoted_plan = SparsePlan();
  for (LayerRole& l : promoted_plan.layers) {
    if (l.role == Role::kReuse) l = {};
  }
  const ResolvedPlan promoted = Resolved(*engine_, promoted_plan);
  Session session = Prefilled();
  Watch watch = NewWatch(1.1);  // a threshold that no set reaches
  OneByOne(session, 1, &plan, &watch);
  for (int l = 0; l < 6; ++l) {
    const bool reuse = plan.layers[static_cast<size_t>(l)].role == Role::kReuse;
    EXPECT_EQ(watch.layers[static_cast<size_t>(l)].promoted, reuse) << l;
    EXPECT_EQ(watch.layers[static_cast<size_t>(l)].sampled, reuse) << l;
  }
  const Logits watched = OneByOne(session, 4, &plan, &watch);
  session.Truncate(kPrompt + 1);
  EXPECT_LE(LargestDifference(OneByOne(session, 4, &promoted), watched), GetParam().tolerance);
}

TEST_P(DecodeTest, WatchChangesNoBitWhenNothingIsPromoted) {
  const ResolvedPlan plan = Resolved(*engine_, SparsePlan());
  Session session = Prefilled();
  const Logits plain = OneByOne(session, 6, &plan);
  session.Truncate(kPrompt);
  Watch watch = NewWatch(0.0);
  EXPECT_EQ(OneByOne(session, 6, &plan, &watch), plain);
  for (int l : {1, 2, 4, 5}) {
    const Watch::Layer& w = watch.layers[static_cast<size_t>(l)];
    EXPECT_TRUE(w.sampled);
    EXPECT_FALSE(w.promoted);
    EXPECT_GT(w.smallest, 0);
    EXPECT_LT(w.smallest, 1);
  }
}

// For a set that holds all keys the watch reports all mass, and the captured mass grows with k.
TEST_P(DecodeTest, CapturedMassGrowsWithTheBudget) {
  std::vector<double> before(6, 0);
  for (int64_t k : {12, 24, 48, 96, 400}) {
    Plan plan = SparsePlan(k);
    plan.layers[3] = {};  // upstream stays dense, so that every k sees the same queries at layer 1
    const ResolvedPlan resolved = Resolved(*engine_, plan);
    Session session = Prefilled();
    Watch watch = NewWatch(0.0);
    OneByOne(session, 1, &resolved, &watch);
    EXPECT_GE(watch.layers[1].smallest, before[1] - 1e-6) << k;
    before[1] = watch.layers[1].smallest;
    if (k == 400) {
      for (int l : {1, 2, 4, 5})
        EXPECT_NEAR(watch.layers[static_cast<size_t>(l)].smallest, 1, 1e-3) << l;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, DecodeTest, ::testing::ValuesIn(BackendCases()), NameOf);

}  // namespace
}  // namespace baton
