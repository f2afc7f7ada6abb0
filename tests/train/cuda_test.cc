// The GPU's ways to the same results: the list kernel, fused attention, lists as additive masks.
#include "tests/train/toy_models.h"
#include "train/lists.h"

namespace baton::train {
namespace {

class TrainCudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "no GPU";
  }
};

TEST_F(TrainCudaTest, ListKernelEqualsASort) {
  auto generator = at::detail::createCPUGenerator(3);
  for (const int64_t columns : {1, 31, 256, 300, 4096, 20000}) {
    for (const int64_t k : {1, 8, 200}) {
      // Few different values, so that there are ties everywhere, and some -inf.
      Tensor scores = torch::randint(-20, 20, {64, columns}, generator, torch::kFloat32) / 4;
      scores.masked_fill_(scores < -3, -std::numeric_limits<float>::infinity());
      EXPECT_TRUE(torch::equal(LargestOf(scores, k), LargestOf(scores.cuda(), k).cpu()))
          << columns << " columns, k " << k;
    }
  }
}

// Small integers, whose sums are exact in every order.
Tensor Integers(at::IntArrayRef shape, torch::Generator& g) {
  return torch::randint(-4, 5, shape, g, torch::kFloat32);
}

TEST_F(TrainCudaTest, RankingKernelEqualsTensors) {
  auto g = at::detail::createCPUGenerator(5);
  constexpr int64_t kRows = 700;  // two tiles, the second of no whole blocks
  for (const auto& [groups, block, sink, recent] : std::vector<std::array<int64_t, 4>>{
           {1, 1, 0, 0}, {1, 1, 3, 9}, {2, 16, 0, 0}, {2, 7, 2, 5}}) {
    for (const bool normed : {false, true}) {
      SCOPED_TRACE(fmt::format("{} groups, blocks of {}, {}", groups, block, normed));
      RankInput in{.q = Integers({2, 6, kRows, 32}, g),
                   .k = Integers({2, 2, kRows, 32}, g),
                   .groups = groups,
                   .block = block,
                   .sink = sink,
                   .recent = recent,
                   .top_k = 5 * block};
      if (normed) in.lse = Integers({2, 6, kRows}, g);
      const Tensor expected = Rank(in);
      in.q = in.q.cuda().to(torch::kBFloat16), in.k = in.k.cuda().to(torch::kBFloat16);
      if (normed) in.lse = in.lse.cuda();
      EXPECT_TRUE(torch::equal(Rank(in).cpu(), expected));
    }
  }
}

TEST_F(TrainCudaTest, BiasKernelEqualsTensors) {
  auto g = at::detail::createCPUGenerator(6);
  constexpr int64_t kRows = 203, kFirst = 64;
  for (const auto& [block, sink, recent] :
       std::vector<std::array<int64_t, 3>>{{1, 0, 0}, {1, 2, 9}, {16, 0, 0}, {7, 3, 300}}) {
    SCOPED_TRACE(block);
    Visible seen;
    seen.kind = Visible::Kind::kList;
    seen.block = block, seen.sink = sink, seen.recent = recent;
    const int64_t blocks = (kRows + block - 1) / block;
    seen.list = torch::randint(-1, blocks, {2, 3, kRows, 6}, g, torch::kInt32);
    for (const auto type : {torch::kBFloat16, torch::kFloat16}) {
      const Tensor expected = seen.Bias(kFirst, kRows, torch::empty({0}, type));
      Visible there = seen;
      there.list = seen.list.cuda();
      const Tensor got = there.Bias(kFirst, kRows, torch::empty({0}, type).cuda());
      EXPECT_TRUE(torch::equal(got.cpu(), expected));
    }
  }
}

struct Trained {
  Tensor stream;
  std::map<std::string, Tensor> gradients;
};

Trained Train(const baton::Checkpoint& checkpoint, const Tensor& tokens, torch::Device device,
              torch::ScalarType values, torch::ScalarType products) {
  Parameters parameters(checkpoint, torch::TensorOptions(device).dtype(values));
  const Transformer model(checkpoint.config, parameters, products);
  ForwardInput in{.tokens = tokens.to(device)};
  if (model.has_indexer())
    in.distilled_rows = torch::arange(0, tokens.size(1), 5, in.tokens.options());
  const ForwardOutput out = model.Forward(in);
  const Tensor logits = model.Logits(out.stream);
  Tensor loss = torch::cross_entropy_loss(logits.reshape({-1, logits.size(2)}).to(values),
                                          in.tokens.roll(-1, 1).reshape({-1}));
  if (out.distillation.defined()) loss = loss + out.distillation;
  loss.backward();
  Trained trained{.stream = out.stream.detach().to(torch::kCPU, torch::kFloat64)};
  for (const Parameter& p : parameters.all())
    trained.gradients[p.name] = p.value.grad().to(torch::kCPU, torch::kFloat64);
  return trained;
}

double Distance(const Tensor& a, const Tensor& b) {
  return ((a - b).norm() / (b.norm() + 1e-12)).item<double>();
}

// bf16 flips the choice of a few lists; what is compared is the whole.
TEST_F(TrainCudaTest, FusedAttentionHasTheGradientsOfDoublePrecision) {
  int i = 0;
  std::vector<SyntheticSpec> specs = ToySpecs();
  specs.push_back(specs[4]);  // lists of blocks, one for each of two groups
  specs.back().heads = 4, specs.back().kv_heads = 2;
  for (const SyntheticSpec& spec : specs) {
    SCOPED_TRACE(test::Describe(spec));
    const baton::Checkpoint checkpoint = OpenOrDie(FolderOf(spec, fmt::format("cuda-{}", i++)));
    auto generator = at::detail::createCPUGenerator(4);
    const Tensor tokens = torch::randint(0, spec.vocab, {3, 1024}, generator, torch::kInt64);
    const Trained exact = Train(checkpoint, tokens, torch::kCPU, torch::kFloat64, torch::kFloat64);
    const Trained single =
        Train(checkpoint, tokens, torch::kCUDA, torch::kFloat32, torch::kFloat32);
    const Trained fused =
        Train(checkpoint, tokens, torch::kCUDA, torch::kFloat32, torch::kBFloat16);
    std::printf("%s: stream %.5f %.5f\n", test::Describe(spec).c_str(),
                Distance(single.stream, exact.stream), Distance(fused.stream, exact.stream));
    EXPECT_LT(Distance(single.stream, exact.stream), 1e-3);
    EXPECT_LT(Distance(fused.stream, exact.stream), 0.1);
    for (const auto& [name, gradient] : exact.gradients) {
      const double s = Distance(single.gradients.at(name), gradient),
                   f = Distance(fused.gradients.at(name), gradient);
      EXPECT_LT(s, 1e-2) << name;
      EXPECT_LT(f, 0.25) << name;
    }
  }
}

// Lists that hold every key are full attention.
TEST_F(TrainCudaTest, ListsOfAllKeysEqualFullAttention) {
  SyntheticSpec spec = ToySpecs()[3];
  spec.top_k = 2048;
  const baton::Checkpoint checkpoint = OpenOrDie(FolderOf(spec, "all-keys"));
  Parameters parameters(checkpoint, torch::TensorOptions(torch::kCUDA).dtype(torch::kFloat32));
  const Transformer model(checkpoint.config, parameters, torch::kBFloat16);
  const torch::NoGradGuard no_gradients;
  auto generator = at::detail::createCPUGenerator(4);
  const Tensor tokens = torch::randint(0, spec.vocab, {3, 2048}, generator, torch::kInt64).cuda();
  const Tensor all = model.Forward({.tokens = tokens, .dense_memory = true}).stream;
  const Tensor listed = model.Forward({.tokens = tokens}).stream;
  EXPECT_LT(Distance(listed.to(torch::kFloat64), all.to(torch::kFloat64)), 0.02);
}

}  // namespace
}  // namespace baton::train
