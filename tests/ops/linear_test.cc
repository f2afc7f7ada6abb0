#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "base/thread_pool.h"
#include "ops/ops.h"
#include "tests/ops/op_test_util.h"
#ifdef BATON_WITH_CPU
#include "hwy/targets.h"
#endif

namespace baton::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Weights {
  DType dtype;
  int64_t rows, cols;
  std::vector<std::byte> data;
  std::unique_ptr<Matrix> packed;

  Weights(Rng& rng, DType t, int64_t r, int64_t c)
      : dtype(t), rows(r), cols(c), data(RandomWeights(rng, t, r * c)) {}
  RawMatrix raw() const {
    return {.dtype = dtype, .data = data.data(), .rows = rows, .cols = cols};
  }
};

std::unique_ptr<Matrix> Pack(Ops& ops, const Weights& w) {
  auto m = ops.Pack(w.raw());
  EXPECT_TRUE(m.ok());
  if (!m.ok()) return nullptr;
  EXPECT_EQ((*m)->rows, w.rows);
  EXPECT_EQ((*m)->cols, w.cols);
  EXPECT_GT((*m)->bytes, 0);
  return std::move(m).value();
}

struct Options {
  const float* norm = nullptr;
  const float* bias = nullptr;
  bool accumulate = false;
  bool fine = false;
};

std::vector<float> RunLinear(Ops& ops, const Weights& w, const std::vector<float>& x,
                             const Options& o = {}, float initial = 0.5f) {
  const int64_t tokens = static_cast<int64_t>(x.size()) / w.cols;
  auto m = Pack(ops, w);
  std::vector<float> y(static_cast<size_t>(tokens * w.rows), initial);
  const LinearParams::Out out{
      .w = m.get(), .bias = o.bias, .y = View<float>(y.data(), {tokens, w.rows})};
  ops.Linear({.x = View<const float>(x.data(), {tokens, w.cols}),
              .norm_weight = o.norm,
              .norm_eps = 1e-5f,
              .outs = {&out, 1},
              .accumulate = o.accumulate,
              .fine = o.fine});
  return y;
}

std::vector<float> RunGlu(Ops& ops, const Weights& gate, const Weights& up,
                          const std::vector<float>& x, GluActivation activation,
                          const float* norm = nullptr, bool fine = false) {
  const int64_t tokens = static_cast<int64_t>(x.size()) / gate.cols;
  auto g = Pack(ops, gate), u = Pack(ops, up);
  std::vector<float> y(static_cast<size_t>(tokens * gate.rows));
  ops.Glu({.x = View<const float>(x.data(), {tokens, gate.cols}),
           .norm_weight = norm,
           .norm_eps = 1e-5f,
           .gate = g.get(),
           .up = u.get(),
           .activation = activation,
           .y = View<float>(y.data(), {tokens, gate.rows}),
           .fine = fine});
  return y;
}

bool IsFloat(DType t) { return Info(t).block_elements == 1; }
bool IsK(DType t) { return Info(t).block_elements == 256; }

// avx512 rounds x to 8 bits (or bf16), amx and cuda both x and weights to bf16, avx2 x with
// quantised weights, all round F32 and F16 weights to bf16 and the scales of K types to f16. `fine`
// keeps 16 bits of x.
Tolerance ToleranceOf(const std::string& backend, DType t, bool fine = false) {
  // The cosine is the strict test; single values have long tails, because random blocks differ much
  // in size.
  if (backend == "avx512" || backend == "amx" || (backend == "cuda" && !fine) ||
      (backend == "avx2" && !IsFloat(t)))
    return {.absolute = 0.1, .cosine = 0.9999};
  if (t == DType::kF32 || t == DType::kF16) return {.absolute = 0.03, .cosine = 0.99999};
  if (t == DType::kQ2_K)
    return {.absolute = 0.03, .cosine = 0.9999};  // rounded once more to 8 bits
  if (IsK(t)) return {.absolute = 0.01, .cosine = 0.999999};
  return {.absolute = 2e-5, .cosine = 0.9999999};
}

class LinearTest : public testing::TestWithParam<std::tuple<std::string, DType>> {
 protected:
  std::string backend() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  void SetUp() override {
    ops_ = MakeBackend(backend(), threads_);
    if (!ops_) GTEST_SKIP() << kNoBackend;
  }
  int64_t Cols(int64_t c) const { return IsK(dtype()) ? (c + 255) / 256 * 256 : c; }

  ThreadPool threads_{2};
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Ops> ref_ = MakeReferenceOps(threads_);
  Rng rng_{17};
};

TEST_P(LinearTest, MatchesReference) {
  struct Shape {
    int64_t rows, cols;
    std::vector<int64_t> tokens;
  };
  const std::vector<Shape> shapes = {{1, 32, {33}},
                                     {16, 64, {1, 2, 7}},
                                     {37, 96, {1, 2, 3, 4, 5, 6, 7}},
                                     {64, 576, {1, 5, 16}},
                                     {129, 160, {1, 33, 70}},
                                     {50, 2048, {1, 2, 13}},
                                     {96, 288, {200}},
                                     {700, 64, {1, 70}},
                                     // Enough rows for panels of three and of four groups, more
                                     // columns than a stretch of amx, more tokens than a block.
                                     {1040, 64, {17, 33}},
                                     {1072, 64, {33}},
                                     {20, 1056, {33}},
                                     {50, 96, {530}}};
  for (const Shape& s : shapes) {
    const Weights w(rng_, dtype(), s.rows, Cols(s.cols));
    const auto norm = RandomNormal(rng_, w.cols, 0.3f, 1);
    const auto bias = RandomNormal(rng_, w.rows);
    for (int64_t tokens : s.tokens) {
      const auto x = RandomNormal(rng_, tokens * w.cols, 2);
      for (int variant = 0; variant < 4; ++variant) {
        const Options o{.norm = variant & 1 ? norm.data() : nullptr,
                        .bias = variant & 2 ? bias.data() : nullptr,
                        .accumulate = variant == 3};
        ExpectClose(RunLinear(*ops_, w, x, o), RunLinear(*ref_, w, x, o),
                    ToleranceOf(backend(), dtype()),
                    fmt::format("{} x {}, {} tokens, variant {}", w.rows, w.cols, tokens, variant));
      }
    }
  }
}

TEST_P(LinearTest, GluMatchesReference) {
  for (const int64_t rows : {16, 45, 200}) {
    const Weights gate(rng_, dtype(), rows, Cols(192));
    const Weights up(rng_, DType::kQ8_0, rows, gate.cols);  // the two need not have one type
    const auto norm = RandomNormal(rng_, gate.cols, 0.3f, 1);
    for (const int64_t tokens : {1, 2, 6, 19}) {
      const auto x = RandomNormal(rng_, tokens * gate.cols);
      for (const GluActivation a : {GluActivation::kSilu, GluActivation::kGeluTanh}) {
        const Tolerance of_up = ToleranceOf(backend(), DType::kQ8_0);
        Tolerance tolerance = ToleranceOf(backend(), dtype());
        if (of_up.cosine < tolerance.cosine) tolerance = of_up;
        tolerance.absolute *= 2;  // a product of two
        tolerance.cosine = 1 - 2 * (1 - tolerance.cosine);
        tolerance.relative = tolerance.absolute;
        ExpectClose(
            RunGlu(*ops_, gate, up, x, a, norm.data()), RunGlu(*ref_, gate, up, x, a, norm.data()),
            tolerance,
            fmt::format("{} rows, {} tokens, activation {}", rows, tokens, static_cast<int>(a)));
      }
    }
  }
}

TEST_P(LinearTest, RowsDoNotDependOnTheirBatch) {
  struct Shape {
    int64_t rows, cols;
  };
  for (const auto [rows, cols] : {Shape{83, 320}, Shape{83, 1056}, Shape{128, 576}}) {
    const Weights w(rng_, dtype(), rows, Cols(cols));
    const auto norm = RandomNormal(rng_, w.cols, 0.3f, 1);
    constexpr int64_t kAlone = 70;
    const auto x = RandomNormal(rng_, 600 * w.cols);
    const Options o{.norm = norm.data()};
    std::vector<float> alone;
    for (int64_t t = 0; t < kAlone; ++t) {
      const std::vector<float> row(x.begin() + t * w.cols, x.begin() + (t + 1) * w.cols);
      const auto y = RunLinear(*ops_, w, row, o);
      alone.insert(alone.end(), y.begin(), y.end());
    }
    for (const int64_t tokens : {2, 3, 5, 6, 7, 12, 16, 33, 70, 600}) {
      if (tokens > kAlone && rows != 128) continue;  // one shape is enough for this many tokens
      const std::vector<float> part(x.begin(), x.begin() + tokens * w.cols);
      const auto compared = static_cast<size_t>(std::min(tokens, kAlone) * w.rows);
      const std::vector<float> y = RunLinear(*ops_, w, part, o);
      ExpectSameBits(std::span(y).first(compared), std::span(alone).first(compared),
                     fmt::format("{} columns, {} tokens", cols, tokens));
    }
  }
}

// Decode's products: x keeps more bits, and a row's bits are the same in any batch. The large
// matrix is for a GPU, whose kernels differ in the rows of it that they take at a time.
TEST_P(LinearTest, FineProductsMatchReference) {
  struct Shape {
    int64_t rows, cols;
    std::vector<int64_t> tokens;
  };
  const std::vector<Shape> shapes = {{83, 1056, {1, 4, 5, 8, 9, 16, 17, 32, 33, 64}},
                                     {200, 96, {1, 3, 12, 40}},
                                     {8210, 64, {1, 12, 16, 33, 64}}};
  for (const auto& [rows, cols, batches] : shapes) {
    if (rows > 1000 && backend() != "cuda") continue;
    const Weights w(rng_, dtype(), rows, Cols(cols)), up(rng_, dtype(), rows, w.cols);
    const auto norm = RandomNormal(rng_, w.cols, 0.3f, 1);
    const auto bias = RandomNormal(rng_, w.rows);
    const auto x = RandomNormal(rng_, 70 * w.cols);
    const auto glu = [&](Ops& ops, const std::vector<float>& of) {
      return RunGlu(ops, w, up, of, GluActivation::kSilu, norm.data(), true);
    };
    const Options o{.norm = norm.data(), .bias = bias.data(), .accumulate = true, .fine = true};
    Tolerance tolerance = ToleranceOf(backend(), dtype(), true);
    if (rows > 1000) tolerance.absolute *= 3;  // the tails of half a million values
    const auto all = RunLinear(*ops_, w, x, o), all_glu = glu(*ops_, x);
    ExpectClose(all, RunLinear(*ref_, w, x, o), tolerance, fmt::format("{} rows", rows));
    tolerance.absolute *= 2;
    tolerance.relative = tolerance.absolute;
    tolerance.cosine = 1 - 2 * (1 - tolerance.cosine);
    ExpectClose(all_glu, glu(*ref_, x), tolerance, fmt::format("{} rows, glu", rows));
    for (const int64_t tokens : batches) {
      const auto what = fmt::format("{} rows, {} tokens", rows, tokens);
      const auto n = static_cast<size_t>(tokens * rows);
      const std::vector<float> part(x.begin(), x.begin() + tokens * w.cols);
      ExpectSameBits(RunLinear(*ops_, w, part, o), std::span(all).first(n), what);
      ExpectSameBits(glu(*ops_, part), std::span(all_glu).first(n), what + ", glu");
    }
  }
}

TEST_P(LinearTest, GluRowsDoNotDependOnTheirBatch) {
  const Weights gate(rng_, dtype(), 83, Cols(320)), up(rng_, dtype(), 83, Cols(320));
  const auto x = RandomNormal(rng_, 16 * gate.cols);
  const auto batch = RunGlu(*ops_, gate, up, x, GluActivation::kSilu);
  for (int64_t t = 0; t < 16; ++t) {
    const std::vector<float> row(x.begin() + t * gate.cols, x.begin() + (t + 1) * gate.cols);
    ExpectSameBits(RunGlu(*ops_, gate, up, row, GluActivation::kSilu),
                   std::span(batch).subspan(static_cast<size_t>(t * gate.rows),
                                            static_cast<size_t>(gate.rows)));
  }
}

TEST_P(LinearTest, ThreadsDoNotChangeBits) {
  const Weights w(rng_, dtype(), 300, Cols(256)), up(rng_, dtype(), 300, Cols(256));
  for (const int64_t tokens : {1, 9, 40}) {
    const auto x = RandomNormal(rng_, tokens * w.cols);
    const auto want = RunLinear(*ops_, w, x);
    const auto want_glu = RunGlu(*ops_, w, up, x, GluActivation::kGeluTanh);
    for (const int n : {1, 2, 3, 5}) {
      ThreadPool pool(n);
      auto ops = MakeBackend(backend(), pool);
      ExpectSameBits(RunLinear(*ops, w, x), want, fmt::format("{} threads", n));
      ExpectSameBits(RunGlu(*ops, w, up, x, GluActivation::kGeluTanh), want_glu,
                     fmt::format("{} threads", n));
    }
  }
}

// y = x W^T for an x that is one in a single column: this tests every weight by itself, so that a
// wrong place or a wrong offset is found.
TEST_P(LinearTest, EveryWeightIsInItsPlace) {
  const Weights w(rng_, dtype(), 33, Cols(64));
  std::vector<float> x(static_cast<size_t>(w.cols * w.cols), 0.0f);
  for (int64_t c = 0; c < w.cols; ++c) x[static_cast<size_t>(c * w.cols + c)] = 127;
  const bool to_bf16 = dtype() == DType::kF32 || dtype() == DType::kF16 ||
                       ((backend() == "amx" || backend() == "cuda") && !IsFloat(dtype()));
  const bool rounded = dtype() == DType::kQ2_K;
  const Tolerance exact{.relative = to_bf16 ? 0.004 : 2e-6,
                        .absolute = rounded        ? 0.5
                                    : IsK(dtype()) ? 5e-3
                                                   : 1e-5,
                        .cosine = rounded ? 0.9999 : 0.99999};
  ExpectClose(RunLinear(*ops_, w, x), RunLinear(*ref_, w, x), exact);
}

TEST_P(LinearTest, ExtremeInputs) {
  const Weights w(rng_, dtype(), 40, Cols(96));
  const auto norm = RandomNormal(rng_, w.cols, 0.3f, 1);
  const auto n = static_cast<size_t>(w.cols);
  const auto normal = RandomNormal(rng_, w.cols);

  ExpectSameBits(RunLinear(*ops_, w, std::vector<float>(n, 0.0f)), std::vector<float>(40, 0.0f),
                 "zeros");
  const std::vector<float> normed_zero =
      RunLinear(*ops_, w, std::vector<float>(n, 0.0f), {.norm = norm.data()});
  ExpectSameBits(normed_zero, std::vector<float>(40, 0.0f), "zeros, normed");

  std::vector<float> huge = normal;
  for (float& v : huge) v *= 1e30f;
  ExpectClose(RunLinear(*ops_, w, huge), RunLinear(*ref_, w, huge), ToleranceOf(backend(), dtype()),
              "huge");

  // Blocks of tiny values count as zero.
  ExpectClose(RunLinear(*ops_, w, std::vector<float>(n, 1e-40f)), std::vector<float>(40, 0.0f),
              {.absolute = 1e-30, .cosine = -1, .scaled = false}, "denormals");

  for (const float bad : {kNan, kInf, -kInf}) {
    std::vector<float> x = RandomNormal(rng_, 3 * w.cols);
    const std::vector<float> clean = RunLinear(*ops_, w, x);
    x[n + 5] = bad;
    const std::vector<float> y = RunLinear(*ops_, w, x);
    for (size_t r = 0; r < 40; ++r) {
      EXPECT_EQ(y[r], clean[r]) << "a bad value in one row must not reach another";
      EXPECT_FALSE(std::isfinite(y[40 + r]));
      EXPECT_EQ(y[80 + r], clean[80 + r]);
    }
    x[n + 5] = 0;
    const std::vector<float> after = RunLinear(*ops_, w, x);
    for (const float v : after) ASSERT_TRUE(std::isfinite(v)) << "a bad value stayed behind";
    for (const float v : RunLinear(*ops_, w, std::vector<float>(n, bad), {.norm = norm.data()})) {
      EXPECT_TRUE(std::isnan(v));
    }
  }
}

TEST_P(LinearTest, SeveralMatricesShareX) {
  const Weights q(rng_, dtype(), 96, Cols(192)), k(rng_, DType::kQ8_0, 33, q.cols),
      v(rng_, DType::kBF16, 48, q.cols);
  for (const int64_t tokens : {1, 8, 250}) {
    const auto x = RandomNormal(rng_, tokens * q.cols);
    const auto bias = RandomNormal(rng_, k.rows);
    auto mq = Pack(*ops_, q), mk = Pack(*ops_, k), mv = Pack(*ops_, v);
    std::vector<float> yq(static_cast<size_t>(tokens * q.rows)),
        yk(static_cast<size_t>(tokens * k.rows)), yv(static_cast<size_t>(tokens * v.rows));
    const LinearParams::Out outs[] = {
        {.w = mq.get(), .y = View<float>(yq.data(), {tokens, q.rows})},
        {.w = mk.get(), .bias = bias.data(), .y = View<float>(yk.data(), {tokens, k.rows})},
        {.w = mv.get(), .y = View<float>(yv.data(), {tokens, v.rows})}};
    ops_->Linear({.x = View<const float>(x.data(), {tokens, q.cols}), .outs = outs});
    ExpectSameBits(yq, RunLinear(*ops_, q, x), "q");
    ExpectSameBits(yk, RunLinear(*ops_, k, x, {.bias = bias.data()}), "k");
    ExpectSameBits(yv, RunLinear(*ops_, v, x), "v");
  }
}

INSTANTIATE_TEST_SUITE_P(AllBackends, LinearTest,
                         testing::Combine(testing::ValuesIn(BackendNames()),
                                          testing::ValuesIn(kWeightTypes)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" +
                                  std::string(Info(std::get<1>(info.param)).name);
                         });

class ActivationTest : public testing::TestWithParam<std::string> {};

// With a unit weight the output shows the gate's activation over its whole range.
TEST_P(ActivationTest, IsAccurateEverywhere) {
  ThreadPool threads(1);
  auto ops = MakeBackend(GetParam(), threads);
  if (!ops) GTEST_SKIP() << kNoBackend;
  auto ref = MakeReferenceOps(threads);
  Rng rng(1);
  Weights gate(rng, DType::kBF16, 16, 32), up(rng, DType::kBF16, 16, 32);
  for (Weights* w : {&gate, &up}) std::fill(w->data.begin(), w->data.end(), std::byte{0});
  const bf16 one = ToBf16(1.0f);
  for (int r = 0; r < 16; ++r) {
    std::memcpy(gate.data.data() + (r * 32) * 2, &one, 2);
    std::memcpy(up.data.data() + (r * 32 + 1) * 2, &one, 2);
  }
  std::vector<float> x;
  for (float g = -100; g <= 100; g += 0.0625f) {
    x.insert(x.end(), 32, 0.0f);
    x[x.size() - 32] = ToFloat(ToBf16(g));
    x[x.size() - 31] = 1;
  }
  for (const GluActivation a : {GluActivation::kSilu, GluActivation::kGeluTanh}) {
    // The reference's 1 + tanh cancels below about -5; SiLU has no such weakness.
    const double absolute = a == GluActivation::kSilu ? 1e-30 : 2e-6;
    ExpectClose(RunGlu(*ops, gate, up, x, a), RunGlu(*ref, gate, up, x, a),
                {.relative = 2e-6, .absolute = absolute, .cosine = 0.9999999, .scaled = false},
                fmt::format("activation {}", static_cast<int>(a)));
  }
}

TEST_P(ActivationTest, PackReportsBadMatrices) {
  ThreadPool threads(1);
  auto ops = MakeBackend(GetParam(), threads);
  if (!ops) GTEST_SKIP() << kNoBackend;
  if (GetParam() == "ref") GTEST_SKIP() << "the reference trusts its caller";
  std::vector<std::byte> data(4096);
  EXPECT_FALSE(ops->Pack({.dtype = DType::kQ4_0, .data = data.data(), .rows = 2, .cols = 33}).ok());
  EXPECT_FALSE(ops->Pack({.dtype = DType::kQ4_K, .data = data.data(), .rows = 2, .cols = 32}).ok());
  EXPECT_FALSE(ops->Pack({.dtype = DType::kF32, .data = data.data(), .rows = 0, .cols = 32}).ok());
  EXPECT_FALSE(ops->Pack({.dtype = DType::kF32, .data = nullptr, .rows = 1, .cols = 32}).ok());
  EXPECT_FALSE(ops->Pack({.dtype = DType::kI8, .data = data.data(), .rows = 1, .cols = 32}).ok());
}

// Columns of float matrices need not be a multiple of the kernels' block; scales too large for f16
// fall back to bf16.
TEST_P(ActivationTest, PackPadsAndFallsBack) {
  ThreadPool threads(2);
  auto ops = MakeBackend(GetParam(), threads);
  if (!ops) GTEST_SKIP() << kNoBackend;
  auto ref = MakeReferenceOps(threads);
  Rng rng(5);
  const Weights odd(rng, DType::kBF16, 19, 45);
  const auto x = RandomNormal(rng, 3 * 45);
  ExpectClose(RunLinear(*ops, odd, x), RunLinear(*ref, odd, x),
              {.absolute = 0.04, .cosine = 0.9999}, "odd columns");
  Weights large(rng, DType::kQ6_K, 16, 256);
  const uint16_t d = FloatToHalf(30000.0f);
  for (int r = 0; r < 16; ++r) std::memcpy(large.data.data() + r * 210 + 208, &d, 2);
  const auto x2 = RandomNormal(rng, 256);
  ExpectClose(RunLinear(*ops, large, x2), RunLinear(*ref, large, x2),
              {.absolute = 0.04, .cosine = 0.9999}, "large scales");
}

#ifdef BATON_WITH_CPU
// The portable kernels are compiled for several vector lengths, of which a machine uses only one.
TEST(PortableTest, EveryVectorLengthMatchesReference) {
  ThreadPool threads(2);
  auto ref = MakeReferenceOps(threads);
  const int64_t supported = hwy::SupportedTargets();
  int tested = 0;
  for (int bit = 0; bit < 62; ++bit) {
    const int64_t target = int64_t{1} << bit;
    if ((supported & HWY_TARGETS & target) == 0) continue;
    hwy::GetChosenTarget().Update(target);
    SCOPED_TRACE(hwy::TargetName(target));
    ++tested;
    auto ops = MakeBackend("portable", threads);
    Rng rng(3);
    for (const DType t : {DType::kQ4_1, DType::kQ8_0, DType::kQ6_K, DType::kBF16}) {
      const Weights w(rng, t, 107, 256);
      for (const int64_t tokens : {1, 2, 4, 14}) {
        const auto x = RandomNormal(rng, tokens * w.cols);
        const auto norm = RandomNormal(rng, w.cols, 0.3f, 1);
        ExpectClose(RunLinear(*ops, w, x, {.norm = norm.data()}),
                    RunLinear(*ref, w, x, {.norm = norm.data()}), ToleranceOf("portable", t));
        ExpectClose(RunGlu(*ops, w, w, x, GluActivation::kSilu),
                    RunGlu(*ref, w, w, x, GluActivation::kSilu),
                    {.relative = 0.05, .absolute = 0.01, .cosine = 0.99999});
      }
    }
  }
  hwy::GetChosenTarget().Update(supported);
  EXPECT_GT(tested, 0);
}
#endif

INSTANTIATE_TEST_SUITE_P(AllBackends, ActivationTest, testing::ValuesIn(BackendNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace baton::test
