// Merge: a layer's branches with sinks and gates, on every backend, and properties of the result.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tests/ops/op_test_util.h"

namespace baton::test {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr double kDoubleNothing = -std::numeric_limits<double>::infinity();

enum class GateKind { kNone, kHead, kChannel };

struct Branch {
  std::vector<float> o, lse, sink, gate;
};

// Branches of `rows` rows; in every branch some row and head has attended to nothing.
struct Case {
  int64_t rows, heads, dim;
  GateKind gates;
  bool gated_sum;
  std::vector<Branch> branches;

  MergeParams Params(std::vector<MergeParams::Part>& parts, std::vector<float>& out) const {
    parts.clear();
    for (const Branch& b : branches) {
      MergeParams::Part part{.o = View<const float>(b.o.data(), {rows, heads, dim}),
                             .lse = View<const float>(b.lse.data(), {rows, heads})};
      const bool own = gated_sum || parts.empty();
      if (own && !b.sink.empty()) part.sink_logit = b.sink.data();
      if (own && gates != GateKind::kNone) {
        part.gate = View<const float>(b.gate.data(),
                                      {rows, gates == GateKind::kHead ? heads : heads * dim});
      }
      parts.push_back(part);
    }
    out.assign(static_cast<size_t>(rows * heads * dim), NAN);
    return {
        .parts = parts, .gated_sum = gated_sum, .out = View<float>(out.data(), {rows, heads, dim})};
  }
  std::vector<float> Run(Ops& ops) const {
    std::vector<MergeParams::Part> parts;
    std::vector<float> out;
    ops.Merge(Params(parts, out));
    return out;
  }
};

Case MakeCase(Rng& rng, int64_t rows, int64_t heads, int64_t dim, int branches, bool sinks,
              GateKind gates, bool gated_sum) {
  Case c{.rows = rows, .heads = heads, .dim = dim, .gates = gates, .gated_sum = gated_sum};
  for (int b = 0; b < branches; ++b) {
    Branch x{.o = RandomNormal(rng, rows * heads * dim),
             .lse = RandomNormal(rng, rows * heads, 3, 5),
             .gate = RandomNormal(rng, rows * heads * dim, 3)};
    if (sinks) x.sink = RandomNormal(rng, heads, 3, 4);
    const int64_t empty = b % (rows * heads);
    x.lse[static_cast<size_t>(empty)] = kNothing;
    std::fill_n(x.o.begin() + empty * dim, dim, 0.0f);
    c.branches.push_back(std::move(x));
  }
  return c;
}

class BranchesTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ops_ = MakeBackend(GetParam(), threads_);
    if (!ops_) GTEST_SKIP() << kNoBackend;
  }
  ThreadPool threads_{2};
  ThreadPool one_{1};
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Ops> ref_ = MakeReferenceOps(one_);
};

TEST_P(BranchesTest, MatchesReference) {
  Rng rng(1);
  for (int64_t dim : {1, 16, 24, 128}) {
    for (int64_t rows : {1, 5}) {
      for (int branches : {1, 2, 3, 8}) {
        for (bool sinks : {false, true}) {
          for (GateKind gates : {GateKind::kNone, GateKind::kHead, GateKind::kChannel}) {
            for (bool gated_sum : {false, true}) {
              const Case c = MakeCase(rng, rows, 67, dim, branches, sinks, gates, gated_sum);
              ExpectClose(c.Run(*ops_), c.Run(*ref_),
                          {.relative = 2e-6, .absolute = 1e-6, .cosine = 0.9999999},
                          "D " + std::to_string(dim) + " branches " + std::to_string(branches) +
                              " sinks " + std::to_string(sinks) + " gate " +
                              std::to_string(static_cast<int>(gates)) + " sum " +
                              std::to_string(gated_sum));
            }
          }
        }
      }
    }
  }
}

// The sum over all keys of both branches and the sink, in double precision.
TEST_P(BranchesTest, IsOneSoftmaxOverAllKeysAndTheSink) {
  Rng rng(2);
  constexpr int64_t kDim = 20, kKeys = 12;
  for (float sink : {kNothing, -3.0f, 0.5f, 9.0f}) {
    const std::vector<float> scores = RandomNormal(rng, kKeys, 2);
    const std::vector<float> values = RandomNormal(rng, kKeys * kDim);
    for (int64_t cut : {0, 1, 5, 12}) {
      Case c{.rows = 1, .heads = 1, .dim = kDim, .gates = GateKind::kNone, .gated_sum = false};
      for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, cut}, {cut, kKeys}}) {
        Branch b{.o = std::vector<float>(kDim), .lse = {kNothing}, .sink = {sink}};
        double sum = 0;
        std::vector<double> o(kDim);
        for (int64_t n = begin; n < end; ++n) {
          const double e = std::exp(static_cast<double>(scores[static_cast<size_t>(n)]));
          sum += e;
          for (size_t d = 0; d < kDim; ++d) o[d] += e * values[static_cast<size_t>(n) * kDim + d];
        }
        for (size_t d = 0; d < kDim && sum > 0; ++d) b.o[d] = static_cast<float>(o[d] / sum);
        b.lse[0] = static_cast<float>(sum > 0 ? std::log(sum) : kDoubleNothing);
        c.branches.push_back(b);
      }
      double total = std::exp(static_cast<double>(sink));
      std::vector<double> want(kDim);
      for (size_t n = 0; n < kKeys; ++n) {
        const double e = std::exp(static_cast<double>(scores[n]));
        total += e;
        for (size_t d = 0; d < kDim; ++d) want[d] += e * values[n * kDim + d];
      }
      const std::vector<float> got = c.Run(*ops_);
      for (size_t d = 0; d < kDim; ++d) EXPECT_NEAR(got[d], want[d] / total, 2e-6) << sink;
    }
  }
}

TEST_P(BranchesTest, OneBranchWithNothingOnItIsUnchanged) {
  Rng rng(3);
  for (bool gated_sum : {false, true}) {
    for (bool sink_of_nothing : {false, true}) {
      Case c = MakeCase(rng, 4, 3, 32, 1, false, GateKind::kNone, gated_sum);
      if (sink_of_nothing) c.branches[0].sink.assign(3, kNothing);
      ExpectSameBits(c.Run(*ops_), c.branches[0].o);
    }
  }
}

TEST_P(BranchesTest, WhatAttendedToNothingIsZero) {
  Rng rng(4);
  for (bool gated_sum : {false, true}) {
    for (float sink : {kNothing, 2.0f}) {
      Case c = MakeCase(rng, 1, 2, 16, 2, true, GateKind::kChannel, gated_sum);
      for (Branch& b : c.branches) {
        b.lse.assign(2, kNothing);
        b.sink.assign(2, sink);
      }
      for (float x : c.Run(*ops_)) EXPECT_EQ(x, 0.0f);
    }
  }
}

TEST_P(BranchesTest, AClosedGateRemovesItsBranch) {
  Rng rng(5);
  for (float closed : {-200.0f, kNothing}) {
    Case both = MakeCase(rng, 2, 3, 40, 2, true, GateKind::kChannel, true);
    both.branches[0].gate.assign(both.branches[0].gate.size(), closed);
    Case one = both;
    one.branches.erase(one.branches.begin());
    ExpectClose(both.Run(*ops_), one.Run(*ops_), {.relative = 1e-6, .absolute = 1e-7});
  }
}

TEST_P(BranchesTest, OutMayBeAnInput) {
  Rng rng(6);
  for (size_t in_place : {0, 1}) {
    Case c = MakeCase(rng, 3, 5, 48, 2, true, GateKind::kChannel, true);
    const std::vector<float> want = c.Run(*ops_);
    std::vector<MergeParams::Part> parts;
    std::vector<float> unused;
    MergeParams p = c.Params(parts, unused);
    p.out = View<float>(c.branches[in_place].o.data(), {3, 5, 48});
    ops_->Merge(p);
    ExpectSameBits(c.branches[in_place].o, want);
  }
}

TEST_P(BranchesTest, NanIsNotHidden) {
  Rng rng(7);
  for (bool gated_sum : {false, true}) {
    for (bool sinks : {false, true}) {
      Case c = MakeCase(rng, 2, 4, 16, 2, sinks, GateKind::kChannel, gated_sum);
      c.branches[1].lse[5] = NAN;
      const std::vector<float> out = c.Run(*ops_);
      for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i / 16 == 5) << i;
      c.branches[1].lse[5] = 0;
      c.branches[gated_sum].gate[3] = NAN;  // of parts[0] without, of parts[1] with a sum
      const std::vector<float> gated = c.Run(*ops_);
      EXPECT_TRUE(std::isnan(gated[3]));
      EXPECT_FALSE(std::isnan(gated[4]));
    }
  }
}

TEST_P(BranchesTest, RowsAndThreadsChangeNoBit) {
  Rng rng(8);
  Case all = MakeCase(rng, 6, 64, 128, 2, true, GateKind::kChannel, true);
  const std::vector<float> together = all.Run(*ops_);
  ThreadPool three(3);
  ExpectSameBits(all.Run(*MakeBackend(GetParam(), three)), together);
  constexpr size_t kRow = 64 * 128;
  for (size_t row = 0; row < 6; ++row) {
    Case one = all;
    one.rows = 1;
    for (Branch& b : one.branches) {
      b.o = {b.o.begin() + row * kRow, b.o.begin() + (row + 1) * kRow};
      b.gate = {b.gate.begin() + row * kRow, b.gate.begin() + (row + 1) * kRow};
      b.lse = {b.lse.begin() + row * 64, b.lse.begin() + (row + 1) * 64};
    }
    ExpectSameBits(one.Run(*ops_), std::span(together).subspan(row * kRow, kRow));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, BranchesTest, ::testing::ValuesIn(BackendNames()),
                         [](const auto& i) { return i.param; });

}  // namespace
}  // namespace baton::test
