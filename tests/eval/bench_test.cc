#include <cmath>

#include "baton/eval.h"
#include "tests/eval/eval_test_util.h"

namespace baton {
namespace {

using testing::LoadSynthetic;

BenchOptions Small() {
  BenchOptions options;
  options.depths = {0, 300};
  options.prompt = 40;
  options.decode = 3;
  options.repeats = 2;
  options.ops = true;
  return options;
}

BenchResult MustRun(Engine& engine, const BenchOptions& options) {
  auto result = RunBench(engine, options);
  EXPECT_TRUE(result.ok()) << result.error().ToString();
  return std::move(result).value();
}

void ExpectPositive(double x) {
  EXPECT_TRUE(std::isfinite(x));
  EXPECT_GT(x, 0);
}

TEST(Bench, RowsHaveFinitePositiveNumbers) {
  auto engine = LoadSynthetic();
  BenchOptions options = Small();
  options.plan = testing::ReusePlan(32);
  options.whole_prompt = 100;
  const BenchResult r = MustRun(*engine, options);
  ExpectPositive(r.read_bandwidth);
  ExpectPositive(r.whole_prompt_seconds_dense);
  ExpectPositive(r.whole_prompt_seconds_plan);
  ASSERT_EQ(r.rows.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const BenchRow& row = r.rows[i];
    EXPECT_EQ(row.depth, options.depths[i / 2]);
    EXPECT_EQ(row.plan, i % 2 ? options.plan->Summary() : "dense");
    for (double x :
         {row.prompt_tokens_per_s, row.decode_tokens_per_s, row.kv_bytes_per_token,
          row.weight_bytes_per_token, row.decode_bytes_per_s, row.share_of_read_bandwidth}) {
      ExpectPositive(x);
    }
    EXPECT_EQ(row.logits_hash.size(), 8u);
    EXPECT_FALSE(row.aliased);
    EXPECT_FALSE(row.ops.empty());
    EXPECT_FALSE(row.prompt_ops.empty());
  }
  EXPECT_LT(r.rows[3].kv_bytes_per_token, r.rows[2].kv_bytes_per_token);
  EXPECT_NE(r.rows[3].logits_hash, r.rows[2].logits_hash);
}

TEST(Bench, OperationsAreTimedOnlyWhereAskedFor) {
  auto engine = LoadSynthetic();
  BenchOptions options = Small();
  options.ops = false;
  for (const BenchRow& row : MustRun(*engine, options).rows) {
    EXPECT_TRUE(row.ops.empty());
    EXPECT_TRUE(row.prompt_ops.empty());
  }
}

TEST(Bench, CacheBytesFollowTheElementType) {
  BenchOptions options = Small();
  options.depths = {100};
  options.prompt = 0;
  options.decode = 1;
  const auto bytes = [&](KvType kv) {
    auto engine = LoadSynthetic({.backend = Backend::kReference, .kv = kv});
    const BenchResult r = MustRun(*engine, options);
    EXPECT_EQ(r.rows[0].prompt_tokens_per_s, 0);
    EXPECT_TRUE(r.rows[0].prompt_ops.empty());
    return r.rows[0].kv_bytes_per_token;
  };
  // 4 layers x 101 keys x K and V x 2 heads x 32 channels.
  const double elements = 4 * 101 * 2 * 2 * 32;
  EXPECT_EQ(bytes(KvType::kF32), elements * 4);
  EXPECT_EQ(bytes(KvType::kBF16), elements * 2);
  EXPECT_EQ(bytes(KvType::kInt8), elements + elements / 32 * 4);  // a scale per head
}

std::vector<Backend> Backends() {
#if BATON_WITH_CPU
  return {Backend::kReference, Backend::kCpu};
#else
  return {Backend::kReference};
#endif
}

TEST(Bench, HashDoesNotDependOnThreadsOrBatch) {
  for (Backend backend : Backends()) {
    BenchOptions options = Small();
    options.plan = testing::ReusePlan(32);
    options.prompt = 0;
    std::vector<std::string> first;
    for (const auto& [threads, batch] : {std::pair{1, 1}, {2, 1}, {3, 1}, {2, 3}}) {
      auto engine = LoadSynthetic({.backend = backend, .threads = threads});
      options.batches = {batch};
      std::vector<std::string> hashes;
      for (const BenchRow& row : MustRun(*engine, options).rows) hashes.push_back(row.logits_hash);
      if (first.empty()) first = hashes;
      EXPECT_EQ(hashes, first) << threads << " threads, batch " << batch;
    }
  }
}

// Layer 0 full, 1 scans, 2 and 3 reuse its ranking: one layer in four has a copy of K.
Plan ScanPlan() {
  Plan plan = testing::ReusePlan(32);
  plan.layers[1].role = Role::kScan;
  return plan;
}

TEST(Bench, ThePlanBesideItDoesNotChangeTheDenseHash) {
  for (const int batch : {1, 2}) {
    auto engine = LoadSynthetic(testing::Quick());
    BenchOptions options = Small();
    options.batches = {batch};
    const BenchResult alone = MustRun(*engine, options);
    options.plan = ScanPlan();
    const BenchResult both = MustRun(*engine, options);
    for (size_t depth = 0; depth < 2; ++depth) {
      EXPECT_EQ(both.rows[2 * depth].logits_hash, alone.rows[depth].logits_hash);
      EXPECT_EQ(both.rows[2 * depth].kv_bytes_per_token, alone.rows[depth].kv_bytes_per_token);
    }
    EXPECT_NE(both.rows[3].logits_hash, both.rows[2].logits_hash);
  }
}

TEST(Bench, DenseAndPlannedShareOneCache) {
  auto engine = LoadSynthetic(testing::Quick());
  BenchOptions options = Small();
  options.depths = {5000, 100};
  options.batches = {2};
  const auto cache_bytes = [&](std::optional<Plan> plan) {
    options.plan = std::move(plan);
    const BenchResult r = MustRun(*engine, options);
    EXPECT_GE(r.peak_memory_bytes, r.expected_memory_bytes);
    return static_cast<double>(r.expected_memory_bytes) - r.rows[0].weight_bytes_per_token * 2;
  };
  // 4 layers x K and V x 2 heads x 32 channels x 2 bytes; the deepest of the depths.
  const double dense = cache_bytes(std::nullopt);
  EXPECT_EQ(dense, 2 * (5000 + options.prompt) * 4 * 2 * 2 * 32 * 2);
  EXPECT_EQ(cache_bytes(testing::ReusePlan(32)), dense);
  EXPECT_DOUBLE_EQ(cache_bytes(ScanPlan()), dense * (1 + 0.140625 / 4));
}

// A cache of less than a gibibyte has nothing to share, whatever the depth.
TEST(Bench, SmallModelsAreNotAliasedAtAnyDepth) {
  auto engine = LoadSynthetic(testing::Quick());
  BenchOptions options = Small();
  options.depths = {131073};
  options.prompt = 0;
  options.decode = 1;
  options.repeats = 1;
  EXPECT_FALSE(MustRun(*engine, options).rows[0].aliased);
}

TEST(Bench, ACacheThatNoMemoryHoldsIsAnErrorBeforeItIsFilled) {
  auto engine = LoadSynthetic();
  BenchOptions options = Small();
  options.depths = {int64_t{1} << 32};
  options.batches = {16};
  const auto result = RunBench(*engine, options);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code(), Error::Code::kResource);
  EXPECT_FALSE(result.error().hint().empty());
}

TEST(Bench, DepthsBeyondTheModelsContextAreAllowed) {
  auto engine = LoadSynthetic();
  BenchOptions options = Small();
  options.depths = {5000};
  EXPECT_EQ(MustRun(*engine, options).rows.size(), 1u);
}

TEST(Bench, ExactAnswersAreTimedBesideDenseOnes) {
  auto engine = LoadSynthetic();
  BenchOptions options = Small();
  options.depths = {0, 100, 600};
  options.decode = 8;
  options.plan = testing::ReusePlan(32);
  options.exact = ExactOptions{.most_drafts = 3, .adaptive = false};
  options.text = testing::MadeUpText(400);
  const BenchResult r = MustRun(*engine, options);
  for (const BenchRow& row : r.rows) {
    ASSERT_EQ(row.verify.size(), row.plan == "dense" ? 5u : 0u);
    for (const RowsTime& t : row.verify) ExpectPositive(t.seconds);
  }
  ASSERT_TRUE(r.exact);
  EXPECT_EQ(r.exact->depth, 100) << "the longest that the text has";
  EXPECT_EQ(r.exact->prompts, 2);
  EXPECT_EQ(r.exact->tokens, 2 * 7);
  EXPECT_EQ(r.exact->different, 0);
  EXPECT_GT(r.exact->report.drafted, 0);
  ExpectPositive(r.exact->dense_seconds_per_token);
  ExpectPositive(r.exact->exact_seconds_per_token);
  ASSERT_EQ(r.exact->expected.size(), 3u);
  for (const ExactBench::Expected& e : r.exact->expected) ExpectPositive(e.time);
}

TEST(Bench, ExactAnswersNeedATextAsLongAsADepth) {
  auto engine = LoadSynthetic();
  BenchOptions options = Small();
  options.depths = {300};
  options.exact = ExactOptions{.plan = false, .lookup = true};
  options.text = testing::MadeUpText(200);
  EXPECT_FALSE(RunBench(*engine, options).ok());
  options.text = "";
  EXPECT_FALSE(MustRun(*engine, options).exact);
  options.batches = {2};
  EXPECT_FALSE(RunBench(*engine, options).ok());
}

TEST(Bench, BadOptionsAreErrors) {
  auto engine = LoadSynthetic();
  const auto fails = [&](auto change) {
    BenchOptions options = Small();
    change(options);
    return !RunBench(*engine, options).ok();
  };
  EXPECT_TRUE(fails([](BenchOptions& o) { o.depths = {}; }));
  EXPECT_TRUE(fails([](BenchOptions& o) { o.depths = {-1}; }));
  EXPECT_TRUE(fails([](BenchOptions& o) { o.decode = 0; }));
  EXPECT_TRUE(fails([](BenchOptions& o) { o.repeats = 0; }));
  EXPECT_TRUE(fails([](BenchOptions& o) { o.batches = {0}; }));
  EXPECT_TRUE(fails([](BenchOptions& o) { o.plan = Plan::Dense(9); }));
}

}  // namespace
}  // namespace baton
