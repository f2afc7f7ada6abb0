// Ops::Sample against the distribution it draws from, on every backend.
#include "ops/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "tests/ops/op_test_util.h"

namespace baton::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kVocabs[] = {1, 7, 1000, 49152, 262144};

// A row of logits and how it is picked from, with what the row points at.
struct Case {
  std::string name;
  std::vector<float> logits;
  std::vector<SampleEntry> entries;
  std::vector<uint32_t> mask;
  SampleRow options;

  SampleRow row() const {
    SampleRow r = options;
    r.entries = entries;
    r.mask = mask;
    return r;
  }
  int64_t vocab() const { return std::ssize(logits); }
};

class SampleTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ops_ = MakeBackend(GetParam(), threads_);
    if (!ops_) GTEST_SKIP() << kNoBackend;
  }
  // All cases, of one vocabulary, in one call.
  std::vector<SampledRow> Sample(std::span<const Case> cases) { return Sample(*ops_, cases); }
  static std::vector<SampledRow> Sample(Ops& ops, std::span<const Case> cases) {
    const int64_t n = std::ssize(cases), vocab = cases[0].vocab();
    std::vector<float> logits;
    std::vector<SampleRow> rows;
    for (const Case& c : cases) {
      logits.insert(logits.end(), c.logits.begin(), c.logits.end());
      rows.push_back(c.row());
    }
    const std::vector<float> before = logits;
    std::vector<SampledRow> sampled(cases.size());
    ops.Sample({.logits = View<const float>(logits.data(), {n, vocab}),
                .rows = rows,
                .sampled = sampled.data()});
    ExpectSameBits(logits, before, "the logits");
    return sampled;
  }
  ThreadPool threads_{2};
  std::unique_ptr<Ops> ops_;
};

// Logits after entries and mask; -inf for what may not be picked.
std::vector<float> Adjusted(const Case& c) {
  std::vector<float> x = c.logits;
  for (const SampleEntry& e : c.entries) {
    float& l = x[static_cast<size_t>(e.token)];
    l += e.bias;
    if (e.count == 0) continue;
    l = l > 0 ? l / c.options.repetition_penalty : l * c.options.repetition_penalty;
    l -= c.options.presence_penalty + c.options.frequency_penalty * static_cast<float>(e.count);
  }
  for (size_t i = 0; i < x.size(); ++i) {
    const bool allowed = c.mask.empty() || (c.mask[i / 32] >> (i % 32) & 1);
    if (!allowed || std::isnan(x[i])) x[i] = -kInf;
  }
  return x;
}

std::vector<size_t> Descending(const std::vector<float>& x) {
  std::vector<size_t> order(x.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] > x[b]; });
  return order;
}

// How far `uniform` lies outside the token's interval of the cumulative distribution, in double
// precision. `slack` moves the cuts: a token on their edge may fall on either side.
double Outside(const Case& c, const std::vector<float>& x, const std::vector<size_t>& order,
               int32_t token, double slack) {
  const SampleRow& o = c.options;
  const double largest = x[order[0]];
  const auto weight = [&](size_t i) {
    return x[i] == largest ? 1.0 : std::exp((static_cast<double>(x[i]) - largest) / o.temperature);
  };
  const bool cut = o.top_k > 0 || o.top_p < 1 || o.min_p > 0;
  size_t keep = o.top_k > 0 ? std::min(x.size(), static_cast<size_t>(o.top_k)) : x.size();
  double total = 0, sum = 0;
  for (size_t i = 0; i < keep; ++i) total += weight(order[i]);
  if (cut) {
    size_t kept = 0;
    while (kept < keep && weight(order[kept]) >= o.min_p * (1 + slack) &&
           (kept == 0 || o.top_p == 1 || sum < o.top_p * (1 + slack) * total))
      sum += weight(order[kept++]);
    keep = kept;
  } else {
    sum = total;
  }
  double before = 0;
  for (size_t i = 0; i < keep; ++i) {
    const size_t id = cut ? order[i] : i;
    const double w = weight(id) / sum;
    if (static_cast<int32_t>(id) == token)
      return w == 0 ? 1 : std::max({0.0, before - o.uniform, o.uniform - (before + w)});
    before += w;
  }
  return 1;
}

// Besides rounding: a GPU's weights have 32 bits behind the point, so each is off by up to 2^-33 of
// the largest.
void ExpectDrawn(const Case& c, int32_t token) {
  ASSERT_TRUE(token >= 0 && token < c.vocab()) << c.name << " got " << token;
  const std::vector<float> x = Adjusted(c);
  const std::vector<size_t> order = Descending(x);
  const double allowed = 1e-6 + static_cast<double>(c.vocab()) * 0x1p-33;
  double least = 1;
  for (const double slack : {0.0, 3e-6, -3e-6}) {
    if (least > allowed) least = std::min(least, Outside(c, x, order, token, slack));
  }
  EXPECT_LE(least, allowed) << c.name << " token " << token << " for " << c.options.uniform;
}

std::vector<SampleEntry> SomeEntries(Rng& rng, int64_t vocab) {
  std::vector<SampleEntry> entries;
  const auto step = std::max<int64_t>(1, vocab / 200);
  for (int64_t t = static_cast<int64_t>(rng()) % step; t < vocab; t += step) {
    const int32_t count = static_cast<int32_t>(rng() % 3);
    const float bias = rng() % 2 ? static_cast<float>(rng() % 100) / 20 - 2.5f : 0;
    if (count > 0 || bias != 0) entries.push_back({static_cast<int32_t>(t), bias, count});
  }
  return entries;
}

std::vector<uint32_t> SomeMask(Rng& rng, int64_t vocab) {
  std::vector<uint32_t> mask(static_cast<size_t>(vocab + 31) / 32);
  for (uint32_t& word : mask) word = static_cast<uint32_t>(rng());
  mask[0] |= 1;
  return mask;
}

// Normal, flat, with ties, and with what is not a number.
std::vector<float> SomeLogits(Rng& rng, int64_t vocab, int kind) {
  std::vector<float> x = RandomNormal(rng, vocab, kind == 1 ? 0.01f : 3.0f, kind == 1 ? 0 : -2.0f);
  if (kind == 2) {
    for (float& v : x) v = std::round(v);
  }
  if (kind == 3) {
    for (float& v : x) v = rng() % 4 ? v : rng() % 2 ? kNan : -kInf;
    x[0] = 1.5f;
  }
  return x;
}

std::vector<Case> Draws(Rng& rng, int64_t vocab) {
  std::vector<Case> cases;
  for (const int top_k : {0, 1, 40, 5000}) {
    for (const float top_p : {1.0f, 0.9f, 0.3f}) {
      for (const float min_p : {0.0f, 0.02f}) {
        const auto n = static_cast<int>(cases.size());
        Case c;
        c.logits = SomeLogits(rng, vocab, n % 4);
        c.options = {.temperature = n % 3 == 0   ? 1
                                    : n % 3 == 1 ? 0.4f
                                                 : 2,
                     .top_k = top_k,
                     .top_p = top_p,
                     .min_p = min_p,
                     .uniform = static_cast<double>(rng() % 100000) / 100000,
                     .repetition_penalty = 1.2f,
                     .presence_penalty = 0.25f,
                     .frequency_penalty = 0.3f};
        if (n % 5 > 1) c.entries = SomeEntries(rng, vocab);
        if (n % 7 > 3) c.mask = SomeMask(rng, vocab);
        c.name = std::to_string(vocab) + " tokens, top-k " + std::to_string(top_k) + ", top-p " +
                 std::to_string(top_p) + ", min-p " + std::to_string(min_p) + ", case " +
                 std::to_string(n);
        cases.push_back(std::move(c));
      }
    }
  }
  return cases;
}

TEST_P(SampleTest, DrawsTheTokenInWhoseIntervalTheUniformLies) {
  Rng rng(1);
  for (const int64_t vocab : kVocabs) {
    for (int round = 0; round < (vocab > 1000 ? 1 : 20); ++round) {
      const std::vector<Case> cases = Draws(rng, vocab);
      const std::vector<SampledRow> got = Sample(cases);
      for (size_t i = 0; i < cases.size(); ++i) ExpectDrawn(cases[i], got[i].token);
    }
  }
}

// One row at many places of its distribution, the first and the last among them.
TEST_P(SampleTest, EveryPlaceOfADistributionIsDrawn) {
  Rng rng(2);
  for (const int64_t vocab : {7, 1000, 40000}) {
    for (const int top_k : {0, 5}) {
      std::vector<Case> cases;
      const std::vector<float> logits = SomeLogits(rng, vocab, 0);
      for (const double uniform : {0.0, 1e-9, 0.1, 0.25, 0.5, 0.75, 0.9, 1 - 1e-6, 1 - 0x1p-53})
        cases.push_back({.name = std::to_string(vocab),
                         .logits = logits,
                         .entries = {},
                         .mask = {},
                         .options = {.temperature = 1, .top_k = top_k, .uniform = uniform}});
      const std::vector<SampledRow> got = Sample(cases);
      for (size_t i = 0; i < cases.size(); ++i) ExpectDrawn(cases[i], got[i].token);
    }
  }
}

TEST_P(SampleTest, TemperatureZeroTakesTheFirstOfTheLargest) {
  Rng rng(3);
  for (const int64_t vocab : kVocabs) {
    std::vector<Case> cases(9);
    for (size_t i = 0; i < cases.size(); ++i) {
      Case& c = cases[i];
      c.name = std::to_string(vocab) + " tokens, case " + std::to_string(i);
      c.logits = SomeLogits(rng, vocab, static_cast<int>(i) % 4);
      c.options = {.top_k = static_cast<int32_t>(i),
                   .repetition_penalty = 1.3f,
                   .presence_penalty = 0.7f,
                   .frequency_penalty = 0.1f};
      if (i % 3 == 1) c.entries = SomeEntries(rng, vocab);
      if (i % 4 > 1) c.mask = SomeMask(rng, vocab);
    }
    for (float& v : cases[0].logits) v = -std::fabs(v) - 1;
    if (vocab > 30) {
      cases[4].logits[20] = cases[4].logits[static_cast<size_t>(vocab - 1)] = kInf;
      for (float& v : cases[8].logits) v = std::min(v, -1.0f);
      cases[8].logits[20] = 0.0f, cases[8].logits[9] = -0.0f;
    }
    const std::vector<SampledRow> got = Sample(cases);
    for (size_t i = 0; i < cases.size(); ++i) {
      const std::vector<float> x = Adjusted(cases[i]);
      const auto largest = std::max_element(x.begin(), x.end());
      EXPECT_EQ(got[i].token, largest - x.begin()) << cases[i].name;
    }
  }
}

// A team of 8 blocks on a GPU, the second of which begins at kBlock.
TEST_P(SampleTest, OnlyInfinityIsDrawnWhereThereIsOne) {
  Rng rng(4);
  constexpr int64_t kVocab = 40000, kBlock = 5120;
  const int32_t infinite[] = {0, kBlock - 1, kBlock, kVocab - 1};
  struct Cut {
    int32_t top_k;
    float top_p;
    int stay;
  };
  std::vector<Case> cases;
  std::vector<int32_t> want;
  for (const auto [top_k, top_p, stay] : {Cut{0, 1, 4}, Cut{3, 1, 3}, Cut{0, 0.5f, 2}}) {
    for (const double uniform : {0.0, 0.3, 0.6, 0.999}) {
      Case c{.name = "infinite",
             .logits = SomeLogits(rng, kVocab, 3),
             .entries = {},
             .mask = {},
             .options = {.temperature = 0.7f, .top_k = top_k, .top_p = top_p, .uniform = uniform}};
      for (const int32_t id : infinite) c.logits[static_cast<size_t>(id)] = kInf;
      cases.push_back(std::move(c));
      want.push_back(infinite[static_cast<int>(uniform * stay)]);
    }
  }
  const std::vector<SampledRow> got = Sample(cases);
  for (size_t i = 0; i < cases.size(); ++i)
    EXPECT_EQ(got[i].token, want[i]) << "top-k " << cases[i].options.top_k << ", top-p "
                                     << cases[i].options.top_p << " " << cases[i].options.uniform;
}

// The first and the last id, and those on either side of where lanes, warps, blocks and stretches
// of the kernels meet.
std::vector<int32_t> Edges(int64_t vocab) {
  std::set<int64_t> edges = {0, 1, vocab - 1};
  const auto add = [&](int64_t stretch, int64_t count) {
    for (int64_t i = 1; i <= count; ++i) {
      for (const int64_t id : {i * stretch - 1, i * stretch})
        if (id < vocab) edges.insert(id);
    }
  };
  add(32, 2), add(256, 2), add(4096, 2), add(512 * 16, 2);
  // A GPU's warps have stretches of whole lanes; 16 warps are a block.
  for (const int64_t team : {1, 2, 4, 8}) {
    const int64_t per_warp = (vocab + team * 512 - 1) / (team * 512) * 32;
    add(per_warp, 1), add(16 * per_warp, team);
  }
  return {edges.begin(), edges.end()};
}

// Equal logits at the edges alone: the i-th n-th of the distribution is the i-th of them, exactly.
TEST_P(SampleTest, EqualLogitsAtEdgesAreDrawnExactly) {
  for (const int64_t vocab : {33, 9001, 40000, 151936}) {
    const std::vector<int32_t> edges = Edges(vocab);
    const auto n = static_cast<int32_t>(edges.size());
    constexpr int64_t kRows = 16;
    std::vector<float> logits(static_cast<size_t>(kRows * vocab), -kInf);
    for (int64_t row = 0; row < kRows; ++row) {
      for (const int32_t id : edges) logits[static_cast<size_t>(row * vocab + id)] = -3.25f;
    }
    std::vector<SampleRow> rows;
    for (const SampleRow& cut : {SampleRow{.temperature = 0.8f},
                                 {.temperature = 0.8f, .top_k = n},
                                 {.temperature = 0.8f, .top_p = 0.9999f},
                                 {.temperature = 0.8f, .min_p = 1}}) {
      for (int32_t i = 0; i < n; ++i) {
        rows.push_back(cut);
        rows.back().uniform = (i + 0.5) / n;
      }
    }
    std::vector<SampledRow> sampled(rows.size());
    for (size_t first = 0; first < rows.size(); first += kRows) {
      const size_t count = std::min<size_t>(kRows, rows.size() - first);
      ops_->Sample(
          {.logits = View<const float>(logits.data(), {static_cast<int64_t>(count), vocab}),
           .rows = std::span(rows).subspan(first, count),
           .sampled = sampled.data() + first});
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      const size_t edge = i % edges.size();
      EXPECT_EQ(sampled[i].token, edges[edge])
          << vocab << " tokens, edge " << edge << " of " << n << ", cut " << i / edges.size();
    }
  }
}

TEST_P(SampleTest, RowsWithNothingToPickSayWhy) {
  for (const int64_t vocab : {1, 7, 5000}) {
    for (const float temperature : {0.0f, 1.0f}) {
      const auto n = static_cast<size_t>(vocab);
      Case none{.name = "no number",
                .logits = std::vector<float>(n, kNan),
                .entries = {},
                .mask = {},
                .options = {.temperature = temperature, .uniform = 0.5}};
      none.logits[n / 2] = -kInf;
      Case barred = none;
      barred.logits.assign(n, 1.0f);
      barred.mask.assign((n + 31) / 32, 0);
      Case one = none;
      one.logits[n - 1] = -3e38f;
      const std::vector<SampledRow> got = Sample(std::vector<Case>{none, barred, one});
      EXPECT_EQ(got[0].token, SampledRow::kNoNumber);
      EXPECT_EQ(got[1].token, SampledRow::kNoneAllowed);
      EXPECT_EQ(got[2].token, vocab - 1);
    }
  }
}

TEST_P(SampleTest, ARowHasTheSameResultInAnyCompanyAndEveryTime) {
  Rng rng(5);
  for (const int64_t vocab : {1000, 70001}) {
    const std::vector<Case> cases = Draws(rng, vocab);
    const std::vector<SampledRow> got = Sample(cases), again = Sample(cases);
    ThreadPool pool(3);
    const std::vector<SampledRow> threaded = Sample(*MakeBackend(GetParam(), pool), cases);
    for (size_t i = 0; i < cases.size(); ++i) {
      const SampledRow alone = Sample(std::span(cases).subspan(i, 1))[0];
      for (const SampledRow& other : {again[i], threaded[i], alone}) {
        EXPECT_EQ(other.token, got[i].token) << cases[i].name;
        EXPECT_EQ(other.hash, got[i].hash) << cases[i].name;
      }
    }
  }
}

// A call of a pass: greedy, with cuts, and in the order of ids. The greedy row takes an id that
// only its entries make the largest, and rows have their masks and numbers of entries in turn.
std::vector<Case> CallOfStep(Rng& rng, int64_t vocab, int step, int call) {
  std::vector<Case> cases(3);
  for (size_t i = 0; i < cases.size(); ++i) {
    Case& c = cases[i];
    c.name = fmt::format("step {}, call {}, row {}", step, call, i);
    c.logits = SomeLogits(rng, vocab, (step + call) % 4);
    c.options = {.temperature = 0.5f * static_cast<float>(i),
                 .top_k = i == 1 && call % 2 ? 40 : 0,
                 .top_p = i == 1 && call % 3 ? 0.9f : 1,
                 .min_p = i == 1 && call % 4 == 0 ? 0.01f : 0,
                 .uniform = static_cast<double>(rng() % 1000) / 1000,
                 .presence_penalty = 1};
    const int32_t entries = 3 + (step + static_cast<int>(i)) % 3;  // 12 in all
    const auto first = static_cast<int32_t>(rng() % 1000);
    for (int32_t e = 0; e < entries; ++e)
      c.entries.push_back({first + 1500 * e, i == 0 ? 40.0f + static_cast<float>(e) : 4, e % 2});
    if (static_cast<int>(i) == (step + call) % 3) c.mask = SomeMask(rng, vocab);
  }
  return cases;
}

// The CUDA backend replays a pass of at least 8 launches if it differs from an earlier one in the
// contents of its tables alone. All steps but kLarger are such passes.
TEST_P(SampleTest, EveryPassReadsItsOwnRows) {
  Rng rng(8);
  constexpr int64_t kVocab = 9001;  // a team of 4 blocks on a GPU
  constexpr int kSteps = 5, kLarger = 3, kCalls = 8;
  std::vector<float> logits(3 * kCalls * kVocab);
  std::vector<SampledRow> sampled(3 * kCalls);
  for (int step = 0; step < kSteps; ++step) {
    std::vector<std::vector<Case>> calls;
    std::vector<std::vector<SampleRow>> rows(kCalls);
    auto to = logits.begin();
    for (int call = 0; call < kCalls; ++call) {
      calls.push_back(CallOfStep(rng, kVocab, step, call));
      for (Case& c : calls.back()) {
        if (step == kLarger) c.entries = SomeEntries(rng, kVocab);
        to = std::copy(c.logits.begin(), c.logits.end(), to);
      }
      for (const Case& c : calls.back()) rows[static_cast<size_t>(call)].push_back(c.row());
    }
    {
      const Ops::Pass pass(*ops_);
      for (int call = 0; call < kCalls; ++call)
        ops_->Sample({.logits = View<const float>(logits.data() + 3 * call * kVocab, {3, kVocab}),
                      .rows = rows[static_cast<size_t>(call)],
                      .sampled = sampled.data() + 3 * call});
    }
    auto got = sampled.begin();
    for (const std::vector<Case>& call : calls) {
      for (const Case& c : call) {
        EXPECT_EQ(got->hash, HashLogits(c.logits)) << c.name;
        const std::vector<float> x = Adjusted(c);
        if (c.options.temperature > 0) {
          ExpectDrawn(c, got->token);
        } else {
          EXPECT_EQ(got->token, std::max_element(x.begin(), x.end()) - x.begin()) << c.name;
        }
        ++got;
      }
    }
  }
#ifdef BATON_WITH_CUDA
  // All steps but the first of each size.
  if (GetParam() == "cuda") {
    EXPECT_EQ(GraphReplays(*ops_), kSteps - 2);
  }
#endif
}

// Of the logits as they are, whatever entries and mask make of them.
TEST_P(SampleTest, TheHashIsTheHosts) {
  Rng rng(6);
  for (const int64_t vocab : {1, 2, 7, 33, 1000, 70001, 262144}) {
    const std::vector<Case> cases = Draws(rng, vocab);
    const std::vector<SampledRow> got = Sample(std::span(cases).first(6));
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_EQ(got[i].hash, HashLogits(cases[i].logits)) << vocab << " " << i;
  }
}

TEST(HashLogits, OneBitAnywhereAndAnyExchangeChangeIt) {
  Rng rng(7);
  std::vector<float> x = RandomNormal(rng, 1000);
  const uint32_t hash = HashLogits(x);
  for (size_t i = 1; i < x.size(); i += 13) {
    const float was = x[i];
    x[i] = std::nextafter(was, kInf);
    EXPECT_NE(HashLogits(x), hash) << i;
    x[i] = -was;
    EXPECT_NE(HashLogits(x), hash) << i;
    x[i] = was;
    std::swap(x[i], x[i / 2]);
    EXPECT_NE(HashLogits(x), hash) << i;
    std::swap(x[i], x[i / 2]);
  }
  EXPECT_EQ(HashLogits(x), hash);
}

INSTANTIATE_TEST_SUITE_P(Backends, SampleTest, ::testing::ValuesIn(BackendNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace baton::test
