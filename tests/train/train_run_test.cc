// Training runs: they learn, resume exactly, and refuse what does not fit.
#include "tests/train/toy_models.h"
#include "train/lists.h"

namespace baton::train {
namespace {

constexpr int64_t kToyRow = 96, kToyVocabulary = 64;  // of models that learn

Recipe RecipeOf(const std::string& json) {
  auto recipe = Recipe::Parse(json);
  EXPECT_TRUE(recipe.ok()) << recipe.error().ToString();
  return std::move(recipe).value();
}

struct ToyRun {
  ToyRun(const SyntheticSpec& spec, const Recipe& recipe, const std::string& name)
      : ToyRun(spec, recipe, name, spec.vocab) {}
  ToyRun(const SyntheticSpec& spec, const Recipe& recipe, const std::string& name, int64_t vocab)
      : recipe(recipe), text(ToyText(vocab)) {
    auto read = train::ModelFile::Read(FolderOf(spec, name), vocab);
    EXPECT_TRUE(read.ok()) << read.error().ToString();
    file = std::move(read).value();
    parameters.emplace(file.config, recipe.seed, torch::TensorOptions(torch::kFloat32));
    trainer.emplace(file, *parameters, this->recipe, text);
  }
  // The losses, as a log of every third step has them.
  std::vector<double> Steps(int64_t count) {
    std::vector<double> losses;
    for (int64_t i = 0; i < count; ++i) {
      trainer->Step();
      if (trainer->step() % 3 != 0) continue;
      const Losses l = trainer->TakeLosses();
      losses.insert(losses.end(), l.by_kind.begin() + 1, l.by_kind.end());
      losses.push_back(l.distillation);
    }
    return losses;
  }

  Recipe recipe;
  Tensor text;
  train::ModelFile file;
  std::optional<Parameters> parameters;
  std::optional<Trainer> trainer;
};

// One of ToySpecs.
class ToyTest : public testing::TestWithParam<size_t> {
 protected:
  SyntheticSpec spec() const { return ToySpecs()[GetParam()]; }
};

TEST_P(ToyTest, StoppedRunGoesOnToTheSameLosses) {
  for (const bool muon : {true, false}) {
    SCOPED_TRACE(muon);
    const Recipe recipe = RecipeOf(fmt::format(
        R"({{"stages": [{{"steps": 3, "n": 96, "rows": 8}}, {{"steps": 3, "n": 128, "rows": 4}}],
           "accumulate": 2, "pack": true, "sparse_from": 2, "distilled_rows": 8, "muon": {}}})",
        muon));
    const std::string name = fmt::format("resume-{}-{}", GetParam(), muon);
    const std::string state = test::Scratch().File(name + ".state");
    ToyRun whole(spec(), recipe, name), first(spec(), recipe, name), second(spec(), recipe, name);
    std::vector<double> expected = whole.Steps(6);
    first.Steps(4);
    ASSERT_TRUE(first.trainer->Save(state).ok());
    second.parameters->ZeroGradients();
    const Status loaded = second.trainer->Load(state);
    ASSERT_TRUE(loaded.ok()) << loaded.error().ToString();
    EXPECT_EQ(second.trainer->step(), 4);
    expected.erase(expected.begin(), expected.begin() + kTokenKinds);
    const std::vector<double> got = second.Steps(2);
    ASSERT_EQ(got.size(), static_cast<size_t>(kTokenKinds));
    ASSERT_EQ(got.size(), expected.size());
    for (size_t at = 0; at < got.size(); ++at)
      EXPECT_TRUE(got[at] == expected[at] || (std::isnan(got[at]) && std::isnan(expected[at])))
          << at << ": " << got[at] << " " << expected[at];
  }
}

// Keys that were last seen farther back than windows of 8 tokens reach through four layers: the
// share of their values that are right. Chance is 1 in 24.
double FarRecall(const Trainer& trainer) {
  constexpr int64_t kRows = 16, kKeys = 16, kReach = 32;
  const torch::NoGradGuard no_gradients;
  auto g = at::detail::createCPUGenerator(77);
  const Tasks& tasks = trainer.batches().tasks();
  const Samples s = tasks.Pairs(kRows, kToyRow, tasks.most_width(), kKeys, kKeys, g);
  const Transformer& model = trainer.transformer();
  const Tensor best = model.Logits(model.Forward({.tokens = s.tokens}).stream).argmax(2);
  const auto token = s.tokens.accessor<int64_t, 2>(), guess = best.accessor<int64_t, 2>(),
             kind = s.kinds.accessor<int64_t, 2>();
  int64_t right = 0, of = 0;
  for (int64_t r = 0; r < kRows; ++r) {
    std::map<int64_t, int64_t> seen;  // where a key was last
    for (int64_t at = 0; at < kToyRow; at += 2) {
      const auto [last, is_new] = seen.try_emplace(token[r][at], at);
      if (kind[r][at + 1] == kPairAnswer && !is_new && at - last->second > kReach) {
        ++of;
        right += guess[r][at] == token[r][at + 1] ? 1 : 0;
      }
      last->second = at;
    }
  }
  EXPECT_GT(of, 50);
  return static_cast<double>(right) / static_cast<double>(of);
}

double LearnsToRecall(const SyntheticSpec& spec, const std::string& name) {
  const Recipe recipe = RecipeOf(
      fmt::format(R"({{"stages": [{{"steps": 150, "n": {}, "rows": 8}}], "rate": 0.01, "warmup": 10,
                      "ramp": 75, "decay": 50, "text": 0, "facts": 0, "pairs": 1,
                      "distilled_rows": 24, "sparse_from": 100}})",
                  kToyRow));
  ToyRun run(spec, recipe, name, kToyVocabulary);
  while (!run.trainer->done()) run.trainer->Step();
  const double recall = FarRecall(*run.trainer);
  std::printf("%s: %.2f of far values are right\n", test::Describe(spec).c_str(), recall);
  return recall;
}

TEST_P(ToyTest, LearnsRecall) {
  EXPECT_GT(LearnsToRecall(spec(), fmt::format("learn-{}", GetParam())), 0.7);
}

// What the toys learn cannot be had from windows.
TEST(RunTest, WindowsAloneDoNotLearnRecall) {
  SyntheticSpec spec = ToySpecs()[0];
  spec.layout = "WW";
  EXPECT_LT(LearnsToRecall(spec, "learn-windows"), 0.1);
}

INSTANTIATE_TEST_SUITE_P(, ToyTest, testing::Range<size_t>(0, ToySpecs().size()),
                         [](const testing::TestParamInfo<size_t>& info) {
                           const SyntheticSpec s = ToySpecs()[info.param];
                           return s.architecture.substr(sizeof "baton") + "_" + s.layout;
                         });

// Keys of many bits rank like keys, and of few otherwise; layers that rank read their own lists.
TEST_P(ToyTest, RanksByRoundedKeys) {
  ToyRun run(spec(), RecipeOf(R"({"stages": [{"steps": 1}]})"), fmt::format("bits-{}", GetParam()));
  const Transformer& model = run.trainer->transformer();
  const torch::NoGradGuard no_gradients;
  auto g = at::detail::createCPUGenerator(5);
  const auto off = [&](int64_t n, int64_t bits) {
    const Tensor tokens = torch::randint(0, spec().vocab, {2, n}, g, torch::kInt64);
    const Tensor exact = model.Forward({.tokens = tokens}).stream;
    return (model.Forward({.tokens = tokens, .rank_bits = bits}).stream - exact)
        .abs()
        .max()
        .item<double>();
  };
  const bool ranks = spec().top_k > 0;
  EXPECT_LT(off(16, 4), 1e-5);  // lists hold all keys
  EXPECT_EQ(off(96, 2) > 1e-3, ranks);
}

// A state fits a run of its own config and seed.
TEST(RunTest, StatesOfOtherRunsAreRefused) {
  const Recipe recipe = RecipeOf(R"({"stages": [{"steps": 1, "n": 96, "rows": 4}]})");
  Recipe other = recipe;
  other.seed = 2;
  const std::string state = test::Scratch().File("refused.state");
  ToyRun run(ToySpecs()[0], recipe, "refused"), seed(ToySpecs()[0], other, "refused"),
      config(ToySpecs()[1], recipe, "refused-config");
  ASSERT_TRUE(run.trainer->Save(state).ok());
  ASSERT_TRUE(run.trainer->Load(state).ok());
  EXPECT_EQ(seed.trainer->Load(state).error().message(),
            state + ": the state of seed 1, expected 2");
  EXPECT_EQ(config.trainer->Load(state).error().message(), state + ": the state of another config");
}

TEST(RunTest, RecipesAreChecked) {
  const auto message = [](const std::string& json) {
    const auto recipe = Recipe::Parse(json);
    return recipe.ok() ? "" : recipe.error().message();
  };
  EXPECT_EQ(message(R"({"stages": [{"steps": 1}]})"), "");
  EXPECT_EQ(message("[]"), "recipe: no JSON object");
  EXPECT_EQ(message(R"({"stages": []})"), "recipe: stages is missing or empty");
  EXPECT_EQ(message(R"({"stages": [{"steps": 1, "lines": 2}]})"), "recipe: lines: unknown");
  EXPECT_EQ(message(R"({"stages": [{"steps": 1, "n": 64}]})"),
            "recipe: n is 64, expected an integer from 96 to 1000000000");
  EXPECT_EQ(message(R"({"stages": [{"steps": 1}], "rate": 2})"),
            "recipe: rate is 2, expected a number from 0 to 1");
  EXPECT_EQ(message(R"({"stages": [{"steps": 1}], "facts": 0.5, "pairs": 0.7})"),
            "recipe: facts 0.5 and pairs 0.7 are more than all tasks");
  EXPECT_EQ(message(R"({"stages": [{"steps": 1, "rows": 3}], "accumulate": 2})"),
            "recipe: 3 rows are no multiple of accumulate 2");
}

TEST(RunTest, SchedulesRiseAndFall) {
  Recipe r = RecipeOf(R"({"stages": [{"steps": 100}], "rate": 1, "warmup": 10, "decay": 20})");
  EXPECT_DOUBLE_EQ(r.Rate(0), 0.1);
  EXPECT_DOUBLE_EQ(r.Rate(50), 1);
  EXPECT_DOUBLE_EQ(r.Rate(90), 0.55);
  r.schedule = Recipe::Schedule::kLinear;
  EXPECT_DOUBLE_EQ(r.Rate(50), 0.55);
  r.schedule = Recipe::Schedule::kCosine;
  EXPECT_NEAR(r.Rate(50), 0.55, 1e-12);
  EXPECT_NEAR(r.Rate(99), 0.1, 1e-3);
}

// The rule of the engine's lists: larger first, then lower; ascending; -1 where there are fewer.
TEST(RunTest, LargestBreakTiesByPosition) {
  const float none = -std::numeric_limits<float>::infinity();
  const Tensor scores =
      torch::tensor({1.f, 3.f, 3.f, none, 3.f, 0.f, none, none, none, 2.f, none, none})
          .reshape({2, 6});
  const Tensor expected = torch::tensor({1, 2, 3, -1}, torch::kInt32).reshape({2, 2});
  EXPECT_TRUE(torch::equal(LargestOf(scores, 2), expected));
}

// Every value that a task asks for was stated before it, after the same key.
TEST(RunTest, TasksAskForWhatWasStated) {
  const Tasks tasks(ToyText(512), 512);
  auto g = at::detail::createCPUGenerator(4);
  const Samples f = tasks.Facts(4, 512, tasks.most_width(), g);
  const auto token = f.tokens.accessor<int64_t, 2>();
  const auto kind = f.kinds.accessor<int64_t, 2>();
  const auto back = f.distance.accessor<int64_t, 2>();
  int64_t facts = 0;
  for (int64_t r = 0; r < 4; ++r) {
    for (int64_t t = 0; t < 512; ++t) {
      if (kind[r][t] != kFactAnswer || kind[r][t - 1] == kFactAnswer) continue;
      ++facts;
      ASSERT_GT(back[r][t], 0);
      for (int64_t i = -2; i < 2; ++i) EXPECT_EQ(token[r][t + i], token[r][t + i - back[r][t]]);
    }
  }
  EXPECT_GT(facts, 10);
  const Samples p = tasks.Pairs(4, 512, tasks.most_width(), 16, 16, g);
  for (int64_t r = 0; r < 4; ++r) {
    std::map<int64_t, int64_t> value;
    for (int64_t t = 0; t < 512; t += 2) {
      const int64_t k = p.tokens[r][t].item<int64_t>(), v = p.tokens[r][t + 1].item<int64_t>();
      const bool answer = p.kinds[r][t + 1].item<int64_t>() == kPairAnswer;
      if (t > 0 && value.contains(k)) EXPECT_EQ(value[k], v);
      if (answer && t > 0 && p.tokens[r][t - t].item<int64_t>() == 4 && !value.contains(k))
        EXPECT_EQ(p.tokens[r][1].item<int64_t>(), v);  // the first key is covered by the mark
      value[k] = v;
    }
  }
}

}  // namespace
}  // namespace baton::train
