// Routing with its neighbours: the router's network, plans that rank and reuse, chats, errors, a
// real model, and the memory that windows give back.
#include <unistd.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/mapped_file.h"
#include "formats/gguf.h"
#include "formats/gguf_writer.h"
#include "tests/engine/routed_run.h"

namespace baton {
namespace {

using namespace test;

constexpr RouterSettings kSettings{.pool = 16, .sink = 16, .window = 64};

Request TokensRequest(std::vector<int32_t> tokens, std::optional<RouteOptions> route,
                      int64_t max_tokens = 8) {
  Request r;
  r.tokens = std::move(tokens);
  r.max_tokens = max_tokens;
  r.ignore_end = true;
  r.route = std::move(route);
  return r;
}

int64_t Parameters(const LayerRouter& router) {
  int64_t n = 0;
  for (const RouterLinear& l : router.linear) n += std::ssize(l.weight) + std::ssize(l.bias);
  return n;
}

TEST(Router, HasThePublishedNumberOfParameters) {
  EXPECT_EQ(Parameters(SyntheticRouter(kSettings, 1, 128, 1).layers[0]), 592'002);
  EXPECT_EQ(Parameters(SyntheticRouter(kSettings, 1, 64, 1).layers[0]), 148'546);
}

// The paper's router on the queries of `rows`, in double. q: [n, Hq, D], head dims in Hugging Face
// order.
std::array<double, 2> ReferenceRouter(const LayerRouter& router, const std::vector<float>& q,
                                      int64_t rows, int64_t heads, int64_t dim) {
  std::vector<double> x(static_cast<size_t>(dim), 0);
  for (size_t i = 0; i < static_cast<size_t>(rows * heads * dim); ++i)
    x[i % x.size()] += q[i] / static_cast<double>(rows * heads);
  for (size_t i = 0; i < 5; ++i) {
    const RouterLinear& l = router.linear[i];
    std::vector<double> y;
    for (size_t o = 0; o < static_cast<size_t>(l.outputs); ++o) {
      double sum = l.bias[o];
      for (size_t k = 0; k < x.size(); ++k) sum += x[k] * l.weight[o * x.size() + k];
      y.push_back(i == 1 || i == 4 ? sum : sum / (1 + std::exp(-sum)));
    }
    x = y;
  }
  return {x[0], x[1]};
}

// First and last rows, rows in both twice; a short prompt once.
TEST(Router, LogitsAreThoseOfTheReference) {
  for (const char* architecture : {"llama", "qwen3", "gemma3"}) {
    const SyntheticSpec spec = TinySpec(architecture);
    const RouterFile router = SyntheticRouter(kSettings, spec.layers, spec.head_dim, 5);
    auto engine = LoadWithRouter(ModelFile(spec), router, BackendCases()[0]);
    const ModelConfig& config = engine->impl().model->config();
    for (const int64_t total : {1, 15, 16, 17, 25, 32, 33, 70}) {
      const std::vector<int32_t> tokens = RandomTokens(total, 40 + static_cast<uint64_t>(total));
      const Generation g =
          engine->Generate(TokensRequest(tokens, RouteOptions{.mode = Mode::kDense}, 1)).value();
      std::vector<int64_t> rows;
      for (int64_t i = 0; i < std::min<int64_t>(16, total); ++i) rows.push_back(i);
      for (int64_t i = std::max<int64_t>(0, total - 16); total > 16 && i < total; ++i)
        rows.push_back(i);
      std::vector<float> stream(static_cast<size_t>(spec.layers * total * spec.width));
      Session session = NewSession(*engine, total);
      ASSERT_TRUE(session.Decode(tokens, {.logit_rows = {}, .capture = stream.data()}).ok());
      for (int l = 0; l < spec.layers; ++l) {
        if (engine->impl().shape().Window(l) > 0) continue;
        const auto n = std::ssize(rows);
        std::vector<float> x, q(static_cast<size_t>(n * spec.heads * spec.head_dim));
        for (const int64_t row : rows) {
          const float* from = stream.data() + (l * total + row) * spec.width;
          x.insert(x.end(), from, from + spec.width);
        }
        engine->impl().model->Queries(l, View<const float>(x.data(), {n, spec.width}),
                                      View<float>(q.data(), {n, spec.heads, spec.head_dim}));
        if (config.rope_interleaved) {
          const auto d = static_cast<size_t>(spec.head_dim);
          for (size_t h = 0; h < q.size(); h += d) {
            std::vector<float> head;
            for (const size_t s : {0u, 1u})
              for (size_t i = 0; i < d / 2; ++i) head.push_back(q[h + 2 * i + s]);
            std::copy(head.begin(), head.end(), q.begin() + static_cast<int64_t>(h));
          }
        }
        const auto want =
            ReferenceRouter(router.layers[static_cast<size_t>(l)], q, n, spec.heads, spec.head_dim);
        for (size_t i : {0u, 1u}) {
          EXPECT_NEAR(g.stats.routing->logits[static_cast<size_t>(l)][i], want[i],
                      1e-5 * std::max(1.0, std::abs(want[i])) * (l == 0 ? 1 : 5))
              << architecture << ", layer " << l << ", " << total << " tokens";
        }
      }
    }
  }
}

// What training starts from; and a tie is a window.
TEST(Router, FinalBiasesAloneDecide) {
  const SyntheticSpec spec = TinySpec("qwen3");
  for (const auto& [bias, letter] :
       {std::pair{std::array{0.0f, 4.5f}, 'F'}, std::pair{std::array{1.0f, 1.0f}, 'S'}}) {
    RouterFile router = SyntheticRouter(kSettings, spec.layers, spec.head_dim, 5);
    for (LayerRouter& l : router.layers) {
      std::fill(l.linear[4].weight.begin(), l.linear[4].weight.end(), 0.0f);
      l.linear[4].bias = {bias[0], bias[1]};
    }
    auto engine = LoadWithRouter(ModelFile(spec), router, BackendCases().back());
    const auto g = engine->Generate(TokensRequest(RandomTokens(90, 1), RouteOptions{})).value();
    EXPECT_EQ(g.stats.routing->bitmap, std::string(6, letter));
    EXPECT_EQ(g.stats.routing->logits[3], bias);
  }
}

class RoutedPlanTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  RoutedPlanTest() : engine_(LoadEngine(TinySpec(), GetParam(), {.prompt_chunk = 48})) {}

  // route, reuse, route, reuse, route, reuse
  static Plan Routed() {
    Plan plan = Plan::Dense(6);
    plan.budget = {24, 0};
    plan.sink = 2;
    plan.recent = 8;
    plan.min_context = 0;
    for (size_t l = 0; l < 6; l += 2) {
      plan.layers[l] = {.role = Role::kRoute, .sink = 4, .recent = 40};
      plan.layers[l + 1] = {.role = Role::kReuse};
    }
    return plan;
  }
  // The same by hand: full layers select, the others are windows, readers ask the latest select.
  ResolvedPlan ByHand(const std::string& bitmap, bool windows_in_prompts) const {
    Plan plan = Routed();
    for (size_t l = 0; l < 6; l += 2)
      plan.layers[l].role = bitmap[l] == 'F' ? Role::kSelect : Role::kWindow;
    for (size_t l = 1; l < 6 && plan.layers[l - 1].role == Role::kWindow; l += 2)
      plan.layers[l].role = Role::kFull;  // nobody before it ranks
    ResolvedPlan resolved = Resolved(*engine_, plan);
    for (LayerPlan& l : resolved.layers)
      if (l.role == Role::kWindow) l.at_any_length = true, l.in_prompts = windows_in_prompts;
    return resolved;
  }

  std::unique_ptr<Engine> engine_;
};

TEST_P(RoutedPlanTest, RoutedPublishersAreReadOrSkipped) {
  const std::vector<int32_t> tokens = RandomTokens(120, 3);
  const std::span<const int32_t> all(tokens);
  for (const char* mask : {"F?F?F?", "S?F?F?", "F?S?F?", "F?F?S?", "S?S?F?", "S?F?S?", "S?S?S?"}) {
    std::string bitmap(mask);
    std::replace(bitmap.begin(), bitmap.end(), '?', 'F');
    for (const Mode mode : {Mode::kExact, Mode::kTwoPass, Mode::kDense}) {
      const auto run = RunRouted(*engine_, tokens, 110, {.mode = mode, .mask = bitmap}, Routed());
      const ResolvedPlan hand = ByHand(bitmap, mode != Mode::kDense);
      Session session = NewSession(*engine_, 130);
      const Logits last = Prefill(session, all.first(110), &hand);
      EXPECT_LE(LargestDifference(run->last, last), GetParam().tolerance) << bitmap;
      Logits decoded;
      for (size_t i = 110; i < 120; ++i) {
        const Logits row = Decode(session, all.subspan(i, 1), &hand);
        decoded.insert(decoded.end(), row.begin(), row.end());
      }
      // Keys at the edge of a list may trade places where caches round to bf16.
      const double slack = GetParam().backend == Backend::kReference ? 1 : 8;
      EXPECT_LE(LargestDifference(run->decoded, decoded), slack * GetParam().tolerance)
          << bitmap << ", mode " << static_cast<int>(mode);
    }
  }
}

// Decisions first, then a prompt in tiles.
TEST_P(RoutedPlanTest, SparsePromptsAreRoutedAhead) {
  Plan plan = Routed();
  plan.prefill = {.sparse = true, .tile = 16, .fraction = 0.1, .min = 24};
  Request r = TokensRequest(RandomTokens(150, 6), RouteOptions{.mask = "FFSFFF"});
  r.plan = plan;
  auto refused = engine_->Generate(r);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().ToString().find("two_pass"), std::string::npos);
  for (const Mode mode : {Mode::kTwoPass, Mode::kProbe}) {
    r.route->mode = mode;
    auto g = engine_->Generate(r);
    ASSERT_TRUE(g.ok()) << g.error().ToString();
    EXPECT_EQ(g->stats.routing->bitmap, "FFSFFF");
    EXPECT_EQ(g->stats.routing->held_token_equivalents[2], 44);
    EXPECT_EQ(g->stats.routing->held_token_equivalents[3], 157);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, RoutedPlanTest, ::testing::ValuesIn(BackendCases()), NameOf);

TEST(RoutingErrors, NameWhatIsMissing) {
  const SyntheticSpec spec = TinySpec();
  auto engine = LoadEngine(spec, BackendCases()[0]);
  const auto error = [&](const RouteOptions& o, std::optional<Plan> plan = {}) {
    Request r = TokensRequest(RandomTokens(10, 1), o);
    r.plan = std::move(plan);
    auto g = engine->Generate(r);
    return g.ok() ? "no error" : g.error().ToString();
  };
  const auto expect = [](const std::string& got, const char* part) {
    EXPECT_NE(got.find(part), std::string::npos) << got;
    EXPECT_EQ(got.find('\n'), std::string::npos) << got;
  };
  expect(error({}), "needs a router");
  expect(error({.mask = "F?FFFF"}), "needs a router");
  expect(error({.mask = "FSF"}), "3 letters, the model 6 layers");
  expect(error({.mask = "FSFSFX"}), "layer 5");
  expect(error({.margin = -1, .mask = "full"}), "margin");
  expect(error({.margin = NAN, .mask = "full"}), "margin");
  expect(error({.mask = "full"}, Plan::Dense(6)), "no layer of role route");
  Plan one = Plan::Dense(6);
  one.layers[2] = {.role = Role::kRoute, .sink = 4, .recent = 40};
  expect(error({.mask = "FSFFFF"}, one), "layer 1 a window, which is full");
  Request r = TokensRequest(RandomTokens(10, 1), {});
  r.plan = RouteEveryLayer(engine->impl().shape(), kSettings);
  auto undecided = engine->Generate(r);
  ASSERT_FALSE(undecided.ok());
  expect(undecided.error().ToString(), "nothing to decide them by");

  const std::string path = Scratch().File("seven.safetensors");
  ASSERT_TRUE(WriteRouter(path, SyntheticRouter(kSettings, 7, spec.head_dim, 1)).ok());
  auto loaded = Engine::Load(ModelFile(spec), {.router = path});
  ASSERT_FALSE(loaded.ok());
  expect(loaded.error().ToString(), "layers is 7, expected the model's 6");
}

// The tiny model with a chat template; `broken`: token 299 embeds to numbers that are none.
std::string ChatModel(bool broken = false) {
  const std::string path = Scratch().File(broken ? "broken.gguf" : "chat.gguf");
  if (std::filesystem::exists(path)) return path;
  SyntheticSpec spec = TinySpec();
  spec.tied_output = false;
  spec.seed = 9;
  const MappedFile bytes = MappedFile::Open(ModelFile(spec)).value();
  const GgufFile file = ParseGguf(bytes.bytes()).value();
  GgufWriter writer;
  writer.Set(file.metadata);
  writer.Set("tokenizer.chat_template",
             std::string("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' "
                         "+ message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if "
                         "add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"));
  for (const TensorInfo& t : file.tensors) {
    std::vector<std::byte> data(t.data, t.data + t.bytes);
    if (broken && t.name == "token_embd.weight")
      std::memset(data.data() + t.bytes / 300 * 299, 0xff, t.bytes / 300);
    writer.AddTensor(t.name, t.dtype, t.shape, std::move(data));
  }
  EXPECT_TRUE(writer.WriteFile(path).ok());
  return path;
}

// One routed prompt holds a token that is no number, one is cancelled while its layers are being
// decided; the others do not notice.
TEST(RoutingErrors, EndTheirRequestOnly) {
  const RouterFile router = SyntheticRouter(kSettings, 6, 32, 3);
  for (const BackendCase& backend : BackendCases()) {
    const auto load = [&] {
      return LoadWithRouter(ChatModel(true), router, backend,
                            {.kv_tokens = 2048, .prompt_chunk = 16});
    };
    std::vector<int32_t> bad = RandomTokens(60, 1);
    bad[5] = 299;
    Request good = TokensRequest(RandomTokens(90, 2), RouteOptions{}, 20);
    good.sampling.seed = 2;
    const auto alone = load()->Generate(good);
    auto engine = load();
    std::vector<std::optional<Result<Generation>>> results(4);
    std::vector<RequestId> ids;
    const auto submit = [&](Request r) {
      auto& result = results[ids.size()];
      ids.push_back(
          engine->Submit(std::move(r), {.on_done = [&](Result<Generation> g) { result = g; }})
              .value());
    };
    submit(good);
    submit(TokensRequest(bad, RouteOptions{}));
    submit(TokensRequest(bad, RouteOptions{.mode = Mode::kTwoPass}));
    submit(TokensRequest(RandomTokens(200, 3), RouteOptions{}));
    for (int i = 0; i < 7; ++i) engine->Step();
    engine->CancelRequest(ids[3]);
    while (engine->Step()) {
    }
    for (const size_t i : {1u, 2u}) {
      ASSERT_FALSE(results[i]->ok());
      EXPECT_NE(results[i]->error().message().find("router of layer 0"), std::string::npos)
          << results[i]->error().ToString();
    }
    ASSERT_TRUE(results[3]->ok());
    EXPECT_EQ((*results[3])->stop, Generation::Stop::kCancelled);
    ASSERT_EQ(results[0]->ok(), alone.ok());
    if (!alone.ok()) continue;
    EXPECT_EQ((*results[0])->tokens, alone->tokens);
    EXPECT_EQ((*results[0])->stats.logits_hash, alone->stats.logits_hash);
    EXPECT_EQ((*results[0])->stats.routing->logits, alone->stats.routing->logits);
  }
}

// A turn that continues the cache keeps its windows and says so; one that differs early starts
// anew and is routed anew. Prompts of later turns live with windows in every mode.
TEST(RoutingChat, TurnsKeepTheirRoutesOrStartAnew) {
  SyntheticSpec spec = TinySpec();
  spec.tied_output = false;
  spec.seed = 9;
  const RouterFile router = BalancedRouter(spec, kSettings, 3);
  int continued = 0;
  for (const Mode mode : {Mode::kExact, Mode::kProbe, Mode::kTwoPass, Mode::kDense}) {
    for (const BackendCase& backend : BackendCases()) {
      auto engine = LoadWithRouter(ChatModel(), router, backend);
      const auto turn = [&](const std::vector<ChatTurn>& chat) {
        Request r;
        r.chat = chat;
        r.max_tokens = 10;
        r.ignore_end = true;
        r.route = RouteOptions{.mode = mode, .mask = "?S?SFF"};
        auto g = engine->Generate(r);
        EXPECT_TRUE(g.ok()) << g.error().ToString();
        return std::move(g).value();
      };
      // The answer hardly ever tokenizes to itself; 220 is a length at which the page that the cut
      // needs is still there.
      std::vector<ChatTurn> chat = {{"user", std::string(220, 'a')}};
      const Generation first = turn(chat);
      const RoutingReport& routes = *first.stats.routing;
      const auto held = std::accumulate(routes.held_token_equivalents.begin(),
                                        routes.held_token_equivalents.end(), int64_t{0});
      EXPECT_GT(held, 0);
      EXPECT_GT(first.stats.kv_bytes_held, 0);
      chat.push_back({"assistant", first.text});
      chat.push_back({"user", "And what about bees? " + std::string(100, 'b')});
      const Generation second = turn(chat);
      EXPECT_EQ(second.stats.routing->bitmap, routes.bitmap);
      if (second.stats.reused_tokens > 0) {
        ++continued;
        EXPECT_EQ(second.stats.routing->source, "cached");
        EXPECT_EQ(second.stats.routing->held_token_equivalents[1], 80);
        EXPECT_GT(second.stats.routing->held_token_equivalents[5], 300);
      }
      const Generation other = turn({{"user", std::string(200, 'c')}});
      EXPECT_EQ(other.stats.reused_tokens, 0);
      EXPECT_NE(other.stats.routing->source, "cached");
    }
  }
  EXPECT_GT(continued, 0);
}

TEST(RoutingChat, WindowsThatEvictStayWindowsInLaterTurns) {
  for (const BackendCase& backend : BackendCases()) {
    auto engine = Engine::Load(ChatModel(), {.backend = backend.backend, .kv = backend.kv}).value();
    Plan plan = Plan::Dense(6);
    plan.evict = true;
    for (const size_t l : {size_t{1}, size_t{3}})
      plan.layers[l] = {.role = Role::kWindow, .sink = 16, .recent = 64};
    const auto turn = [&](const std::vector<ChatTurn>& chat) {
      Request r{.chat = chat, .max_tokens = 1, .ignore_end = true, .plan = plan};
      return engine->Generate(r).value();
    };
    const Generation first = turn({{"user", std::string(220, 'a')}});
    EXPECT_EQ(first.stats.routing->bitmap, "FSFSFF");
    EXPECT_EQ(first.stats.routing->source, "plan");
    EXPECT_EQ(first.stats.routing->held_token_equivalents[1], 80);
    // It begins as the first one ends.
    const Generation second = turn({{"user", std::string(220, 'a')}, {"assistant", "b"}});
    EXPECT_GT(second.stats.reused_tokens, 200);
    EXPECT_EQ(second.stats.routing->source, "cached");
    EXPECT_EQ(second.stats.routing->held_token_equivalents[3], 80);
    EXPECT_GT(second.stats.routing->held_token_equivalents[4], 220);
  }
}

// What a second turn's prompt sees: windows, also where the first prompt attended fully.
TEST(RoutingChat, AContinuedTurnEqualsItsTokensUnderTheSameWindows) {
  auto engine = LoadEngine(TinySpec(), BackendCases()[0]);
  const Plan plan = RouteEveryLayer(engine->impl().shape(), kSettings);
  const std::vector<int32_t> tokens = RandomTokens(260, 8);
  const std::span<const int32_t> all(tokens);
  for (const Mode mode : {Mode::kExact, Mode::kDense}) {
    const auto run =
        RunRouted(*engine, all.first(160), 150, {.mode = mode, .mask = "FSSFSF"}, plan, 100);
    const auto masked = RunMasked(*engine, all.first(160), 150, "FSSFSF", plan,
                                  /*in_prompts=*/mode == Mode::kExact, 100);
    for (LayerPlan& l : masked->plan.layers) l.in_prompts = true;  // from the second turn on
    const Logits a = Prefill(*run->session, all.subspan(160), &run->plan);
    const Logits b = Prefill(*masked->session, all.subspan(160), &masked->plan);
    EXPECT_LE(LargestDifference(a, b), BackendCases()[0].tolerance);
    run->CheckMemory();
  }
}

// ---- a real model: tests/golden/README.md ----

const char kModel[] = "models/SmolLM2-135M-Instruct.Q4_1.gguf";
#define NEED_MODEL()                 \
  if (!std::ifstream(kModel).good()) \
  GTEST_SKIP() << "needs " << kModel << ": run scripts/get-model smollm2"

struct Golden {
  nlohmann::json json;
  RouterFile router;
};

Golden ReadGolden() {
  std::ifstream in("tests/golden/flux/smollm2-135m-q4_1.json");
  Golden g{nlohmann::json::parse(in), {}};
  const auto& s = g.json["settings"];
  g.router = SyntheticRouter(
      {.pool = s["pool_size"], .sink = s["sink_size"], .window = s["local_window_size"]},
      s["layers"], s["head_dim"], g.json["router"]["seed"], g.json["router"]["final_biases"]);
  return g;
}

std::string BitmapOf(const nlohmann::json& prompt) {
  std::string bitmap = prompt["bitmap"];
  for (char& c : bitmap) c = c == '1' ? 'F' : 'S';
  return bitmap;
}

int64_t HeldTokens(RoutedRun& run) {
  int64_t held = 0;
  for (int c = 0; c < run.session->store().caches(); ++c) held += run.kv().held_tokens(c);
  return held;
}

TEST(RoutingGolden, ReferenceReproducesBitmapLogitsTokensAndMemory) {
  NEED_MODEL();
  const Golden golden = ReadGolden();
  auto engine = LoadWithRouter(kModel, golden.router, BackendCases()[0]);
  const Plan plan = RouteEveryLayer(engine->impl().shape(), golden.router.settings);
  for (const char* name : {"overlap", "chat"}) {
    const auto& want = golden.json["prompts"][name];
    auto tokens = want["ids"].get<std::vector<int32_t>>();
    const auto greedy = want["greedy"].get<std::vector<int32_t>>();
    const auto run = RunRouted(*engine, tokens, std::ssize(tokens), {}, plan);
    EXPECT_EQ(run->report.bitmap, BitmapOf(want)) << name;
    for (size_t l = 0; l < 30; ++l) {
      for (size_t i : {0u, 1u})
        EXPECT_NEAR(run->report.logits[l][i], want["logits"][l][i].get<double>(), 1e-2)
            << name << ", layer " << l;
    }
    EXPECT_EQ(HeldTokens(*run), want["held_after_prompt"].get<int64_t>());
    double sum = 0;
    const float largest = *std::max_element(run->last.begin(), run->last.end());
    for (const float v : run->last) sum += std::exp(static_cast<double>(v) - largest);
    for (const auto& top : want["top5"]) {
      EXPECT_NEAR(run->last[top[0].get<size_t>()] - largest - std::log(sum), top[1].get<double>(),
                  1e-2)
          << name;
    }
    Logits logits = run->last;
    for (size_t i = 0; i < greedy.size(); ++i) {
      EXPECT_EQ(std::max_element(logits.begin(), logits.end()) - logits.begin(), greedy[i])
          << name << ", token " << i;
      if (i + 1 < greedy.size())
        logits = Decode(*run->session, std::span(&greedy[i], 1), &run->plan);
    }
    EXPECT_EQ(HeldTokens(*run), want["held_after_decode"].get<int64_t>()) << name;
  }
}

#if BATON_WITH_CPU
TEST(RoutingGolden, CpuReproducesEveryBitmap) {
  NEED_MODEL();
  const Golden golden = ReadGolden();
  auto engine = LoadWithRouter(kModel, golden.router, BackendCases()[1]);
  for (const auto& [name, want] : golden.json["prompts"].items()) {
    Request r = TokensRequest(want["ids"], RouteOptions{}, 8);
    const Generation g = engine->Generate(r).value();
    EXPECT_EQ(g.stats.routing->bitmap, BitmapOf(want)) << name;
    const std::vector<int64_t>& held = g.stats.routing->held_token_equivalents;
    EXPECT_EQ(std::accumulate(held.begin(), held.end(), int64_t{0}),
              want["held_after_decode"].get<int64_t>());
    r.route->mask = "full";
    EXPECT_EQ(engine->Generate(r)->stats.logits_hash,
              engine->Generate(TokensRequest(want["ids"], {}, 8))->stats.logits_hash);
  }
}

// ---- memory ----

int64_t ResidentBytes() {
  int64_t pages = 0;
  std::ifstream in("/proc/self/statm");
  in >> pages >> pages;
  return pages * ::sysconf(_SC_PAGESIZE);
}

// What the process holds, not what is accounted for. A layer's full cache is 4 KB a token.
TEST(RoutingMemory, EvictedLayersGiveTheirMemoryBack) {
  if (kSlowBuild) GTEST_SKIP() << "sanitizers keep memory of their own";
  constexpr int64_t kTokens = 6000, kLayerBytes = kTokens * 16 * 64 * 2 * 2;
  SyntheticSpec spec = TinySpec("qwen3");
  spec.layers = 4;
  spec.heads = spec.kv_heads = 16;
  spec.head_dim = 64;
  spec.context = 8192;
  auto engine = LoadEngine(spec, BackendCases()[1], {.prompt_chunk = 500});
  engine->Generate(TokensRequest(RandomTokens(600, 1), {}, 1)).value();  // scratch and threads
  struct Use {
    int64_t most = 0, last = 0;
  };
  const auto run = [&](const RouteOptions& route) {
    Request r = TokensRequest(RandomTokens(kTokens, 2), route, 3);
    r.plan = RouteEveryLayer(engine->impl().shape(), kSettings);
    const int64_t before = ResidentBytes();
    Use use;
    const auto look = [&] {
      use.last = ResidentBytes() - before;
      use.most = std::max(use.most, use.last);
    };
    std::optional<Result<Generation>> result;
    auto id = engine->Submit(r, {.on_text =
                                     [&](std::string_view) {
                                       look();
                                       return true;
                                     },
                                 .on_done = [&](Result<Generation> g) { result = std::move(g); },
                                 .on_prompt = [&](int64_t, int64_t) { look(); }});
    EXPECT_TRUE(id.ok());
    while (engine->Step()) look();
    EXPECT_TRUE(result && result->ok());
    return use;
  };
  // The stream between layers, [T, 64] floats, is small beside a layer's cache.
  const Use dense = run({.mode = Mode::kDense, .mask = "sparse"});
  EXPECT_GT(dense.most, kLayerBytes * 7 / 10);  // one layer at a time is full
  EXPECT_LT(dense.most, kLayerBytes * 16 / 10);
  EXPECT_LT(dense.last, kLayerBytes * 4 / 10);  // and gives it back
  const Use exact = run({.mask = "sparse"});
  EXPECT_LT(exact.most, kLayerBytes * 6 / 10);
  const Use full = run({.mask = "full"});
  EXPECT_GT(full.most, kLayerBytes * 25 / 10);  // the allocator may have kept some
}
#endif

}  // namespace
}  // namespace baton
