// A request that fails ends alone: its neighbours' bits do not change.
#include <map>

#include "base/mapped_file.h"
#include "formats/gguf.h"
#include "formats/gguf_writer.h"
#include "tests/engine/test_requests.h"

namespace baton {
namespace {

using namespace test;

// A model whose rows of the embedding from `first` on are not numbers: a request that picks such a
// token is lost at the next step.
constexpr int32_t kFirstBad = 280;
std::string BrokenModel() {
  const std::string path = Scratch().File("broken.gguf");
  if (std::filesystem::exists(path)) return path;
  SyntheticSpec spec = TinySpec();
  spec.tied_output = false;
  spec.seed = 7;
  auto bytes = MappedFile::Open(ModelFile(spec));
  EXPECT_TRUE(bytes.ok());
  auto file = ParseGguf(bytes->bytes());
  EXPECT_TRUE(file.ok());
  GgufWriter writer;
  writer.Set(file->metadata);
  for (const TensorInfo& t : file->tensors) {
    std::vector<std::byte> data(t.data, t.data + t.bytes);
    if (t.name == "token_embd.weight") {
      std::vector<float> rows(data.size() / sizeof(float));
      std::memcpy(rows.data(), data.data(), data.size());
      std::fill(rows.begin() + kFirstBad * spec.width, rows.end(), NAN);
      std::memcpy(data.data(), rows.data(), data.size());
    }
    writer.AddTensor(t.name, t.dtype, t.shape, std::move(data));
  }
  EXPECT_TRUE(writer.WriteFile(path).ok());
  return path;
}

class BrokenModelTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  std::unique_ptr<Engine> Load() {
    auto engine = Engine::Load(BrokenModel(),
                               {.backend = GetParam().backend, .threads = 2, .kv = GetParam().kv});
    EXPECT_TRUE(engine.ok()) << engine.error().ToString();
    return std::move(engine).value();
  }
};

TEST_P(BrokenModelTest, FailureEndsItsRequestOnly) {
  std::vector<Request> requests;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    Request r = TokensRequest(30, seed, 12);
    // Half of them planned: ranking notices before there are logits.
    if (seed % 2) {
      r.plan = SparsePlan(16);
      r.watch = {.interval = 3, .threshold = 0.5};
    }
    r.sampling = {.temperature = 1, .seed = seed};
    requests.push_back(r);
  }
  auto engine = Load();
  std::vector<Seen> alone(requests.size()), together(requests.size());
  int failed[2] = {}, ended[2] = {};
  for (size_t i = 0; i < requests.size(); ++i) {
    Submit(*engine, requests[i], alone[i]);
    StepUntilIdle(*engine);
    (alone[i].ok() ? ended : failed)[i % 2]++;
    if (!alone[i].ok()) {
      const bool by_logits = alone[i].result->error().message().find("logits") != std::string::npos;
      EXPECT_EQ(by_logits, i % 2 == 0) << alone[i].result->error().ToString();
    }
  }
  for (int planned : {0, 1}) {
    ASSERT_GT(failed[planned], 0);
    ASSERT_GT(ended[planned], 0);
  }
  for (size_t i = 0; i < requests.size(); ++i) Submit(*engine, requests[i], together[i]);
  engine->SetTracing(true);
  int64_t steps = 0;
  while (engine->Step()) ++steps;
  // A row that fails costs the others no further pass.
  for (const OpTime& op : engine->OpTimes())
    EXPECT_TRUE(op.name != "embed" || op.calls <= steps + 1) << op.calls << " in " << steps;
  engine->SetTracing(false);
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_TRUE(together[i].done());
    ASSERT_EQ(together[i].ok(), alone[i].ok()) << i;
    EXPECT_EQ(together[i].text, alone[i].text);
    if (alone[i].ok()) {
      EXPECT_EQ(Fingerprint(together[i].generation()), Fingerprint(alone[i].generation()));
    } else {
      EXPECT_EQ(together[i].result->error().ToString(), alone[i].result->error().ToString());
    }
  }
}

// One request meets a token that is no number, one fills its cache, one is cancelled and one has
// such a token in a sparse prompt; all while others run that must not notice.
TEST_P(BrokenModelTest, FailuresOfEveryKindAtOnceLeaveNeighboursAlone) {
  const auto load = [&](int64_t kv_tokens) {
    return Engine::Load(BrokenModel(), {.backend = GetParam().backend,
                                        .threads = 2,
                                        .kv = GetParam().kv,
                                        .kv_tokens = kv_tokens})
        .value();
  };
  // Whatever picks a token of the broken rows fails by itself: those prompts are passed over.
  std::vector<Request> healthy;
  std::vector<Generation> alone;
  for (uint64_t seed = 0; healthy.size() < 5 && seed < 100; ++seed) {
    const size_t i = healthy.size();
    Request r = TokensRequest(40 + 20 * static_cast<int64_t>(i), seed, 24);
    if (i % 2) r.plan = SparsePlan(16, i == 3 ? 1 : 0);
    if (i == 1) r.watch = {.interval = 3, .threshold = 0.5};
    auto g = load(4096)->Generate(r);
    if (!g.ok()) continue;
    healthy.push_back(r);
    alone.push_back(*std::move(g));
  }
  ASSERT_EQ(healthy.size(), 5u);
  auto engine = load(1024);
  std::vector<Seen> seen(healthy.size());
  Seen nan, bad_prompt, full, cancelled;
  for (size_t i = 0; i < 3; ++i) Submit(*engine, healthy[i], seen[i]);
  Request r = TokensRequest(30, 50, 200, SparsePlan(16));
  r.sampling = {.temperature = 1, .seed = 50};
  Submit(*engine, r, nan);
  const RequestId id = Submit(*engine, TokensRequest(30, 51, 60, SparsePlan(16)), cancelled);
  r = TokensRequest(100, 52, 4, SparsePlan(16));
  r.tokens[60] = kFirstBad;
  r.plan->prefill = {.sparse = true, .tile = 16, .fraction = 0.1, .min = 24};
  Submit(*engine, r, bad_prompt);
  for (size_t i = 3; i < healthy.size(); ++i) Submit(*engine, healthy[i], seen[i]);
  Submit(*engine, TokensRequest(800, 53, 4000), full);
  for (int i = 0; i < 16; ++i) engine->Step();
  engine->CancelRequest(id);
  StepUntilIdle(*engine);

  const auto error = [](const Seen& s) {
    return s.done() && !s.ok() ? s.result->error().ToString() : "no error";
  };
  EXPECT_NE(error(nan).find("layer 0: attention mass is not a number at position "),
            std::string::npos)
      << error(nan);
  EXPECT_NE(error(bad_prompt).find("layer 0: attention mass is not a number at position "),
            std::string::npos)
      << error(bad_prompt);
  EXPECT_TRUE(bad_prompt.text.empty());
  EXPECT_FALSE(full.ok());
  EXPECT_NE(error(full).find("the cache holds 1024"), std::string::npos) << error(full);
  ASSERT_TRUE(cancelled.ok());
  EXPECT_EQ(cancelled.generation().stop, Generation::Stop::kCancelled);
  for (size_t i = 0; i < healthy.size(); ++i) {
    ASSERT_TRUE(seen[i].ok()) << i << ": " << error(seen[i]);
    EXPECT_EQ(Fingerprint(seen[i].generation()), Fingerprint(alone[i])) << i;
  }
}

// At the level of sessions the failure is the call's error, and a ranking that fails in a prompt
// calls nobody with logits.
TEST_P(BrokenModelTest, SessionsReturnTheFailure) {
  auto engine = Load();
  std::vector<int32_t> tokens = RandomTokens(100, 1);
  tokens[50] = kFirstBad;
  Plan plan = SparsePlan(16);
  plan.prefill = {.sparse = true, .tile = 16, .fraction = 0.1, .min = 24};
  const ResolvedPlan resolved = Resolved(*engine, plan);
  bool called = false;
  const auto on_logits = [&](int64_t, View<const float>) { called = true; };
  Session prompt = NewSession(*engine, 200);
  const Status prefill = prompt.Prefill(tokens, &resolved, on_logits);
  ASSERT_FALSE(prefill.ok());
  EXPECT_EQ(prefill.error().message(), "layer 0: attention mass is not a number at position 0");
  Session decode = NewSession(*engine, 200);
  Prefill(decode, std::span(tokens).first(45));
  for (int64_t rows : {1, 20}) {  // few rows keep their scores, more do not
    decode.Truncate(45);
    Decode(decode, std::span(tokens).subspan(45, 5), &resolved);
    const Status status =
        decode.Decode(std::span(tokens).subspan(50, static_cast<size_t>(rows)),
                      {.plan = &resolved, .logit_rows = {}, .on_logits = on_logits});
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().message(), "layer 0: attention mass is not a number at position 0");
  }
  EXPECT_FALSE(called);
}

TEST_P(BrokenModelTest, LogitsWithoutANumberAreAnErrorThatSaysWhere) {
  auto engine = Load();
  Request r = TokensRequest(30, 1, 12);
  r.tokens.back() = kFirstBad;
  auto g = engine->Generate(r);
  ASSERT_FALSE(g.ok());
  EXPECT_EQ(g.error().code(), Error::Code::kCorrupt);
  EXPECT_NE(g.error().message().find("position 29"), std::string::npos) << g.error().ToString();
}

INSTANTIATE_TEST_SUITE_P(Backends, BrokenModelTest, ::testing::ValuesIn(BackendCases()), NameOf);

}  // namespace
}  // namespace baton
