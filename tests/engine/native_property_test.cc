// What the trained-sparse methods promise (arXiv 2606.06467, 2602.03560, 2609.26368), on small
// random models: budgets that cover the context, lists, ties, forced tokens, sinks, gates, bytes.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "formats/gguf_writer.h"
#include "model/spec/architectures.h"
#include "model/spec/checkpoint_storage.h"
#include "model/spec/native_config.h"
#include "tests/engine/native_test_util.h"

namespace baton {
namespace {

using namespace test;

const BackendCase kReference = BackendCases()[0];

bool Ranks(const SyntheticSpec& s) { return s.top_k > 0; }

// ---- budgets that cover the context ----

// The model's own plan with all keys in place of lists.
ResolvedPlan WithoutLists(Engine& engine) {
  ResolvedPlan plan = engine.impl().model_plan;
  for (LayerPlan& layer : plan.layers) {
    layer.publish.reset();
    for (Branch& b : layer.branches) {
      if (b.set.kind == TokenSet::Kind::kIndex) b.set = {};
    }
  }
  return plan;
}

TEST(NativeProperty, ABudgetThatCoversTheContextIsAllKeys) {
  constexpr int64_t kPrompt = 70;
  const std::vector<int32_t> tokens = RandomTokens(kPrompt + 12, 31);
  const auto prompt = std::span(tokens).first(kPrompt), rest = std::span(tokens).subspan(kPrompt);
  for (SyntheticSpec spec : NativeSpecs()) {
    if (!Ranks(spec)) continue;
    for (const int64_t k : {kPrompt + 12, int64_t{8}}) {
      spec.top_k = k;
      auto engine = LoadNative(spec, kReference);
      const ResolvedPlan all = WithoutLists(*engine);
      Session lists = NewNativeSession(*engine, 128), keys = NewNativeSession(*engine, 128);
      const Logits a = RunPrompt(*engine, lists.sequence(), prompt, {.wanted = kPrompt});
      const Logits b = RunPrompt(*engine, keys.sequence(), prompt, {.wanted = kPrompt}, &all);
      const double caches =
          CacheDifference(lists.sequence(), keys.sequence(), engine->impl().shape().caches);
      const double decoded =
          LargestDifference(DecodeSteps(lists, rest), DecodeSteps(keys, rest, &all));
      if (k == 8) {
        EXPECT_GT(LargestDifference(a, b), 1e-2) << Describe(spec);
        EXPECT_GT(decoded, 1e-3) << Describe(spec);
        continue;
      }
      EXPECT_LE(LargestDifference(a, b), 2e-5) << Describe(spec);
      EXPECT_GE(caches, 0) << Describe(spec);
      EXPECT_LE(caches, 2e-5) << Describe(spec);
      EXPECT_LE(decoded, 2e-5) << Describe(spec);
    }
  }
}

// The same weights as a model whose upper layers read the whole memory.
TEST(NativeProperty, AnIndexerThatChoosesEverythingIsDenseCrossAttention) {
  SyntheticSpec indexed = NativeSpec("clsa", "WWII"), dense = NativeSpec("clsa", "WWDD");
  indexed.exit_layer = dense.exit_layer = 2;
  indexed.index_dim = 16;
  const std::vector<int32_t> tokens = RandomTokens(90, 32);
  for (const int64_t k : {90, 8}) {
    indexed.top_k = k;
    auto a = LoadNative(indexed, kReference), b = LoadNative(dense, kReference);
    Session x = NewNativeSession(*a, 128), y = NewNativeSession(*b, 128);
    const double d =
        LargestDifference(RunWhole(*a, x.sequence(), tokens), RunWhole(*b, y.sequence(), tokens));
    if (k == 90) {
      EXPECT_LE(d, 2e-5);
    } else {
      EXPECT_GT(d, 1e-2);
    }
  }
}

// ---- lists ----

// (layer, sequence, position) -> the lists of that row.
using ListMap = std::map<std::tuple<int, size_t, int64_t>, std::vector<std::vector<int32_t>>>;

class ListObserver : public AttentionObserver {
 public:
  // `sequence_of`: of each row of the batch.
  ListObserver(ListMap& lists, std::vector<size_t> sequence_of)
      : lists_(lists), sequence_of_(std::move(sequence_of)) {}
  void OnLayer(const Tap& tap) override {
    if (tap.sets == nullptr) return;
    for (int64_t r = 0; r < tap.rows.count; ++r) {
      const size_t sequence = sequence_of_[static_cast<size_t>(tap.rows.first + r)];
      auto& row = lists_[{tap.layer, sequence, tap.rows.position + r}];
      row.clear();
      for (int64_t g = 0; g < tap.sets->groups; ++g) {
        const int32_t* list = tap.sets->list(r, g);
        row.emplace_back(list, list + tap.sets->count(r, g));
      }
    }
  }

 private:
  ListMap& lists_;
  std::vector<size_t> sequence_of_;
};

// Decodes `rows` tokens of each sequence per pass, all of them together.
void DecodeTogether(Engine& engine, std::vector<Session*> sessions,
                    const std::vector<std::vector<int32_t>>& tokens, std::vector<size_t> names,
                    int64_t rows, ListMap& lists) {
  const auto steps = static_cast<int64_t>(tokens[0].size());
  for (int64_t at = 0; at < steps; at += rows) {
    const int64_t count = std::min(rows, steps - at);
    std::vector<AttentionSegment> segments;
    std::vector<int32_t> batch_tokens;
    std::vector<size_t> sequence_of;
    for (size_t s = 0; s < sessions.size(); ++s) {
      KvSequence& kv = sessions[s]->sequence();
      segments.push_back({.rows = {static_cast<int64_t>(batch_tokens.size()), count, kv.length()},
                          .kv = &kv,
                          .plan = &engine.impl().model_plan,
                          .prompt = false,
                          .watch = nullptr});
      ASSERT_TRUE(kv.Reserve(kv.length() + count).ok());
      const auto& own = tokens[names[s]];
      batch_tokens.insert(batch_tokens.end(), own.begin() + at, own.begin() + at + count);
      sequence_of.insert(sequence_of.end(), static_cast<size_t>(count), names[s]);
    }
    ListObserver observer(lists, sequence_of);
    ForwardBatch batch;
    batch.tokens = batch_tokens;
    batch.segments = segments;
    batch.observer = &observer;
    engine.impl().model->Forward(batch);
    for (Session* s : sessions) s->sequence().Evict();
  }
}

class NativeLists : public ::testing::TestWithParam<BackendCase> {};

TEST_P(NativeLists, DoNotDependOnTheBatch) {
  const std::vector<std::vector<int32_t>> prompts = {RandomTokens(20, 41), RandomTokens(75, 42),
                                                     RandomTokens(126, 43)};
  const std::vector<std::vector<int32_t>> tokens = {RandomTokens(12, 44), RandomTokens(12, 45),
                                                    RandomTokens(12, 46)};
  for (const SyntheticSpec& spec : NativeSpecs()) {
    if (!Ranks(spec)) continue;
    auto engine = LoadNative(spec, GetParam());
    const auto fresh = [&](size_t s) {
      Session session = NewNativeSession(*engine, 256);
      RunPrompt(*engine, session.sequence(), prompts[s], {});
      return session;
    };
    ListMap alone;
    for (size_t s = 0; s < prompts.size(); ++s) {
      Session session = fresh(s);
      DecodeTogether(*engine, {&session}, tokens, {s}, 1, alone);
    }
    EXPECT_EQ(alone.size() % (3 * 12), 0u);
    EXPECT_GT(alone.size(), 0u);
    for (const int64_t rows : {1, 2, 4}) {
      for (const std::vector<size_t>& order : {std::vector<size_t>{0, 1, 2}, {2, 0, 1}}) {
        ListMap together;
        Session a = fresh(order[0]), b = fresh(order[1]), c = fresh(order[2]);
        DecodeTogether(*engine, {&a, &b, &c}, tokens, order, rows, together);
        EXPECT_TRUE(together == alone) << Describe(spec) << " rows " << rows;
      }
    }
  }
}

std::vector<BackendCase> ListBackends() {
  std::vector<BackendCase> cases = BackendCases();
#if BATON_WITH_CPU
  cases.push_back({"portable", Backend::kCpu, KvType::kF32, 0});
#endif
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Backends, NativeLists, ::testing::ValuesIn(ListBackends()), NameOf);

// Forced tokens are in, none is listed twice, and the union is as large as the budget and the
// forced tokens together, or the context.
TEST(NativeProperty, ListsUniteTheBudgetAndTheForcedTokens) {
  for (const SyntheticSpec& spec : NativeSpecs()) {
    if (!Ranks(spec)) continue;
    auto engine = LoadNative(spec, kReference);
    const std::vector<std::vector<int32_t>> tokens = {RandomTokens(150, 51)};
    ListMap lists;
    Session session = NewNativeSession(*engine, 256);
    DecodeTogether(*engine, {&session}, tokens, {0}, 50, lists);
    EXPECT_GE(lists.size(), 150u);
    for (const auto& [key, row] : lists) {
      const int64_t t = std::get<2>(key);
      for (const std::vector<int32_t>& list : row) {
        const std::set<int32_t> members(list.begin(), list.end());
        EXPECT_EQ(members.size(), list.size()) << Describe(spec);
        EXPECT_LE(*members.rbegin(), t);
        if (spec.block > 1) {
          // Whole blocks, the one at hand up to its last visible token.
          const auto blocks = (spec.top_k + spec.block - 1) / spec.block;
          std::map<int64_t, int64_t> sizes;
          for (const int32_t j : members) sizes[j / spec.block]++;
          EXPECT_EQ(std::ssize(sizes), std::min(blocks, t / spec.block + 1));
          for (const auto& [block, size] : sizes)
            EXPECT_EQ(size, std::min(spec.block, t + 1 - block * spec.block));
          continue;
        }
        EXPECT_EQ(std::ssize(list), std::min(t + 1, spec.top_k + spec.recent + spec.sink))
            << Describe(spec) << " row " << t;
        for (int64_t j = 0; j <= t; ++j) {
          if (j < spec.sink || j > t - spec.recent) {
            EXPECT_TRUE(members.contains(static_cast<int32_t>(j)));
          }
        }
      }
    }
  }
}

// A prompt that repeats one token gives keys without positions that are all equal: lower positions
// win, beside the forced ones.
TEST(NativeProperty, TiesGoToTheLowerPosition) {
  SyntheticSpec indexed = NativeSpec("clsa", "II"), ranked = NativeSpec("hysparse2", "FCR");
  indexed.top_k = ranked.top_k = 9;
  indexed.index_dim = 16;
  ranked.recent = 3;
  for (const BackendCase& c : BackendCases()) {
    for (const SyntheticSpec& spec : {indexed, ranked}) {
      auto engine = LoadNative(spec, c);
      const std::vector<std::vector<int32_t>> tokens = {std::vector<int32_t>(130, 65)};
      ListMap lists;
      Session session = NewNativeSession(*engine, 256);
      DecodeTogether(*engine, {&session}, tokens, {0}, 1, lists);
      EXPECT_EQ(lists.size(), 130u);
      for (const auto& [key, row] : lists) {
        const int64_t t = std::get<2>(key);
        std::vector<int32_t> expected;
        for (int32_t j = 0; j <= t; ++j)
          if (std::ssize(expected) < 9 || j > t - spec.recent) expected.push_back(j);
        EXPECT_EQ(row, (std::vector<std::vector<int32_t>>{expected}))
            << Describe(spec) << " " << c.name << " row " << t;
      }
    }
  }
}

// ---- sinks and gates ----

// Overwrites sink logits of a branch in every layer.
void SetSinks(Engine& engine, TensorRole role, float value) {
  for (const WeightSet& layer : engine.impl().model->weights().layers) {
    if (const float* sinks = layer.vector(role))
      std::fill_n(const_cast<float*>(sinks), engine.info().heads, value);
  }
}

TEST(NativeProperty, ASinkOfMinusInfinityIsNoSink) {
  for (const BackendCase& c : BackendCases()) {
    for (const SyntheticSpec& with : NativeSpecs()) {
      if (with.layout.find_first_of(with.sinks) == std::string::npos) continue;
      SyntheticSpec without = with;
      without.sinks = "";
      auto engine = LoadNative(with, c), plain = LoadNative(without, c);
      const std::vector<int32_t> tokens = RandomTokens(60, 61);
      const auto logits = [&](Engine& e) {
        Session session = NewNativeSession(e, 128);
        return RunWhole(e, session.sequence(), tokens);
      };
      const Logits expected = logits(*plain);
      EXPECT_GT(LargestDifference(logits(*engine), expected), 1e-2) << Describe(with);
      for (const float value : {-1e30f, -std::numeric_limits<float>::infinity()}) {
        SetSinks(*engine, TensorRole::kAttnSinks, value);
        SetSinks(*engine, TensorRole::kAttnSinksLocal, value);
        EXPECT_LE(LargestDifference(logits(*engine), expected), c.tolerance / 10)
            << Describe(with) << " " << c.name;
      }
    }
  }
}

// A HySparse model without what its sparse layers have for the selected blocks is a model of gated
// windows: the same tensors under the names that those have.
std::string HybridOf(const SyntheticSpec& sparse) {
  SyntheticSpec hybrid = NativeSpec("dense", sparse.layout);
  std::replace(hybrid.layout.begin(), hybrid.layout.end(), 'S', 'W');
  const std::string from = Scratch().File("sparse.gguf"), to = Scratch().File("hybrid.gguf");
  EXPECT_TRUE(WriteSyntheticGguf(from, sparse).ok());
  EXPECT_TRUE(WriteSyntheticGguf(to, hybrid).ok());
  GgufWriter writer;
  writer.Set(Checkpoint::Open(to)->storage->metadata);
  const auto checkpoint = Checkpoint::Open(from);
  for (const TensorInfo& t : checkpoint->storage->tensors) {
    std::string name = t.name;
    if (name.find("_global") != std::string::npos) continue;
    if (const size_t at = name.find("_local"); at != std::string::npos) name.erase(at, 6);
    writer.AddTensor(name, t.dtype, t.shape, std::vector<std::byte>(t.data, t.data + t.bytes));
  }
  EXPECT_TRUE(writer.WriteFile(to).ok());
  return to;
}

TEST(NativeProperty, WithoutItsGlobalBranchHySparseIsTheGatedHybrid) {
  for (const int64_t block : {1, 4}) {
    SyntheticSpec spec = NativeSpec("hysparse", "FSSFSF");
    spec.top_k = 12;
    spec.block = block;
    EngineOptions options;
    options.backend = Backend::kReference;
    options.kv = KvType::kF32;
    auto hybrid = Engine::Load(HybridOf(spec), options);
    ASSERT_TRUE(hybrid.ok()) << hybrid.error().ToString();
    auto sparse = LoadNative(spec, kReference);
    const std::vector<int32_t> tokens = RandomTokens(80, 71);
    const auto logits = [&](Engine& e) {
      Session session = NewNativeSession(e, 128);
      return RunWhole(e, session.sequence(), tokens);
    };
    const Logits expected = logits(**hybrid);
    EXPECT_GT(LargestDifference(logits(*sparse), expected), 1e-2);
    // A gate has no finite weights that close it for every row; a sink that takes the whole
    // softmax multiplies the branch by the same zero.
    SetSinks(*sparse, TensorRole::kAttnSinks, 1e30f);
    EXPECT_LE(LargestDifference(logits(*sparse), expected), 1e-5);
  }
}

// ---- bytes ----

// Values of a token in full caches, and values of all rings.
std::pair<int64_t, int64_t> CacheValues(const SyntheticSpec& s) {
  const int64_t kv = 2 * s.kv_heads * s.head_dim;
  int64_t full = 0, rings = 0;
  for (const char c : s.layout) {
    if (c == 'F' || c == 'C') full += kv;
    if (c == 'W' || c == 'S' || c == 'L') rings += kv * (s.window + s.sink_tokens);
  }
  if (s.layout.find_first_of("DIL") != std::string::npos) full += kv + s.index_dim;
  return {full, rings};
}

TEST(NativeProperty, CacheBytesAreTheFormulas) {
  for (const SyntheticSpec& spec : NativeSpecs()) {
    const auto [full, rings] = CacheValues(spec);
    for (const KvType type : {KvType::kF32, KvType::kBF16}) {
      auto engine = LoadNative(spec, {"ref", Backend::kReference, type, 0});
      const int64_t element = type == KvType::kF32 ? 4 : 2;
      for (const int64_t chunk : {16, 512}) {
        if (kSlowBuild && chunk == 16) continue;
        Session session = NewNativeSession(*engine, 512);
        RunPrompt(*engine, session.sequence(), RandomTokens(300, 81), {.chunk = chunk});
        const std::vector<int32_t> more = RandomTokens(70, 82);
        for (size_t i = 0; i <= more.size(); ++i) {
          const int64_t n = session.length();
          EXPECT_EQ(session.sequence().held_bytes(), (full * n + rings) * element);
          // A cache ends within a page; a ring may begin within one too.
          int64_t slack = 0;
          for (const CacheSpec& c : engine->impl().shape().caches)
            slack += (c.ring() ? 3 : 1) * 64 * (c.values ? 2 : 1) * c.kv_heads * c.head_dim;
          EXPECT_GE(session.sequence().allocated_bytes(), session.sequence().held_bytes());
          EXPECT_LE(session.sequence().allocated_bytes(), (full * n + rings + slack) * element);
          if (i < more.size()) Decode(session, std::span(more).subspan(i, 1), nullptr);
        }
      }
    }
  }
}

}  // namespace
}  // namespace baton
