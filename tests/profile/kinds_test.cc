// Kinds of text: how files get theirs, what is refused, how each kind is split, and what is left
// out.
#include "profile/kinds.h"

#include <gmock/gmock.h>

#include <random>

#include "profile/corpus.h"
#include "profile/splits.h"
#include "profile/texts.h"
#include "tests/profile/profile_test_util.h"

namespace baton {
namespace {

using namespace test;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

// A folder below the scratch folder with a file of each text.
std::string Folder(const std::string& name, const std::vector<std::string>& texts) {
  std::filesystem::create_directories(Scratch().File(name));
  for (size_t i = 0; i < texts.size(); ++i) WriteFile(fmt::format("{}/file{}", name, i), texts[i]);
  return Scratch().File(name);
}

std::vector<std::string> KindsOf(const std::vector<SourceText>& texts) {
  std::vector<std::string> kinds;
  for (const SourceText& t : texts) kinds.push_back(t.kind);
  return kinds;
}

TEST(Texts, KindIsTheNameGivenOrTheFolderOrTheExtension) {
  const std::string folder = Folder("licences", {"some text", "more text"});
  const std::string version = Folder("other", {}) + "/MPL-2.0";
  WriteFile("other/MPL-2.0", "words");
  std::vector<std::string> warnings;
  auto texts = GatherTexts({folder, "law=" + folder, WriteFile("a.py", "code"),
                            "notes=" + WriteFile("b.txt", "words"), folder + "/file1", version},
                           warnings);
  ASSERT_TRUE(texts.ok()) << texts.error().ToString();
  EXPECT_THAT(KindsOf(*texts), ElementsAre("licences", "licences", "law", "law", "py", "notes",
                                           "licences", "other"));
  EXPECT_TRUE(warnings.empty());
}

TEST(Texts, AFileWhoseNameHasAnEqualsSignIsThatFile) {
  std::vector<std::string> warnings;
  auto texts = GatherTexts({WriteFile("x=y.md", "words")}, warnings);
  ASSERT_TRUE(texts.ok()) << texts.error().ToString();
  EXPECT_EQ(texts->front().kind, "md");
}

TEST(Texts, BinaryAndEmptyFilesAreRefusedOrLeftOutOfFolders) {
  const std::string zero("a\0b", 3), latin = "caf\xE9 \xE0 la cr\xE8me", blank = " \n\n";
  EXPECT_THAT(TextProblem(zero), HasSubstr("byte 1"));
  EXPECT_THAT(TextProblem(latin), HasSubstr("UTF-8"));
  EXPECT_THAT(TextProblem(blank), HasSubstr("empty"));
  EXPECT_EQ(TextProblem("naïve café\t\n"), "");
  std::vector<std::string> warnings;
  for (const std::string& bad : {zero, latin, blank}) {
    auto texts = GatherTexts({WriteFile("bad.txt", bad)}, warnings);
    ASSERT_FALSE(texts.ok());
    EXPECT_THAT(texts.error().message(), HasSubstr("bad.txt"));
  }
  EXPECT_FALSE(GatherTexts({Folder("binaries", {zero, blank})}, warnings).ok());
  ASSERT_TRUE(warnings.empty());
  auto texts = GatherTexts({Folder("mixed", {zero, "words"})}, warnings);
  ASSERT_TRUE(texts.ok()) << texts.error().ToString();
  EXPECT_THAT(*texts, SizeIs(1));
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("1 of 2 files")));
}

TEST(Texts, OfAFolderWithManyFilesSomeOfAllPartsAreTaken) {
  std::vector<std::string> contents;
  for (int i = 0; i < 250; ++i) contents.push_back(fmt::format("text {}", i));
  std::vector<std::string> warnings;
  auto texts = GatherTexts({Folder("many", contents)}, warnings);
  ASSERT_TRUE(texts.ok()) << texts.error().ToString();
  EXPECT_THAT(*texts, SizeIs(kMostFiles));
}

TEST(Corpus, EveryKindFillsItsOwnSplits) {
  std::vector<std::string> given;
  for (int i = 0; i < 12; ++i)
    given.push_back(fmt::format("{}={}", i % 3 ? "b" : "a",
                                WriteFile(fmt::format("k{}.txt", i), RandomText(2000, i))));
  auto corpus = LoadCorpus(AnyEngine(), given);
  ASSERT_TRUE(corpus.ok()) << corpus.error().ToString();
  ASSERT_THAT(corpus->kinds, SizeIs(2));
  EXPECT_EQ(corpus->kinds[0].name, "a");
  EXPECT_EQ(corpus->texts[1], given[1]);
  for (const Corpus::Kind& kind : corpus->kinds) {
    double total = 0;
    for (const auto& split : kind.tokens) total += static_cast<double>(split.size());
    EXPECT_NEAR(static_cast<double>(kind.tokens[Corpus::kProfile].size()) / total, 0.5, 0.15);
    EXPECT_NEAR(static_cast<double>(kind.tokens[Corpus::kTest].size()) / total, 0.25, 0.15);
  }
  EXPECT_EQ(Contexts(*corpus, Corpus::kSearch) % 2, 0);
  // What a profile lists gives the same corpus again.
  auto again = LoadCorpus(AnyEngine(), corpus->texts);
  ASSERT_TRUE(again.ok());
  for (size_t k = 0; k < 2; ++k)
    for (int s = 0; s < Corpus::kSplits; ++s)
      EXPECT_EQ(again->kinds[k].tokens[s], corpus->kinds[k].tokens[s]);
}

TEST(Corpus, AShortKindThatWasFoundJoinsTheLongestAndANamedOneIsAnError) {
  const std::string book = WriteFile("book.md", RandomText(9000, 1)),
                    note = WriteFile("note.txt", RandomText(500, 2));
  auto joined = LoadCorpus(AnyEngine(), {note, book});
  ASSERT_TRUE(joined.ok()) << joined.error().ToString();
  ASSERT_THAT(joined->kinds, SizeIs(1));
  EXPECT_EQ(joined->texts[0], "md=" + note);
  auto named = LoadCorpus(AnyEngine(), {"notes=" + note, book});
  ASSERT_FALSE(named.ok());
  EXPECT_THAT(named.error().message(), HasSubstr("notes"));
}

TEST(Corpus, RepeatedTextIsRefusedOrWarnedOf) {
  const std::string part = RandomText(1000, 1);
  std::string twice = RandomText(4000, 2), often;
  for (int i = 0; i < 20; ++i) often += part;
  auto refused = LoadCorpus(AnyEngine(), {WriteFile("often.txt", often)});
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message(), HasSubstr("repeats itself"));
  auto warned = LoadCorpus(AnyEngine(), {WriteFile("thrice.txt", twice + twice + twice)});
  ASSERT_TRUE(warned.ok()) << warned.error().ToString();
  EXPECT_THAT(warned->warnings, ElementsAre(HasSubstr("thrice.txt")));
}

TEST(Corpus, UnknownKindsAreAnErrorThatListsTheKnown) {
  auto corpus = LoadCorpus(AnyEngine(), {"a=" + WriteFile("a.txt", RandomText(4000, 1)),
                                         "b=" + WriteFile("b.txt", RandomText(4000, 2))});
  ASSERT_TRUE(corpus.ok());
  const Status unknown = corpus->Keep({"c"});
  ASSERT_FALSE(unknown.ok());
  EXPECT_THAT(unknown.error().ToString(), HasSubstr("a, b"));
  ASSERT_TRUE(corpus->Keep({"b"}).ok());
  EXPECT_EQ(corpus->kinds.front().name, "b");
}

TEST(Splits, AContextEndsInItsKindAndBorrowsWhatThatLacks) {
  Corpus corpus;
  corpus.kinds.resize(2);
  for (int k = 0; k < 2; ++k)
    for (auto& split : corpus.kinds[static_cast<size_t>(k)].tokens) split.assign(k ? 2000 : 900, k);
  ProfileOptions options;
  options.context = 1500;
  const auto spec = ContextSpec(corpus, Corpus::kSearch, 0, options);
  EXPECT_EQ(spec.length, 1500);
  ASSERT_THAT(spec.text, SizeIs(1500));
  EXPECT_EQ(std::count(spec.text.begin(), spec.text.end(), 0), 900);
  EXPECT_EQ(spec.text.back(), 0);
  const auto other = ContextSpec(corpus, Corpus::kSearch, 1, options);
  EXPECT_EQ(std::count(other.text.begin(), other.text.end(), 1), 1500);
}

TEST(Splits, KindsTooShortForAContextAreWarnedOf) {
  Corpus corpus;
  corpus.kinds = {{.name = "short"}, {.name = "long"}};
  for (int k = 0; k < 2; ++k)
    for (auto& split : corpus.kinds[static_cast<size_t>(k)].tokens) split.assign(k ? 2000 : 900, k);
  ProfileOptions options;
  options.context = 1500;
  EXPECT_THAT(ShortKinds(corpus, options),
              ElementsAre(AllOf(HasSubstr("kind short: 2700 tokens"), HasSubstr("6000"))));
  corpus.kinds.pop_back();
  EXPECT_TRUE(ShortKinds(corpus, options).empty());  // a single kind shortens its contexts
}

TEST(Splits, TheTestSplitHasFourPlacesOfEachKind) {
  Corpus corpus;
  corpus.kinds.resize(2);
  for (auto& kind : corpus.kinds)
    for (auto& split : kind.tokens)
      for (int32_t t = 0; t < 6000; ++t) split.push_back(t);
  ProfileOptions options;
  options.context = 1024;
  ASSERT_EQ(Contexts(corpus, Corpus::kTest), 8);
  std::vector<int32_t> ends;
  for (int i = 0; i < 8; i += 2)
    ends.push_back(ContextSpec(corpus, Corpus::kTest, i, options).text.back());
  EXPECT_THAT(ends, ElementsAre(1023, 2523, 4023, 5523));
}

Candidate Measured(double bytes, std::vector<double> kind_kl) {
  Candidate c;
  c.bounded_share = bytes;
  c.kind_kl = std::move(kind_kl);
  return c;
}

TEST(LeftOut, IsWhatTheBestPlanForTheOtherKindsLosesOnTheKind) {
  // The second is best for kind 0 alone, the third for kind 1 alone and too large for the others.
  std::vector<Candidate> all = {Measured(0.2, {0.02, 0.02}), Measured(0.2, {0.01, 0.05}),
                                Measured(0.3, {0.04, 0.01})};
  LeaveEachKindOut(all);
  EXPECT_THAT(all[0].left_out_kl, ElementsAre(0.02, 0.05));
  EXPECT_THAT(all[1].left_out_kl, ElementsAre(0.02, 0.05));
  EXPECT_THAT(all[2].left_out_kl, ElementsAre(0.04, 0.05));
  EXPECT_EQ(all[2].LeftOutKl(), 0.05);
  EXPECT_EQ(all[2].WorstKl(), 0.04);
  EXPECT_EQ(BestWithout(all, 0, 0.1), nullptr);
}

TEST(Spread, OfContextsThatAgreeIsOne) {
  EXPECT_DOUBLE_EQ(SpreadOf({{0.02, 0.02, 0.02}, {0.5, 0.5, 0.5}}), 1);
  EXPECT_EQ(SpreadOf({{0.02}, {0.5}}), 1);  // not known
  EXPECT_EQ(SpreadOf({{0, 0}}), 1);
  EXPECT_EQ(SpreadOf({}), 1);
  EXPECT_EQ(SpreadOf({{1e-12, 1}}), 100);
}

TEST(Spread, HoldsAsMuchOtherTextEightTimesOfTen) {
  // Kinds whose contexts differ as those of real text do: heavy to the right, by half their mean.
  std::mt19937 random(1);
  std::lognormal_distribution<double> draw(0, 0.5);
  int held = 0, all = 0;
  for (int trial = 0; trial < 2000; ++trial) {
    std::vector<std::vector<double>> kinds(5);
    for (auto& kind : kinds)
      for (int c = 0; c < 4; ++c) kind.push_back(0.02 * draw(random));
    const double spread = SpreadOf(kinds);
    for (const auto& kind : kinds) {
      double measured = 0, other = 0;
      for (const double kl : kind) measured += kl, other += 0.02 * draw(random);
      held += other < measured * spread && other > measured / spread;
      ++all;
    }
  }
  EXPECT_NEAR(static_cast<double>(held) / all, 0.8, 0.03);
}

TEST(LeftOut, OneKindCannotBeLeftOut) {
  std::vector<Candidate> all = {Measured(0.2, {0.02})};
  LeaveEachKindOut(all);
  EXPECT_TRUE(all[0].left_out_kl.empty());
  EXPECT_EQ(all[0].LeftOutKl(), 0);
}

TEST(LeftOut, AnswersCountAmongTheLossesThatChoose) {
  std::vector<Candidate> all = {Measured(0.2, {0.02, 0.02}), Measured(0.2, {0.01, 0.01})};
  all[1].answer_kl = 0.5;
  LeaveEachKindOut(all);
  EXPECT_THAT(all[1].left_out_kl, ElementsAre(0.02, 0.02));
}

}  // namespace
}  // namespace baton
