// Every way to process a prompt gives what one pass of all rows through all layers gives: logits of
// the wanted rows, every cache as later rows see it, and later decode steps. And the comparison has
// teeth: schedules that are wrong by one row fail it (arXiv 2606.06467, 2609.26368).
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "engine/prompt/prompt_run.h"
#include "plan/prefill_schedule.h"
#include "tests/engine/native_test_util.h"

namespace baton {
namespace {

using namespace test;

constexpr int64_t kSteps = 12;  // decode steps after the prompt

// What one pass leaves behind.
struct Whole {
  Session session;
  Logits logits, decoded;
};

struct Comparison {
  double logits = 0, caches = 0, decoded = 0;
  bool same(double tolerance) const {
    return logits <= tolerance && caches >= 0 && caches <= tolerance && decoded <= tolerance;
  }
};
std::ostream& operator<<(std::ostream& out, const Comparison& c) {
  return out << "logits " << c.logits << ", caches " << c.caches << ", decoded " << c.decoded;
}

class Prompts {
 public:
  Prompts(const SyntheticSpec& spec, const BackendCase& backend)
      : spec_(spec),
        reference_(backend.backend == Backend::kReference),
        engine_(LoadNative(spec, backend)) {}

  Engine& engine() { return *engine_; }
  std::string name() const { return Describe(spec_); }
  bool ranks() const { return spec_.top_k > 0; }
  const ModelShape& shape() { return engine_->impl().shape(); }
  Session NewSession() { return NewNativeSession(*engine_, kMaxTokens); }

  // The whole pass over the first n tokens.
  Whole& Reference(int64_t n) {
    auto& whole = whole_[n];
    if (!whole) {
      // Two sessions: one stays at the prompt's end, the other decodes.
      Session kept = NewSession(), ahead = NewSession();
      Logits logits = RunWhole(*engine_, kept.sequence(), Tokens(0, n));
      RunWhole(*engine_, ahead.sequence(), Tokens(0, n));
      Logits decoded = DecodeSteps(ahead, Tokens(n, n + kSteps));
      whole = std::make_unique<Whole>(std::move(kept), std::move(logits), std::move(decoded));
    }
    return *whole;
  }

  // Of a session that holds the first n tokens, and the logits of the last rows.
  Comparison Compare(Session& session, int64_t n, const Logits& logits) {
    Whole& whole = Reference(n);
    Comparison c;
    if (!logits.empty()) {
      const auto rows = static_cast<int64_t>(logits.size()) / spec_.vocab;
      const auto expected = LastRows(whole.logits, rows, spec_.vocab);
      c.logits = LargestDifference(logits, Logits(expected.begin(), expected.end()));
    }
    c.caches = CacheDifference(session.sequence(), whole.session.sequence(), shape().caches,
                               reference_ ? 0 : 1);
    c.decoded = LargestDifference(DecodeSteps(session, Tokens(n, n + kSteps)), whole.decoded);
    return c;
  }

  // A prompt of n tokens of which `first` were an earlier prompt.
  Comparison Run(int64_t n, const Manner& manner, int64_t first = 0) {
    Session session = NewSession();
    if (first > 0)
      RunPrompt(*engine_, session.sequence(), Tokens(0, first),
                {.chunk = manner.chunk, .order = manner.order});
    // Others decode between the parts of a pass.
    Session other = NewSession();
    RunWhole(*engine_, other.sequence(), Tokens(0, 40));
    const auto between = [&] {
      if (manner.part < kWholePass && other.sequence().length() < kMaxTokens)
        DecodeSteps(other, Tokens(0, 1));
    };
    const Logits logits =
        RunPrompt(*engine_, session.sequence(), Tokens(first, n), manner, nullptr, between);
    EXPECT_EQ(static_cast<int64_t>(logits.size()),
              std::min(manner.wanted, n - first) * spec_.vocab);
    return Compare(session, n, logits);
  }

  std::span<const int32_t> Tokens(int64_t begin, int64_t end) const {
    return std::span(tokens_).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  }

 private:
  static constexpr int64_t kMaxTokens = 512;
  SyntheticSpec spec_;
  bool reference_;
  std::unique_ptr<Engine> engine_;
  std::vector<int32_t> tokens_ = RandomTokens(kMaxTokens, 17);
  std::map<int64_t, std::unique_ptr<Whole>> whole_;
};

// Prompt lengths around what a suffix, a window and a page of the cache are.
std::vector<int64_t> Lengths(const ModelShape& shape) {
  int from = 0;
  const int64_t suffix = SuffixRows(shape, 1, &from);
  std::vector<int64_t> lengths = {1, 65, 150};
  if (suffix > 0) lengths = {suffix - 1, suffix, suffix + 1, 3 * suffix, 150};
  if (kSlowBuild) lengths.erase(lengths.begin());
  return lengths;
}

// The reference has the same bits in every schedule; the fast backend sums in other orders.
std::vector<BackendCase> Backends() {
  std::vector<BackendCase> cases = {{"ref", Backend::kReference, KvType::kF32, 0}};
#if BATON_WITH_CPU
  cases.push_back({"portable", Backend::kCpu, KvType::kF32, 2e-4});
#endif
  return cases;
}

class Schedule : public ::testing::TestWithParam<BackendCase> {
 protected:
  void Check(Prompts& prompts, int64_t n, const Manner& manner, int64_t first = 0) {
    const Comparison c = prompts.Run(n, manner, first);
    compared_++;
    if (c.same(GetParam().tolerance)) return;
    if (GetParam().backend == Backend::kCpu && prompts.ranks()) {
      ties_++;
      return;
    }
    ADD_FAILURE() << prompts.name() << " n " << n << " first " << first << " chunk " << manner.chunk
                  << " wanted " << manner.wanted << ": " << c;
  }
  // A machine's portable kernels may break a near-tie of two keys either way.
  void TearDown() override { EXPECT_LE(ties_ * 20, compared_); }

 private:
  int64_t compared_ = 0, ties_ = 0;
};

TEST_P(Schedule, ChunksEarlyExitAndSuffixAreTheWholePass) {
  for (const SyntheticSpec& spec : NativeSpecs()) {
    Prompts prompts(spec, GetParam());
    for (const int64_t n : Lengths(prompts.shape())) {
      for (const int64_t chunk : {1, 7, 64, 512}) {
        if (kSlowBuild && (chunk == 1 || chunk == 64)) continue;
        for (const int64_t wanted : {1, 2, 5}) {
          if (chunk < 512 && wanted == 2) continue;
          Check(prompts, n, {.chunk = chunk, .wanted = wanted});
        }
      }
    }
  }
}

TEST_P(Schedule, LayerMajorIsTheWholePass) {
  for (const SyntheticSpec& spec : NativeSpecs()) {
    Prompts prompts(spec, GetParam());
    for (const int64_t n : {3, 65, 150}) {
      for (const int64_t chunk : {7, 512}) {
        Check(prompts, n, {.chunk = chunk, .wanted = 2, .order = PrefillOrder::kLayerMajor});
      }
    }
  }
}

TEST_P(Schedule, PartsOfPassesAreTheWholePass) {
  for (const SyntheticSpec& spec : NativeSpecs()) {
    Prompts prompts(spec, GetParam());
    for (const int64_t part : {1, 300}) {
      Check(prompts, 150, {.chunk = 128, .wanted = 2, .part = part});
      Check(prompts, 150, {.chunk = 512, .part = part}, 27);
      Check(prompts, 150, {.order = PrefillOrder::kLayerMajor, .part = part});
    }
  }
}

TEST_P(Schedule, PromptsThatContinueOthersAreTheWholePass) {
  for (const SyntheticSpec& spec : NativeSpecs()) {
    Prompts prompts(spec, GetParam());
    for (const int64_t n : {20, 150}) {
      for (const int64_t more : {1, 3, 6, 7, 8, 12}) {
        Check(prompts, n, {.chunk = more == 6 ? 4 : 512}, n - more);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Schedule, ::testing::ValuesIn(Backends()), NameOf);

// ---- schedules that are wrong ----

// Two windows of 4 lie between the layer that feeds the shared caches and the exit: a suffix of 7.
SyntheticSpec SuffixSpec() {
  SyntheticSpec spec = NativeSpec("hysparse2", "WFWWCRCR");
  spec.exit_layer = 4;
  spec.top_k = 8;
  spec.recent = 3;
  return spec;
}

// The passes of a schedule, spelled out. `rotate_from`: tail passes count positions from there.
Logits RunPasses(Engine& engine, KvSequence& kv, std::span<const int32_t> tokens,
                 const PrefillSchedule& schedule, int64_t rotate_from = 0) {
  Engine::Impl& impl = engine.impl();
  const int64_t width = impl.info.width, end = static_cast<int64_t>(tokens.size());
  std::vector<float> kept(static_cast<size_t>((end - schedule.keep_from) * width));
  const auto stream = [&](int64_t row) { return kept.data() + (row - schedule.keep_from) * width; };
  Logits logits;
  for (const Pass& pass : schedule.passes) {
    const std::vector<CacheSpec>& caches = impl.shape().caches;
    for (size_t c = 0; c < caches.size(); ++c) {
      if (!pass.Writes(caches[c])) continue;
      EXPECT_TRUE(kv.Reserve(static_cast<int>(c), pass.first_row, pass.end_row).ok());
    }
    const AttentionSegment segment{.rows = {0, pass.rows(), pass.first_row},
                                   .kv = &kv,
                                   .plan = &impl.model_plan,
                                   .prompt = true,
                                   .watch = nullptr};
    const Rows rotated{0, pass.rows(), pass.first_row - rotate_from};
    const std::vector<int64_t> last = {pass.rows() - 1};
    ForwardBatch batch;
    batch.tokens =
        tokens.subspan(static_cast<size_t>(pass.first_row), static_cast<size_t>(pass.rows()));
    batch.segments = std::span(&segment, 1);
    batch.first_layer = pass.first_layer;
    batch.end_layer = pass.end_layer;
    batch.fed = pass.fed;
    batch.feed_end = pass.feed_end;
    if (pass.first_layer > 0) {
      batch.hidden = stream(pass.first_row);
      if (rotate_from > 0) batch.rotated = std::span(&rotated, 1);
    }
    if (pass.end_layer < impl.info.layers) {
      batch.leave_from = std::max<int64_t>(0, schedule.keep_from - pass.first_row);
      batch.leave = stream(pass.first_row + batch.leave_from);
    }
    batch.logit_rows = last;
    batch.on_logits = [&](int64_t, View<const float> row) {
      logits.assign(row.data(), row.data() + row.size());
    };
    impl.model->Forward(batch);
    kv.Evict();
  }
  EXPECT_TRUE(kv.Reserve(end).ok());
  return logits;
}

// `later`: the tail starts so many rows late.
PrefillSchedule SuffixSchedule(const ModelShape& shape, int64_t n, int64_t later) {
  PrefillSchedule s = MakePrefillSchedule(shape, {.begin = 0, .end = n, .wanted = n - 1});
  EXPECT_EQ(s.passes.size(), 3u);
  EXPECT_EQ(s.passes[1].first_row, n - 7);
  s.passes[1].first_row += later;
  s.keep_from += later;
  return s;
}

TEST(ScheduleTeeth, OneRowLessThanTheSuffixIsSeen) {
  Prompts prompts(SuffixSpec(), Backends()[0]);
  for (const int64_t n : {8, 21, 150}) {
    for (const int64_t later : {0, 1, 2, -1}) {
      Session session = prompts.NewSession();
      const Logits logits = RunPasses(prompts.engine(), session.sequence(), prompts.Tokens(0, n),
                                      SuffixSchedule(prompts.shape(), n, later));
      const Comparison c = prompts.Compare(session, n, logits);
      if (later <= 0) {
        EXPECT_TRUE(c.same(0)) << n << " " << later << ": " << c;
      } else {
        EXPECT_GT(c.logits, 1e-3) << n << " " << later;
      }
    }
  }
}

TEST(ScheduleTeeth, PositionsCountedFromTheSuffixAreSeen) {
  Prompts prompts(SuffixSpec(), Backends()[0]);
  for (const int64_t n : {21, 150}) {
    Session session = prompts.NewSession();
    const Logits logits = RunPasses(prompts.engine(), session.sequence(), prompts.Tokens(0, n),
                                    SuffixSchedule(prompts.shape(), n, 0), n - 7);
    const Comparison c = prompts.Compare(session, n, logits);
    // Rotary attention is relative: the prompt's own logits stay. The keys it leaves do not.
    EXPECT_LT(c.logits, 1e-3);
    EXPECT_GT(c.caches, 1e-2);
    EXPECT_GT(c.decoded, 1e-3);
  }
}

TEST(ScheduleTeeth, AWindowOffByOneIsSeen) {
  SyntheticSpec spec = SuffixSpec();
  Prompts prompts(spec, Backends()[0]);
  const std::vector<int64_t> narrower = {3, 5};
  for (const int64_t window : narrower) {
    spec.window = window;
    Prompts other(spec, Backends()[0]);
    Session session = other.NewSession();
    const Logits logits =
        RunPrompt(other.engine(), session.sequence(), other.Tokens(0, 21), {.chunk = 21});
    const auto expected = LastRows(prompts.Reference(21).logits, 1, spec.vocab);
    EXPECT_GT(LargestDifference(logits, Logits(expected.begin(), expected.end())), 1e-3);
    // The schedule of one model for the other: one row too few in each window, or one too many.
    Session mixed = prompts.NewSession();
    const PrefillSchedule schedule =
        MakePrefillSchedule(other.shape(), {.begin = 0, .end = 21, .wanted = 20});
    const Comparison c = prompts.Compare(
        mixed, 21, RunPasses(prompts.engine(), mixed.sequence(), prompts.Tokens(0, 21), schedule));
    EXPECT_EQ(c.same(0), window == 5) << c;
  }
}

// ---- models without an exit ----

TEST(ScheduleRefusals, ModelsWithoutAnExitKeepAllRows) {
  for (const SyntheticSpec& spec : NativeSpecs()) {
    Prompts prompts(spec, Backends()[0]);
    int from = -1;
    const int64_t suffix = SuffixRows(prompts.shape(), 1, &from);
    if (spec.architecture != "baton-hysparse2") {
      EXPECT_EQ(suffix, -1) << "the memory needs every row: " << Describe(spec);
    }
    if (spec.exit_layer >= 0) continue;
    EXPECT_EQ(suffix, -1);
    const PrefillSchedule s =
        MakePrefillSchedule(prompts.shape(), {.begin = 0, .end = 30, .wanted = 29});
    EXPECT_EQ(s.passes, (std::vector<Pass>{{0, prompts.shape().layers, 0, 30, false, false}}));
  }
}

TEST(ScheduleRefusals, FilesThatExitAboveACacheAreRefused) {
  for (const auto& [architecture, layout] :
       {std::pair{"hysparse", "FSSF"}, {"hysparse2", "WFCSCS"}, {"clsa", "WWLL"}}) {
    SyntheticSpec spec = NativeSpec(architecture, layout);
    spec.exit_layer = 2;
    spec.top_k = 8;
    spec.index_dim = 16;
    const Status status = WriteSyntheticGguf(Scratch().File("refused.gguf"), spec);
    ASSERT_FALSE(status.ok()) << layout;
    EXPECT_NE(status.error().ToString().find("prefill.exit_layer is 2, but"), std::string::npos)
        << status.error().ToString();
  }
}

TEST(ScheduleProperty, RandomModelsAndSchedules) {
  EXPECT_TRUE(rc::check([] {
    const SyntheticSpec spec = *AnyNativeSpec();
    Prompts prompts(spec, BackendCases()[0]);
    if (kSlowBuild && *rc::gen::inRange(0, 6) > 0) return;
    for (int i = 0; i < 3; ++i) {
      const int64_t n = *rc::gen::inRange<int64_t>(1, 160);
      const int64_t first = *rc::gen::element<int64_t>(0, *rc::gen::inRange<int64_t>(0, n));
      const Manner manner{
          .chunk = *rc::gen::element<int64_t>(1, 3, 7, 64, 100, 512),
          .wanted = *rc::gen::inRange<int64_t>(1, 8),
          .order = *rc::gen::element(PrefillOrder::kTokenMajor, PrefillOrder::kTokenMajor,
                                     PrefillOrder::kLayerMajor),
          .part = *rc::gen::element(INT64_MAX, int64_t{1}, int64_t{130}, int64_t{400})};
      const Comparison c = prompts.Run(n, manner, first);
      if (!c.same(0)) {
        RC_LOG() << Describe(spec) << " exit " << spec.exit_layer << " n " << n << " first "
                 << first << " chunk " << manner.chunk << " wanted " << manner.wanted << " part "
                 << manner.part << ": " << c;
      }
      RC_ASSERT(c.same(0));
    }
  }));
}

}  // namespace
}  // namespace baton
