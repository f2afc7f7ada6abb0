// Profile and plan search, end to end on a tiny model of random weights.
#include "baton/profile.h"

#include <nlohmann/json.hpp>

#include "tests/attention/engine_test_util.h"

namespace baton {
namespace {

using namespace test;
using nlohmann::json;

// Letters in words from a small vocabulary, so that there is something to attend to.
std::string Words(int64_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string text;
  while (static_cast<int64_t>(text.size()) < bytes) {
    text += fmt::format("{}{} ", static_cast<char>('a' + random() % 26), random() % 50);
  }
  return text;
}

ProfileOptions Options() {
  ProfileOptions o;
  o.texts = {"words=" + WriteFile("words.txt", Words(4000, 1)),
             WriteFile("numbers.md", Words(5000, 2))};
  o.context = 512;
  o.probes = 3;
  o.budgets = {32, 64, 256};
  o.windows = {64, 128};
  o.sink = 2;
  o.recent = 8;
  return o;
}

struct Fixture {
  std::unique_ptr<Engine> engine;
  Profile profile;
};

// Made once: every test reads it.
Fixture& Shared() {
  static Fixture* const fixture = [] {
    auto* f = new Fixture;
    SyntheticSpec spec = TinySpec();
    spec.layers = 4;
    f->engine = LoadEngine(spec, BackendCases().back());
    auto profile = MakeProfile(*f->engine, Options());
    EXPECT_TRUE(profile.ok()) << profile.error().ToString();
    f->profile = std::move(profile).value();
    return f;
  }();
  return *fixture;
}

TEST(Profile, LostMassIsAShareThatFallsWithTheBudget) {
  const Profile& p = Shared().profile;
  const size_t n = 4;
  ASSERT_EQ(p.text.size(), 3u);
  for (const auto* tables : {&p.text, &p.answer, &p.worst}) {
    for (size_t b = 0; b < tables->size(); ++b) {
      ASSERT_EQ((*tables)[b].size(), n * n);
      for (size_t i = 0; i < n; ++i) {
        for (size_t j = i; j < n; ++j) {
          const float lost = (*tables)[b][i * n + j];
          EXPECT_GE(lost, 0);
          EXPECT_LE(lost, 1);
          if (b > 0) EXPECT_LE(lost, (*tables)[b - 1][i * n + j] + 1e-6f);
        }
      }
    }
  }
  for (size_t b = 0; b < 3; ++b) {
    for (size_t j = 0; j < n; ++j) {
      EXPECT_GT(p.text[b][j * n + j], 0);
      EXPECT_LT(p.text[b][j * n + j], 1);
      // Nobody's set serves a layer better than its own.
      for (size_t i = 0; i < j; ++i) EXPECT_GE(p.text[b][i * n + j], p.text[b][j * n + j] - 1e-4f);
      EXPECT_GE(p.scan_text[b][j], p.text[b][j * n + j] - 1e-4f);
      EXPECT_LE(p.scan_text[b][j], 1);
    }
  }
}

TEST(Profile, PricesCostsAndOverlapsAreSane) {
  const Profile& p = Shared().profile;
  for (size_t j = 0; j < 4; ++j) {
    EXPECT_GT(p.price_text[j], 0);
    EXPECT_GT(p.price_answer[j], 0);
    EXPECT_GT(p.rnmse[j], 0);
    EXPECT_GE(p.own_kl[j], 0);
    EXPECT_NEAR(p.overlap[j * 4 + j], 1, 1e-5);
    for (size_t i = 0; i <= j; ++i) {
      EXPECT_GE(p.overlap[i * 4 + j], p.overlap_unforced[i * 4 + j] - 1e-5);
      EXPECT_LE(p.overlap[i * 4 + j], 1 + 1e-5);
    }
    for (size_t w = 0; w < 2; ++w) EXPECT_GE(p.window_text[w][j], 0);
  }
  EXPECT_GT(p.costs.full, 0);
  EXPECT_GE(p.costs.select, p.costs.full);
  EXPECT_GT(p.costs.rest_of_step, 0);
  EXPECT_EQ(p.costs.reuse.size(), 3u);
  ASSERT_EQ(p.splits.size(), 3u);
  for (const SplitInfo& s : p.splits) EXPECT_EQ(s.context, 512);
  EXPECT_EQ(p.splits[0].probes, 3);
  EXPECT_GT(p.splits[0].scored_positions, 0);
}

TEST(Profile, TablesOfTextAreMeansOverItsKinds) {
  const Profile& p = Shared().profile;
  ASSERT_EQ(p.kinds.size(), 2u);
  EXPECT_EQ(p.kinds[0].name, "words");
  EXPECT_EQ(p.kinds[1].name, "md");
  EXPECT_TRUE(p.options.texts[1].starts_with("md="));
  const auto mean = [&](auto value) { return (value(p.kinds[0]) + value(p.kinds[1])) / 2; };
  EXPECT_NE(p.kinds[0].text, p.kinds[1].text);
  for (size_t at = 0; at < 16; ++at)
    EXPECT_NEAR(p.text[1][at], mean([&](const KindLoss& k) { return k.text[1][at]; }), 1e-6);
  for (size_t j = 0; j < 4; ++j) {
    EXPECT_GT(p.kinds[1].price_text[j], 0);
    EXPECT_NEAR(p.window_text[0][j], mean([&](const KindLoss& k) { return k.window_text[0][j]; }),
                1e-6);
  }
}

TEST(Profile, SavedAndLoadedIsTheSame) {
  const std::string path = Scratch().File("profile.json"), again = Scratch().File("again.json");
  ASSERT_TRUE(Shared().profile.Save(path).ok());
  auto loaded = Profile::Load(path);
  ASSERT_TRUE(loaded.ok()) << loaded.error().ToString();
  ASSERT_TRUE(loaded->Save(again).ok());
  std::ifstream a(path), b(again);
  EXPECT_EQ(json::parse(a), json::parse(b));
  EXPECT_EQ(loaded->text, Shared().profile.text);
  EXPECT_EQ(loaded->fingerprint, Shared().engine->info().fingerprint);
  EXPECT_EQ(loaded->options.budgets, Options().budgets);
}

TEST(Profile, BrokenFilesAreErrors) {
  const std::string path = Scratch().File("whole.json");
  ASSERT_TRUE(Shared().profile.Save(path).ok());
  std::ifstream in(path);
  const json whole = json::parse(in);
  const auto expect_error = [](const std::string& text) {
    auto p = Profile::Load(WriteFile("broken.json", text));
    ASSERT_FALSE(p.ok()) << text.substr(0, 200);
    EXPECT_NE(p.error().message().find("broken.json"), std::string::npos);
  };
  EXPECT_EQ(Profile::Load(Scratch().File("absent.json")).error().code(), Error::Code::kNotFound);
  for (const char* text : {"", "{", "[]", "3", "null", "{\"format\":\"baton-plan\"}"})
    expect_error(text);
  expect_error(whole.dump().substr(0, whole.dump().size() / 2));
  for (const auto& [key, value] : whole.items()) {
    json without = whole, other = whole;
    without.erase(key);
    other[key] = json::object({{"no", "thing"}});
    if (key == "splits") continue;
    expect_error(without.dump());
    expect_error(other.dump());
  }
  for (const char* key : {"text", "overlap", "price_text", "window_text", "model_window"}) {
    json shorter = whole;
    shorter[key].erase(0);
    expect_error(shorter.dump());
  }
  // Numbers that are no integers, or beyond what holds them; words that are none of the known.
  const auto expect_error_of = [&](const char* pointer, const json& value) {
    SCOPED_TRACE(fmt::format("{} = {}", pointer, value.dump()));
    json other = whole;
    other[json::json_pointer(pointer)] = value;
    expect_error(other.dump());
  };
  for (const auto& value : {json(-1), json(0), json(1.5), json(2.2e46), json(1ull << 63)}) {
    for (const char* pointer : {"/layers", "/heads", "/kv_heads", "/options/context", "/version",
                                "/options/budgets/0", "/options/block"})
      expect_error_of(pointer, value);
  }
  for (const char* pointer : {"/text/0/0", "/price_text/0", "/overlap/0"})
    for (const auto& value : {json(1e300), json(), json("1")}) expect_error_of(pointer, value);
  expect_error_of("/version", 1);
  expect_error_of("/version", 3);
  expect_error_of("/kinds", json::array());
  expect_error_of("/kinds/0/price_text", json::array());
  expect_error_of("/kinds/1/text/0", json::array({1.0}));
  expect_error_of("/options/sink", INT64_MAX);
  expect_error_of("/options/seed", -1);
  expect_error_of("/options/budgets", json::array());
  expect_error_of("/options/scope", "head_map");
  expect_error_of("/options/pool", "mean");
  expect_error_of("/splits/0/probes", 1e10);
}

TEST(Profile, OptionsAtTheirLimitsAreGood) {
  ProfileOptions o;
  o.context = 512;
  o.probes = 2;
  o.sink = 4, o.recent = 60;
  o.budgets = {64};
  o.windows = {5};
  EXPECT_TRUE(o.Check().ok()) << o.Check().error().ToString();
}

TEST(Profile, BadOptionsAreErrors) {
  const auto expect_error = [](const auto& change) {
    ProfileOptions o = Options();
    change(o);
    EXPECT_FALSE(MakeProfile(*Shared().engine, o).ok());
  };
  expect_error([](auto& o) { o.context = 100; });
  expect_error([](auto& o) { o.probes = 1; });
  expect_error([](auto& o) { o.budgets = {}; });
  expect_error([](auto& o) { o.budgets = {64, 32}; });
  expect_error([](auto& o) { o.budgets = {4}; });
  expect_error([](auto& o) { o.windows = {2}; });
  expect_error([](auto& o) { o.budgets = {0}, o.sink = o.recent = 0; });
  expect_error([](auto& o) { o.block = 0; });
  expect_error([](auto& o) { o.sink = -1; });
  expect_error([](auto& o) { o.scope = Scope::kHeadMap; });
  expect_error([](auto& o) { o.texts = {}; });
  expect_error([](auto& o) { o.texts = {"/does/not/exist"}; });
}

TEST(SearchPlan, ChosenPlanFitsTheModelAndCarriesItsEvidence) {
  Fixture& f = Shared();
  PlanOptions options;
  options.target.max_bytes = 0.7;
  options.target.min_retrieval = 0;
  options.max_evaluations = 8;
  auto search = SearchPlan(*f.engine, f.profile, options);
  ASSERT_TRUE(search.ok()) << search.error().ToString();
  const Plan& plan = search->chosen.plan;
  EXPECT_TRUE(f.engine->CheckPlan(plan, nullptr).ok());
  EXPECT_EQ(plan.fingerprint, f.engine->info().fingerprint);
  EXPECT_LE(search->chosen.kv_bytes_share, 0.7);
  EXPECT_TRUE(search->chosen.meets_target);
  EXPECT_TRUE(plan.evidence.present);
  EXPECT_EQ(plan.evidence.context, 512);
  EXPECT_EQ(plan.evidence.kl, search->test.kl);
  EXPECT_GT(plan.evidence.kl, 0);
  EXPECT_EQ(plan.evidence.text_sha256, f.profile.text_sha256);
  EXPECT_EQ(plan.evidence.retrieval_total, 2);
  EXPECT_TRUE(json::accept(plan.evidence.details));
  EXPECT_TRUE(json::accept(ToJson(*search)));
  EXPECT_LE(search->candidates.size(), 8u + options.prefills.size());
  // The plan survives its file and runs.
  const std::string path = Scratch().File("plan.json");
  ASSERT_TRUE(plan.Save(path).ok());
  auto loaded = Plan::Load(path);
  ASSERT_TRUE(loaded.ok()) << loaded.error().ToString();
  EXPECT_EQ(loaded->layers, plan.layers);
  Request r;
  r.tokens = RandomTokens(600, 1);
  r.max_tokens = 3;
  r.plan = *loaded;
  EXPECT_TRUE(f.engine->Generate(r).ok());
}

TEST(SearchPlan, PromptsAreSparseWhereThatLosesLittle) {
  Fixture& f = Shared();
  PlanOptions options;
  options.roles = {Role::kReuse, Role::kScan};
  options.target.max_bytes = 0.7;
  options.target.min_retrieval = 0;
  options.max_evaluations = 4;
  const auto chosen = [&](std::vector<PrefillMode> prefills) {
    options.prefills = std::move(prefills);
    auto search = SearchPlan(*f.engine, f.profile, options);
    BATON_CHECK(search.ok());
    return std::move(search).value();
  };
  const PrefillMode most{.sparse = true, .tile = 16, .fraction = 0.97, .min = 100};
  const PrefillMode few{.sparse = true, .tile = 16, .fraction = 1e-6, .min = 72};

  const PlanSearch dense = chosen({});
  EXPECT_FALSE(dense.chosen.plan.prefill.sparse);
  // Sets of nearly all keys lose nearly nothing: taken, and no other is tried.
  const PlanSearch covering = chosen({most, few});
  EXPECT_EQ(covering.chosen.plan.prefill, most);
  EXPECT_EQ(covering.chosen.plan.layers, dense.chosen.plan.layers);
  EXPECT_NEAR(covering.chosen.kl, dense.chosen.kl, 0.3 * dense.chosen.kl);
  EXPECT_EQ(covering.candidates.size(), dense.candidates.size() + 1);
  EXPECT_EQ(covering.chosen.plan.evidence.kl, covering.test.kl);

  // Sets of more keys than the context has are no sparse prompts.
  const PrefillMode whole{.sparse = true, .tile = 16, .fraction = 0.1, .min = 512};
  EXPECT_FALSE(chosen({whole}).chosen.plan.prefill.sparse);

  const PlanSearch either = chosen({few, most});
  const double before = dense.chosen.kl + dense.chosen.answer_kl;
  const Candidate& tried = either.candidates[dense.candidates.size()];
  const bool good = tried.meets_target && tried.kl + tried.answer_kl <= 1.5 * before;
  EXPECT_EQ(either.chosen.plan.prefill, good ? few : most);
}

TEST(SearchPlan, PlanThatDraftsHasTheLeastExpectedTime) {
  Fixture& f = Shared();
  PlanOptions options;
  options.for_exact = true;
  options.target.min_retrieval = 0;
  options.max_evaluations = 6;
  auto search = SearchPlan(*f.engine, f.profile, options);
  ASSERT_TRUE(search.ok()) << search.error().ToString();
  EXPECT_FALSE(search->chosen.plan.prefill.sparse);
  ASSERT_FALSE(search->candidates.empty());
  for (const Candidate& c : search->candidates) {
    EXPECT_GT(c.exact_time, 0);
    EXPECT_LE(c.exact_time, 1);
    EXPECT_GE(c.exact_time, search->chosen.exact_time);
  }
}

TEST(SearchPlan, ChoiceIsTheBestCandidateForItsTarget) {
  Fixture& f = Shared();
  const auto search = [&](PlanTarget target, bool bytes, PlanObjective objective) {
    PlanOptions options;
    options.target = target;
    options.target.min_retrieval = 0;
    options.cost_in_bytes = bytes;
    options.objective = objective;
    options.max_evaluations = 16;
    options.prefills = {};
    auto s = SearchPlan(*f.engine, f.profile, options);
    BATON_CHECK(s.ok());
    return std::move(s).value();
  };
  const PlanObjective nats = PlanObjective::kNats;
  for (const bool bytes : {true, false}) {
    const PlanSearch s = search({.max_kl_mean = 0.5}, bytes, nats);
    EXPECT_LE(s.chosen.kl, 0.5);
    int meeting = 0;
    for (const Candidate& c : s.candidates) {
      EXPECT_EQ(c.meets_target, c.kl <= 0.5);
      if (!c.meets_target) continue;
      meeting++;
      if (bytes) EXPECT_GE(c.kv_bytes_share, s.chosen.kv_bytes_share);
      if (!bytes) EXPECT_LE(c.predicted_speedup, s.chosen.predicted_speedup);
    }
    EXPECT_GT(meeting, 1);
  }
  const PlanSearch eighth = search({.max_bytes = 0.6}, true, nats);
  for (const Candidate& c : eighth.candidates) {
    EXPECT_EQ(c.meets_target, c.kv_bytes_share <= 0.6);
    const double badness = c.kl + c.answer_kl, best = eighth.chosen.kl + eighth.chosen.answer_kl;
    if (c.meets_target && c.dense_found == 0) EXPECT_GE(badness, best);
  }
  double fastest = 0;
  for (const Candidate& c : eighth.candidates) fastest = std::max(fastest, c.predicted_speedup);
  const PlanSearch fast = search({.min_speedup = 0.9 * fastest}, true, nats);
  EXPECT_GE(fast.chosen.predicted_speedup, 0.9 * fastest);
  const PlanSearch paper = search({.max_bytes = 1}, true, PlanObjective::kPaper);
  for (const LayerRole& l : paper.chosen.plan.layers)
    EXPECT_TRUE(l.role == Role::kFull || l.role == Role::kSelect || l.role == Role::kReuse);
}

TEST(SearchPlan, TheBoundHoldsForTheWorstKindAndForKindsLeftOut) {
  Fixture& f = Shared();
  PlanOptions options;
  options.target.min_retrieval = 0;
  options.max_evaluations = 12;
  options.prefills = {};
  const auto search = [&](PlanTarget target) {
    options.target = target;
    options.target.min_retrieval = 0;
    auto s = SearchPlan(*f.engine, f.profile, options);
    BATON_CHECK(s.ok());
    return std::move(s).value();
  };
  const PlanSearch s = search({.max_kl = 0.5});
  ASSERT_EQ(s.kinds, (std::vector<std::string>{"words", "md"}));
  for (const Candidate& c : s.candidates) {
    ASSERT_EQ(c.kind_kl.size(), 2u);
    ASSERT_EQ(c.left_out_kl.size(), 2u);
    EXPECT_NEAR(c.kl, (c.kind_kl[0] + c.kind_kl[1]) / 2, 1e-9);
    EXPECT_EQ(c.meets_target, c.WorstKl() <= 0.5 && c.LeftOutKl() <= 0.5);
  }
  EXPECT_EQ(s.test.left_out_kl.size(), 2u);
  EXPECT_EQ(s.left_out_plans.size(), 2u);
  const json details = json::parse(s.chosen.plan.evidence.details);
  EXPECT_EQ(details["worst_kl"], s.test.WorstKl());
  EXPECT_EQ(details["left_out_kl"], s.test.LeftOutKl());
  EXPECT_GT(s.test.spread, 1);
  EXPECT_EQ(details["spread"], s.test.spread);
  EXPECT_EQ(s.chosen.spread, 1);  // one context of each kind
  for (const Candidate& c : search({.max_kl_mean = 0.5}).candidates)
    EXPECT_EQ(c.meets_target, c.kl <= 0.5);
  options.kinds = {"md"};
  const PlanSearch one = search({.max_kl = 0.5});
  EXPECT_EQ(one.kinds, options.kinds);
  EXPECT_TRUE(one.left_out_plans.empty());
  for (const Candidate& c : one.candidates) EXPECT_EQ(c.meets_target, c.kl <= 0.5);
}

TEST(SearchPlan, WithoutProbesThatDenseFindsNoPlanPasses) {
  // A model of random weights finds none.
  Fixture& f = Shared();
  PlanOptions options;
  options.target.max_bytes = 0.7;
  options.max_evaluations = 2;
  auto search = SearchPlan(*f.engine, f.profile, options);
  ASSERT_FALSE(search.ok());
  EXPECT_NE(search.error().ToString().find("--min-retrieval 0"), std::string::npos);
}

TEST(SearchPlan, ImpossibleTargetsAndOtherModelsAreErrors) {
  Fixture& f = Shared();
  PlanOptions options;
  options.max_evaluations = 2;
  options.local_search = false;
  options.target.max_bytes = 1e-6;
  EXPECT_FALSE(SearchPlan(*f.engine, f.profile, options).ok());
  options.target.max_bytes = 2;
  EXPECT_FALSE(SearchPlan(*f.engine, f.profile, options).ok());
  options.target.max_bytes = 0.5;
  options.forced = {4};
  EXPECT_FALSE(SearchPlan(*f.engine, f.profile, options).ok());
  options.forced = {};
  Profile other = f.profile;
  other.fingerprint = "sha256:00";
  EXPECT_FALSE(SearchPlan(*f.engine, other, options).ok());
  other = f.profile;
  other.text_sha256 = {"00"};
  EXPECT_FALSE(SearchPlan(*f.engine, other, options).ok());
  other = f.profile;
  other.options.budgets = {};
  EXPECT_FALSE(SearchPlan(*f.engine, other, options).ok());
}

}  // namespace
}  // namespace baton
