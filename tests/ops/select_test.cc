#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/ops/op_test_util.h"

namespace baton {
namespace {

struct Set {
  std::vector<float> mass;
  int64_t k = 0, sink = 0, recent = 0, block = 1;
  bool max = false;  // how a block is ranked
  int64_t visible() const { return std::ssize(mass); }
};

// By the definition: sort all units by (forced, mass, position), keep the first ones.
std::vector<int32_t> BruteForce(const Set& s) {
  const int64_t units = (s.visible() + s.block - 1) / s.block;
  struct Unit {
    int64_t index;
    bool forced;
    float mass;
  };
  std::vector<Unit> order;
  for (int64_t u = 0; u < units; ++u) {
    Unit unit{u, false, s.max ? -INFINITY : 0.0f};
    for (int64_t n = u * s.block; n < std::min(s.visible(), (u + 1) * s.block); ++n) {
      const float mass = s.mass[static_cast<size_t>(n)];
      unit.mass = s.max ? std::max(unit.mass, mass) : unit.mass + mass;
      unit.forced |= n < s.sink || n >= s.visible() - s.recent;
    }
    order.push_back(unit);
  }
  std::stable_sort(order.begin(), order.end(), [](const Unit& a, const Unit& b) {
    if (a.forced != b.forced) return a.forced;
    if (!a.forced && a.mass != b.mass) return a.mass > b.mass;
    return a.index < b.index;
  });
  const bool none = s.k == 0 && s.sink == 0 && s.recent == 0;
  order.resize(
      static_cast<size_t>(none ? 0 : std::min(units, std::max<int64_t>(1, s.k / s.block))));
  std::vector<int32_t> positions;
  for (const Unit& u : order) {
    for (int64_t n = u.index * s.block; n < std::min(s.visible(), (u.index + 1) * s.block); ++n) {
      positions.push_back(static_cast<int32_t>(n));
    }
  }
  std::sort(positions.begin(), positions.end());
  return positions;
}

std::vector<int32_t> SelectOne(Ops& ops, const Set& s, int64_t* bad = nullptr) {
  IndexSets out(test::TestMemory());
  out.Reset(1, 1, s.k + 2 * s.block);
  std::vector<int64_t> bad_position(1, bad ? *bad : 0);
  const int64_t visible = s.visible();
  const SelectParams::Segment segment{.mass = s.mass.data(),
                                      .mass_stride = visible,
                                      .sets = 1,
                                      .visible = {&visible, 1},
                                      .k = {&s.k, 1},
                                      .recent = {&s.recent, 1},
                                      .out = &out,
                                      .bad_position = bad ? bad_position.data() : nullptr};
  ops.Select(
      {.sink = s.sink,
       .block = s.block,
       .block_score = s.max ? SelectParams::BlockScore::kMax : SelectParams::BlockScore::kSum,
       .segments = {&segment, 1}});
  if (bad) *bad = bad_position[0];
  return std::vector<int32_t>(out.list(0, 0), out.list(0, 0) + out.count(0, 0));
}

// Masses of an attention row: most of them tiny, over many binades; `levels` > 0 makes ties.
std::vector<float> Masses(uint32_t seed, int64_t n, int levels) {
  test::Rng rng(seed);
  std::normal_distribution<float> normal(0, 4);
  std::vector<float> mass(static_cast<size_t>(n));
  for (float& m : mass) {
    m = levels > 0 ? static_cast<float>(rng() % static_cast<uint32_t>(levels)) * 0.25f
                   : std::exp(normal(rng) - 8);
    if (m == 0 && rng() % 2) m = -0.0f;
  }
  return mass;
}

// Log-probabilities or plain scores of an indexer: both signs, few distinct values where levels >
// 0, both zeros, and -inf where no key is visible.
std::vector<float> Scores(uint32_t seed, int64_t n, int levels, bool hidden) {
  test::Rng rng(seed);
  std::normal_distribution<float> normal(-3, 4);
  std::vector<float> mass(static_cast<size_t>(n));
  for (float& m : mass) {
    m = levels > 0 ? static_cast<float>(rng() % static_cast<uint32_t>(levels)) - 1 : normal(rng);
    if (m == 0 && rng() % 2) m = -0.0f;
    if (hidden && rng() % 3 == 0) m = -INFINITY;
  }
  return mass;
}

class SelectTest : public testing::TestWithParam<std::string> {
 protected:
  ThreadPool threads_{2};
  std::unique_ptr<Ops> ops_ = test::MakeBackend(GetParam(), threads_);
  void SetUp() override {
    if (!ops_) GTEST_SKIP() << test::kNoBackend;
  }
  void Check(const Set& s, const std::string& what) {
    auto got = SelectOne(*ops_, s);
    ASSERT_EQ(got, BruteForce(s)) << what;
  }
};

TEST_P(SelectTest, EqualsSortingForAllKindsOfMass) {
  for (int64_t n : {1, 2, 15, 16, 17, 63, 64, 65, 127, 1000, 1024, 4097, 20011}) {
    for (int levels : {0, 1, 2, 5, 100}) {
      const std::vector<float> mass = Masses(static_cast<uint32_t>(n), n, levels);
      for (int64_t k : {int64_t{1}, int64_t{2}, n / 8, n / 2, n - 1, n, n + 7}) {
        if (k < 1) continue;
        Check({.mass = mass, .k = k}, fmt::format("n {} levels {} k {}", n, levels, k));
        if (k > 6) {
          Check({.mass = mass, .k = k, .sink = 2, .recent = 4},
                fmt::format("forced, n {} levels {} k {}", n, levels, k));
        }
      }
    }
  }
}

// Long enough for the threads to share a set, slice by slice; threads in excess of slices stay
// idle.
TEST_P(SelectTest, LongSetsEqualSortingForAnyTeam) {
  ThreadPool three(3);
  const auto of_three = test::MakeBackend(GetParam(), three);
  for (int64_t n : {32768, 32769, 65537}) {
    for (int levels : {0, 1, 3}) {
      const Set plain{.mass = Masses(static_cast<uint32_t>(n), n, levels), .k = 1000};
      Set forced = plain, all = plain, only_forced = plain, blocks = plain;
      forced.sink = 4096, forced.recent = 3000, forced.k = 8000;  // more than a slice each
      all.k = n;
      only_forced.sink = 600, only_forced.recent = 400;
      blocks.block = 2;
      for (const Set& s : {plain, forced, all, only_forced, blocks}) {
        const std::string what =
            fmt::format("n {} levels {} k {} sink {} block {}", n, levels, s.k, s.sink, s.block);
        Check(s, what);
        const auto got = SelectOne(*of_three, s);
        EXPECT_EQ(got, BruteForce(s)) << what;
      }
    }
  }
}

TEST_P(SelectTest, AMisleadingSampleDoesNotShow) {
  for (int64_t n : {8192, 65536}) {
    Set s{.mass = std::vector<float>(static_cast<size_t>(n), 0.25f), .k = 1000};
    for (int64_t i = 0; i < n; i += n / 512) s.mass[static_cast<size_t>(i)] = 8;
    Check(s, fmt::format("n {}", n));
  }
}

TEST_P(SelectTest, ANaNAnywhereIsReported) {
  constexpr int64_t kLong = 40000;
  for (int64_t at : {int64_t{0}, int64_t{5}, kLong / 2, kLong - 100, kLong - 1}) {
    for (int64_t k : {8, 1000}) {  // 8: nothing is left to choose
      Set s{.mass = Masses(3, kLong, 0), .k = k, .sink = 2, .recent = 6};
      s.mass[static_cast<size_t>(at)] = NAN;
      if (at == kLong / 2) s.mass[kLong - 200] = NAN;
      int64_t bad = -1;
      const std::vector<int32_t> got = SelectOne(*ops_, s, &bad);
      EXPECT_EQ(bad, at);
      s.mass.assign(kLong, 0.0f);
      EXPECT_EQ(got, BruteForce(s));
    }
  }
}

TEST_P(SelectTest, NoSetOfThatSizeHoldsMoreMass) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    test::Rng rng(seed);
    const int64_t n = 50 + static_cast<int64_t>(rng() % 20000);
    std::vector<float> mass = Masses(seed, n, 0);
    const int64_t k = 1 + static_cast<int64_t>(rng() % static_cast<uint32_t>(n));
    const auto got = SelectOne(*ops_, {.mass = mass, .k = k});
    ASSERT_EQ(std::ssize(got), k);
    double held = 0, most = 0;
    for (int32_t p : got) held += mass[static_cast<size_t>(p)];
    std::sort(mass.begin(), mass.end(), std::greater<>());
    for (int64_t i = 0; i < k; ++i) most += mass[static_cast<size_t>(i)];
    EXPECT_NEAR(held, most, 1e-9 * most) << n << " " << k;
  }
}

TEST_P(SelectTest, BlocksAndTheirTails) {
  for (int64_t n : {1, 15, 16, 17, 31, 33, 100, 1000, 1001, 1023}) {
    for (int64_t block : {2, 16, 64}) {
      for (int levels : {0, 3}) {
        const std::vector<float> mass = Masses(static_cast<uint32_t>(n + block), n, levels);
        for (int64_t k : {block, 4 * block, n / 2, n + block}) {
          Check({.mass = mass, .k = k, .block = block},
                fmt::format("n {} block {} k {}", n, block, k));
          Check({.mass = mass, .k = k + 3 * block, .sink = 1, .recent = 5, .block = block},
                fmt::format("forced, n {} block {} k {}", n, block, k));
        }
      }
    }
  }
}

TEST_P(SelectTest, ExtremeValues) {
  Set s{.mass = {0.0f, INFINITY, 1e-45f, 3e38f, -0.0f, 1e-38f, 0.0f, 1.0f, INFINITY, -1.0f, -2.0f}};
  for (s.k = 1; s.k <= 11; ++s.k) Check(s, fmt::format("k {}", s.k));
  s.mass.assign(1000, 0.0f);
  s.k = 300;
  Check(s, "zeros");
  s.mass.assign(1000, 0.125f);
  s.mass[999] = 0.25f;
  Check(s, "one above");
}

TEST_P(SelectTest, ScoresOfEitherSignEqualAStableSort) {
  for (int64_t n : {63, 64, 65, 127, 129, 5000, 40000}) {
    for (int levels : {0, 1, 3}) {  // 1: all are equal
      for (bool hidden : {false, true}) {
        const std::vector<float> mass = Scores(static_cast<uint32_t>(n), n, levels, hidden);
        for (int64_t k : {int64_t{1}, n / 3 - 1, n / 3, n / 3 + 1, n - 1, n, n + 1}) {
          const std::string what =
              fmt::format("n {} levels {} hidden {} k {}", n, levels, hidden, k);
          Check({.mass = mass, .k = k}, what);
          Check({.mass = mass, .k = k + 20, .sink = 4, .recent = 16}, "forced, " + what);
        }
      }
    }
  }
}

TEST_P(SelectTest, BlocksRankedByTheirMaximum) {
  for (int64_t n : {1, 63, 64, 65, 127, 129, 1000, 1023, 70000}) {
    for (int64_t block : {2, 16, 64}) {
      for (int levels : {0, 3}) {
        for (bool hidden : {false, true}) {
          const std::vector<float> mass =
              Scores(static_cast<uint32_t>(n + block), n, levels, hidden);
          for (int64_t k : {block, 4 * block, 16 * block, n + block}) {
            const std::string what =
                fmt::format("n {} block {} k {} levels {} hidden {}", n, block, k, levels, hidden);
            Check({.mass = mass, .k = k, .block = block, .max = true}, what);
            Check({.mass = mass,
                   .k = k + 3 * block,
                   .sink = 1,
                   .recent = 5,
                   .block = block,
                   .max = true},
                  "forced, " + what);
          }
        }
      }
    }
  }
}

TEST_P(SelectTest, AMaximumHidesNoNan) {
  for (int64_t at : {0, 37, 64, 199}) {
    Set s{.mass = Scores(1, 200, 0, true), .k = 64, .block = 16, .max = true};
    s.mass[static_cast<size_t>(at)] = NAN;
    int64_t bad = -1;
    SelectOne(*ops_, s, &bad);
    EXPECT_EQ(bad, at);
  }
}

TEST_P(SelectTest, NoBudgetTakesNothingUnlessForced) {
  for (int64_t block : {1, 16}) {
    Set s{.mass = Masses(4, 100, 0), .block = block};
    Check(s, "nothing");
    ASSERT_TRUE(SelectOne(*ops_, s).empty());
    s.recent = 1;
    Check(s, "forced");
    ASSERT_FALSE(SelectOne(*ops_, s).empty());
  }
  for (int64_t visible : {1, 5, 32}) {  // a row with no more keys than are forced
    Set s{.mass = Masses(5, visible, 0), .k = visible, .recent = 32};
    ASSERT_EQ(std::ssize(SelectOne(*ops_, s)), visible);
  }
}

TEST_P(SelectTest, NoKeysNoSet) {
  IndexSets out(test::TestMemory());
  out.Reset(1, 1, 8);
  const int64_t visible = 0, k = 8, recent = 4;
  const std::vector<float> mass(1);
  const SelectParams::Segment segment{.mass = mass.data(),
                                      .mass_stride = 1,
                                      .sets = 1,
                                      .visible = {&visible, 1},
                                      .k = {&k, 1},
                                      .recent = {&recent, 1},
                                      .out = &out};
  ops_->Select({.sink = 4, .segments = {&segment, 1}});
  EXPECT_EQ(out.count(0, 0), 0);
}

// The list is the one that equal masses give, so that its readers find keys that exist.
TEST_P(SelectTest, NanIsReportedByPositionAndLeavesAValidList) {
  for (int64_t n : {1, 40, 1000}) {
    for (int64_t at : {int64_t{0}, n / 2, n - 1}) {
      for (int64_t block : {1, 16}) {
        for (int64_t recent : {0, 20}) {
          Set s{.mass = Masses(1, n, 0), .k = 64, .sink = recent / 4, .recent = recent};
          s.block = block;
          int64_t bad = -1;
          SelectOne(*ops_, s, &bad);
          EXPECT_EQ(bad, -1);
          s.mass[static_cast<size_t>(at)] = NAN;
          const std::vector<int32_t> got = SelectOne(*ops_, s, &bad);
          EXPECT_EQ(bad, at);
          s.mass.assign(s.mass.size(), 0.0f);
          EXPECT_EQ(got, BruteForce(s));
          EXPECT_EQ(SelectOne(*ops_, s), got);
        }
      }
    }
  }
}

TEST_P(SelectTest, TheLowestBadPositionIsReportedAndOtherSetsAreRanked) {
  constexpr int64_t kSets = 20, kKeys = 100;
  std::vector<float> mass = Masses(2, kSets * kKeys, 0);
  for (int64_t set : {13, 7, 18}) mass[static_cast<size_t>(set * kKeys + set)] = NAN;
  std::vector<int64_t> visible(kSets, kKeys), k(kSets, 10), recent(kSets, 0);
  IndexSets out(test::TestMemory());
  out.Reset(kSets, 1, 10);
  std::vector<int64_t> bad(1, -1);
  const SelectParams::Segment segment{.mass = mass.data(),
                                      .mass_stride = kKeys,
                                      .sets = kSets,
                                      .visible = visible,
                                      .k = k,
                                      .recent = recent,
                                      .out = &out,
                                      .bad_position = bad.data()};
  ops_->Select({.segments = {&segment, 1}});
  EXPECT_EQ(bad[0], 7);
  for (int64_t s = 0; s < kSets; ++s) {
    const float* m = mass.data() + s * kKeys;
    Set one{.mass = {m, m + kKeys}, .k = 10};
    if (std::isnan(m[s])) one.mass.assign(kKeys, 0.0f);
    EXPECT_EQ(std::vector<int32_t>(out.list(s, 0), out.list(s, 0) + out.count(s, 0)),
              BruteForce(one));
  }
}

TEST_P(SelectTest, SetsAndGroupsAreIndependent) {
  constexpr int64_t kSets = 5, kGroups = 3, kStride = 700;
  const std::vector<float> mass = Masses(3, kSets * kGroups * kStride, 40);
  const std::vector<int64_t> visible = {700, 1, 64, 333, 500}, k = {100, 5, 30, 333, 77},
                             recent = {10, 1, 8, 64, 0};
  IndexSets out(test::TestMemory());
  out.Reset(kSets, kGroups, 333);
  const SelectParams::Segment segment{.mass = mass.data(),
                                      .mass_stride = kStride,
                                      .sets = kSets,
                                      .visible = visible,
                                      .k = k,
                                      .recent = recent,
                                      .out = &out};
  ops_->Select({.groups = kGroups, .sink = 4, .segments = {&segment, 1}});
  for (int64_t s = 0; s < kSets; ++s) {
    for (int64_t g = 0; g < kGroups; ++g) {
      const auto i = static_cast<size_t>(s);
      const float* m = mass.data() + (s * kGroups + g) * kStride;
      const Set one{.mass = {m, m + visible[i]}, .k = k[i], .sink = 4, .recent = recent[i]};
      EXPECT_EQ(std::vector<int32_t>(out.list(s, g), out.list(s, g) + out.count(s, g)),
                BruteForce(one));
    }
  }
}

// One call with sets of the shapes that a backend may treat each in its own way: long, short, with
// too large a budget, sorted, concentrated, with masses that are not aligned.
TEST_P(SelectTest, LongSetsOfOneCallEqualSorting) {
  constexpr int64_t kSets = 6;
  for (int64_t stride : {200'004, 200'003}) {
    std::vector<float> mass = Masses(11, kSets * stride, 0);
    const auto row = [&](int64_t s) { return mass.begin() + s * stride; };
    std::sort(row(2), row(3));
    for (float& m : std::span(row(3), row(4))) m = 1 + 1e-3f * m;
    for (float& m : std::span(row(4), row(5))) m = std::round(4 * m);
    *(row(5) + 150'000) = INFINITY;
    const std::vector<int64_t> visible = {200'003, 100, 200'001, 131'072, 65'536, 190'000};
    const std::vector<int64_t> k = {2048, 50, 2048, 2048, 2048, 60'000};
    const std::vector<int64_t> recent = {64, 10, 0, 200, 64, 64};
    IndexSets out(test::TestMemory());
    out.Reset(kSets, 1, 60'000);
    const SelectParams::Segment segment{.mass = mass.data(),
                                        .mass_stride = stride,
                                        .sets = kSets,
                                        .visible = visible,
                                        .k = k,
                                        .recent = recent,
                                        .out = &out};
    ops_->Select({.sink = 4, .segments = {&segment, 1}});
    for (int64_t s = 0; s < kSets; ++s) {
      const auto i = static_cast<size_t>(s);
      const Set one{
          .mass = {row(s), row(s) + visible[i]}, .k = k[i], .sink = 4, .recent = recent[i]};
      EXPECT_EQ(std::vector<int32_t>(out.list(s, 0), out.list(s, 0) + out.count(s, 0)),
                BruteForce(one))
          << stride << " set " << s;
    }
  }
}

TEST_P(SelectTest, RandomSetsEqualSorting) {
  EXPECT_TRUE(rc::check([&] {
    const auto n = *rc::gen::inRange<int64_t>(1, 3000);
    Set s{.mass = Masses(*rc::gen::arbitrary<uint32_t>(), n, *rc::gen::element(0, 1, 3, 1000))};
    s.block = *rc::gen::element<int64_t>(1, 1, 1, 7, 16);
    s.sink = *rc::gen::inRange<int64_t>(0, 8);
    s.recent = *rc::gen::inRange<int64_t>(0, 100);
    s.k = s.sink + s.recent + 2 * s.block + *rc::gen::inRange<int64_t>(1, 1000);
    const auto got = SelectOne(*ops_, s);
    RC_ASSERT(got == BruteForce(s));
  }));
}

TEST_P(SelectTest, RecoveredMassNeverFallsAsKGrows) {
  EXPECT_TRUE(rc::check([&] {
    const auto n = *rc::gen::inRange<int64_t>(50, 2000);
    Set s{.mass = Masses(*rc::gen::arbitrary<uint32_t>(), n, *rc::gen::element(0, 4)),
          .sink = 4,
          .recent = 20};
    double before = 0;
    for (s.k = 24; s.k < n + 100; s.k += 1 + n / 20) {
      const auto got = SelectOne(*ops_, s);
      RC_ASSERT(std::ssize(got) == std::min(s.k, n));
      double mass = 0;
      for (int32_t p : got) mass += s.mass[static_cast<size_t>(p)];
      RC_ASSERT(mass >= before);
      before = mass;
    }
  }));
}

INSTANTIATE_TEST_SUITE_P(Backends, SelectTest, testing::ValuesIn(test::BackendNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace baton
