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
  }
  EXPECT_LT(r.rows[3].kv_bytes_per_token, r.rows[2].kv_bytes_per_token);
  EXPECT_NE(r.rows[3].logits_hash, r.rows[2].logits_hash);
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
      options.batch = batch;
      std::vector<std::string> hashes;
      for (const BenchRow& row : MustRun(*engine, options).rows) hashes.push_back(row.logits_hash);
      if (first.empty()) first = hashes;
      EXPECT_EQ(hashes, first) << threads << " threads, batch " << batch;
    }
  }
}

TEST(Bench, DepthsBeyondTheModelsContextAreAllowed) {
  auto engine = LoadSynthetic();
  BenchOptions options = Small();
  options.depths = {5000};
  EXPECT_EQ(MustRun(*engine, options).rows.size(), 1u);
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
  EXPECT_TRUE(fails([](BenchOptions& o) { o.batch = 0; }));
  EXPECT_TRUE(fails([](BenchOptions& o) { o.plan = Plan::Dense(9); }));
}

}  // namespace
}  // namespace baton
