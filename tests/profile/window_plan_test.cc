// Static lists of window layers: their rankings, and what is measured of them.
#include <algorithm>
#include <cmath>

#include "baton/profile.h"
#include "profile/input_entropy.h"
#include "results/records.h"
#include "tests/attention/engine_test_util.h"

namespace baton {
namespace {

using namespace test;

// Column j of an orthonormal basis of n (a power of two) dimensions, element i.
float Hadamard(int64_t i, int64_t j, int64_t n) {
  const float size = 1 / std::sqrt(static_cast<float>(n));
  return __builtin_popcountll(static_cast<uint64_t>(i & j)) % 2 ? -size : size;
}

// [rows, columns] with the given singular values.
std::vector<float> OfSpectrum(int64_t rows, int64_t columns, const std::vector<double>& singular) {
  std::vector<float> x(static_cast<size_t>(rows * columns), 0);
  for (size_t s = 0; s < singular.size(); ++s) {
    const auto k = static_cast<int64_t>(s);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        x[static_cast<size_t>(i * columns + j)] +=
            static_cast<float>(singular[s]) * Hadamard(i, k, rows) * Hadamard(j, k, columns);
      }
    }
  }
  return x;
}

double EntropyOf(const std::vector<float>& x, int64_t rows, int64_t columns) {
  return SpectralEntropy(View<const float>(x.data(), {rows, columns}));
}

TEST(SpectralEntropy, IsThatOfAKnownSpectrumHoweverManyRows) {
  const std::vector<double> singular = {3, 2, 1, 0.5, 0.25, 0.1};
  double total = 0, expected = 0;
  for (const double s : singular) total += s * s;
  for (const double s : singular) expected -= s * s / total * std::log(s * s / total);
  for (const auto& [rows, columns] : {std::pair{64, 8}, {8, 64}, {16, 16}})
    EXPECT_NEAR(EntropyOf(OfSpectrum(rows, columns, singular), rows, columns), expected, 1e-5);
}

TEST(SpectralEntropy, CountsTheLargestSixtyFourAndNothingOfNothing) {
  EXPECT_NEAR(EntropyOf(OfSpectrum(128, 128, std::vector<double>(128, 2)), 128, 128),
              0.5 * std::log(128), 1e-5);
  EXPECT_NEAR(EntropyOf(OfSpectrum(32, 16, {5}), 32, 16), 0, 1e-5);
  EXPECT_EQ(EntropyOf(std::vector<float>(32 * 16, 0), 32, 16), 0);
}

std::string Words(int64_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string text;
  while (static_cast<int64_t>(text.size()) < bytes)
    text += fmt::format("{}{} ", static_cast<char>('a' + random() % 26), random() % 50);
  return text;
}

struct Fixture {
  std::unique_ptr<Engine> engine;
  Profile profile;
};

Fixture Profiled(SyntheticSpec spec) {
  Fixture f{.engine = LoadEngine(spec, BackendCases().front())};
  ProfileOptions o;
  o.texts = {WriteFile("words.txt", Words(4000, 1))};
  o.context = 512;
  o.probes = 3;
  o.budgets = {32};
  o.windows = {64};
  o.sink = 2;
  o.recent = 8;
  auto profile = MakeProfile(*f.engine, o);
  BATON_CHECK(profile.ok());
  f.profile = std::move(profile).value();
  return f;
}

// Made once: most tests read it.
Fixture& Shared() {
  static Fixture* const fixture = [] {
    SyntheticSpec spec = TinySpec();
    spec.layers = 4;
    return new Fixture(Profiled(spec));
  }();
  return *fixture;
}

WindowPlan Planned(const Profile& profile, const WindowOptions& options) {
  auto list = PlanWindows(*Shared().engine, profile, options);
  EXPECT_TRUE(list.ok()) << (list.ok() ? "" : list.error().ToString());
  return list.ok() ? std::move(list).value() : WindowPlan();
}

TEST(InputEntropy, IsThatOfTheStreamsThatEnterTheLayers) {
  for (const char* architecture : {"llama", "gemma3"}) {
    SCOPED_TRACE(architecture);
    const auto engine = LoadEngine(TinySpec(architecture), BackendCases().front());
    const ModelInfo& info = engine->info();
    const int64_t count = 200;
    const std::vector<int32_t> tokens = RandomTokens(count, 3);
    int last = -1;
    auto entropy = InputEntropy(*engine, tokens, [&](int l) { last = l; });
    ASSERT_TRUE(entropy.ok()) << entropy.error().ToString();
    ASSERT_EQ(static_cast<int>(entropy->size()), info.layers);
    EXPECT_EQ(last, info.layers - 1);

    const int64_t stream = count * info.width;
    std::vector<float> streams(static_cast<size_t>(info.layers * stream)), x(count * info.width);
    Session session = NewSession(*engine, count);
    ASSERT_TRUE(session.Decode(tokens, {.capture = streams.data()}).ok());
    const auto& layers = engine->impl().model->weights().layers;
    for (size_t l = 0; l < layers.size(); ++l) {
      const View<float> normed(x.data(), {count, info.width});
      engine->impl().ops->Norm(
          {.x = View<const float>(streams.data() + static_cast<int64_t>(l) * stream,
                                  {count, info.width}),
           .weight = layers[l].vector(TensorRole::kAttnNorm),
           .eps = engine->impl().model->config().norm_eps,
           .y = normed});
      EXPECT_NEAR((*entropy)[l], SpectralEntropy(normed), 1e-4);
    }
  }
}

TEST(PlanWindows, TheLowestScoresBecomeWindowsAndTheRestStaysFull) {
  for (const WindowRank rank : {WindowRank::kHarm, WindowRank::kEntropy}) {
    const WindowPlan list =
        Planned(Shared().profile, {.share = 0.6, .rank = rank, .sink = 2, .window = 62});
    ASSERT_EQ(list.score.size(), 4u);
    double highest_window = -1, lowest_full = 1e9;
    int windows = 0;
    for (size_t l = 0; l < 4; ++l) {
      const LayerRole& role = list.plan.layers[l];
      if (role.role == Role::kWindow) {
        ++windows;
        EXPECT_EQ(role.sink, 2);
        EXPECT_EQ(role.recent, 62);
        highest_window = std::max(highest_window, list.score[l]);
      } else {
        EXPECT_EQ(role.role, Role::kFull);
        lowest_full = std::min(lowest_full, list.score[l]);
      }
    }
    EXPECT_EQ(windows, 2);  // 0.6 of 4, rounded down
    EXPECT_LE(highest_window, lowest_full);

    ASSERT_EQ(list.measures.size(), 1u);
    const WindowMeasure& m = list.measures[0];
    EXPECT_FALSE(m.in_prompt);
    EXPECT_GT(m.kl, 0);
    EXPECT_EQ(m.probes, 2);
    EXPECT_NEAR(m.kv_bytes_share, 0.5 + 0.5 * 64 / 256, 1e-9);
    EXPECT_EQ(m.kv_held_share, 1);  // a plan's windows free nothing
    const Evidence& e = list.plan.evidence;
    EXPECT_TRUE(e.present);
    EXPECT_EQ(e.kl, m.kl);
    EXPECT_EQ(e.predicted_nats > 0, rank == WindowRank::kHarm);
    auto again = Plan::Parse(list.plan.ToJson());
    ASSERT_TRUE(again.ok()) << again.error().ToString();
    EXPECT_EQ(again->layers, list.plan.layers);
  }
}

TEST(PlanWindows, HarmThatTheProfileLacksIsMeasuredAlike) {
  const WindowOptions options{.share = 0.5, .sink = 2, .window = 62};
  const WindowPlan from_profile = Planned(Shared().profile, options);
  Profile without = Shared().profile;
  without.options.windows.clear();
  const WindowPlan measured = Planned(without, options);
  ASSERT_EQ(measured.score.size(), from_profile.score.size());
  for (size_t l = 0; l < measured.score.size(); ++l) {
    EXPECT_GT(measured.score[l], 0);
    EXPECT_NEAR(measured.score[l], from_profile.score[l], 1e-6);
    EXPECT_EQ(measured.score[l], measured.harm_text[l] + measured.harm_answer[l]);
  }
  EXPECT_EQ(measured.plan.layers, from_profile.plan.layers);
}

TEST(PlanWindows, RoutedListsAreMeasuredAsAMaskRunsThem) {
  const WindowPlan list = Planned(Shared().profile, {.sink = 2, .window = 62, .route = true});
  ASSERT_EQ(list.measures.size(), 2u);
  EXPECT_FALSE(list.measures[0].in_prompt);
  EXPECT_TRUE(list.measures[1].in_prompt);
  EXPECT_NE(list.measures[0].kl, list.measures[1].kl);
  for (const WindowMeasure& m : list.measures)
    EXPECT_NEAR(m.kv_held_share, 0.5 + 0.5 * 64 / 512, 1e-9);
  EXPECT_EQ(list.plan.evidence.kl, list.measures[1].kl);
  // In decode alone the role in the file makes no difference.
  const WindowPlan windows = Planned(Shared().profile, {.sink = 2, .window = 62});
  EXPECT_EQ(windows.measures[0].kl, list.measures[0].kl);

  Request r;
  r.tokens = RandomTokens(300, 1);
  r.max_tokens = 2;
  r.plan = list.plan;
  r.route = RouteOptions{.mask = "sparse"};
  auto g = Shared().engine->Generate(r);
  ASSERT_TRUE(g.ok()) << g.error().ToString();
  ASSERT_TRUE(g->stats.routing.has_value());
  for (size_t l = 0; l < 4; ++l) {
    EXPECT_EQ(g->stats.routing->bitmap[l] == 'S', list.plan.layers[l].role == Role::kRoute);
  }
}

TEST(PlanWindows, LayersThatTheModelWindowsAreLeftAlone) {
  Fixture f = Profiled(TinySpec("gemma3"));
  for (const WindowRank rank : {WindowRank::kHarm, WindowRank::kEntropy}) {
    auto list =
        PlanWindows(*f.engine, f.profile, {.share = 0.5, .rank = rank, .sink = 2, .window = 62});
    ASSERT_TRUE(list.ok()) << list.error().ToString();
    int windows = 0;
    for (size_t l = 0; l < list->score.size(); ++l) {
      const bool own = f.profile.model_window[l] > 0;
      EXPECT_EQ(std::isnan(list->score[l]), own);
      if (own) EXPECT_EQ(list->plan.layers[l].role, Role::kFull);
      windows += list->plan.layers[l].role == Role::kWindow;
    }
    EXPECT_EQ(windows, 1);                                // two of twelve see the whole context
    const double rows = 10 * 96, dense = rows + 2 * 256;  // at 256 keys
    EXPECT_NEAR(list->measures[0].kv_bytes_share, (rows + 256 + 64) / dense, 1e-9);
  }
}

TEST(PlanWindows, ItsRecordIsReadAsWritten) {
  results::WindowRecord record{.options = {.rank = WindowRank::kEntropy, .route = true}};
  record.list = Planned(Shared().profile, {.sink = 2, .window = 62, .route = true});
  const auto json = results::ToJson<results::Json>(record);
  results::WindowRecord read;
  EXPECT_EQ(results::Read(json, read), "");
  EXPECT_EQ(results::ToJson<results::Json>(read), json);
  EXPECT_EQ(read.options.rank, WindowRank::kEntropy);
}

TEST(PlanWindows, BadOptionsAndOtherModelsAreErrors) {
  const auto error = [](const Profile& profile, const WindowOptions& options) {
    auto list = PlanWindows(*Shared().engine, profile, options);
    return list.ok() ? std::string("no error") : list.error().ToString();
  };
  const Profile& p = Shared().profile;
  const auto expect = [](const std::string& found, const char* part) {
    EXPECT_NE(found.find(part), std::string::npos) << found;
  };
  expect(error(p, {.share = 0.2, .sink = 2, .window = 62}), "at least one of 4 layers");
  expect(error(p, {.share = 1.5, .sink = 2, .window = 62}), "share");
  expect(error(p, {.share = NAN, .sink = 2, .window = 62}), "share");
  expect(error(p, {.sink = 64, .window = 512}), "cover the profile's context of 512");
  expect(error(p, {.sink = -1, .window = 62}), "sink -1");
  expect(error(p, {.sink = 2, .window = 0}), "window 0");
  Profile other = p;
  other.fingerprint = "sha256:00";
  expect(error(other, {.sink = 2, .window = 62}), "another model");
  other = p;
  other.text_sha256 = {"00"};
  expect(error(other, {.sink = 2, .window = 62}), "texts changed");
}

}  // namespace
}  // namespace baton
