// The operations on rows and the layer router against their definitions, on every backend.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "formats/dequantize.h"
#include "tests/ops/op_test_util.h"

namespace baton::test {
namespace {

class RowOpsTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ops_ = MakeBackend(GetParam(), threads_);
    if (!ops_) GTEST_SKIP() << kNoBackend;
  }
  ThreadPool threads_{2};
  std::unique_ptr<Ops> ops_;
};

TEST_P(RowOpsTest, EmbedExpandsAndScalesTheRowsOfTokens) {
  Rng rng(1);
  constexpr int64_t kVocab = 40, kWidth = 512;
  for (DType dtype : kWeightTypes) {
    const std::vector<std::byte> data = RandomWeights(rng, dtype, kVocab * kWidth);
    const RawMatrix table{dtype, data.data(), kVocab, kWidth};
    std::vector<float> all(kVocab * kWidth);
    Dequantize(dtype, data.data(), 0, kVocab * kWidth, all.data());
    for (float scale : {1.0f, 22.6f}) {
      for (int64_t rows : {1, 3, 100}) {
        std::vector<int32_t> tokens;
        for (int64_t t = 0; t < rows; ++t)
          tokens.push_back(static_cast<int32_t>((t * 7 + kVocab - 1) % kVocab));
        std::vector<float> x(static_cast<size_t>(rows * kWidth)), want;
        ops_->Embed({.table = &table,
                     .tokens = tokens,
                     .scale = scale,
                     .x = View<float>(x.data(), {rows, kWidth})});
        for (int32_t token : tokens) {
          for (int64_t i = 0; i < kWidth; ++i)
            want.push_back(all[static_cast<size_t>(token * kWidth + i)] * scale);
        }
        ExpectSameBits(x, want, std::string(Info(dtype).name));
      }
    }
  }
}

TEST_P(RowOpsTest, CopyRowsAndAdd) {
  Rng rng(2);
  for (int64_t width : {1, 37, 20000}) {
    const std::vector<float> from = RandomNormal(rng, 9 * width);
    const std::vector<int64_t> rows = {8, 0, 3, 3, 7};
    std::vector<float> to(static_cast<size_t>(5 * width)), want;
    ops_->CopyRows({.from = View<const float>(from.data(), {9, width}),
                    .rows = rows,
                    .to = View<float>(to.data(), {5, width})});
    for (int64_t r : rows)
      want.insert(want.end(), from.begin() + r * width, from.begin() + (r + 1) * width);
    ExpectSameBits(to, want);
    ops_->Add(
        {.x = View<float>(to.data(), {5, width}), .y = View<const float>(from.data(), {5, width})});
    for (size_t i = 0; i < want.size(); ++i) want[i] += from[i];
    ExpectSameBits(to, want);
  }
}

TEST_P(RowOpsTest, RotaryTableOfDistantPositions) {
  const std::vector<float> frequencies = {1.0f, 0.25f, 1e-3f, 1e-6f, 3e-7f};
  const Rows segments[] = {{.first = 1, .count = 70, .position = 5},
                           {.first = 72, .count = 1, .position = 1'000'003}};
  std::vector<float> cos(74 * 5, -9.0f), sin(74 * 5, -9.0f);
  ops_->RotaryTable({.frequencies = frequencies,
                     .gain = 1.5f,
                     .segments = segments,
                     .cos = View<float>(cos.data(), {74, 5}),
                     .sin = View<float>(sin.data(), {74, 5})});
  for (int64_t t = 0; t < 74; ++t) {
    for (int64_t d = 0; d < 5; ++d) {
      const auto at = static_cast<size_t>(t * 5 + d);
      if (t == 0 || t == 71 || t == 73) {
        EXPECT_EQ(cos[at], -9.0f);
        continue;
      }
      const double position = t == 72 ? 1'000'003 : static_cast<double>(t + 4);
      const double angle = position * frequencies[static_cast<size_t>(d)];
      EXPECT_EQ(cos[at], static_cast<float>(std::cos(angle)) * 1.5f) << t << " " << d;
      EXPECT_EQ(sin[at], static_cast<float>(std::sin(angle)) * 1.5f) << t << " " << d;
    }
  }
}

// ---- the router

struct Router {
  std::vector<std::vector<float>> weights, biases;
  RouterWeights view;

  Router(Rng& rng, int64_t d) {
    const int64_t widths[] = {d, 8 * d, 2 * d, 4 * d, d, 2};
    for (size_t l = 0; l < 5; ++l) {
      const int64_t in = widths[l], out = widths[l + 1];
      weights.push_back(RandomNormal(rng, in * out, 1.5f / std::sqrt(static_cast<float>(in))));
      biases.push_back(RandomNormal(rng, out, 0.2f));
      RouterWeights::Layer& layer = l < 2 ? view.encoder[l] : view.head[l - 2];
      layer.weight = View<const float>(weights[l].data(), {out, in});
      layer.bias = biases[l].data();
    }
  }

  // The definition, in double precision throughout.
  std::vector<double> Logits(const std::vector<float>& q, int64_t d) const {
    std::vector<double> x(static_cast<size_t>(d));
    for (size_t i = 0; i < q.size(); ++i) x[i % x.size()] += q[i];
    for (double& v : x) v /= static_cast<double>(q.size()) / static_cast<double>(d);
    for (size_t l = 0; l < 5; ++l) {
      std::vector<double> y;
      for (size_t r = 0; r < biases[l].size(); ++r) {
        double sum = biases[l][r];
        for (size_t i = 0; i < x.size(); ++i) sum += x[i] * weights[l][r * x.size() + i];
        const bool silu = l == 0 || l == 2 || l == 3;
        y.push_back(silu ? sum / (1 + std::exp(-sum)) : sum);
      }
      x = y;
    }
    return x;
  }
};

TEST_P(RowOpsTest, RouteFollowsItsDefinition) {
  Rng rng(3);
  for (int64_t d : {20, 64, 128}) {
    const Router router(rng, d);
    for (int64_t rows : {1, 7, 200}) {
      const std::vector<float> q = RandomNormal(rng, rows * 6 * d, 1, 0.3f);
      std::vector<float> logits(2, NAN);
      ops_->Route({.q = View<const float>(q.data(), {rows, 6, d}),
                   .weights = &router.view,
                   .logits = logits.data()});
      const std::vector<double> want = router.Logits(q, d);
      for (size_t i = 0; i < 2; ++i)
        EXPECT_NEAR(logits[i], want[i], 2e-6 * (1 + std::fabs(want[i]))) << d << " " << rows;
    }
  }
}

TEST_P(RowOpsTest, RouteHasTheSameBitsWithAnyThreads) {
  Rng rng(4);
  const Router router(rng, 64);
  const std::vector<float> q = RandomNormal(rng, 100 * 4 * 64);
  std::vector<std::vector<float>> all;
  for (int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    std::vector<float> logits(2);
    MakeBackend(GetParam(), pool)
        ->Route({.q = View<const float>(q.data(), {100, 4, 64}),
                 .weights = &router.view,
                 .logits = logits.data()});
    all.push_back(logits);
  }
  ExpectSameBits(all[1], all[0]);
  ExpectSameBits(all[2], all[0]);
}

INSTANTIATE_TEST_SUITE_P(Backends, RowOpsTest, ::testing::ValuesIn(BackendNames()),
                         [](const auto& i) { return i.param; });

}  // namespace
}  // namespace baton::test
