// Gradients against finite differences, in double precision: all parameters of every architecture.
#include "tests/train/toy_models.h"
#include "train/distil.h"

namespace baton::train {
namespace {

struct Toy {
  Toy(const SyntheticSpec& spec, const std::string& name)
      : checkpoint(OpenOrDie(FolderOf(spec, name))),
        parameters(checkpoint, torch::kFloat64),
        model(checkpoint.config, parameters, torch::kFloat64) {
    auto generator = at::detail::createCPUGenerator(5);
    tokens = torch::randint(0, spec.vocab, {2, 40}, generator, torch::kInt64);
    starts = torch::zeros_like(tokens);
    starts.narrow(1, 16, 24).fill_(16);
  }

  ForwardOutput Forward() const {
    ForwardInput in{.tokens = tokens, .starts = starts};
    if (model.has_indexer()) in.distilled_rows = torch::arange(0, 40, 3, torch::kInt64);
    return model.Forward(in);
  }
  // A loss that weighs every logit differently.
  Tensor LanguageLoss(const ForwardOutput& out) const {
    const Tensor logits = model.Logits(out.stream);
    const Tensor target = tokens.roll(-1, 1);
    return torch::cross_entropy_loss(logits.reshape({-1, logits.size(2)}), target.reshape({-1}));
  }

  baton::Checkpoint checkpoint;
  Parameters parameters;
  Transformer model;
  Tensor tokens, starts;
};

bool OfIndexer(const Parameter& p) { return p.name.starts_with("indexer."); }

// Along one random direction for each parameter. Lists are hard choices: steps are so small that
// none changes. `loss` is the one whose gradient reaches the parameter.
void ExpectGradients(Toy& toy, bool of_indexer) {
  const auto loss = [&] {
    const ForwardOutput out = toy.Forward();
    return of_indexer ? out.distillation : toy.LanguageLoss(out);
  };
  toy.parameters.ZeroGradients();
  loss().backward();
  auto generator = at::detail::createCPUGenerator(9);
  constexpr double kStep = 1e-6;
  for (const Parameter& p : toy.parameters.all()) {
    if (OfIndexer(p) != of_indexer) continue;
    SCOPED_TRACE(p.name);
    ASSERT_TRUE(p.value.grad().defined());
    const torch::NoGradGuard no_gradients;
    const Tensor direction = torch::randn(p.value.sizes(), generator, torch::kFloat64);
    Tensor value = p.value;
    value.add_(direction, kStep);
    const double above = loss().item<double>();
    value.sub_(direction, 2 * kStep);
    const double below = loss().item<double>();
    value.add_(direction, kStep);
    const double expected = (above - below) / (2 * kStep);
    const double got = (p.value.grad() * direction).sum().item<double>();
    EXPECT_NEAR(got, expected, 1e-7 + 1e-5 * std::fabs(expected));
  }
}

TEST(GradientTest, EqualFiniteDifferences) {
  int i = 0;
  for (const SyntheticSpec& spec : test::NativeSpecs()) {
    SCOPED_TRACE(test::Describe(spec));
    Toy toy(spec, fmt::format("gradient-{}", i++));
    ExpectGradients(toy, false);
    if (toy.model.has_indexer()) ExpectGradients(toy, true);
  }
}

// The loss of the language does not reach an indexer, and its distillation reaches nothing else.
TEST(GradientTest, IndexerIsDetached) {
  SyntheticSpec spec = test::NativeSpec("clsa", "WWII");
  spec.exit_layer = 2, spec.top_k = 8, spec.index_dim = 16;
  Toy toy(spec, "detached");
  toy.LanguageLoss(toy.Forward()).backward();
  for (const Parameter& p : toy.parameters.all())
    EXPECT_EQ(p.value.grad().defined(), !OfIndexer(p)) << p.name;
  toy.parameters.ZeroGradients();
  toy.Forward().distillation.backward();
  for (const Parameter& p : toy.parameters.all())
    EXPECT_EQ(p.value.grad().defined(), OfIndexer(p)) << p.name;
}

// arXiv 2606.06467: d loss / d scores = (softmax(scores) - teacher) / rows, so it vanishes where
// the indexer's map is the teacher, and the coverage is that of the best list.
TEST(GradientTest, PerfectIndexerLosesNothing) {
  constexpr int64_t kRows = 24;
  auto generator = at::detail::createCPUGenerator(2);
  const Tensor q = torch::randn({1, 1, kRows, 8}, generator, torch::kFloat64);
  const Tensor k = torch::randn({1, 1, kRows, 8}, generator, torch::kFloat64);
  const Tensor index_q = q[0].clone().set_requires_grad(true);
  Coverage coverage;
  const Tensor loss = Distil({.queries = {q},
                              .keys = k,
                              .index_q = index_q,
                              .index_k = k[0],
                              .rows = torch::arange(kRows, torch::kInt64),
                              .scale = 0.3,
                              .index_scale = 0.3,
                              .top_k = 5},
                             &coverage);
  loss.backward();
  EXPECT_NEAR(loss.item<double>(), 0, 1e-12);
  EXPECT_LT(index_q.grad().abs().max().item<double>(), 1e-12);
  EXPECT_NEAR(coverage.held, coverage.best, 1e-12);
}

}  // namespace
}  // namespace baton::train
