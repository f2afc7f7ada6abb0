// The algebraic laws of partial results, on arbitrary parts, and that splits merge to the whole.
#include "kernels/merge.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cmath>
#include <limits>
#include <vector>

namespace baton {
namespace {

constexpr int64_t kDim = 5;

struct Part {
  std::vector<float> o = std::vector<float>(kDim, 0.0f);
  float lse = kEmptyLse;
};

Part Merge(Part a, const Part& b) {
  MergeInto(a.o.data(), a.lse, b.o.data(), b.lse, kDim);
  return a;
}

float Number(int limit) {
  return static_cast<float>(*rc::gen::inRange(-limit * 1000, limit * 1000)) / 1000.0f;
}

// A random part, possibly the empty one.
Part AnyPart() {
  Part p;
  if (*rc::gen::inRange(0, 8) == 0) return p;
  for (float& x : p.o) x = Number(10);
  p.lse = Number(40);
  return p;
}

void AssertClose(const Part& a, const Part& b) {
  if (a.lse == kEmptyLse || b.lse == kEmptyLse) {
    RC_ASSERT(a.lse == b.lse);
  } else {
    RC_ASSERT(std::fabs(a.lse - b.lse) <= 1e-5f * (1 + std::fabs(b.lse)));
  }
  for (size_t i = 0; i < a.o.size(); ++i) RC_ASSERT(std::fabs(a.o[i] - b.o[i]) <= 2e-5f * 10);
}

struct Keys {
  std::vector<float> scores;               // [n]
  std::vector<std::vector<float>> values;  // [n][kDim]
};

Keys AnyKeys() {
  Keys k;
  const int n = *rc::gen::inRange(1, 40);
  for (int i = 0; i < n; ++i) {
    k.scores.push_back(Number(20));
    std::vector<float> v(kDim);
    for (float& x : v) x = Number(10);
    k.values.push_back(v);
  }
  return k;
}

// Softmax attention over keys [begin, end), in double precision.
Part Attend(const Keys& k, size_t begin, size_t end) {
  Part p;
  if (begin == end) return p;
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (size_t i = begin; i < end; ++i) largest = std::max<double>(largest, k.scores[i]);
  std::vector<double> o(kDim);
  for (size_t i = begin; i < end; ++i) {
    const double w = std::exp(k.scores[i] - largest);
    sum += w;
    for (size_t d = 0; d < o.size(); ++d) o[d] += w * k.values[i][d];
  }
  for (size_t d = 0; d < o.size(); ++d) p.o[d] = static_cast<float>(o[d] / sum);
  p.lse = static_cast<float>(largest + std::log(sum));
  return p;
}

Part All(const std::vector<Part>& parts) {
  std::vector<float> o, lse;
  for (const Part& p : parts) {
    o.insert(o.end(), p.o.begin(), p.o.end());
    lse.push_back(p.lse);
  }
  Part r;
  r.lse =
      MergeAll(o.data(), kDim, lse.data(), 1, static_cast<int64_t>(parts.size()), kDim, r.o.data());
  return r;
}

TEST(Merge, EmptyPartIsTheIdentity) {
  EXPECT_TRUE(rc::check("merging with (0, -inf) changes nothing", [] {
    const Part a = AnyPart();
    const Part left = Merge(Part{}, a), right = Merge(a, Part{});
    RC_ASSERT(right.o == a.o && right.lse == a.lse);
    RC_ASSERT(left.o == a.o && left.lse == a.lse);
  }));
}

TEST(Merge, IsCommutative) {
  EXPECT_TRUE(rc::check("a + b = b + a", [] {
    const Part a = AnyPart(), b = AnyPart();
    AssertClose(Merge(a, b), Merge(b, a));
  }));
}

TEST(Merge, IsAssociative) {
  EXPECT_TRUE(rc::check("(a + b) + c = a + (b + c)", [] {
    const Part a = AnyPart(), b = AnyPart(), c = AnyPart();
    AssertClose(Merge(Merge(a, b), c), Merge(a, Merge(b, c)));
  }));
}

TEST(Merge, SplitsMergeToTheWhole) {
  EXPECT_TRUE(rc::check("attention over a split context", [] {
    const Keys k = AnyKeys();
    const size_t n = k.scores.size();
    const size_t cut = *rc::gen::inRange<size_t>(0, n + 1);
    const size_t cut2 = *rc::gen::inRange<size_t>(cut, n + 1);
    const std::vector<Part> parts = {Attend(k, 0, cut), Attend(k, cut, cut2), Attend(k, cut2, n)};
    const Part whole = Attend(k, 0, n);
    AssertClose(Merge(Merge(parts[0], parts[1]), parts[2]), whole);
    AssertClose(All(parts), whole);
  }));
}

TEST(Merge, OnePassEqualsPairwise) {
  EXPECT_TRUE(rc::check("MergeAll = fold of MergeInto", [] {
    std::vector<Part> parts;
    Part fold;
    const int n = *rc::gen::inRange(1, 12);
    for (int i = 0; i < n; ++i) {
      parts.push_back(AnyPart());
      fold = Merge(fold, parts.back());
    }
    AssertClose(All(parts), fold);
  }));
}

TEST(Merge, OfNothingIsEmpty) {
  const Part r = All({Part{}, Part{}});
  EXPECT_EQ(r.lse, kEmptyLse);
  for (float x : r.o) EXPECT_EQ(x, 0.0f);
}

TEST(Merge, NanIsNotHidden) {
  Part nan;
  nan.lse = std::nanf("");
  nan.o.assign(kDim, std::nanf(""));
  Part one;
  one.lse = 1;
  for (const Part& r : {All({nan, one}), All({one, nan}), All({nan, Part{}}), Merge(nan, one),
                        Merge(one, nan), Merge(Part{}, nan)}) {
    EXPECT_TRUE(std::isnan(r.lse));
    EXPECT_TRUE(std::isnan(r.o[0]));
  }
}

}  // namespace
}  // namespace baton
