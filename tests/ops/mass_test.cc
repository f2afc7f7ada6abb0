#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>

#include "kv/kv_store.h"
#include "kv/low_bit.h"
#include "tests/ops/op_test_util.h"

namespace baton {
namespace {

using Source = MassParams::Source;

struct Shape {
  int heads, kv_heads, dim;
};

std::string Name(const Shape& s) { return fmt::format("{}h{}kv{}d", s.heads, s.kv_heads, s.dim); }
std::string Name(Source s) {
  return s == Source::kExact ? "exact" : s == Source::kScores ? "scores" : "lowbit";
}

// A copy of a sequence's cache in memory that every backend reads, its pages in another order.
KvView InTestMemory(const KvView& kv, std::vector<Buffer>& memory) {
  const int64_t pages = (kv.length + KvLayout::kSlots - 1) / KvLayout::kSlots;
  const int64_t bytes = kv.layout.page_bytes(), low_bit_bytes = kv.layout.low_bit_bytes();
  KvView to = kv;
  to.arena =
      memory.emplace_back(Buffer::AllocateOrDie(kv.layout.arena_bytes(pages), test::TestMemory()))
          .data();
  auto* table =
      memory.emplace_back(Buffer::AllocateOrDie(pages * 4, test::TestMemory())).as<int32_t>();
  to.pages = table;
  to.low_bits = kv.layout.low_bit ? to.arena + pages * bytes : nullptr;
  for (int64_t i = 0; i < pages; ++i) {
    const int64_t at = pages - 1 - i;
    table[i] = static_cast<int32_t>(at);
    std::memcpy(to.arena + at * bytes, kv.arena + kv.pages[i] * bytes, static_cast<size_t>(bytes));
    if (!kv.layout.low_bit) continue;
    std::memcpy(to.low_bits + at * low_bit_bytes, kv.low_bits + kv.pages[i] * low_bit_bytes,
                static_cast<size_t>(low_bit_bytes));
  }
  return to;
}

// Sequences of one layer, in one store with the pages of the sequences interleaved, and queries for
// them.
struct Case {
  Shape shape;
  std::unique_ptr<KvStore> store;
  std::vector<KvSequence> sequences;
  std::vector<Buffer> memory;
  std::vector<MassParams::Segment> segments;
  std::vector<float> q, lse;
  std::vector<std::vector<float>> scores;
  int64_t rows = 0;
};

struct Spec {
  int64_t position = 0, count = 1, rows_per_set = 1;
};

Case MakeCase(ThreadPool& threads, Shape shape, std::vector<Spec> specs, DType dtype, uint32_t seed,
              bool with_scores) {
  Case c{.shape = shape};
  const KvLayout layout{.dtype = dtype,
                        .kv_heads = shape.kv_heads,
                        .head_dim = shape.dim,
                        .low_bit = shape.dim % 32 == 0};
  int64_t tokens = 0;
  for (const Spec& s : specs) tokens += s.position + s.count + 64;
  auto store = KvStore::Create({{.layout = layout}}, tokens);
  BATON_CHECK(store.ok());
  c.store = std::move(store).value();
  for (size_t i = 0; i < specs.size(); ++i) {
    c.sequences.push_back(c.store->NewSequence());
    if (specs[i].position > 64) BATON_CHECK(c.sequences[i].Reserve(64).ok());
  }
  for (size_t i = 0; i < specs.size(); ++i) {
    const Spec& s = specs[i];
    BATON_CHECK(FillSynthetic(*c.store, c.sequences[i], s.position + s.count, seed + i).ok());
    c.segments.push_back({.rows = {.first = c.rows, .count = s.count, .position = s.position},
                          .kv = InTestMemory(c.sequences[i].View(0), c.memory),
                          .rows_per_set = s.rows_per_set});
    c.rows += s.count;
  }
  test::Rng rng(seed);
  // Peaked, as attention is: scores have a deviation of about 2.
  c.q = test::RandomNormal(rng, c.rows * shape.heads * shape.dim, 2);
  c.lse.resize(static_cast<size_t>(c.rows * shape.heads));
  std::vector<float> o(c.q.size());
  std::vector<AttendParams::Segment> attend;
  for (auto& s : c.segments) {
    const int64_t stride = s.rows.position + s.rows.count + 3;
    if (with_scores) {
      c.scores.emplace_back(static_cast<size_t>(s.rows.count * shape.heads * stride), NAN);
      s.scores = c.scores.back().data();
      s.score_stride = stride;
    }
    attend.push_back({.rows = s.rows,
                      .kv = s.kv,
                      .scores = with_scores ? c.scores.back().data() : nullptr,
                      .score_stride = stride});
  }
  auto ref = MakeReferenceOps(threads);
  ref->Attend({.q = {c.q.data(), {c.rows, shape.heads, shape.dim}},
               .scale = 1.0f / std::sqrt(static_cast<float>(shape.dim)),
               .segments = attend,
               .o = {o.data(), {c.rows, shape.heads, shape.dim}},
               .lse = {c.lse.data(), {c.rows, shape.heads}}});
  return c;
}

constexpr float kUntouched = -77;

// Runs the op. The result has all segments one after another: [sets][groups][stride], stride = keys
// + 5, of which the last 5 must stay unchanged.
std::vector<float> RunMass(Ops& ops, const Case& c, Source source, MassScope scope, Pool pool) {
  const int64_t groups = scope == MassScope::kAll     ? 1
                         : scope == MassScope::kGroup ? c.shape.kv_heads
                                                      : c.shape.heads;
  std::vector<MassParams::Segment> segments = c.segments;
  size_t total = 0;
  std::vector<size_t> at;
  for (auto& s : segments) {
    s.mass_stride = s.rows.position + s.rows.count + 5;
    const int64_t sets = (s.rows.count + s.rows_per_set - 1) / s.rows_per_set;
    at.push_back(total);
    total += static_cast<size_t>(sets * groups * s.mass_stride);
  }
  std::vector<float> mass(total, kUntouched);
  for (size_t i = 0; i < segments.size(); ++i) segments[i].mass = mass.data() + at[i];
  ops.Mass({.source = source,
            .q = {c.q.data(), {c.rows, c.shape.heads, c.shape.dim}},
            .scale = 1.0f / std::sqrt(static_cast<float>(c.shape.dim)),
            .lse = {c.lse.data(), {c.rows, c.shape.heads}},
            .scope = scope,
            .pool = pool,
            .segments = segments});
  return mass;
}

test::Tolerance ToleranceOf(const std::string& backend, Source source, int64_t rows_per_set) {
  const bool rounds = backend == "avx512" || backend == "amx" || backend == "cuda" ||
                      (backend == "avx2" && source == Source::kLowBit);
  if (source == Source::kScores || !rounds) return {.relative = 1e-4, .absolute = 1e-5};
  // Queries keep 8 bits of mantissa in tiles (16 in single rows), 7 in the decode scan.
  if (source == Source::kLowBit) return {.relative = 0.1, .absolute = 0.02, .cosine = 0.999};
  if (rows_per_set == 1) return {.relative = 1e-3, .absolute = 1e-4, .cosine = 0.999999};
  return {.relative = 0.1, .absolute = 0.02, .cosine = 0.9995};
}

class MassTest : public testing::TestWithParam<std::string> {
 protected:
  ThreadPool threads_{2};
  std::unique_ptr<Ops> ops_ = test::MakeBackend(GetParam(), threads_);
  std::unique_ptr<Ops> ref_ = MakeReferenceOps(threads_);
  void SetUp() override {
    if (!ops_) GTEST_SKIP() << test::kNoBackend;
  }

  void Compare(const Case& c, Source source, MassScope scope, Pool pool, const std::string& what) {
    const std::vector<float> got = RunMass(*ops_, c, source, scope, pool);
    // The reference is slow and deterministic, so it is not run twice; only its bounds are checked.
    const std::vector<float> want =
        GetParam() == "ref" ? got : RunMass(*ref_, c, source, scope, pool);
    const int64_t rows_per_set = c.segments[0].rows_per_set;
    test::ExpectClose(got, want, ToleranceOf(GetParam(), source, rows_per_set), what);
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i] == kUntouched, want[i] == kUntouched) << what << " at " << i;
      ASSERT_TRUE(got[i] >= 0 || got[i] == kUntouched) << what << " at " << i;
    }
  }
};

constexpr MassScope kScopes[] = {MassScope::kAll, MassScope::kGroup, MassScope::kHead};

TEST_P(MassTest, EqualsReferenceOnEveryShape) {
  for (const Shape shape : {Shape{9, 3, 64}, Shape{4, 1, 256}, Shape{8, 8, 128}, Shape{6, 2, 32},
                            Shape{10, 2, 96}, Shape{14, 2, 64}}) {
    for (const Spec spec : {Spec{200, 1, 1}, Spec{130, 3, 1}, Spec{0, 70, 64}, Spec{100, 20, 8}}) {
      const Case c = MakeCase(threads_, shape, {spec}, DType::kBF16, 3, true);
      for (Source source : {Source::kExact, Source::kScores, Source::kLowBit}) {
        for (MassScope scope : kScopes) {
          for (Pool pool : {Pool::kSum, Pool::kMax}) {
            Compare(c, source, scope, pool,
                    fmt::format("{} {} scope {} pool {} position {} rows {}/{}", Name(shape),
                                Name(source), static_cast<int>(scope), static_cast<int>(pool),
                                spec.position, spec.count, spec.rows_per_set));
          }
        }
      }
    }
  }
}

TEST_P(MassTest, LengthsAroundVectorPageAndChunkEdges) {
  for (int64_t n :
       {1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1023, 1024, 1025, 1100}) {
    const Case c = MakeCase(threads_, {6, 2, 32}, {{n - 1, 1, 1}}, DType::kBF16, 4, true);
    for (Source source : {Source::kExact, Source::kScores, Source::kLowBit}) {
      Compare(c, source, MassScope::kAll, Pool::kSum, fmt::format("{} {} keys", Name(source), n));
      Compare(c, source, MassScope::kGroup, Pool::kMax, fmt::format("{} {} keys", Name(source), n));
    }
  }
}

TEST_P(MassTest, SetsOfEverySize) {
  for (int64_t rows_per_set : {2, 3, 7, 48, 63, 64, 65, 100, 128, 200}) {
    for (int64_t count : {1, 131}) {
      const Case c =
          MakeCase(threads_, {6, 2, 32}, {{70, count, rows_per_set}}, DType::kBF16, 5, true);
      for (Source source : {Source::kExact, Source::kScores, Source::kLowBit}) {
        for (MassScope scope : kScopes) {
          Compare(c, source, scope, Pool::kMax,
                  fmt::format("{} {} rows in sets of {}", Name(source), count, rows_per_set));
        }
        Compare(c, source, MassScope::kAll, Pool::kSum,
                fmt::format("{} {} rows in sets of {}", Name(source), count, rows_per_set));
      }
    }
  }
}

TEST_P(MassTest, EveryCacheType) {
  for (DType dtype : {DType::kF32, DType::kI8}) {
    for (const Spec spec : {Spec{300, 2, 1}, Spec{100, 90, 64}}) {
      const Case c = MakeCase(threads_, {9, 3, 64}, {spec}, dtype, 6, true);
      for (Source source : {Source::kExact, Source::kScores, Source::kLowBit}) {
        Compare(c, source, MassScope::kGroup, Pool::kSum, std::string(Info(dtype).name));
      }
    }
  }
}

TEST_P(MassTest, HeadSizeNeedNotBeAMultipleOf32) {
  const Case c = MakeCase(threads_, {4, 2, 80}, {{200, 70, 64}}, DType::kBF16, 7, false);
  Compare(c, Source::kExact, MassScope::kAll, Pool::kSum, "80 channels");
}

TEST_P(MassTest, ProbabilitiesSumToOne) {
  const Case c = MakeCase(threads_, {9, 3, 64}, {{2000, 3, 1}}, DType::kBF16, 8, true);
  for (Source source : {Source::kExact, Source::kScores, Source::kLowBit}) {
    const std::vector<float> mass = RunMass(*ops_, c, source, MassScope::kAll, Pool::kSum);
    const int64_t stride = c.segments[0].rows.position + c.segments[0].rows.count + 5;
    for (int64_t row = 0; row < 3; ++row) {
      double sum = 0;
      for (int64_t n = 0; n < 2003; ++n) sum += mass[static_cast<size_t>(row * stride + n)];
      EXPECT_NEAR(sum, 9, 1e-3) << Name(source);
    }
  }
}

TEST_P(MassTest, ThreadsAndCompanyChangeNoBit) {
  const std::vector<Spec> specs = {
      {700, 1, 1}, {64, 1, 1}, {1030, 3, 1}, {130, 70, 64}, {520, 64, 32}};
  const Case all = MakeCase(threads_, {9, 3, 64}, specs, DType::kBF16, 9, true);
  ThreadPool one(1), three(3);
  auto ops1 = test::MakeBackend(GetParam(), one), ops3 = test::MakeBackend(GetParam(), three);
  for (Source source : {Source::kExact, Source::kScores, Source::kLowBit}) {
    for (Pool pool : {Pool::kSum, Pool::kMax}) {
      const std::vector<float> together = RunMass(*ops_, all, source, MassScope::kAll, pool);
      test::ExpectSameBits(RunMass(*ops1, all, source, MassScope::kAll, pool), together,
                           "1 thread");
      test::ExpectSameBits(RunMass(*ops3, all, source, MassScope::kAll, pool), together,
                           "3 threads");
      size_t at = 0;
      for (size_t i = 0; i < specs.size(); ++i) {
        Case alone{.shape = all.shape};
        alone.segments = {all.segments[i]};
        alone.q = all.q;
        alone.lse = all.lse;
        alone.rows = all.rows;
        const std::vector<float> got = RunMass(*ops_, alone, source, MassScope::kAll, pool);
        test::ExpectSameBits(got, std::span(together).subspan(at, got.size()),
                             fmt::format("{} segment {} alone", Name(source), i));
        at += got.size();
      }
    }
  }
}

TEST_P(MassTest, RowsOfOneCallEqualRowsAlone) {
  const Case c = MakeCase(threads_, {9, 3, 64}, {{1000, 6, 1}}, DType::kBF16, 10, true);
  const int64_t stride = 1006 + 5;
  for (Source source : {Source::kExact, Source::kScores, Source::kLowBit}) {
    const std::vector<float> together = RunMass(*ops_, c, source, MassScope::kAll, Pool::kSum);
    for (int64_t row = 0; row < 6; ++row) {
      Case alone{.shape = c.shape};
      alone.segments = {c.segments[0]};
      alone.segments[0].rows = {.first = row, .count = 1, .position = 1000 + row};
      alone.segments[0].scores += row * 9 * alone.segments[0].score_stride;
      alone.q = c.q;
      alone.lse = c.lse;
      alone.rows = c.rows;
      const std::vector<float> got = RunMass(*ops_, alone, source, MassScope::kAll, Pool::kSum);
      test::ExpectSameBits(std::span(got).first(static_cast<size_t>(1001 + row)),
                           std::span(together).subspan(static_cast<size_t>(row * stride),
                                                       static_cast<size_t>(1001 + row)),
                           Name(source));
    }
  }
}

TEST_P(MassTest, NanQueryReachesTheMassOfItsKeysAlone) {
  for (const Spec spec : {Spec{200, 1, 1}, Spec{200, 40, 40}}) {
    Case c = MakeCase(threads_, {6, 2, 32}, {spec}, DType::kBF16, 11, true);
    c.q[5] = NAN;
    c.lse[0] = NAN;
    for (Source source : {Source::kExact, Source::kLowBit}) {
      const std::vector<float> mass = RunMass(*ops_, c, source, MassScope::kAll, Pool::kSum);
      for (int n = 0; n < 200 + spec.count; ++n) {
        ASSERT_EQ(std::isnan(mass[static_cast<size_t>(n)]), n <= 200)
            << Name(source) << " " << spec.count << " " << n;
      }
    }
  }
}

TEST_P(MassTest, LowBitRankingFindsTheHeavyKeys) {
  const Case c = MakeCase(threads_, {9, 3, 64}, {{4000, 1, 1}}, DType::kBF16, 12, true);
  const std::vector<float> exact = RunMass(*ref_, c, Source::kScores, MassScope::kAll, Pool::kSum);
  const std::vector<float> low = RunMass(*ops_, c, Source::kLowBit, MassScope::kAll, Pool::kSum);
  std::vector<int> order(4001);
  for (int i = 0; i < 4001; ++i) order[static_cast<size_t>(i)] = i;
  const auto mass_of_top = [&](const std::vector<float>& by) {
    std::sort(order.begin(), order.end(), [&](int a, int b) {
      return by[static_cast<size_t>(a)] > by[static_cast<size_t>(b)];
    });
    double sum = 0;
    for (size_t i = 0; i < 512; ++i) sum += exact[static_cast<size_t>(order[i])];
    return sum;
  };
  EXPECT_GT(mass_of_top(low), 0.95 * mass_of_top(exact));
}

// Sets of two backends may differ where keys weigh nearly the same, so their masses are compared.
TEST_P(MassTest, SetsHoldTheMassThatTheReferencesSetsHold) {
  for (const Spec spec : {Spec{4000, 1, 1}, Spec{3990, 64, 64}}) {
    const Case c = MakeCase(threads_, {9, 3, 64}, {spec}, DType::kBF16, 13, true);
    const std::vector<float> exact =
        RunMass(*ref_, c, Source::kScores, MassScope::kAll, Pool::kSum);
    const auto held = [&](Ops& ops, Source source, int64_t k) {
      const std::vector<float> mass = RunMass(ops, c, source, MassScope::kAll, Pool::kSum);
      const int64_t visible = spec.position + spec.count, recent = spec.count;
      IndexSets out(test::TestMemory());
      out.Reset(1, 1, k);
      const SelectParams::Segment segment{.mass = mass.data(),
                                          .mass_stride = visible,
                                          .sets = 1,
                                          .visible = {&visible, 1},
                                          .k = {&k, 1},
                                          .recent = {&recent, 1},
                                          .out = &out};
      ops.Select({.sink = 4, .segments = {&segment, 1}});
      double sum = 0;
      for (int32_t i = 0; i < out.count(0, 0); ++i)
        sum += exact[static_cast<size_t>(out.list(0, 0)[i])];
      return sum;
    };
    for (const int64_t k : {128, 512, 1024}) {
      for (Source source : {Source::kExact, Source::kScores, Source::kLowBit}) {
        const double want = held(*ref_, source, k);
        // Tiles rank with 8 bits of q, and low-bit tiles with an estimated denominator.
        const bool tile = spec.count > 1;
        const double slack = source == Source::kLowBit ? (tile ? 1e-2 : 5e-3) : tile ? 1e-3 : 1e-4;
        EXPECT_NEAR(held(*ops_, source, k), want, slack * want)
            << Name(source) << " " << k << " " << spec.count;
      }
    }
  }
}

// ---- log-probabilities

struct LogCase {
  Source source = Source::kExact;
  MassScope scope = MassScope::kAll;
  Pool pool = Pool::kMax;
  int64_t block = 1;
  bool lse = true;
};

// Like RunMass.
std::vector<float> RunLogMass(Ops& ops, const Case& c, const LogCase& l) {
  const int64_t groups = l.scope == MassScope::kAll     ? 1
                         : l.scope == MassScope::kGroup ? c.shape.kv_heads
                                                        : c.shape.heads;
  std::vector<MassParams::Segment> segments = c.segments;
  size_t total = 0;
  for (const auto& s : segments)
    total += static_cast<size_t>(s.rows.count * groups * (s.rows.position + s.rows.count + 5));
  std::vector<float> mass(total, kUntouched);
  float* at = mass.data();
  for (auto& s : segments) {
    s.mass = at;
    s.mass_stride = s.rows.position + s.rows.count + 5;
    at += s.rows.count * groups * s.mass_stride;
  }
  MassParams p{.source = l.source,
               .score = MassParams::Score::kLogProbability,
               .q = {c.q.data(), {c.rows, c.shape.heads, c.shape.dim}},
               .scale = 1.0f / std::sqrt(static_cast<float>(c.shape.dim)),
               .scope = l.scope,
               .pool = l.pool,
               .block = l.block,
               .segments = segments};
  if (l.lse) p.lse = {c.lse.data(), {c.rows, c.shape.heads}};
  ops.Mass(p);
  return mass;
}

TEST_P(MassTest, LogProbabilitiesEqualReference) {
  for (const Shape shape : {Shape{9, 3, 64}, Shape{4, 1, 256}, Shape{4, 2, 80}, Shape{1, 1, 128}}) {
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
      for (const Spec spec : {Spec{0, 1}, Spec{62, 3}, Spec{520, 2}, Spec{0, 140}}) {
        const Case c = MakeCase(threads_, shape, {spec, {70, 2, 1}}, dtype, 20, true);
        for (Source source : {Source::kExact, Source::kScores}) {
          for (MassScope scope : kScopes) {
            for (int64_t block : {1, 16, 48}) {
              for (Pool pool : {Pool::kMax, Pool::kSum}) {
                const LogCase l{source, scope, pool, block, block != 16};
                // Queries keep 16 bits of mantissa where the kernels round them.
                const bool cpu = GetParam() == "avx512" || GetParam() == "amx";
                const bool rounds =
                    source == Source::kExact && ((cpu && dtype == DType::kBF16) ||
                                                 (GetParam() == "cuda" && dtype != DType::kF32));
                test::ExpectClose(
                    RunLogMass(*ops_, c, l), RunLogMass(*ref_, c, l),
                    {.relative = 1e-5,
                     .absolute = rounds ? 1e-3 : 2e-5,
                     .cosine = 0.999999,
                     .scaled = false},
                    fmt::format("{} {} {} scope {} pool {} block {} position {}", Name(shape),
                                Info(dtype).name, Name(source), static_cast<int>(scope),
                                static_cast<int>(pool), block, spec.position));
              }
            }
          }
        }
      }
    }
  }
}

TEST_P(MassTest, LogProbabilitiesAreLogarithmsOfProbabilities) {
  const Case c = MakeCase(threads_, {6, 2, 32}, {{700, 3, 1}}, DType::kF32, 21, true);
  for (Source source : {Source::kExact, Source::kScores}) {
    for (MassScope scope : kScopes) {
      for (Pool pool : {Pool::kMax, Pool::kSum}) {
        std::vector<float> got = RunLogMass(*ops_, c, {source, scope, pool});
        for (float& x : got) x = x == kUntouched ? x : std::exp(x);
        test::ExpectClose(got, RunMass(*ref_, c, source, scope, pool),
                          {.relative = 2e-5, .absolute = 1e-6}, Name(source));
      }
    }
  }
}

// Scores so far apart that in single precision every probability but one is zero.
TEST_P(MassTest, LogProbabilitiesRankWhatProbabilitiesCannot) {
  Case c = MakeCase(threads_, {2, 1, 32}, {{299, 1, 1}}, DType::kBF16, 22, true);
  const int64_t stride = c.segments[0].score_stride;
  for (int64_t h = 0; h < 2; ++h) {
    for (int64_t n = 0; n < 300; ++n) {
      c.scores[0][static_cast<size_t>(h * stride + n)] = static_cast<float>(-500 - n);
    }
    c.lse[static_cast<size_t>(h)] = 0;
  }
  for (Pool pool : {Pool::kMax, Pool::kSum}) {
    const std::vector<float> mass = RunLogMass(*ops_, c, {Source::kScores, MassScope::kAll, pool});
    for (size_t n = 1; n < 300; ++n) ASSERT_LT(mass[n], mass[n - 1]) << n;
  }
}

TEST_P(MassTest, LogProbabilitiesOfRowsDependOnNothingElse) {
  const std::vector<Spec> specs = {{700, 1, 1}, {64, 1, 1}, {1030, 19, 1}, {3, 1, 1}};
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const Case all = MakeCase(threads_, {9, 3, 64}, specs, dtype, 23, true);
    ThreadPool three(3);
    const auto ops3 = test::MakeBackend(GetParam(), three);
    for (const LogCase& l : {LogCase{}, LogCase{.source = Source::kScores},
                             LogCase{.pool = Pool::kSum, .block = 16}}) {
      const std::vector<float> together = RunLogMass(*ops_, all, l);
      test::ExpectSameBits(RunLogMass(*ops3, all, l), together, "3 threads");
      const float* want = together.data();
      for (size_t i = 0; i < specs.size(); ++i) {
        for (int64_t row = 0; row < specs[i].count; ++row) {
          Case alone{.shape = all.shape};
          alone.segments = {all.segments[i]};
          Rows& rows = alone.segments[0].rows;
          rows = {.first = rows.first + row, .count = 1, .position = rows.position + row};
          alone.segments[0].scores += row * 9 * alone.segments[0].score_stride;
          alone.q = all.q, alone.lse = all.lse, alone.rows = all.rows;
          const auto keys = static_cast<size_t>(rows.position + 1);
          const std::vector<float> got = RunLogMass(*ops_, alone, l);
          test::ExpectSameBits(std::span(got).first(keys), {want, keys},
                               fmt::format("segment {} row {}", i, row));
          want += specs[i].position + specs[i].count + 5;
        }
      }
    }
  }
}

TEST_P(MassTest, NanReachesTheLogProbabilitiesOfItsKeysAlone) {
  Case c = MakeCase(threads_, {6, 2, 32}, {{200, 2, 1}}, DType::kBF16, 24, true);
  c.q[5] = NAN;
  c.scores[0][7] = NAN;
  for (Pool pool : {Pool::kMax, Pool::kSum}) {
    for (int64_t block : {1, 16}) {
      const std::vector<float> exact =
          RunLogMass(*ops_, c, {Source::kExact, MassScope::kAll, pool, block});
      const std::vector<float> stored =
          RunLogMass(*ops_, c, {Source::kScores, MassScope::kAll, pool, block});
      for (size_t n = 0; n < 201; ++n) {
        EXPECT_TRUE(std::isnan(exact[n])) << n;
        const bool of_block = pool == Pool::kSum && block == 16 && n < 16;
        EXPECT_EQ(std::isnan(stored[n]), n == 7 || of_block) << n;
      }
      EXPECT_FALSE(std::isnan(exact[207]));
    }
  }
}

// An indexer's keys: one head, K alone, ranked by plain scores, pages in random order.
TEST_P(MassTest, PlainScoresOfACacheOfKeysAlone) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    for (int64_t rows : {1, 5, 16}) {
      constexpr int64_t kKeys = 1500, kDim = 64;
      const KvLayout layout{.dtype = dtype, .kv_heads = 1, .head_dim = kDim, .values = false};
      std::vector<int32_t> pages((kKeys + 63) / 64);
      for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i * 7 % 24);
      Buffer memory = Buffer::AllocateOrDie(layout.arena_bytes(24), test::TestMemory());
      const KvView kv{
          .arena = memory.data(), .pages = pages.data(), .length = kKeys, .layout = layout};
      test::Rng rng(25);
      std::vector<float> k = test::RandomNormal(rng, kKeys * kDim);
      const std::vector<float> q = test::RandomNormal(rng, rows * kDim);
      const StoreParams::Segment segment{{.count = kKeys}, kv};
      ref_->Store({.k = View<float>(k.data(), {kKeys, 1, kDim}), .segments = {&segment, 1}});
      const auto run = [&](Ops& ops) {
        std::vector<float> mass(static_cast<size_t>(rows * kKeys));
        const MassParams::Segment s{.rows = {.count = rows, .position = kKeys - rows},
                                    .kv = kv,
                                    .mass = mass.data(),
                                    .mass_stride = kKeys};
        ops.Mass({.score = MassParams::Score::kLogProbability,
                  .q = {q.data(), {rows, 1, kDim}},
                  .scale = 0.125f,
                  .pool = Pool::kMax,
                  .segments = {&s, 1}});
        return mass;
      };
      const std::vector<float> got = run(*ops_);
      test::ExpectClose(got, run(*ref_),
                        {.absolute = dtype == DType::kF32 ? 2e-6 : 1e-4, .cosine = 0.9999999});
      double want = 0;
      for (size_t d = 0; d < kDim; ++d)
        want += 0.125 * static_cast<double>(q[d]) * k[700 * kDim + d];
      EXPECT_NEAR(got[700], want, dtype == DType::kI8 ? 0.1 : 0.02);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, MassTest, testing::ValuesIn(test::BackendNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace baton
