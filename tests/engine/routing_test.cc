// Layers routed to full attention or to windows that free their cache: the properties of arXiv
// 2604.07394 as Baton keeps them, on synthetic models.
#include <cstring>
#include <map>

#include "tests/engine/routed_run.h"

namespace baton {
namespace {

using namespace test;

constexpr RouterSettings kSettings{.pool = 16, .sink = 16, .window = 64};

struct RoutingCase {
  BackendCase backend;
  std::string architecture;
};
std::vector<RoutingCase> Cases() {
  std::vector<RoutingCase> cases;
  for (const BackendCase& b : BackendCases())
    for (const char* a : {"llama", "qwen3", "gemma3"}) cases.push_back({b, a});
  return cases;
}
void PrintTo(const RoutingCase& c, std::ostream* out) {
  *out << c.backend.name << " " << c.architecture;
}

Request TokensRequest(std::vector<int32_t> tokens, std::optional<RouteOptions> route,
                      int64_t max_tokens = 8) {
  Request r;
  r.tokens = std::move(tokens);
  r.max_tokens = max_tokens;
  r.ignore_end = true;
  r.route = std::move(route);
  return r;
}

std::string Fingerprint(const Generation& g) {
  std::string s = g.stats.routing ? g.stats.routing->bitmap : "";
  s += " " + g.stats.logits_hash;
  for (const int32_t t : g.tokens) s += fmt::format(" {}", t);
  return s;
}

class RoutingTest : public ::testing::TestWithParam<RoutingCase> {
 protected:
  SyntheticSpec spec() const { return TinySpec(GetParam().architecture); }
  bool reference() const { return GetParam().backend.backend == Backend::kReference; }
  double tolerance() const { return GetParam().backend.tolerance; }
  std::unique_ptr<Engine> Plain(EngineOptions options = {}) const {
    return LoadEngine(spec(), GetParam().backend, options);
  }
  std::unique_ptr<Engine> Balanced(EngineOptions options = {}) const {
    static std::map<std::string, RouterFile> routers;
    auto [it, fresh] = routers.try_emplace(GetParam().architecture);
    if (fresh) it->second = BalancedRouter(spec(), kSettings, 3);
    return LoadWithRouter(ModelFile(spec()), it->second, GetParam().backend, options);
  }
  static Plan Windows(Engine& engine, int64_t sink, int64_t window) {
    return RouteEveryLayer(engine.impl().shape(),
                           {.pool = kSettings.pool, .sink = sink, .window = window});
  }
  // Decisions by the bits of `seed`; layers that the model limits are full.
  static std::string Bitmap(Engine& engine, uint64_t seed) {
    std::string bitmap;
    for (int l = 0; l < engine.info().layers; ++l) {
      const bool routed = engine.impl().shape().Window(l) == 0;
      bitmap += routed && (seed * 0x9E3779B97F4A7C15u >> (40 + l) & 1) ? 'S' : 'F';
    }
    return bitmap;
  }
};

TEST_P(RoutingTest, ForcedFullIsThePlainModelBitByBit) {
  auto engine = Plain({.prompt_chunk = 48});
  const std::vector<int32_t> tokens = RandomTokens(150, 1);
  const Generation plain = engine->Generate(TokensRequest(tokens, {})).value();
  for (const Mode mode : {Mode::kExact, Mode::kProbe, Mode::kTwoPass, Mode::kDense}) {
    auto g = engine->Generate(TokensRequest(tokens, RouteOptions{.mode = mode, .mask = "full"}));
    ASSERT_TRUE(g.ok()) << g.error().ToString();
    EXPECT_EQ(g->tokens, plain.tokens);
    EXPECT_EQ(g->stats.logits_hash, plain.stats.logits_hash);
    EXPECT_EQ(g->stats.kv_bytes_held, plain.stats.kv_bytes_held);
    EXPECT_EQ(g->stats.routing->source, "forced");
    EXPECT_EQ(g->stats.routing->bitmap, std::string(static_cast<size_t>(spec().layers), 'F'));
  }
}

TEST_P(RoutingTest, WindowsThatHoldEverythingEqualDense) {
  auto engine = Plain({.prompt_chunk = 32});
  const std::vector<int32_t> tokens = RandomTokens(80, 2);
  const Plan plan = Windows(*engine, 16, 64);
  const auto dense = RunMasked(*engine, tokens, 40, Bitmap(*engine, 0), plan);
  for (const std::string& mask : {std::string("sparse"), Bitmap(*engine, 5)}) {
    for (const Mode mode : {Mode::kExact, Mode::kTwoPass, Mode::kDense}) {
      const auto run = RunRouted(*engine, tokens, 40, {.mode = mode, .mask = mask}, plan);
      EXPECT_LE(LargestDifference(run->last, dense->last), tolerance()) << mask;
      EXPECT_LE(LargestDifference(run->decoded, dense->decoded), tolerance()) << mask;
    }
  }
}

// Around the sink, the window, where the window first leaves it behind, and the borders of pages;
// RunRouted checks after every token what the caches hold.
TEST_P(RoutingTest, EvictedDecodeEqualsMaskedDecode) {
  auto engine = Plain({.prompt_chunk = 48});
  constexpr int64_t kDecoded = 10;
  std::vector<std::array<int64_t, 2>> windows = {{4, 32}, {16, 64}};
  if (!kSlowBuild) windows.insert(windows.end(), {{64, 128}, {0, 50}, {70, 1}});
  uint64_t seed = 0;
  for (const auto& [sink, window] : windows) {
    const Plan plan = Windows(*engine, sink, window);
    std::vector<int64_t> lengths = {1, 200};
    for (const int64_t edge : {sink, window, sink + window, int64_t{64}, int64_t{128}}) {
      for (const int64_t d : {-kDecoded, int64_t{-1}, int64_t{0}, int64_t{1}})
        if (edge + d > 0) lengths.push_back(edge + d);
    }
    for (const int64_t prompt : lengths) {
      const std::vector<int32_t> tokens = RandomTokens(prompt + kDecoded, ++seed);
      const std::string bitmap =
          seed % 4 == 0 ? Bitmap(*engine, ~uint64_t{0}) : Bitmap(*engine, seed);
      const auto run = RunRouted(*engine, tokens, prompt, {.mask = bitmap}, plan);
      const auto masked = RunMasked(*engine, tokens, prompt, bitmap, plan);
      const std::string what = fmt::format("{} + {}, prompt {}, {}", sink, window, prompt, bitmap);
      EXPECT_EQ(run->report.bitmap, bitmap) << what;
      EXPECT_LE(LargestDifference(run->last, masked->last), tolerance()) << what;
      EXPECT_LE(LargestDifference(run->decoded, masked->decoded), tolerance()) << what;
    }
  }
}

// Not a test of equal nothings: windows do change what is generated.
TEST_P(RoutingTest, WindowsAreNotSilentlyFull) {
  auto engine = Plain();
  const std::vector<int32_t> tokens = RandomTokens(210, 2);
  const Plan plan = Windows(*engine, 4, 32);
  const auto full = RunRouted(*engine, tokens, 200, {.mask = "full"}, plan);
  for (const Mode mode : {Mode::kExact, Mode::kDense}) {
    const auto run = RunRouted(*engine, tokens, 200, {.mode = mode, .mask = "sparse"}, plan);
    EXPECT_GT(LargestDifference(run->decoded, full->decoded), 2 * tolerance());
    EXPECT_EQ(LargestDifference(run->last, full->last) > 2 * tolerance(), mode == Mode::kExact);
  }
}

TEST_P(RoutingTest, LongGenerationHoldsNoMoreThanSinkAndWindow) {
  auto engine = Plain();
  const std::vector<int32_t> tokens = RandomTokens(kSlowBuild ? 150 : 420, 4);
  RunRouted(*engine, tokens, 20, {.mask = "sparse"}, Windows(*engine, 5, 37));  // checks each token
  Request r = TokensRequest(RandomTokens(20, 4), RouteOptions{.mask = "sparse"}, 300);
  r.plan = Windows(*engine, 5, 37);
  const Generation g = engine->Generate(r).value();
  for (int l = 0; l < spec().layers; ++l) {
    const bool routed = engine->impl().shape().Window(l) == 0;
    EXPECT_EQ(g.stats.routing->held_token_equivalents[static_cast<size_t>(l)],
              routed ? 42 : spec().window);
  }
  EXPECT_EQ(g.stats.routing->dense_token_equivalents, 319 * spec().layers);
  const int64_t full = FullKvBytes(engine->impl().shape(), 319, engine->impl().cache_element());
  EXPECT_LT(g.stats.kv_bytes_held, full / 3);
}

TEST_P(RoutingTest, PromptsOfEveryModeFollowTheirRule) {
  auto engine = Balanced({.prompt_chunk = 40});
  int sparse = 0, full = 0;
  for (const int64_t prompt : {1, 10, 16, 17, 31, 32, 33, 80, 150, 230}) {
    const std::vector<int32_t> tokens = RandomTokens(prompt + 6, static_cast<uint64_t>(prompt));
    const Plan plan = Windows(*engine, kSettings.sink, kSettings.window);
    const auto run = [&](Mode mode) {
      return RunRouted(*engine, tokens, prompt, {.mode = mode}, plan);
    };
    const auto exact = run(Mode::kExact), two = run(Mode::kTwoPass), probe = run(Mode::kProbe),
               dense = run(Mode::kDense);
    const std::string& bitmap = exact->report.bitmap;
    sparse += static_cast<int>(std::count(bitmap.begin(), bitmap.end(), 'S'));
    full += static_cast<int>(std::count(bitmap.begin(), bitmap.end(), 'F'));
    const int64_t pooled =
        std::min<int64_t>(prompt, 16) + (prompt > 16 ? std::min<int64_t>(prompt, 16) : 0);
    EXPECT_EQ(exact->report.rows_pooled, pooled);
    EXPECT_EQ(exact->report.source, "exact");
    EXPECT_EQ(dense->report.source, "dense");
    // Exact pass by layers and brute force under its decisions.
    const auto masked = RunMasked(*engine, tokens, prompt, bitmap, plan);
    EXPECT_LE(LargestDifference(exact->last, masked->last), tolerance()) << prompt;
    EXPECT_LE(LargestDifference(exact->decoded, masked->decoded), tolerance()) << prompt;
    EXPECT_EQ(two->report.bitmap, bitmap) << prompt;
    EXPECT_EQ(two->report.logits, exact->report.logits);
    EXPECT_LE(LargestDifference(two->last, exact->last), tolerance()) << prompt;
    EXPECT_LE(LargestDifference(two->decoded, exact->decoded), tolerance()) << prompt;
    if (prompt <= 2 * kSettings.pool) {
      EXPECT_EQ(probe->report.bitmap, bitmap) << prompt;
      EXPECT_LE(LargestDifference(probe->decoded, exact->decoded), tolerance()) << prompt;
    }
    // Layer 0 sees the same rows at the same positions.
    EXPECT_EQ(probe->report.logits[0], exact->report.logits[0]);
    // A dense prompt, then windows.
    const auto later =
        RunMasked(*engine, tokens, prompt, dense->report.bitmap, plan, /*in_prompts=*/false);
    const auto plain = RunMasked(*engine, tokens, prompt, Bitmap(*engine, 0), plan);
    EXPECT_LE(LargestDifference(dense->last, plain->last), tolerance()) << prompt;
    EXPECT_LE(LargestDifference(dense->decoded, later->decoded), tolerance()) << prompt;
    // The parts in the open are what a request does.
    const Generation g =
        engine
            ->Generate(TokensRequest({tokens.begin(), tokens.begin() + prompt}, RouteOptions{}, 1))
            .value();
    EXPECT_EQ(g.stats.routing->bitmap, bitmap);
    EXPECT_EQ(g.stats.logits_hash, HashText(HashLogits(exact->last)));
  }
  EXPECT_GT(sparse, 3);
  EXPECT_GT(full, 3);
}

TEST_P(RoutingTest, BitmapDependsOnTheTokensAlone) {
  std::vector<std::vector<int32_t>> prompts;
  for (const int64_t n : {5, 40, 90, 170})
    prompts.push_back(RandomTokens(n, 70 + static_cast<uint64_t>(n)));
  std::vector<std::string> bitmaps;
  for (const int64_t chunk : {16, 50, 512}) {
    auto engine = Balanced({.threads = chunk == 50 ? 1 : 2, .prompt_chunk = chunk});
    for (size_t i = 0; i < prompts.size(); ++i) {
      const Generation g = engine->Generate(TokensRequest(prompts[i], RouteOptions{})).value();
      if (chunk == 16) bitmaps.push_back(g.stats.routing->bitmap);
      EXPECT_EQ(g.stats.routing->bitmap, bitmaps[i]) << "chunk " << chunk << ", prompt " << i;
    }
  }
}

// Requests of all kinds, interleaved pass by pass, have the bits of single runs.
TEST_P(RoutingTest, BatchesOfRoutesEqualSingleRuns) {
  const EngineOptions options{.kv_tokens = 4096, .prompt_chunk = 16};
  std::vector<Request> requests;
  for (const Mode mode : {Mode::kExact, Mode::kProbe, Mode::kTwoPass, Mode::kDense}) {
    const auto seed = static_cast<uint64_t>(mode);
    requests.push_back(TokensRequest(RandomTokens(60 + 31 * static_cast<int64_t>(seed), seed),
                                     RouteOptions{.mode = mode}, 40));
  }
  requests.push_back(TokensRequest(RandomTokens(90, 20), {}, 30));
  requests.push_back(TokensRequest(RandomTokens(90, 21), RouteOptions{.mask = "sparse"}, 30));
  requests.push_back(TokensRequest(RandomTokens(90, 22), RouteOptions{.margin = 0.2}, 30));
  std::vector<std::string> alone;
  for (const Request& r : requests)
    alone.push_back(Fingerprint(Balanced(options)->Generate(r).value()));
  for (const double share : {1.0, 0.001}) {  // and layer by layer
    EngineOptions parts = options;
    parts.prompt_share = share;
    const std::vector<Generation> together = Balanced(parts)->GenerateBatch(requests).value();
    for (size_t i = 0; i < requests.size(); ++i) EXPECT_EQ(Fingerprint(together[i]), alone[i]) << i;
  }
}

TEST_P(RoutingTest, LayerZeroLooksAtTheEndsOfThePrompt) {
  auto engine = Balanced();
  const std::vector<int32_t> tokens = RandomTokens(120, 9);
  const auto logits = [&](std::vector<int32_t> t) {
    return engine->Generate(TokensRequest(std::move(t), RouteOptions{}, 1))
        .value()
        .stats.routing->logits;
  };
  const int routed = spec().architecture == "gemma3" ? 5 : 0;  // the first layer that has a choice
  std::vector<int32_t> middle = tokens, first = tokens, last = tokens;
  for (size_t i = 16; i < 120 - 16; ++i) middle[i] = (middle[i] + 7) % 256;
  first[15] = (first[15] + 7) % 256;
  last[120 - 16] = (last[120 - 16] + 7) % 256;
  const auto z = logits(tokens);
  EXPECT_EQ(logits(middle)[0], z[0]);  // zeros where layer 0 has no choice
  EXPECT_NE(logits(middle)[static_cast<size_t>(spec().layers - 1)],
            z[static_cast<size_t>(spec().layers - 1)]);
  EXPECT_NE(logits(first)[static_cast<size_t>(routed)], z[static_cast<size_t>(routed)]);
  EXPECT_NE(logits(last)[static_cast<size_t>(routed)], z[static_cast<size_t>(routed)]);
}

// Keys and values that no window has lost anything of.
TEST_P(RoutingTest, EarlyPositionsAreTheSameUnderAnyBitmap) {
  auto engine = Plain({.prompt_chunk = 48});
  const std::vector<int32_t> tokens = RandomTokens(150, 12);
  const Plan plan = Windows(*engine, 16, 48);
  const auto dense = RunMasked(*engine, tokens, 150, Bitmap(*engine, 0), plan);
  for (const uint64_t seed : {uint64_t{1}, uint64_t{2}, ~uint64_t{0}}) {
    const auto run = RunMasked(*engine, tokens, 150, Bitmap(*engine, seed), plan);
    for (int c = 0; c < spec().layers; ++c) {
      const KvView a = dense->kv().View(c), b = run->kv().View(c);
      for (int64_t n = 0; n < 16 + 48; ++n) {
        ASSERT_EQ(std::memcmp(a.row(n), b.row(n), static_cast<size_t>(a.layout.row_bytes())), 0)
            << "layer " << c << ", position " << n << ", " << Bitmap(*engine, seed);
      }
    }
  }
}

TEST_P(RoutingTest, MarginsMasksAndPins) {
  auto engine = Balanced();
  const std::vector<int32_t> tokens = RandomTokens(100, 31);
  const auto report = [&](const RouteOptions& o) {
    auto g = engine->Generate(TokensRequest(tokens, o, 1));
    EXPECT_TRUE(g.ok()) << g.error().ToString();
    return *g->stats.routing;
  };
  const auto routed = [&](size_t l) {
    return engine->impl().shape().Window(static_cast<int>(l)) == 0;
  };
  for (const double margin : {0.0, 0.1, 0.5, 100.0}) {
    const RoutingReport r = report({.margin = margin});
    for (size_t l = 0; l < r.bitmap.size(); ++l) {
      const double lead = static_cast<double>(r.logits[l][0]) - r.logits[l][1];
      EXPECT_EQ(r.bitmap[l], routed(l) && lead >= margin ? 'S' : 'F') << l;
    }
  }
  const RoutingReport free = report({});
  for (const std::string& pins : {std::string("F"), std::string("S")}) {
    std::string mask(free.bitmap.size(), '?');
    for (size_t l = 0; l < mask.size(); l += 2)
      if (routed(l)) mask[l] = pins[0];
    const RoutingReport r = report({.mask = mask});
    EXPECT_EQ(r.source, "exact");
    for (size_t l = 0; l < mask.size(); ++l) {
      if (!routed(l)) continue;
      if (mask[l] == '?') {
        EXPECT_NE(r.logits[l], (std::array<float, 2>{}));
        EXPECT_EQ(r.bitmap[l], r.logits[l][1] > r.logits[l][0] ? 'F' : 'S');
      } else {
        EXPECT_EQ(r.logits[l], (std::array<float, 2>{}));  // the router was not asked
        EXPECT_EQ(r.bitmap[l], mask[l]);
      }
    }
  }
  EXPECT_EQ(report({.mask = "full"}).rows_pooled, 0);
}

INSTANTIATE_TEST_SUITE_P(Models, RoutingTest, ::testing::ValuesIn(Cases()), [](const auto& info) {
  return std::string(info.param.backend.name) + "_" + info.param.architecture;
});

}  // namespace
}  // namespace baton
