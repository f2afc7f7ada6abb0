#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <tuple>

#include "ops/sample.h"

namespace baton {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> RandomLogits(uint64_t seed, size_t n = 50) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(random);
  return logits;
}

int32_t ArgMax(const std::vector<float>& x) {
  return static_cast<int32_t>(std::max_element(x.begin(), x.end()) - x.begin());
}

// Picks on the host, one token after the other.
class Picker {
 public:
  explicit Picker(const Sampling& options) : sampler_(options) {}
  int32_t Sample(const std::vector<float>& logits, const std::vector<int32_t>& history) {
    sampler_.Follow(history);
    const int32_t token = host_.Sample(logits, sampler_.Row(history, {}, {}, entries_)).token;
    sampler_.Advance();
    return token;
  }

 private:
  Sampler sampler_;
  HostSampler host_;
  std::vector<SampleEntry> entries_;
};

std::map<int32_t, int> Draw(const Sampling& options, const std::vector<float>& logits, int count,
                            const std::vector<int32_t>& history = {}) {
  Picker sampler(options);
  std::map<int32_t, int> seen;
  for (int i = 0; i < count; ++i) seen[sampler.Sample(logits, history)]++;
  return seen;
}

TEST(Sampler, TemperatureZeroTakesTheLargestAndTheLowerIdOnTies) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto logits = RandomLogits(seed);
    EXPECT_EQ(Picker({}).Sample(logits, {}), ArgMax(logits));
  }
  EXPECT_EQ(Picker({}).Sample(std::vector<float>{1, 3, 3, 2}, {}), 1);
}

TEST(Sampler, TopKOneIsGreedyAtAnyTemperature) {
  for (float temperature : {0.01f, 1.0f, 100.0f}) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const auto logits = RandomLogits(seed);
      EXPECT_EQ(Picker({.temperature = temperature, .top_k = 1, .seed = seed}).Sample(logits, {}),
                ArgMax(logits));
    }
  }
}

TEST(Sampler, SameSeedSameTokens) {
  const auto logits = RandomLogits(3);
  Picker a({.temperature = 1, .seed = 9}), b({.temperature = 1, .seed = 9}),
      c({.temperature = 1, .seed = 10});
  int different = 0;
  for (int i = 0; i < 100; ++i) {
    const int32_t x = a.Sample(logits, {});
    EXPECT_EQ(x, b.Sample(logits, {}));
    different += x != c.Sample(logits, {});
  }
  EXPECT_GT(different, 10);
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  const std::vector<float> logits = {0, std::log(2.0f), std::log(5.0f)};
  const auto seen = Draw({.temperature = 1, .seed = 4}, logits, 8000);
  EXPECT_NEAR(seen.at(0) / 8000.0, 0.125, 0.02);
  EXPECT_NEAR(seen.at(1) / 8000.0, 0.25, 0.02);
  EXPECT_NEAR(seen.at(2) / 8000.0, 0.625, 0.02);
}

TEST(Sampler, CutsKeepWhatTheyPromise) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.15f),
                                     std::log(0.05f)};
  EXPECT_EQ(Draw({.temperature = 1, .top_k = 2}, logits, 500).size(), 2u);
  EXPECT_EQ(Draw({.temperature = 1, .top_p = 0.4f}, logits, 500).size(), 1u);
  EXPECT_EQ(Draw({.temperature = 1, .top_p = 0.79f}, logits, 500).size(), 2u);
  EXPECT_EQ(Draw({.temperature = 1, .top_p = 0.9f}, logits, 500).size(), 3u);
  EXPECT_EQ(Draw({.temperature = 1, .min_p = 0.2f}, logits, 500).size(), 3u);
  EXPECT_EQ(Draw({.temperature = 1}, logits, 500).size(), 4u);
}

// What may be drawn and how likely, sorted and in double precision: what Sample says it does.
std::vector<std::pair<int32_t, double>> Definition(const Sampling& s,
                                                   const std::vector<float>& logits) {
  std::vector<std::pair<int32_t, double>> tokens;
  const double largest = *std::max_element(logits.begin(), logits.end());
  for (size_t i = 0; i < logits.size(); ++i)
    tokens.emplace_back(static_cast<int32_t>(i), std::exp((logits[i] - largest) / s.temperature));
  std::stable_sort(tokens.begin(), tokens.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  if (s.top_k > 0) tokens.resize(std::min(tokens.size(), static_cast<size_t>(s.top_k)));
  double total = 0, sum = 0;
  for (const auto& t : tokens) total += t.second;
  size_t keep = 0;
  while (keep < tokens.size() && tokens[keep].second >= s.min_p &&
         (keep == 0 || sum < s.top_p * total))
    sum += tokens[keep++].second;
  tokens.resize(keep);
  for (auto& t : tokens) t.second /= sum;
  return tokens;
}

// Vocabularies around and beyond the blocks that weights are summed in, flat and steep.
TEST(Sampler, DrawsWhatTheDefinitionKeepsAsOftenAsItSays) {
  constexpr int kDraws = 4000;
  for (const size_t n : {1u, 15u, 257u, 2000u}) {
    for (const float temperature : {0.3f, 1.0f, 3.0f}) {
      for (const Sampling& cut : {Sampling{}, Sampling{.top_p = 0.9f}, Sampling{.top_p = 0.999f},
                                  Sampling{.min_p = 0.05f}, Sampling{.top_k = 7},
                                  Sampling{.top_k = 100, .top_p = 0.8f, .min_p = 0.01f}}) {
        Sampling s = cut;
        s.temperature = temperature;
        s.seed = 11;
        std::vector<float> logits = RandomLogits(n, n);
        const auto want = Definition(s, logits);
        auto seen = Draw(s, logits, kDraws);
        double expected = 0, found = 0;  // of the likeliest tokens, added one by one
        for (const auto& [id, p] : want) {
          expected += p;
          found += seen[id];
          EXPECT_NEAR(found / kDraws, expected, 0.035) << n << " tokens, token " << id;
          seen.erase(id);
        }
        // A token on the edge of a cut may be kept by one and not by the other.
        EXPECT_LE(seen.size(), 1u);
        for (const auto& [id, count] : seen) EXPECT_LT(count, 0.02 * kDraws);
      }
    }
  }
}

TEST(Sampler, TheLargestIsFoundWhereverItIs) {
  std::vector<float> logits = RandomLogits(1, 1000);
  for (size_t i = 0; i < logits.size(); i += 3) logits[i] = kNan;
  for (size_t at = 1; at < logits.size(); at += 7) {
    std::vector<float> x = logits;
    x[at] = 50;
    if (at + 200 < x.size()) x[at + 200] = 50;
    EXPECT_EQ(Picker({}).Sample(x, {}), static_cast<int32_t>(at));
  }
}

TEST(Sampler, PenaltyLooksAtTheLatestTokensOnly) {
  const std::vector<float> logits = {2, 1.9f, -1};
  EXPECT_EQ(Picker({.repetition_penalty = 1.5f}).Sample(logits, std::vector<int32_t>{0}), 1);
  EXPECT_EQ(Picker({.repetition_penalty = 1.5f, .penalty_window = 1})
                .Sample(logits, std::vector<int32_t>{0, 2}),
            0);
  EXPECT_EQ(Picker({.repetition_penalty = 1.5f, .penalty_window = 0})
                .Sample(logits, std::vector<int32_t>{0}),
            0);
  // Seen twice is seen; negative logits fall too.
  EXPECT_EQ(Picker({.repetition_penalty = 1.04f}).Sample(logits, std::vector<int32_t>{0, 0, 0}), 0);
  EXPECT_EQ(
      Picker({.repetition_penalty = 3}).Sample(std::vector<float>{-1, -2}, std::vector<int32_t>{0}),
      1);
}

TEST(Sampler, NotANumberIsNeverPickedAndInfinityIs) {
  for (float temperature : {0.0f, 1.0f}) {
    for (uint64_t seed = 0; seed < 10; ++seed) {
      const Sampling s{.temperature = temperature, .seed = seed};
      EXPECT_EQ(Picker(s).Sample(std::vector<float>{kNan, 1, kNan}, {}), 1);
      EXPECT_EQ(Picker(s).Sample(std::vector<float>{1, kInf, 2}, {}), 1);
      EXPECT_EQ(Picker(s).Sample(std::vector<float>{-kInf, -3, -kInf}, {}), 1);
      EXPECT_EQ(Picker(s).Sample(std::vector<float>{kNan, -kInf, kNan}, {}), SampledRow::kNoNumber);
    }
  }
}

TEST(Sampler, ValuesOutOfRangeAreErrors) {
  EXPECT_TRUE(CheckSampling({}).ok());
  EXPECT_TRUE(CheckSampling({.temperature = 2, .top_k = 40, .top_p = 0.1f, .min_p = 0.9f}).ok());
  for (const Sampling& bad :
       {Sampling{.temperature = -1}, Sampling{.temperature = kNan}, Sampling{.temperature = kInf},
        Sampling{.top_k = -1}, Sampling{.top_p = 0}, Sampling{.top_p = 1.1f},
        Sampling{.top_p = kNan}, Sampling{.min_p = 1}, Sampling{.min_p = -0.1f},
        Sampling{.repetition_penalty = 0}, Sampling{.repetition_penalty = kInf},
        Sampling{.penalty_window = -1}}) {
    const Status status = CheckSampling(bad);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code(), Error::Code::kInvalidArgument);
  }
}

TEST(Sampler, RowsAheadDrawWhatTheRowsAfterThemDraw) {
  Sampler sampler({.temperature = 1, .seed = 3});
  std::vector<SampleEntry> entries;
  std::vector<double> ahead;
  const std::vector<int32_t> drafts(4);
  for (size_t i = 0; i < 5; ++i)
    ahead.push_back(sampler.Row({}, std::span(drafts).first(i), {}, entries).uniform);
  for (const double uniform : ahead) {
    EXPECT_EQ(sampler.Row({}, {}, {}, entries).uniform, uniform);
    sampler.Advance();
  }
  EXPECT_EQ(std::set(ahead.begin(), ahead.end()).size(), ahead.size());
}

TEST(Sampler, EntriesJoinBiasesAndTheLatestTokens) {
  Sampler sampler(
      {.presence_penalty = 1, .penalty_window = 4, .logit_bias = {{7, 0.5f}, {2, -1}, {7, 0.25f}}});
  std::vector<SampleEntry> entries;
  const std::vector<int32_t> history = {9, 7, 3, 7, 11};
  sampler.Follow(history);
  const SampleRow row = sampler.Row(history, {}, {}, entries);
  std::vector<std::tuple<int32_t, float, int32_t>> got;
  for (const SampleEntry& e : row.entries) got.emplace_back(e.token, e.bias, e.count);
  const std::vector<std::tuple<int32_t, float, int32_t>> want = {
      {2, -1, 0}, {3, 0, 1}, {7, 0.75f, 2}, {11, 0, 1}};
  EXPECT_EQ(got, want);
}

// Whatever of the tokens came at once, one by one or as drafts. Entries may say that a token counts
// no more.
TEST(Sampler, EntriesFollowTheTokens) {
  std::mt19937_64 random(5);
  for (const int32_t window : {0, 1, 3, 8, 1000}) {
    const Sampling options{
        .frequency_penalty = 1, .penalty_window = window, .logit_bias = {{4, 2}}};
    std::vector<int32_t> all(40);
    for (int32_t& token : all) token = static_cast<int32_t>(random() % 12);
    const auto counts = [&](size_t prompt, size_t history, size_t drafts) {
      const auto tokens = std::span<const int32_t>(all);
      Sampler sampler(options);
      for (size_t n = prompt; n <= history; ++n) sampler.Follow(tokens.first(n));
      std::vector<SampleEntry> entries;
      sampler.Row(tokens.first(history), tokens.subspan(history, drafts), {}, entries);
      std::map<int32_t, std::pair<float, int32_t>> of;
      for (const SampleEntry& e : entries)
        if (e.count != 0 || e.bias != 0) of[e.token] = {e.bias, e.count};
      return of;
    };
    for (size_t length = 1; length < all.size(); ++length) {
      const auto want = counts(length, length, 0);
      EXPECT_EQ(counts(1, length, 0), want) << length;
      const size_t drafts = std::min<size_t>(length - 1, random() % 9);
      EXPECT_EQ(counts(1, length - drafts, drafts), want) << length;
    }
  }
}

TEST(Sampler, PresenceCountsOnceAndFrequencyEachTime) {
  const std::vector<float> logits = {3.0f, 2.5f, 2.2f, 0.0f};
  const std::vector<int32_t> history = {0, 0, 1};
  const auto best = [&](Sampling s) { return Picker(s).Sample(logits, history); };
  EXPECT_EQ(best({}), 0);
  EXPECT_EQ(best({.presence_penalty = 0.4f}), 0);   // 2.6, 2.1, 2.2
  EXPECT_EQ(best({.presence_penalty = 0.9f}), 2);   // 2.1, 1.6, 2.2
  EXPECT_EQ(best({.frequency_penalty = 0.5f}), 2);  // 2.0, 2.0, 2.2
  EXPECT_EQ(best({.frequency_penalty = 0.9f, .penalty_window = 0}), 0);
  EXPECT_FALSE(CheckSampling({.presence_penalty = NAN}).ok());
  EXPECT_FALSE(CheckSampling({.frequency_penalty = INFINITY}).ok());
}

TEST(Sampler, BiasesComeFirstAndNeedNoHistory) {
  const std::vector<float> logits = {3.0f, 2.5f, 2.2f, 0.0f};
  const auto best = [&](Sampling s, std::vector<int32_t> history = {}) {
    return Picker(s).Sample(logits, history);
  };
  EXPECT_EQ(best({.logit_bias = {{3, 3.5f}}}), 3);
  EXPECT_EQ(best({.logit_bias = {{0, -100}, {1, -100}}}), 2);
  EXPECT_EQ(best({.presence_penalty = 1, .logit_bias = {{3, 3.5f}}}, {3}), 0);  // 3, .., 2.5
  EXPECT_FALSE(CheckSampling({.logit_bias = {{4, 1}}}, 4).ok());
  EXPECT_FALSE(CheckSampling({.logit_bias = {{-1, 1}}}, 4).ok());
  EXPECT_FALSE(CheckSampling({.logit_bias = {{1, kNan}}}, 4).ok());
}

TEST(Sampler, LogprobsAreOfOneDistribution) {
  const std::vector<float> logits = {1.0f, 3.0f, NAN, 3.0f, -INFINITY};
  const Generation::Logprobs l = LogprobsOf(logits, 0, 5);
  ASSERT_EQ(l.top.size(), 5u);
  EXPECT_EQ(l.top[0].token, 1);  // the lower id of two
  EXPECT_EQ(l.top[1].token, 3);
  EXPECT_EQ(l.chosen.token, 0);
  double sum = 0;
  for (const TokenLogprob& t : l.top) sum += std::exp(t.logprob);
  EXPECT_NEAR(sum, 1.0, 1e-12);
  EXPECT_NEAR(l.top[0].logprob - l.chosen.logprob, 2.0, 1e-12);
}

}  // namespace
}  // namespace baton
