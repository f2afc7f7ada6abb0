// Routers and lists of ordinary models: what is trained is what the engine runs.
#include <filesystem>
#include <fstream>

#include "tests/engine/routed_run.h"
#include "tests/train/toy_models.h"
#include "train/router_evaluate.h"
#include "train/router_trainer.h"

namespace baton::train {
namespace {

constexpr double kTolerance = 1e-4;
constexpr int64_t kPrompt = 300, kTokens = 320;  // windows go by chunks of 64 rows
constexpr RouterSettings kSettings{.pool = 12, .sink = 8, .window = 32};

SyntheticSpec Llama(bool gguf) {
  SyntheticSpec s;
  s.architecture = gguf ? "llama" : "qwen3";  // interleaved pairs; halves and normed heads
  s.layers = 4;
  return s;
}

std::string PathOf(const SyntheticSpec& spec) {
  if (spec.architecture != "llama") return FolderOf(spec, "routed-folder");
  const std::string path = test::Scratch().File("routed.gguf");
  EXPECT_TRUE(WriteSyntheticGguf(path, spec).ok());
  return path;
}

struct Toy {
  Toy(const std::string& path, torch::ScalarType type)
      : checkpoint(OpenOrDie(path)),
        parameters(checkpoint, type),
        model(checkpoint.config, parameters, type) {
    parameters.Freeze();
  }
  baton::Checkpoint checkpoint;
  Parameters parameters;
  Transformer model;
};

Routing RoutingOf(const GateFunction& gate) {
  return {.pool = kSettings.pool,
          .sink = kSettings.sink,
          .window = kSettings.window,
          .prompts = torch::full({1}, kPrompt, torch::kInt64),
          .gate = gate};
}

GateFunction Masked(const std::string& mask) {
  return [mask](int l, const Tensor& pooled) {
    return torch::full({1}, mask[static_cast<size_t>(l)] == 'F' ? 1.0 : 0.0, pooled.options());
  };
}

// The stream from the prompt's last token on, [R, C].
Tensor RowsUnder(const Transformer& model, const Tensor& tokens, const GateFunction& gate,
                 bool dense_prompt) {
  const torch::NoGradGuard no_gradients;
  const Routing dense = RoutingOf({}), routing = RoutingOf(gate);
  const int64_t rows = tokens.size(1) - kPrompt + 1;
  if (!dense_prompt) {
    const Tensor stream = model.Forward({.tokens = tokens, .routing = &routing}).stream;
    return stream[0].narrow(0, kPrompt - 1, rows);
  }
  Kept kept;
  model.Forward({.tokens = tokens, .routing = &dense, .keep = &kept});
  const Tensor at = torch::arange(kPrompt - 1, tokens.size(1), torch::kInt64).unsqueeze(0);
  return model.ForwardRows(kept, tokens.gather(1, at), at, routing)[0];
}

double Worst(const Tensor& expected, const std::vector<float>& got) {
  EXPECT_EQ(expected.numel(), std::ssize(got));
  return (expected.reshape({-1}) - torch::tensor(got)).abs().max().item<double>();
}

TEST(RouterTest, LogitsAreTheEnginesForEveryMask) {
  for (const bool gguf : {true, false}) {
    const SyntheticSpec spec = Llama(gguf);
    const std::string path = PathOf(spec);
    const Toy toy(path, torch::kFloat32);
    const auto engine = test::LoadWithRouter(
        path, SyntheticRouter(kSettings, spec.layers, spec.head_dim, 1), test::BackendCases()[0]);
    const std::vector<int32_t> ids = test::RandomTokens(kTokens, 5);
    const Tensor tokens = torch::tensor(ids, torch::kInt32).to(torch::kInt64).unsqueeze(0);
    for (const std::string mask : {"FFFF", "SSSS", "FSSF", "SFFS"}) {
      for (const bool dense_prompt : {false, true}) {
        SCOPED_TRACE(fmt::format("{} {} {}", spec.architecture, mask, dense_prompt));
        const auto run = test::RunRouted(
            *engine, ids, kPrompt,
            {.mode = dense_prompt ? test::Mode::kDense : test::Mode::kExact, .mask = mask},
            RouteEveryLayer(engine->impl().shape(), kSettings));
        const Tensor logits =
            toy.model.Logits(RowsUnder(toy.model, tokens, Masked(mask), dense_prompt));
        EXPECT_LT(Worst(logits[0], run->last), kTolerance);
        EXPECT_LT(Worst(logits.narrow(0, 1, logits.size(0) - 1), run->decoded), kTolerance);
      }
    }
  }
}

// Gates that were standardised, written in bf16 and read by the engine.
TEST(RouterTest, WrittenRoutersHaveTheirLogitsInTheEngine) {
  for (const bool gguf : {true, false}) {
    const SyntheticSpec spec = Llama(gguf);
    const std::string path = PathOf(spec);
    const Toy toy(path, torch::kFloat32);
    const ModelConfig& config = toy.checkpoint.config;
    Gates gates =
        Gates::Of(SyntheticRouter(kSettings, spec.layers, spec.head_dim, 7), torch::kFloat32);
    const Tensor mean = torch::rand({spec.layers, spec.head_dim}) - 0.5;
    gates.Standardise(mean, torch::rand_like(mean) + 0.5);
    const RouterFile file = gates.ToFile(kSettings);
    const Tensor pooled = torch::rand({3, spec.head_dim});
    const Gates folded = Gates::Of(file, torch::kFloat32);
    for (int l = 0; l < spec.layers; ++l)
      EXPECT_LT((folded.Logits(l, pooled) - gates.Logits(l, pooled)).abs().max().item<float>(),
                kTolerance);
    EngineOptions options;
    options.router = test::Scratch().File("written.safetensors");
    options.backend = Backend::kReference;
    options.kv = KvType::kF32;
    ASSERT_TRUE(WriteRouter(options.router, InFileOrder(file, config), /*bf16=*/true).ok());
    const auto read = LoadRouter(options.router, config);
    ASSERT_TRUE(read.ok()) << read.error().ToString();
    const Gates stored = Gates::Of(*read, torch::kFloat32);
    auto engine = Engine::Load(path, options);
    ASSERT_TRUE(engine.ok()) << engine.error().ToString();
    Request request;
    request.tokens = test::RandomTokens(kPrompt, 6);
    request.max_tokens = 1;
    request.route = RouteOptions{};
    const auto done = (*engine)->Generate(request);
    ASSERT_TRUE(done.ok()) << done.error().ToString();
    const RoutingReport& report = *done->stats.routing;
    std::string bitmap;
    const GateFunction gate = [&](int l, const Tensor& p) {
      const Tensor z = stored.Logits(l, p);
      for (int64_t i = 0; i < 2; ++i)
        EXPECT_NEAR(z[0][i].item<float>(),
                    report.logits[static_cast<size_t>(l)][static_cast<size_t>(i)], kTolerance);
      bitmap += z[0][1].item<float>() > z[0][0].item<float>() ? 'F' : 'S';
      return (z.select(1, 1) > z.select(1, 0)).to(torch::kFloat32);
    };
    const Tensor tokens =
        torch::tensor(request.tokens, torch::kInt32).to(torch::kInt64).unsqueeze(0);
    RowsUnder(toy.model, tokens, gate, false);
    EXPECT_EQ(bitmap, report.bitmap);
  }
}

// Random prompts: those of answers hold a few low ids, those of text a few high ones. Of many ids,
// the means over the rows that a router sees would overlap.
std::string SampleFolder(int count, int64_t vocab) {
  const std::string folder = test::Scratch().File("router-samples");
  std::filesystem::create_directories(folder);
  std::mt19937 random(3);
  constexpr uint32_t kIds = 8;
  std::vector<uint16_t> ids;
  std::ofstream index(folder + "/train.jsonl");
  for (int i = 0; i < count; ++i) {
    const bool answer = i % 2 == 0;
    index
        << fmt::format(
               R"({{"task": "{}", "kind": "{}", "length": 128, "offset": {}, "prompt": {}, "response": 30, "scored": [[0, 24]]}})",
               answer ? "a" : "t", answer ? "answer" : "text", ids.size(), 80 + i % 9)
        << '\n';
    const auto half = static_cast<uint32_t>(vocab / 2);
    for (int t = 0; t < 110 + i % 9; ++t)
      ids.push_back(static_cast<uint16_t>(random() % kIds + (answer ? 0 : half)));
  }
  std::ofstream data(folder + "/train.u16", std::ios::binary);
  data.write(reinterpret_cast<const char*>(ids.data()), std::ssize(ids) * 2);
  return folder;
}

struct Training {
  Training(const std::string& recipe_json, torch::ScalarType type, bool list, int count = 16)
      : toy(PathOf(Llama(true)), type),
        recipe(RouterRecipe::Parse(recipe_json).value()),
        samples(
            RouterSamples::Read(SampleFolder(count, Llama(true).vocab), "train", Llama(true).vocab)
                .value()),
        model(toy.model, recipe),
        teacher(Teach(model, samples, torch::kCPU)),
        gates(list ? Gates::List(4, recipe.bias, type)
                   : Gates::Routers(4, Llama(true).head_dim, recipe.bias, 1, type)) {
    // A random model answers nothing.
    teacher.answered.assign(teacher.answered.size(), true);
    trainer.emplace(model, samples, teacher, gates, torch::kCPU);
  }
  double DivergenceOf(const std::string& mask) {
    const auto results = EvaluateRouters(
        model, samples, teacher, {{.name = "m", .mask = mask}}, [](size_t) { return true; },
        torch::kCPU);
    double sum = 0;
    for (const RouterItem& item : results[0].items) sum += item.divergence;
    return sum / static_cast<double>(results[0].items.size());
  }
  Toy toy;
  RouterRecipe recipe;
  RouterSamples samples;
  RoutedModel model;
  Teacher teacher;
  Gates gates;
  std::optional<RouterTrainer> trainer;
};

std::string RecipeOf(const std::string& more, int window = 16) {
  return fmt::format(R"({{"pool": 12, "sink": 4, "window": {}, "tokens": 512, {}}})", window, more);
}

// Gates that mix, in double precision; through the layers above as well.
TEST(RouterTest, GradientsEqualFiniteDifferences) {
  for (const std::string mode : {"exact", "dense"}) {
    for (const std::string loss : {"distill", "paper"}) {
      for (const bool list : {false, true}) {
        SCOPED_TRACE(mode + " " + loss + (list ? " list" : " router"));
        Training t(RecipeOf(fmt::format(R"("mode": "{}", "loss": "{}", "soft": true, "bias": 0.3)",
                                        mode, loss)),
                   torch::kFloat64, list, 3);
        auto generator = at::detail::createCPUGenerator(9);
        for (Tensor value : t.gates.values()) {  // the last matrix begins at zero
          const torch::NoGradGuard no_gradients;
          value.add_(torch::randn(value.sizes(), generator, torch::kFloat64), 0.1);
        }
        const Tensor noise = torch::randn({4, 3, 2}, generator, torch::kFloat64);
        // The paper's prices rise with every call, from the same start for each trainer.
        const auto value = [&] {
          return RouterTrainer(t.model, t.samples, t.teacher, t.gates, torch::kCPU)
              .Loss({0, 1, 2}, noise);
        };
        value().backward();
        // Along one random direction of all values.
        constexpr double kStep = 1e-5;
        const torch::NoGradGuard no_gradients;
        std::vector<Tensor> direction;
        double got = 0;
        for (const Tensor& p : t.gates.values()) {
          ASSERT_TRUE(p.grad().defined());
          direction.push_back(torch::randn(p.sizes(), generator, torch::kFloat64));
          got += (p.grad() * direction.back()).sum().item<double>();
        }
        const auto moved = [&](double by) {
          std::vector<Tensor> values = t.gates.values();
          for (size_t i = 0; i < values.size(); ++i) values[i].add_(direction[i], by);
          const double at = value().item<double>();
          for (size_t i = 0; i < values.size(); ++i) values[i].sub_(direction[i], by);
          return at;
        };
        const double expected = (moved(kStep) - moved(-kStep)) / (2 * kStep);
        EXPECT_NEAR(got, expected, 1e-8 + 1e-4 * std::fabs(expected));
      }
    }
  }
}

// The list of a target is among the best of its size, of which there are six.
TEST(RouterTest, ListsLearnWhatLayersCost) {
  for (const std::string mode : {"exact", "dense"}) {
    SCOPED_TRACE(mode);
    Training t(RecipeOf(fmt::format(
                   R"("mode": "{}", "steps": 60, "target": {{"answer": 0.5, "text": 0.5}})", mode)),
               torch::kFloat32, true);
    while (!t.trainer->done()) t.trainer->Step();
    t.trainer->MeetTarget();
    std::string learnt;
    for (const double full : t.gates.Full()) learnt += full > 0 ? 'F' : 'S';
    EXPECT_EQ(std::count(learnt.begin(), learnt.end(), 'S'), 2) << learnt;
    std::string mask = "FFSS";
    std::vector<double> others;
    do others.push_back(t.DivergenceOf(mask));
    while (std::next_permutation(mask.begin(), mask.end()));
    ASSERT_EQ(others.size(), 6u);
    std::sort(others.begin(), others.end());
    EXPECT_LE(t.DivergenceOf(learnt), others[1]) << learnt;
  }
}

// Full layers cost nothing at answers and much at text, and prompts differ.
TEST(RouterTest, RoutersLearnToTellPromptsApart) {
  Training t(RecipeOf(R"("mode": "dense", "steps": 60, "rate": 0.01, "bias": 1,
                         "price": {"answer": 0, "text": 2})",
                      4),
             torch::kFloat32, false);
  while (!t.trainer->done()) t.trainer->Step();
  const auto results = EvaluateRouters(
      t.model, t.samples, t.teacher, {{.name = "router", .gates = &t.gates}},
      [](size_t) { return true; }, torch::kCPU);
  double windows[2] = {0, 0};
  for (const RouterItem& item : results[0].items)
    windows[t.samples.all()[item.sample].answer ? 0 : 1] += item.windows() / 8;
  EXPECT_LT(windows[0], 0.2);
  EXPECT_GT(windows[1], 0.8);
}

TEST(RouterTest, RecipesAndSamplesAreChecked) {
  const auto message = [](const std::string& json) {
    const auto recipe = RouterRecipe::Parse(json);
    return recipe.ok() ? "" : recipe.error().message();
  };
  EXPECT_EQ(message("{}"), "");
  EXPECT_EQ(message(R"({"mode": "probe"})"), "recipe: mode is \"probe\", expected exact or dense");
  EXPECT_EQ(message(R"({"target": {"answer": 2}})"),
            "recipe: target: answer is 2, expected a number from 0 to 1");
  EXPECT_EQ(message(R"({"windows": 2})"), "recipe: windows: unknown");
  const std::string folder = SampleFolder(2, 320);
  const auto samples = RouterSamples::Read(folder, "train", 100);
  ASSERT_FALSE(samples.ok());
  EXPECT_NE(samples.error().message().find("the model's vocabulary has 100"), std::string::npos);
}

}  // namespace
}  // namespace baton::train
