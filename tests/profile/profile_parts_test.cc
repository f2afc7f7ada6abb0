// The parts that planning is made of: splits of the texts, probes, comparisons of distributions.
#include <algorithm>
#include <cmath>

#include "profile/corpus.h"
#include "profile/measure.h"
#include "profile/probes.h"
#include "profile/splits.h"
#include "profile/texts.h"
#include "tests/profile/profile_test_util.h"

namespace baton {
namespace {

using namespace test;

bool Contains(const std::vector<int32_t>& all, const std::vector<int32_t>& part) {
  return std::search(all.begin(), all.end(), part.begin(), part.end()) != all.end();
}

TEST(Corpus, RelatedFilesStayInOneSplitAndWholeFilesAreKept) {
  // Twelve texts; 3, 7 and 11 are versions of one another.
  std::vector<std::string> paths, texts;
  for (int i = 0; i < 12; ++i) {
    std::string text = RandomText(1500, static_cast<uint64_t>(i));
    if (i % 4 == 3 && i > 3) text = texts[3].substr(200) + RandomText(400, 50 + i);
    texts.push_back(text);
    paths.push_back(WriteFile(fmt::format("text{}.txt", i), text));
  }
  auto corpus = LoadCorpus(AnyEngine(), paths);
  ASSERT_TRUE(corpus.ok()) << corpus.error().ToString();
  EXPECT_EQ(corpus->families, 10);
  ASSERT_EQ(corpus->kinds.size(), 1u);
  const auto& tokens_of = corpus->kinds[0].tokens;
  EXPECT_FALSE(corpus->kinds[0].cut);
  std::vector<int> split(12, -1);
  size_t total = 0, given = 0;
  for (int s = 0; s < Corpus::kSplits; ++s) total += tokens_of[s].size();
  for (int i = 0; i < 12; ++i) {
    const auto tokens = AnyEngine().Tokenize(texts[static_cast<size_t>(i)], false, false);
    given += tokens.size();
    for (int s = 0; s < Corpus::kSplits; ++s) {
      if (!Contains(tokens_of[s], tokens)) continue;
      EXPECT_EQ(split[static_cast<size_t>(i)], -1) << "file in two splits";
      split[static_cast<size_t>(i)] = s;
    }
    EXPECT_GE(split[static_cast<size_t>(i)], 0);
  }
  EXPECT_EQ(total, given);
  EXPECT_EQ(split[3], split[7]);
  EXPECT_EQ(split[3], split[11]);
  const double shares[] = {0.5, 0.25, 0.25};
  for (int s = 0; s < Corpus::kSplits; ++s) {
    EXPECT_NEAR(static_cast<double>(tokens_of[s].size()) / static_cast<double>(total), shares[s],
                0.15);
  }
  EXPECT_EQ(corpus->sha256.size(), 12u);
}

TEST(Corpus, OneFileIsCutIntoConsecutiveParts) {
  const std::string text = RandomText(8000, 3);
  auto corpus = LoadCorpus(AnyEngine(), {WriteFile("one.txt", text)});
  ASSERT_TRUE(corpus.ok());
  EXPECT_TRUE(corpus->kinds[0].cut);
  std::vector<int32_t> joined;
  for (const auto& t : corpus->kinds[0].tokens) joined.insert(joined.end(), t.begin(), t.end());
  EXPECT_EQ(joined, AnyEngine().Tokenize(text, false, false));
  EXPECT_EQ(corpus->kinds[0].tokens[Corpus::kProfile].size(), 4000u);
  EXPECT_EQ(corpus->kinds[0].tokens[Corpus::kSearch].size(), 2000u);
}

TEST(Corpus, MissingAndShortTextsAreErrors) {
  EXPECT_FALSE(LoadCorpus(AnyEngine(), {}).ok());
  EXPECT_EQ(LoadCorpus(AnyEngine(), {Scratch().File("absent")}).error().code(),
            Error::Code::kNotFound);
  EXPECT_FALSE(LoadCorpus(AnyEngine(), {WriteFile("short.txt", "a few words")}).ok());
  EXPECT_FALSE(LoadCorpus(AnyEngine(), {WriteFile("empty.txt", "")}).ok());
  EXPECT_FALSE(ReadText(Scratch().File("")).ok());  // a folder
}

TEST(Probes, FactsLieAtTheirDepthAndTheLengthIsAsAsked) {
  const auto filler = RandomTokens(5000, 1);
  for (int64_t length : {1500, 3000}) {
    const std::vector<Probe> probes = MakeProbes(8, 5, false);
    auto context = HideProbes(AnyEngine(), probes, filler, length);
    ASSERT_TRUE(context.ok()) << context.error().ToString();
    EXPECT_EQ(static_cast<int64_t>(context->tokens.size()), length);
    ASSERT_EQ(context->questions.size(), probes.size());
    for (size_t i = 0; i < probes.size(); ++i) {
      for (const std::string& fact : probes[i].facts)
        EXPECT_TRUE(Contains(context->tokens, AnyEngine().Tokenize(fact, false, false))) << fact;
      const auto asked = AnyEngine().Tokenize(probes[i].facts.back(), false, false);
      const auto at =
          std::search(context->tokens.begin(), context->tokens.end(), asked.begin(), asked.end());
      const double depth = static_cast<double>(at - context->tokens.begin()) /
                           static_cast<double>(context->tokens.size());
      EXPECT_NEAR(depth, probes[i].depth, 0.25) << i;  // facts take room of their own
      EXPECT_EQ(AnyEngine().Detokenize(context->questions[i].answer), probes[i].answer);
      EXPECT_NE(AnyEngine().Detokenize(context->questions[i].ask).find(probes[i].question),
                std::string::npos);
      EXPECT_NE(probes[i].facts.back().find(probes[i].answer), std::string::npos);
    }
    EXPECT_TRUE(std::is_sorted(probes.begin(), probes.end(),
                               [](const Probe& a, const Probe& b) { return a.depth < b.depth; }));
  }
}

TEST(Probes, SeedsRepeatAndDiffer) {
  const auto a = MakeProbes(16, 1, false), b = MakeProbes(16, 1, false),
             c = MakeProbes(16, 2, false);
  int same = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].facts, b[i].facts);
    same += a[i].answer == c[i].answer;
  }
  EXPECT_LT(same, 2);
  for (const Probe& p : MakeProbes(10, 1, true)) EXPECT_EQ(p.kind, ProbeKind::kDigits);
}

TEST(Probes, TooManyForTheContextIsAnError) {
  EXPECT_FALSE(HideProbes(AnyEngine(), MakeProbes(50, 1, false), RandomTokens(100, 1), 600).ok());
  EXPECT_FALSE(HideProbes(AnyEngine(), MakeProbes(1, 1, false), {}, 2000).ok());
}

TEST(Probes, ARequiredShareIsRoundedUpToWholeProbes) {
  EXPECT_EQ(RequiredProbes(0.97, 16), 16);
  EXPECT_EQ(RequiredProbes(0.97, 42), 41);
  EXPECT_EQ(RequiredProbes(0.97, 100), 97);
  EXPECT_EQ(RequiredProbes(1.0, 13), 13);
  EXPECT_EQ(RequiredProbes(0.0, 9), 0);
  EXPECT_EQ(RequiredProbes(0.97, 0), 0);
}

TEST(Measure, EqualRowsHaveNoDivergenceAndKnownRowsTheirs) {
  ThreadPool pool(2);
  std::vector<float> p = {std::log(0.5f), std::log(0.25f), std::log(0.25f), 3, 1, 2};
  std::vector<float> q = {std::log(0.25f) + 7, std::log(0.5f) + 7, std::log(0.25f) + 7, 3, 1, 2};
  RowLogits reference;
  reference.Append(pool, View<const float>(p.data(), {2, 3}));
  EXPECT_EQ(reference.rows(), 2);
  EXPECT_NEAR(reference.LogProbability(0, 1), std::log(0.25), 1e-6);
  EXPECT_EQ(reference.Best(1), 0);
  for (const RowComparison& r : Compare(pool, reference, 0, View<const float>(p.data(), {2, 3}))) {
    EXPECT_NEAR(r.kl, 0, 1e-7);
    EXPECT_TRUE(r.same_best);
  }
  const auto compared = Compare(pool, reference, 0, View<const float>(q.data(), {2, 3}));
  EXPECT_NEAR(compared[0].kl, 0.25 * std::log(2.0), 1e-6);
  EXPECT_FALSE(compared[0].same_best);
  EXPECT_EQ(compared[0].best, 1);
  EXPECT_NEAR(compared[1].kl, 0, 1e-7);
  // Rows further in.
  EXPECT_NEAR(Compare(pool, reference, 1, View<const float>(q.data() + 3, {1, 3}))[0].kl, 0, 1e-7);
}

TEST(Measure, DivergenceIsNeverNegativeAndLogSumExpIsStable) {
  ThreadPool pool(2);
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0, 4);
  for (int round = 0; round < 50; ++round) {
    std::vector<float> p(9000), q(9000);
    for (float& x : p) x = normal(random);
    for (size_t i = 0; i < q.size(); ++i) q[i] = p[i] + 0.01f * normal(random);
    RowLogits reference;
    reference.Append(pool, View<const float>(p.data(), {1, 9000}));
    const double kl = Compare(pool, reference, 0, View<const float>(q.data(), {1, 9000}))[0].kl;
    EXPECT_GE(kl, 0);
    EXPECT_LT(kl, 0.1);
  }
  const std::vector<float> large = {10000, 10000}, small = {-10000, -10000};
  EXPECT_NEAR(LogSumExp(large.data(), 2), 10000 + std::log(2.0), 1e-3);
  EXPECT_NEAR(LogSumExp(small.data(), 2), -10000 + std::log(2.0), 1e-3);
}

TEST(Measure, MeanAndItsError) {
  EXPECT_EQ(MeanOf({}).mean, 0);
  EXPECT_EQ(MeanOf(std::vector<double>{3}).standard_error, 0);
  const MeanError m = MeanOf(std::vector<double>{1, 2, 3, 4});
  EXPECT_DOUBLE_EQ(m.mean, 2.5);
  EXPECT_NEAR(m.standard_error, std::sqrt(5.0 / 3 / 4), 1e-12);
}

}  // namespace
}  // namespace baton
