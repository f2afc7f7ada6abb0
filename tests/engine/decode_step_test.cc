// A decode pass that picks tokens: what its parts see of the logits, and that neither the pieces in
// which logits are made nor other parts change it, even parts that fail.
#include "engine/decode_step.h"

#include "base/mapped_file.h"
#include "formats/gguf.h"
#include "ops/sample.h"
#include "tests/engine/test_requests.h"

namespace baton {
namespace {

using namespace test;

struct Got {
  std::vector<SampledRow> sampled;
  Logits logits;
};

class DecodeStepTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  // A part for each count of rows, which ask for their logits where `logits` says so.
  std::vector<Got> Sample(std::span<const int64_t> counts, const std::vector<bool>& logits,
                          const std::function<void(std::span<SampleRow>)>& rows_of) {
    std::vector<Session> sessions;
    for (size_t i = 0; i < counts.size(); ++i) {
      sessions.push_back(NewSession(*engine_, 200));
      Prefill(sessions[i], RandomTokens(20, 10 + i));
    }
    DecodeStep step;
    for (size_t i = 0; i < counts.size(); ++i) {
      const std::vector<int32_t> tokens = RandomTokens(counts[i], 50 + i);
      EXPECT_TRUE(step.Add({.kv = &sessions[i].sequence(),
                            .plan = &engine_->impl().model_plan,
                            .tokens = tokens,
                            .logits = logits[i]})
                      .ok());
    }
    std::vector<Got> got(counts.size());
    step.Sample(*engine_->impl().model,
                {.before = [&](size_t, std::span<SampleRow> rows) { rows_of(rows); },
                 .after =
                     [&](size_t part, std::span<const SampledRow> sampled, View<const float> l) {
                       got[part].sampled.assign(sampled.begin(), sampled.end());
                       if (!l.empty()) got[part].logits.assign(l.data(), l.data() + l.size());
                     }});
    return got;
  }
  std::unique_ptr<Engine> engine_ = LoadEngine(TinySpec(), GetParam());
  const size_t vocab_ = static_cast<size_t>(engine_->info().vocab);
};

// 84 rows, more than are made at a time, the third part in both pieces.
TEST_P(DecodeStepTest, LogitsComeWhereTheyAreWantedAndAreThoseThatWerePickedFrom) {
  const int64_t counts[] = {1, 3, 60, 20};
  const auto greedy = [](std::span<SampleRow>) {};
  const std::vector<Got> all = Sample(counts, {true, true, true, true}, greedy);
  const std::vector<Got> some = Sample(counts, {false, true, true, false}, greedy);
  for (size_t part = 0; part < all.size(); ++part) {
    ASSERT_EQ(all[part].sampled.size(), static_cast<size_t>(counts[part]));
    ASSERT_EQ(all[part].logits.size(), static_cast<size_t>(counts[part]) * vocab_);
    for (size_t i = 0; i < all[part].sampled.size(); ++i) {
      const auto row = std::span(all[part].logits).subspan(i * vocab_, vocab_);
      EXPECT_EQ(all[part].sampled[i].token, Largest(row)) << part << " " << i;
      EXPECT_EQ(all[part].sampled[i].hash, HashLogits(row)) << part << " " << i;
      EXPECT_EQ(some[part].sampled[i].token, all[part].sampled[i].token) << part << " " << i;
      EXPECT_EQ(some[part].sampled[i].hash, all[part].sampled[i].hash) << part << " " << i;
    }
    if (part == 1 || part == 2) {
      EXPECT_EQ(some[part].logits, all[part].logits);
    } else {
      EXPECT_TRUE(some[part].logits.empty());
    }
  }
}

TEST_P(DecodeStepTest, EachRowPicksByItsOwnOptions) {
  const int64_t counts[] = {2, 70};
  std::vector<uint32_t> mask((vocab_ + 31) / 32);
  mask[2] = 1u << 5;
  const std::vector<Got> got = Sample(counts, {false, false}, [&](std::span<SampleRow> rows) {
    for (size_t i = 1; i < rows.size(); i += 2)
      rows[i] = {.temperature = 1, .uniform = 0.5, .mask = mask};
  });
  for (const Got& part : got) {
    for (size_t i = 0; i < part.sampled.size(); ++i)
      EXPECT_EQ(part.sampled[i].token == 69, i % 2 == 1) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, DecodeStepTest, ::testing::ValuesIn(BackendCases()), NameOf);

// A model in which the embedding of the last token is not a number.
std::string BrokenModel(const SyntheticSpec& spec) {
  auto original = MappedFile::Open(ModelFile(spec));
  EXPECT_TRUE(original.ok());
  const std::span<const std::byte> bytes = original->bytes();
  std::string file(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  auto parsed = ParseGguf(bytes);
  EXPECT_TRUE(parsed.ok());
  for (const TensorInfo& t : parsed->tensors) {
    if (t.name != "token_embd.weight") continue;
    EXPECT_EQ(t.dtype, DType::kF32);
    const std::vector<float> row(static_cast<size_t>(spec.width), NAN);
    const size_t row_bytes = row.size() * sizeof(float);
    std::memcpy(file.data() + (t.data - bytes.data()) + t.bytes - row_bytes, row.data(), row_bytes);
  }
  return WriteFile("broken.gguf", file);
}

class FailedPartTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  static SyntheticSpec Spec() {
    SyntheticSpec spec = TinySpec();
    spec.tied_output = false;  // the other tokens' logits stay numbers
    spec.seed = 7;
    return spec;
  }
  void SetUp() override {
    auto engine = Engine::Load(BrokenModel(Spec()),
                               {.backend = GetParam().backend, .threads = 2, .kv = GetParam().kv});
    ASSERT_TRUE(engine.ok()) << engine.error().ToString();
    engine_ = *std::move(engine);
  }
  std::unique_ptr<Engine> engine_;
  const int32_t bad_ = static_cast<int32_t>(Spec().vocab - 1);

  struct Part {
    int64_t rows;
    bool planned;  // sparse: its ranking fails where a query is not a number
    bool logits;
    int calls = 0;  // of after
    bool failed = false;
    Got got = {};
  };
  // The parts' rows after 50 tokens each. bad: which parts have the bad token as last but one.
  std::vector<Part> Run(std::vector<Part> parts, const std::vector<size_t>& bad) {
    Engine::Impl& impl = engine_->impl();
    const ResolvedPlan sparse = Resolved(*engine_, SparsePlan(16));
    const auto plan_of = [&](const Part& p) { return p.planned ? &sparse : &impl.model_plan; };
    std::vector<Session> sessions;
    for (size_t i = 0; i < parts.size(); ++i) {
      sessions.push_back(NewSession(*engine_, 200));
      Prefill(sessions[i], RandomTokens(45, 10 + i));
      Decode(sessions[i], RandomTokens(5, 30 + i), plan_of(parts[i]));
    }
    DecodeStep step;
    for (size_t i = 0; i < parts.size(); ++i) {
      std::vector<int32_t> tokens = RandomTokens(parts[i].rows, 50 + i);
      if (std::find(bad.begin(), bad.end(), i) != bad.end()) tokens.end()[-2] = bad_;
      EXPECT_TRUE(step.Add({.kv = &sessions[i].sequence(),
                            .plan = plan_of(parts[i]),
                            .tokens = tokens,
                            .logits = parts[i].logits})
                      .ok());
    }
    const auto after = [&](size_t i, std::span<const SampledRow> sampled, View<const float> l) {
      ++parts[i].calls;
      parts[i].got.sampled.assign(sampled.begin(), sampled.end());
      if (!l.empty()) parts[i].got.logits.assign(l.data(), l.data() + l.size());
    };
    const auto before = [](size_t, std::span<SampleRow> rows) {
      for (size_t i = 1; i < rows.size(); i += 2) rows[i] = {.temperature = 1, .uniform = 0.5};
    };
    step.Sample(*impl.model, {.before = before, .after = after});
    for (size_t i = 0; i < parts.size(); ++i) parts[i].failed = step.failure(i).failed();
    return parts;
  }
};

// 76 rows: the second part is in both pieces.
TEST_P(FailedPartTest, IsNotCalledAfterThePassAndLeavesOthersAsTheyAre) {
  const std::vector<Part> parts = {{.rows = 4, .planned = false, .logits = true},
                                   {.rows = 64, .planned = true, .logits = true},
                                   {.rows = 5, .planned = true, .logits = true},
                                   {.rows = 3, .planned = false, .logits = false}};
  const std::vector<Part> whole = Run(parts, {}), got = Run(parts, {1});
  for (size_t i = 0; i < parts.size(); ++i) {
    EXPECT_FALSE(whole[i].failed) << i;
    EXPECT_EQ(whole[i].calls, 1) << i;
    EXPECT_EQ(got[i].failed, i == 1) << i;
    EXPECT_EQ(got[i].calls, i == 1 ? 0 : 1) << i;
    if (i == 1) continue;
    EXPECT_EQ(got[i].got.logits, whole[i].got.logits) << i;
    ASSERT_EQ(got[i].got.sampled.size(), static_cast<size_t>(parts[i].rows)) << i;
    for (size_t row = 0; row < got[i].got.sampled.size(); ++row) {
      EXPECT_GE(got[i].got.sampled[row].token, 0) << i << " " << row;
      EXPECT_EQ(got[i].got.sampled[row].token, whole[i].got.sampled[row].token) << i << " " << row;
      EXPECT_EQ(got[i].got.sampled[row].hash, whole[i].got.sampled[row].hash) << i << " " << row;
    }
  }
}

// A part that is not ranked does not fail: its rows say that they have nothing to pick.
TEST_P(FailedPartTest, ADensePartTellsItsRowsWithoutANumber) {
  const std::vector<Part> parts = {{.rows = 2, .planned = false, .logits = true},
                                   {.rows = 3, .planned = true, .logits = true}};
  const std::vector<Part> whole = Run(parts, {}), got = Run(parts, {0});
  for (size_t i = 0; i < parts.size(); ++i) {
    EXPECT_FALSE(got[i].failed) << i;
    EXPECT_EQ(got[i].calls, 1) << i;
    ASSERT_EQ(got[i].got.sampled.size(), static_cast<size_t>(parts[i].rows)) << i;
    for (size_t row = 0; row < got[i].got.sampled.size(); ++row) {
      EXPECT_EQ(got[i].got.sampled[row].token,
                i == 0 ? SampledRow::kNoNumber : whole[i].got.sampled[row].token)
          << i << " " << row;
    }
  }
  EXPECT_EQ(got[1].got.logits, whole[1].got.logits);
}

INSTANTIATE_TEST_SUITE_P(Backends, FailedPartTest, ::testing::ValuesIn(BackendCases()), NameOf);

}  // namespace
}  // namespace baton
