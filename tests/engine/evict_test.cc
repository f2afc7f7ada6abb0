// Plans whose windows give up, after the first prompt, the cache that they do not read.
#include "plan/kv_bytes.h"
#include "tests/engine/routed_run.h"
#include "tests/engine/test_requests.h"

namespace baton {
namespace {

using namespace test;

constexpr int64_t kSink = 4, kRecent = 40;

// Windows around a publisher and its reader.
Plan EvictingPlan() {
  Plan plan = SparsePlan(24);
  plan.min_context = 0;
  plan.evict = true;
  for (const size_t l : {size_t{1}, size_t{5}})
    plan.layers[l] = {.role = Role::kWindow, .sink = kSink, .recent = kRecent};
  return plan;
}

class EvictTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  std::unique_ptr<Engine> engine_ = LoadEngine(TinySpec(), GetParam(), {.prompt_chunk = 48});
};

// RunRouted checks after every token what the caches hold.
TEST_P(EvictTest, EvictedDecodeEqualsMaskedDecode) {
  for (const int64_t prompt : {1, 20, 43, 44, 45, 127, 129, 230}) {
    const std::vector<int32_t> tokens = RandomTokens(prompt + 12, static_cast<uint64_t>(prompt));
    const auto run = RunRouted(*engine_, tokens, prompt, {}, EvictingPlan());
    EXPECT_EQ(run->report.bitmap, "FSFFFS");
    EXPECT_EQ(run->report.source, "plan");
    const auto masked = RunMasked(*engine_, tokens, prompt, "", EvictingPlan());
    EXPECT_LE(LargestDifference(run->last, masked->last), GetParam().tolerance) << prompt;
    EXPECT_LE(LargestDifference(run->decoded, masked->decoded), GetParam().tolerance) << prompt;
  }
}

TEST_P(EvictTest, ASecondTurnSeesWhatTheFirstLeft) {
  const std::vector<int32_t> tokens = RandomTokens(200, 7), more = RandomTokens(70, 8);
  const auto run = RunRouted(*engine_, tokens, 190, {}, EvictingPlan(), 80);
  const Logits turn = Prefill(*run->session, more, &run->plan);
  run->CheckMemory();

  const auto masked = RunMasked(*engine_, tokens, 190, "", EvictingPlan(), true, 80);
  const ResolvedPlan plan = masked->plan, after = plan.AfterPrompt();
  Session& whole = *masked->session;
  EXPECT_LE(LargestDifference(turn, Prefill(whole, more, &after)), GetParam().tolerance);
  // Not a test of equal nothings: a dense second turn is another one.
  whole.Truncate(200);
  EXPECT_GT(LargestDifference(turn, Prefill(whole, more, &plan)), 2 * GetParam().tolerance);
}

TEST_P(EvictTest, RequestsKeepTheirBitsAndHoldTheFormula) {
  Plan keeps = EvictingPlan();
  keeps.evict = false;
  for (const int64_t prompt : {10, 150}) {
    const Request evicting = TokensRequest(prompt, 3, 9, EvictingPlan());
    const Generation kept = engine_->Generate(TokensRequest(prompt, 3, 9, keeps)).value();
    const Generation alone = engine_->Generate(evicting).value();
    EXPECT_EQ(alone.tokens, kept.tokens);
    EXPECT_EQ(alone.stats.logits_hash, kept.stats.logits_hash);
    const ResolvedPlan after = Resolved(*engine_, EvictingPlan()).AfterPrompt();
    EXPECT_EQ(alone.stats.kv_bytes_held,
              KvBytesHeld(after.caches, prompt + 8, engine_->impl().cache_element()));
    EXPECT_EQ(alone.stats.kv_bytes_held<kept.stats.kv_bytes_held, prompt> kSink + kRecent);
    const auto batch =
        engine_->GenerateBatch(std::vector{evicting, TokensRequest(60, 4), evicting}).value();
    EXPECT_EQ(Fingerprint(batch[0]), Fingerprint(alone));
    EXPECT_EQ(Fingerprint(batch[2]), Fingerprint(alone));
    EXPECT_EQ(batch[0].stats.kv_bytes_held, alone.stats.kv_bytes_held);
  }
}

// Drafts may come from windows, but verifications read everything.
TEST_P(EvictTest, ExactRequestsEvictNothing) {
  const Generation dense = engine_->Generate(TokensRequest(150, 5, 16)).value();
  Request r = TokensRequest(150, 5, 16, EvictingPlan());
  r.exact = ExactOptions{};
  const Generation exact = engine_->Generate(r).value();
  EXPECT_EQ(exact.tokens, dense.tokens);
  EXPECT_EQ(exact.stats.logits_hash, dense.stats.logits_hash);
}

INSTANTIATE_TEST_SUITE_P(Backends, EvictTest, ::testing::ValuesIn(BackendCases()), NameOf);

TEST(EvictPlan, IsWrittenReadAndPartOfTheHash) {
  const auto engine = LoadEngine(TinySpec(), BackendCases()[0]);
  const Plan plan = EvictingPlan();
  auto back = Plan::Parse(plan.ToJson());
  ASSERT_TRUE(back.ok()) << back.error().ToString();
  EXPECT_EQ(*back, plan);
  EXPECT_NE(plan.Summary().find("windows evict"), std::string::npos);
  Plan keeps = plan;
  keeps.evict = false;
  EXPECT_NE(Resolved(*engine, plan).hash, Resolved(*engine, keeps).hash);
  const int64_t n = 1000;
  const double held = (4 * n + 2 * (kSink + kRecent)) / (6.0 * n);
  // The scan layer's 4-bit copy, beside K and V of 32 channels in f32.
  const double copy = static_cast<double>(LowBitBytes(32)) / (6 * 2 * 4 * 32);
  EXPECT_NEAR(engine->KvHeldShare(plan, n).value(), held + copy, 1e-9);
}

TEST(EvictPlan, WhatCannotBeIsAnErrorThatSaysWhy) {
  const auto engine = LoadEngine(TinySpec(), BackendCases()[0]);
  const auto error = [&](const Plan& plan) {
    return engine->CheckPlan(plan, nullptr).error().ToString();
  };
  Plan tiles = EvictingPlan();
  tiles.prefill = {.sparse = true, .tile = 16, .fraction = 0.1, .min = 24};
  EXPECT_NE(error(tiles).find("layer by layer"), std::string::npos);
  Plan none = Plan::Dense(6);
  none.evict = true;
  EXPECT_NE(error(none).find("no window layer"), std::string::npos);
  EXPECT_FALSE(
      Plan::Parse(R"({"format":"baton-plan","version":1,"evict":"yes","layers":["full"]})").ok());
}

}  // namespace
}  // namespace baton
