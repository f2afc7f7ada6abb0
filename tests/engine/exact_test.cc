// Exact requests: whatever drafts, in whatever company, the answer is dense decoding's own.
#include "engine/exact.h"

#include <rapidcheck.h>

#include <numeric>

#include "tests/attention/engine_test_util.h"

namespace baton {
namespace {

using namespace test;

// Its first layer ranks, the others follow with k keys: from hardly anything to everything.
Plan DraftPlan(int64_t k) {
  Plan plan = Plan::Dense(6);
  plan.budget = {k, 0};
  plan.sink = 1;
  plan.recent = 3;
  plan.layers[0].role = Role::kSelect;
  for (int l = 1; l < 5; ++l)
    plan.layers[static_cast<size_t>(l)] = {.role = l == 3 ? Role::kScan : Role::kReuse};
  plan.layers[5] = {.role = Role::kWindow, .sink = 1, .recent = k};
  return plan;
}

// A prompt whose second half repeats its first, so that lookup finds continuations; `spoilt`: all
// of them wrong.
std::vector<int32_t> RepeatedTokens(int64_t n, uint64_t seed, bool spoilt) {
  std::vector<int32_t> tokens = RandomTokens(n / 2 + 1, seed);
  const std::vector<int32_t> other = RandomTokens(n, seed + 1);
  for (size_t i = 0; std::ssize(tokens) < n; ++i)
    tokens.push_back(spoilt && i % 4 == 3 ? other[i] : tokens[i]);
  return tokens;
}

std::string Answer(const Generation& g) {
  std::string s = fmt::format("{} [{}] {} {}", g.stats.logits_hash, fmt::join(g.tokens, " "),
                              static_cast<int>(g.stop), g.text);
  for (const Generation::Logprobs& l : g.logprobs) {
    s += fmt::format(" {}:{}", l.chosen.token, l.chosen.logprob);
    for (const auto& top : l.top) s += fmt::format(",{}:{}", top.token, top.logprob);
  }
  return s;
}

struct Case {
  Request dense, exact;
};

Case RandomCase(uint64_t seed) {
  Case c;
  Request& r = c.dense;
  const auto length = *rc::gen::inRange<int64_t>(1, 150);
  r.tokens = *rc::gen::arbitrary<bool>()
                 ? RandomTokens(length, seed)
                 : RepeatedTokens(length, seed, *rc::gen::arbitrary<bool>());
  if (r.tokens.empty()) r.tokens = {1};
  r.max_tokens = *rc::gen::inRange<int64_t>(0, 40);
  r.ignore_end = *rc::gen::arbitrary<bool>();
  if (*rc::gen::arbitrary<bool>()) r.sampling = {.temperature = 0.8, .top_k = 20, .seed = seed};
  if (*rc::gen::arbitrary<bool>()) r.sampling.repetition_penalty = 1.3;
  r.sampling.penalty_window = *rc::gen::element(0, 5, 64);
  r.logprobs = *rc::gen::element(-1, -1, 0, 2);
  c.exact = r;
  const int draft = *rc::gen::inRange(0, 3);
  if (draft != 1) c.exact.plan = DraftPlan(*rc::gen::element<int64_t>(4, 16, 1000));
  c.exact.exact = ExactOptions{.plan = draft != 1,
                               .lookup = draft != 0,
                               .most_drafts = *rc::gen::inRange<int64_t>(1, 16),
                               .adaptive = *rc::gen::arbitrary<bool>()};
  return c;
}

class ExactTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  std::unique_ptr<Engine> Load(EngineOptions options = {}) {
    return LoadEngine(TinySpec(), GetParam(), options);
  }
};

Generation Must(Result<Generation> g) {
  EXPECT_TRUE(g.ok()) << g.error().ToString();
  return g.ok() ? std::move(g).value() : Generation{};
}

TEST_P(ExactTest, AnyDraftGivesTheDenseAnswer) {
  auto engine = Load({.prompt_chunk = 64});
  EXPECT_TRUE(rc::check("exact requests of any draft and company equal dense ones", [&] {
    const auto seed = *rc::gen::inRange<uint64_t>(1, 1000);
    std::vector<Request> exact;
    std::vector<std::string> want;
    for (int i = *rc::gen::inRange(1, 5); i > 0; --i) {
      const Case c = RandomCase(seed + static_cast<uint64_t>(i));
      want.push_back(Answer(Must(engine->Generate(c.dense))));
      exact.push_back(c.exact);
    }
    auto got = engine->GenerateBatch(exact);
    RC_ASSERT(got.ok());
    for (size_t i = 0; i < want.size(); ++i) RC_ASSERT(Answer((*got)[i]) == want[i]);
  }));
}

TEST_P(ExactTest, DraftsOfACoveringPlanAreAllAccepted) {
  auto engine = Load();
  Request r{.tokens = RandomTokens(90, 3), .max_tokens = 33, .ignore_end = true};
  const std::string want = Answer(Must(engine->Generate(r)));
  r.plan = DraftPlan(1000);
  r.exact = ExactOptions{.most_drafts = 7, .adaptive = false};
  const Generation g = Must(engine->Generate(r));
  EXPECT_EQ(Answer(g), want);
  const ExactReport& report = *g.stats.exact;
  // The first token is the prompt's; four turns of seven drafts and the token after them follow.
  EXPECT_EQ(report.verifications, 4);
  EXPECT_EQ(report.drafted, 28);
  EXPECT_EQ(report.accepted, 28);
  EXPECT_EQ(report.accepted_at, std::vector<int64_t>(7, 4));
}

TEST_P(ExactTest, StopsAndCancelsCutWhereDenseDoes) {
  auto engine = Load();
  Request r{.tokens = RandomTokens(60, 5), .max_tokens = 30, .ignore_end = true};
  const Generation whole = Must(engine->Generate(r));
  for (size_t at : {whole.text.size() / 3, whole.text.size() / 2}) {
    r.stop = {whole.text.substr(at, 3)};
    const std::string want = Answer(Must(engine->Generate(r)));
    Request exact = r;
    exact.plan = DraftPlan(1000);
    exact.exact = ExactOptions{.most_drafts = 5, .adaptive = false};
    EXPECT_EQ(Answer(Must(engine->Generate(exact))), want);
  }
  r.stop.clear();
  r.plan = DraftPlan(16);
  r.exact = ExactOptions{.most_drafts = 5, .adaptive = false};
  std::string text;
  int pieces = 0;
  const Generation cut = Must(engine->Generate(r, [&](std::string_view piece) {
    text += piece;
    return ++pieces < 9;
  }));
  EXPECT_EQ(cut.stop, Generation::Stop::kCancelled);
  EXPECT_EQ(whole.text.rfind(cut.text, 0), 0u);
}

TEST_P(ExactTest, RoutedLayersDraftAndKeepTheirCaches) {
  auto engine = Load();
  Request r{.tokens = RandomTokens(120, 6), .max_tokens = 20, .ignore_end = true};
  const std::string want = Answer(Must(engine->Generate(r)));
  r.route = RouteOptions{.mask = "SFSFSF"};
  r.exact = ExactOptions{.most_drafts = 4, .adaptive = false};
  const Generation g = Must(engine->Generate(r));
  EXPECT_EQ(Answer(g), want);
  EXPECT_GT(g.stats.exact->drafted, 0);
}

TEST_P(ExactTest, ContextAndCacheEndWhereDenseDoes) {
  auto engine = Load({.context = 100});
  Request r{.tokens = RandomTokens(90, 7), .max_tokens = 50, .ignore_end = true};
  const Generation want = Must(engine->Generate(r));
  EXPECT_EQ(want.stop, Generation::Stop::kContext);
  r.plan = DraftPlan(1000);
  r.exact = ExactOptions{.most_drafts = 7, .adaptive = false};
  EXPECT_EQ(Answer(Must(engine->Generate(r))), Answer(want));
}

TEST_P(ExactTest, RequestsThatNothingDraftsForAreRefused) {
  auto engine = Load();
  Request r{.tokens = RandomTokens(20, 8)};
  r.exact = ExactOptions{};
  EXPECT_FALSE(engine->Generate(r).ok());
  r.exact = ExactOptions{.lookup = true, .most_drafts = 16};
  EXPECT_FALSE(engine->Generate(r).ok());
}

INSTANTIATE_TEST_SUITE_P(Backends, ExactTest, ::testing::ValuesIn(BackendCases()), NameOf);

TEST(Lookup, FindsTheLatestEarlierOccurrence) {
  Lookup lookup;
  std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 1, 2, 3};
  lookup.Update(std::span<const int32_t>(tokens).first(9));
  lookup.Update(tokens);
  EXPECT_EQ(lookup.Find(tokens).next, 8);
  EXPECT_EQ(lookup.Find(tokens).length, 3);
  tokens.push_back(9);
  lookup.Update(tokens);
  EXPECT_EQ(lookup.Find(tokens).next, 0);
}

TEST(Lookup, TellsHowLongAMatchIs) {
  for (const int64_t n : {3, 7, 15, 40}) {
    std::vector<int32_t> tokens(static_cast<size_t>(n));
    std::iota(tokens.begin(), tokens.end(), 1);
    tokens.push_back(100);
    for (int32_t t = 1; t <= n; ++t) tokens.push_back(t);
    Lookup lookup;
    lookup.Update(tokens);
    EXPECT_EQ(lookup.Find(tokens).next, n);
    EXPECT_EQ(lookup.Find(tokens).length, std::min<int64_t>(n, 16));
  }
}

TEST(Lookup, NewestTokensDoNotFindThemselves) {
  Lookup lookup;
  const std::vector<int32_t> tokens = {1, 2, 3};
  lookup.Update(tokens);
  EXPECT_EQ(lookup.Find(tokens).next, 0);
}

// Dense passes of one second, whose further rows cost `row`, and drafts.
PassTimes Times(double draft, double row) {
  PassTimes times;
  for (int i = 0; i < 2; ++i) times.Verified(1, 1.0);
  times.Drafted(draft);
  for (int64_t rows : {3, 8, 3, 8}) times.Verified(rows, 1 + row * static_cast<double>(rows - 1));
  return times;
}

TEST(DraftLength, DraftsMoreTheMoreIsAccepted) {
  const PassTimes times = Times(0.5, 0.05);
  Acceptance well, badly;
  DraftLength good(15, true, false, times, well), bad(15, true, false, times, badly);
  for (int i = 0; i < 50; ++i) {
    good.Verified(4, 4);
    bad.Verified(4, 0);
  }
  EXPECT_GE(good.Next(), 4);
  EXPECT_EQ(bad.Next(), 0);
}

TEST(DraftLength, RejectionsFromTheStartCostLittle) {
  const PassTimes times = Times(0.3, 0.3);
  for (const bool free : {false, true}) {
    Acceptance acceptance;
    DraftLength d(15, true, free, times, acceptance);
    double lost = 0;
    for (int turn = 0; turn < 128; ++turn) {
      const int64_t n = d.Next();
      lost += times.Verify(n + 1) - 1 + (free ? 0 : static_cast<double>(n) * times.draft());
      if (n > 0) d.Verified(n, 0);
    }
    EXPECT_LT(lost, 0.02 * 128);
  }
}

TEST(DraftLength, RowsThatCostAStepEachArePaidByNoDraft) {
  for (const bool free : {false, true}) {
    PassTimes times = Times(0.1, 1.0);
    Acceptance acceptance;
    DraftLength d(15, true, free, times, acceptance);
    for (int i = 0; i < 50; ++i) d.Verified(4, 4);
    // Longer passes than were seen are tried, each at most twice.
    for (int i = 0; i < 16; ++i) {
      const int64_t rows = d.Next() + 1;
      EXPECT_TRUE(rows == 1 || rows > 8) << rows;
      if (rows > 1) times.Verified(rows, static_cast<double>(rows));
    }
    // Then they are tried only as often as that costs little, with all accepted.
    double lost = 0;
    for (int i = 0; i < 100; ++i) {
      const int64_t drafts = d.Next();
      times.Verified(drafts + 1, static_cast<double>(drafts + 1));
      if (!free) lost += times.draft() * static_cast<double>(drafts);
    }
    EXPECT_LT(lost, 0.01 * 100);
  }
}

TEST(DraftLength, FreeDraftsAreMadeWhereThoseOfAPassAreNot) {
  const PassTimes times = Times(1.0, 0.2);
  Acceptance of_plan, of_lookup;
  DraftLength plan(15, true, false, times, of_plan), lookup(15, true, true, times, of_lookup);
  EXPECT_EQ(plan.Next(), 0);
  EXPECT_GT(lookup.Next(), 0);
}

TEST(DraftLength, ADenseStepIsTimedFirst) {
  PassTimes times;
  Acceptance acceptance;
  DraftLength d(15, true, false, times, acceptance);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(d.Next(), 0) << "the first one may be slow";
    times.Verified(1, 1.0);
  }
  EXPECT_GT(d.Next(), 0) << "the plan's pass is not known";
  times = Times(0.2, 0.05);
  times.ForgetDense();
  EXPECT_EQ(d.Next(), 0);
}

TEST(DraftLength, ComesBackWhenDraftsPayAgain) {
  const PassTimes times = Times(0.3, 0.05);
  Acceptance acceptance;
  DraftLength d(15, true, false, times, acceptance);
  for (int i = 0; i < 50; ++i) d.Verified(3, 0);
  int64_t turns = 0;
  while (turns < 100 && d.Next() == 0) ++turns;
  EXPECT_LT(turns, 100) << "it tries again";
  int64_t drafted = 0;
  for (turns = 0; turns < 20000 && drafted < 200; ++turns) {
    const int64_t n = d.Next();
    if (n > 0) d.Verified(n, n), drafted += n;
  }
  EXPECT_GE(drafted, 200);
  EXPECT_GT(d.Next(), 2);
}

TEST(DraftLength, OneMoreRowThanWasSeenIsTriedWhereItMayPay) {
  PassTimes times;
  for (int i = 0; i < 2; ++i) times.Verified(1, 1.0);
  times.Drafted(0.5);
  for (int i = 0; i < 2; ++i) times.Verified(2, 1.5);  // on a straight line three rows take 2.0
  Acceptance acceptance{.accepted = 19, .rejected = 1, .seen = 16};
  DraftLength d(15, true, false, times, acceptance);
  EXPECT_EQ(CheapestDrafts(times, false, acceptance.share(), 15), 0);
  EXPECT_EQ(d.Next(), 2);
  for (int i = 0; i < 2; ++i) times.Verified(3, 2.4);
  EXPECT_EQ(d.Next(), 0) << "it was tried and does not pay";
}

TEST(DraftLength, ADenseStepIsTimedAgain) {
  PassTimes times = Times(0.3, 0.05);
  Acceptance acceptance{.accepted = 19, .rejected = 1, .seen = 16};
  DraftLength d(7, true, false, times, acceptance);
  int64_t turns = 0;
  for (; turns < 100; ++turns) {
    const int64_t n = d.Next();
    if (n == 0) break;
    times.Verified(n + 1, 1 + 0.05 * static_cast<double>(n));
  }
  EXPECT_GE(turns, 24);
  EXPECT_LT(turns, 100);
  times.Verified(1, 1.0);
  EXPECT_GT(d.Next(), 0);
}

TEST(DraftLength, ABadMomentOfOneNumberIsNotItsEnd) {
  PassTimes times;
  for (int i = 0; i < 2; ++i) times.Verified(1, 1.0);
  times.Drafted(0.4);
  const auto seconds = [](int64_t rows) {
    return rows == 1 ? 1.0 : rows < 4 ? 1.25 : 0.7 * static_cast<double>(rows);
  };
  for (int64_t rows = 2; rows <= 8; ++rows) {
    for (int i = 0; i < 2; ++i) times.Verified(rows, rows == 3 ? 1.8 : seconds(rows));
  }
  Acceptance acceptance{.accepted = 19, .rejected = 1, .seen = 16};
  DraftLength d(7, true, false, times, acceptance);
  EXPECT_EQ(d.Next(), 1) << "two drafts were seen when the machine was busy";
  int64_t two = 0;
  for (int turn = 0; turn < 400; ++turn) {
    const int64_t n = d.Next();
    two += n == 2;
    times.Verified(n + 1, seconds(n + 1));
    d.Verified(n, n);
  }
  EXPECT_GT(two, 150);
}

TEST(DraftHistory, ANewRequestBeginsWithWhatEarlierOnesSaw) {
  DraftHistory history;
  history.times = Times(0.5, 0.05);
  for (int i = 0; i < 200; ++i) history.plan.Add(4, 4), history.short_match.Add(4, 0);
  DraftHistory next = history.ForNext();
  EXPECT_FALSE(next.times.dense_known());
  EXPECT_DOUBLE_EQ(next.times.draft(), 0.5);
  EXPECT_GT(next.plan.share(), 0.95);
  EXPECT_LT(next.short_match.share(), 0.1);
  EXPECT_LT(next.long_match.accepted, 4) << "nothing was seen";
  for (int i = 0; i < 12; ++i) next.plan.Add(4, 0);
  EXPECT_LT(next.plan.share(), 0.6) << "its own drafts count more";
}

TEST(PassTimes, RowsThatWereNotSeenLieOnStraightLines) {
  PassTimes times = Times(0.5, 0.1);
  EXPECT_DOUBLE_EQ(times.Verify(1), 1);
  for (const int64_t rows : {2, 3, 5, 8, 16})
    EXPECT_NEAR(times.Verify(rows), 1 + 0.1 * static_cast<double>(rows - 1), 1e-9) << rows;
  // In dense passes: what another depth or machine state changes alike is no news.
  times.ForgetDense();
  times.Verified(1, 2.0);
  times.Verified(3, 2.4);
  EXPECT_NEAR(times.Verify(3), 1.2, 1e-9);
}

TEST(PassTimes, RowsBeyondThoseSeenAreNotCheaperThanThose) {
  PassTimes times;
  times.Verified(1, 1.0);
  times.Verified(2, 1.3);
  times.Verified(3, 1.2);  // the noise of a short pass
  EXPECT_NEAR(times.Verify(5), 1.4, 1e-9);
}

TEST(PassTimes, APassThatTheMachineDisturbedCountsForNothing) {
  PassTimes times = Times(0.5, 0.1);
  for (const double seconds : {1.0, 4.0, 1.0, 6.0}) times.Verified(1, seconds);
  EXPECT_DOUBLE_EQ(times.dense_seconds(), 1.0);
  times.Verified(3, 9.0);
  EXPECT_NEAR(times.Verify(3), 1.2, 1e-9);
  for (int i = 0; i < 3; ++i) times.Verified(3, 1.5);
  EXPECT_NEAR(times.Verify(3), 1.5, 1e-9) << "what lasts is news";
}

}  // namespace
}  // namespace baton
