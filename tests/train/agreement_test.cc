// Trainer and engine compute the same model: every logit of every architecture, in single
// precision.
#include "tests/train/toy_models.h"

namespace baton::train {
namespace {

constexpr double kTolerance = 1e-4;

// [n, vocab] of the trainer.
Tensor TrainerLogits(const std::string& path, const std::vector<int32_t>& ids) {
  const baton::Checkpoint checkpoint = OpenOrDie(path);
  const Parameters parameters(checkpoint, torch::kFloat32);
  const Transformer model(checkpoint.config, parameters, torch::kFloat32);
  const torch::NoGradGuard no_gradients;
  const Tensor tokens = torch::tensor(ids, torch::kInt32).to(torch::kInt64).unsqueeze(0);
  return model.Logits(model.Forward({.tokens = tokens}).stream)[0].contiguous();
}

// The engine's last `wanted` logits: with one wanted, prompts leave at the exit layer and windows
// before it process a suffix.
void ExpectEngineAgrees(Engine& engine, const std::vector<int32_t>& ids, int64_t wanted,
                        const Tensor& expected) {
  const auto n = static_cast<int64_t>(ids.size());
  auto session = Session::Create(engine, engine.impl().model_plan.caches, n, {.rollback = 0});
  ASSERT_TRUE(session.ok());
  int64_t seen = 0;
  double worst = 0;
  PromptRun run(engine.impl(),
                {.tokens = ids,
                 .kv = &session->sequence(),
                 .on_logits =
                     [&](int64_t first, View<const float> logits) {
                       for (int64_t i = 0; i < logits.dim(0); ++i, ++seen) {
                         const float* row = expected.data_ptr<float>() +
                                            (n - wanted + first + i) * expected.size(1);
                         for (int64_t t = 0; t < logits.dim(1); ++t)
                           worst = std::max<double>(worst, std::fabs(row[t] - logits.row(i)[t]));
                       }
                     },
                 .wanted = wanted});
  ASSERT_TRUE(run.RunAll().ok());
  EXPECT_EQ(seen, wanted);
  EXPECT_LT(worst, kTolerance);
}

void ExpectAgreement(const std::string& path, int64_t vocab, int64_t n) {
  EngineOptions options;
  options.backend = Backend::kReference;
  options.kv = KvType::kF32;
  options.threads = 2;
  auto engine = Engine::Load(path, options);
  ASSERT_TRUE(engine.ok()) << engine.error().ToString();
  std::mt19937 random(7);
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
  const Tensor expected = TrainerLogits(path, ids);
  ExpectEngineAgrees(**engine, ids, n, expected);
  ExpectEngineAgrees(**engine, ids, 1, expected);
  (*engine)->impl().options.prompt_chunk = 17;
  ExpectEngineAgrees(**engine, ids, 3, expected);
}

TEST(AgreementTest, OfEveryKindOfLayer) {
  int i = 0;
  for (const SyntheticSpec& spec : test::NativeSpecs()) {
    SCOPED_TRACE(test::Describe(spec));
    ExpectAgreement(FolderOf(spec, fmt::format("kind-{}", i++)), spec.vocab, 100);
  }
}

// Tiles of rows end inside, windows go by chunks.
TEST(AgreementTest, OfLongRows) {
  int i = 0;
  for (const SyntheticSpec& spec : ToySpecs()) {
    SCOPED_TRACE(test::Describe(spec));
    ExpectAgreement(FolderOf(spec, fmt::format("long-{}", i++)), spec.vocab, 640);
  }
}

TEST(AgreementTest, OfTheGoldenModels) {
  for (const char* name : {"clsa", "clsa-forced", "clsa-local", "dense", "hybrid", "hybrid-gated",
                           "hysparse", "hysparse-all", "hysparse2", "hysparse2-gated",
                           "hysparse2-group", "hysparse2-smear", "yoco"}) {
    SCOPED_TRACE(name);
    ExpectAgreement(std::string("tests/golden/native/") + name, 96, 90);
  }
}

// A document of a packed row has the logits that it has alone.
TEST(AgreementTest, PackedDocumentsDoNotSeeEachOther) {
  int i = 0;
  for (const SyntheticSpec& spec : ToySpecs()) {
    SCOPED_TRACE(test::Describe(spec));
    const baton::Checkpoint checkpoint = OpenOrDie(FolderOf(spec, fmt::format("packed-{}", i++)));
    const Parameters parameters(checkpoint, torch::kFloat32);
    const Transformer model(checkpoint.config, parameters, torch::kFloat32);
    const torch::NoGradGuard no_gradients;
    constexpr int64_t kFirst = 132, kAll = 384;
    auto generator = at::detail::createCPUGenerator(3);
    const Tensor tokens = torch::randint(0, spec.vocab, {1, kAll}, generator, torch::kInt64);
    Tensor starts = torch::zeros({1, kAll}, torch::kInt64);
    starts.narrow(1, kFirst, kAll - kFirst).fill_(kFirst);
    const Tensor packed = model.Forward({.tokens = tokens, .starts = starts}).stream;
    const Tensor alone =
        torch::cat({model.Forward({.tokens = tokens.narrow(1, 0, kFirst)}).stream,
                    model.Forward({.tokens = tokens.narrow(1, kFirst, kAll - kFirst)}).stream},
                   1);
    EXPECT_LT((packed - alone).abs().max().item<float>(), kTolerance);
  }
}

}  // namespace
}  // namespace baton::train
