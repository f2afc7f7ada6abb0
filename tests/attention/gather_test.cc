// Where a row decodes alone, layers that share a list read copies of its tokens, gathered once per
// step; rows that decode together read the caches. Both must give the same bits.
#include "tests/attention/engine_test_util.h"

namespace baton {
namespace {

using namespace test;

// Five layers read each list.
SyntheticSpec Clsa() {
  return {.architecture = "baton-clsa",
          .layers = 7,
          .layout = "WWIIIII",
          .rope = "W",
          .exit_layer = 2,
          .top_k = 48,
          .index_dim = 32};
}

SyntheticSpec HySparse2() {
  return {.architecture = "baton-hysparse2",
          .layers = 10,
          .kv_heads = 1,
          .layout = "WFWWCRRRRR",
          .rope = "W",
          .gated = "WR",
          .sinks = "WR",
          .exit_layer = 4,
          .top_k = 32,
          .recent = 16};
}

struct Case {
  SyntheticSpec spec;
  Backend backend;
  KvType kv;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const SyntheticSpec& spec : {Clsa(), HySparse2()}) {
    cases.push_back({spec, Backend::kReference, KvType::kF32});
#if BATON_WITH_CPU
    cases.push_back({spec, Backend::kCpu, KvType::kBF16});
    cases.push_back({spec, Backend::kCpu, KvType::kInt8});
#endif
  }
  return cases;
}

// Logits of tokens after a prompt, in passes of `rows` rows, and how often tokens were gathered.
std::vector<float> Decode(Engine& engine, int64_t rows, int64_t* gathers) {
  std::vector<int32_t> prompt, tokens;
  for (int32_t i = 0; i < 190; ++i) prompt.push_back(i * 37 % 300);
  for (int32_t i = 0; i < 8; ++i) tokens.push_back(i * 53 % 300);
  auto session = Session::Create(engine, engine.impl().model_plan.caches, 256);
  EXPECT_TRUE(session.ok());
  EXPECT_TRUE(session->Prefill(prompt).ok());
  std::vector<float> all;
  engine.SetTracing(true);
  for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(rows)) {
    const auto some = std::span(tokens).subspan(first, static_cast<size_t>(rows));
    const auto keep = [&](int64_t, View<const float> logits) {
      all.insert(all.end(), logits.data(), logits.data() + logits.size());
    };
    EXPECT_TRUE(session->Decode(some, {.on_logits = keep}).ok());
  }
  *gathers = 0;
  for (const OpTime& op : engine.OpTimes())
    if (op.name == "gather") *gathers = op.calls;
  engine.SetTracing(false);
  return all;
}

TEST(Gather, SharedListsGiveTheBitsOfTheirCaches) {
  int written = 0;
  for (const Case& c : Cases()) {
    const std::string path = Scratch().File("gather" + std::to_string(written++) + ".gguf");
    const Status written_file = WriteSyntheticGguf(path, c.spec);
    ASSERT_TRUE(written_file.ok()) << written_file.error().ToString();
    auto engine = Engine::Load(path, {.backend = c.backend, .threads = 2, .kv = c.kv});
    ASSERT_TRUE(engine.ok()) << engine.error().ToString();
    int64_t alone = 0, together = 0;
    const std::vector<float> gathered = Decode(**engine, 1, &alone);
    const std::vector<float> read = Decode(**engine, 4, &together);
    EXPECT_EQ(gathered, read) << c.spec.architecture;
    EXPECT_EQ(alone, 8) << c.spec.architecture;  // one list in each step
    EXPECT_EQ(together, 0) << c.spec.architecture;
  }
}

}  // namespace
}  // namespace baton
