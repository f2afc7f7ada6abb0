// A decode pass that picks tokens: what its parts see of the logits, and that neither the pieces in
// which logits are made nor other parts change it.
#include "engine/decode_step.h"

#include "ops/sample.h"
#include "tests/engine/test_requests.h"

namespace baton {
namespace {

using namespace test;

struct Got {
  std::vector<SampledRow> sampled;
  Logits logits;
};

class DecodeStepTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  // A part for each count of rows, which ask for their logits where `logits` says so.
  std::vector<Got> Sample(std::span<const int64_t> counts, const std::vector<bool>& logits,
                          const std::function<void(std::span<SampleRow>)>& rows_of) {
    std::vector<Session> sessions;
    for (size_t i = 0; i < counts.size(); ++i) {
      sessions.push_back(NewSession(*engine_, 200));
      Prefill(sessions[i], RandomTokens(20, 10 + i));
    }
    DecodeStep step;
    for (size_t i = 0; i < counts.size(); ++i) {
      const std::vector<int32_t> tokens = RandomTokens(counts[i], 50 + i);
      EXPECT_TRUE(step.Add({.kv = &sessions[i].sequence(),
                            .plan = &engine_->impl().model_plan,
                            .tokens = tokens,
                            .logits = logits[i]})
                      .ok());
    }
    std::vector<Got> got(counts.size());
    step.Sample(*engine_->impl().model,
                {.before = [&](size_t, std::span<SampleRow> rows) { rows_of(rows); },
                 .after =
                     [&](size_t part, std::span<const SampledRow> sampled, View<const float> l) {
                       got[part].sampled.assign(sampled.begin(), sampled.end());
                       if (!l.empty()) got[part].logits.assign(l.data(), l.data() + l.size());
                     }},
                engine_->impl().pool);
    return got;
  }
  std::unique_ptr<Engine> engine_ = LoadEngine(TinySpec(), GetParam());
  const size_t vocab_ = static_cast<size_t>(engine_->info().vocab);
};

// 84 rows, more than are made at a time, the third part in both pieces.
TEST_P(DecodeStepTest, LogitsComeWhereTheyAreWantedAndAreThoseThatWerePickedFrom) {
  const int64_t counts[] = {1, 3, 60, 20};
  const auto greedy = [](std::span<SampleRow>) {};
  const std::vector<Got> all = Sample(counts, {true, true, true, true}, greedy);
  const std::vector<Got> some = Sample(counts, {false, true, true, false}, greedy);
  for (size_t part = 0; part < all.size(); ++part) {
    ASSERT_EQ(all[part].sampled.size(), static_cast<size_t>(counts[part]));
    ASSERT_EQ(all[part].logits.size(), static_cast<size_t>(counts[part]) * vocab_);
    for (size_t i = 0; i < all[part].sampled.size(); ++i) {
      const auto row = std::span(all[part].logits).subspan(i * vocab_, vocab_);
      EXPECT_EQ(all[part].sampled[i].token, Largest(row)) << part << " " << i;
      EXPECT_EQ(all[part].sampled[i].hash, HashLogits(row)) << part << " " << i;
      EXPECT_EQ(some[part].sampled[i].token, all[part].sampled[i].token) << part << " " << i;
      EXPECT_EQ(some[part].sampled[i].hash, all[part].sampled[i].hash) << part << " " << i;
    }
    if (part == 1 || part == 2) {
      EXPECT_EQ(some[part].logits, all[part].logits);
    } else {
      EXPECT_TRUE(some[part].logits.empty());
    }
  }
}

TEST_P(DecodeStepTest, EachRowPicksByItsOwnOptions) {
  const int64_t counts[] = {2, 70};
  std::vector<uint32_t> mask((vocab_ + 31) / 32);
  mask[2] = 1u << 5;
  const std::vector<Got> got = Sample(counts, {false, false}, [&](std::span<SampleRow> rows) {
    for (size_t i = 1; i < rows.size(); i += 2)
      rows[i] = {.temperature = 1, .uniform = 0.5, .mask = mask};
  });
  for (const Got& part : got) {
    for (size_t i = 0; i < part.sampled.size(); ++i)
      EXPECT_EQ(part.sampled[i].token == 69, i % 2 == 1) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, DecodeStepTest, ::testing::ValuesIn(BackendCases()), NameOf);

}  // namespace
}  // namespace baton
