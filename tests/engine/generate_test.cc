// The public API on tiny models: what a request gives never depends on threads or neighbours, and
// every bad request is an error.
#include <chrono>
#include <thread>

#include "base/mapped_file.h"
#include "formats/gguf.h"
#include "formats/gguf_writer.h"
#include "tests/engine/test_requests.h"

namespace baton {
namespace {

using namespace test;

class GenerateTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  std::unique_ptr<Engine> Load(EngineOptions options = {}) {
    return LoadEngine(TinySpec(), GetParam(), options);
  }
};

TEST_P(GenerateTest, ThreadsChangeNoBit) {
  std::vector<std::string> first;
  for (int threads : {1, 2, 3, 4}) {
    auto engine = Load({.threads = threads});
    std::vector<std::string> now;
    for (const Request& r : MixedRequests()) {
      auto g = engine->Generate(r);
      ASSERT_TRUE(g.ok()) << g.error().ToString();
      now.push_back(Fingerprint(*g));
    }
    if (first.empty()) first = now;
    EXPECT_EQ(now, first) << threads << " threads";
  }
}

TEST_P(GenerateTest, NeighboursChangeNoBit) {
  auto engine = Load({.prompt_chunk = 48});
  const std::vector<Request> requests = MixedRequests();
  std::vector<std::string> alone;
  for (const Request& r : requests) {
    auto g = engine->Generate(r);
    ASSERT_TRUE(g.ok()) << g.error().ToString();
    alone.push_back(Fingerprint(*g));
  }
  for (auto order : std::vector<std::vector<size_t>>{{0, 1, 2, 3, 4}, {4, 2}, {3, 1, 1, 0}}) {
    std::vector<Request> some;
    for (size_t i : order) some.push_back(requests[i]);
    auto batch = engine->GenerateBatch(some);
    ASSERT_TRUE(batch.ok()) << batch.error().ToString();
    ASSERT_EQ(batch->size(), order.size());
    for (size_t i = 0; i < order.size(); ++i)
      EXPECT_EQ(Fingerprint((*batch)[i]), alone[order[i]]) << "request " << order[i];
  }
}

TEST_P(GenerateTest, MoreRequestsThanOnePassTakes) {
  auto engine = Load();
  std::vector<Request> many;
  for (int i = 0; i < 19; ++i) many.push_back(TokensRequest(3 + i, static_cast<uint64_t>(i)));
  auto batch = engine->GenerateBatch(many);
  ASSERT_TRUE(batch.ok());
  for (size_t i : {0, 7, 18}) {
    auto alone = engine->Generate(many[i]);
    ASSERT_TRUE(alone.ok());
    EXPECT_EQ(Fingerprint((*batch)[i]), Fingerprint(*alone));
  }
}

TEST_P(GenerateTest, GreedyTokensAreTheArgmaxOfTheLogits) {
  auto engine = Load();
  const Request r = TokensRequest(30, 8);
  auto g = engine->Generate(r);
  ASSERT_TRUE(g.ok());
  Session session = NewSession(*engine, 100);
  Logits logits = Prefill(session, r.tokens);
  for (int32_t token : g->tokens) {
    EXPECT_EQ(token, std::max_element(logits.begin(), logits.end()) - logits.begin());
    logits = Decode(session, std::span(&token, 1), nullptr);
  }
}

TEST_P(GenerateTest, SeededSamplingRepeats) {
  auto engine = Load();
  Request r = TokensRequest(20, 1);
  r.sampling = {.temperature = 1.5f, .top_p = 0.95f, .seed = 77};
  auto a = engine->Generate(r), b = engine->Generate(r);
  r.sampling.seed = 78;
  auto c = engine->Generate(r);
  EXPECT_EQ(a->tokens, b->tokens);
  EXPECT_NE(a->tokens, c->tokens);
  r.sampling.top_k = 1;
  auto top1 = engine->Generate(r);
  r.sampling = {};
  EXPECT_EQ(top1->tokens, engine->Generate(r)->tokens);
}

// Every token of the byte tokenizer is one byte, so any stop string of two bytes crosses a border.
TEST_P(GenerateTest, StopStringsAcrossTokenBorders) {
  auto engine = Load();
  Request r = TokensRequest(20, 6);
  r.max_tokens = 40;
  r.sampling = {.temperature = 1, .seed = 3};
  const Generation whole = engine->Generate(r).value();
  ASSERT_GT(whole.text.size(), 20u);
  for (size_t at : {0u, 3u, 9u}) {
    for (size_t length : {1u, 2u, 5u}) {
      const std::string stop = whole.text.substr(at, length);
      r.stop = {"never seen in this text at all", stop};
      std::string streamed;
      auto cut = engine->Generate(r, [&](std::string_view piece) {
        streamed += piece;
        return true;
      });
      ASSERT_TRUE(cut.ok());
      EXPECT_EQ(cut->stop, Generation::Stop::kStopString);
      EXPECT_EQ(cut->text, whole.text.substr(0, whole.text.find(stop)));
      EXPECT_EQ(streamed, cut->text);
    }
  }
  // The beginning of a stop string that never comes is not lost.
  r.stop = {whole.text.substr(whole.text.size() - 2) + "?never"};
  EXPECT_EQ(engine->Generate(r)->text, whole.text);
}

TEST_P(GenerateTest, ReaderThatLeavesIsNotCalledAgain) {
  auto engine = Load();
  Request r = TokensRequest(20, 6);
  r.max_tokens = 40;
  int calls = 0;
  auto g = engine->Generate(r, [&](std::string_view) { return ++calls < 2; });
  ASSERT_TRUE(g.ok());
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(g->stop, Generation::Stop::kCancelled);
}

TEST_P(GenerateTest, PenaltyBreaksRepetition) {
  auto engine = Load();
  Request r = TokensRequest(20, 6);
  r.max_tokens = 60;
  r.sampling.repetition_penalty = 100;
  r.sampling.penalty_window = 1000;
  auto g = engine->Generate(r);
  ASSERT_TRUE(g.ok());
  std::vector<int32_t> sorted = g->tokens;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(std::unique(sorted.begin(), sorted.end()), sorted.end());
}

TEST_P(GenerateTest, ContextEndsTheText) {
  auto engine = Load({.context = 50});
  Request r = TokensRequest(45, 1);
  r.max_tokens = std::numeric_limits<int64_t>::max();
  auto g = engine->Generate(r);
  ASSERT_TRUE(g.ok()) << g.error().ToString();
  EXPECT_EQ(g->stop, Generation::Stop::kContext);
  EXPECT_EQ(g->tokens.size(), 6u);  // the last one needs no room
  r.max_tokens = 0;
  g = engine->Generate(r);
  ASSERT_TRUE(g.ok());
  EXPECT_TRUE(g->tokens.empty());
}

TEST_P(GenerateTest, CancelFromAnotherThreadEndsQuickly) {
  auto engine = Load({.context = 1 << 20});
  Request r = TokensRequest(10, 1);
  r.max_tokens = 1 << 20;
  std::atomic<bool> started{false};
  std::chrono::steady_clock::time_point at;
  std::thread other([&] {
    while (!started) std::this_thread::yield();
    at = std::chrono::steady_clock::now();
    engine->Cancel();
  });
  auto g = engine->Generate(r, [&](std::string_view) { return started = true; });
  const auto end = std::chrono::steady_clock::now();
  other.join();
  ASSERT_TRUE(g.ok());
  EXPECT_EQ(g->stop, Generation::Stop::kCancelled);
  EXPECT_LT(std::chrono::duration<double>(end - at).count(), 5.0);
  engine->ResetCancel();
  r.max_tokens = 2;
  EXPECT_EQ(engine->Generate(r)->stop, Generation::Stop::kLength);
}

TEST_P(GenerateTest, BadRequestsAreErrors) {
  auto engine = Load({.context = 100});
  const auto expect_error = [&](const Request& r,
                                Error::Code code = Error::Code::kInvalidArgument) {
    auto g = engine->Generate(r);
    ASSERT_FALSE(g.ok());
    EXPECT_EQ(g.error().code(), code) << g.error().ToString();
    EXPECT_EQ(g.error().ToString().find('\n'), std::string::npos);
    auto batch = engine->GenerateBatch(std::vector<Request>{TokensRequest(3, 1), r});
    ASSERT_FALSE(batch.ok());
    EXPECT_NE(batch.error().message().find("request 1"), std::string::npos);
  };
  expect_error({});
  Request both = TokensRequest(3, 1);
  both.prompt = "text";
  expect_error(both);
  expect_error(TokensRequest(101, 1));
  for (int32_t id : {-1, 300, std::numeric_limits<int32_t>::max()}) {
    Request outside = TokensRequest(3, 1);
    outside.tokens[1] = id;
    expect_error(outside);
  }
  Request r = TokensRequest(3, 1);
  r.sampling.temperature = -1;
  expect_error(r);
  r = TokensRequest(3, 1);
  r.max_tokens = -1;
  expect_error(r);
  r = TokensRequest(3, 1, 12, Plan::Dense(7));
  expect_error(r);
  r = TokensRequest(3, 1, 12, Plan::Dense(6));
  r.plan->fingerprint = "sha256:0000";
  expect_error(r);
  r.plan = SparsePlan(16);
  r.plan->layers[1].source = 4;
  expect_error(r);
  r = {};
  r.chat = {{"user", "hello"}};
  ASSERT_FALSE(engine->Generate(r).ok());  // this model has no chat template
  EXPECT_TRUE(engine->Generate(TokensRequest(3, 1)).ok());
}

TEST_P(GenerateTest, CacheThatCannotBeReservedIsAnError) {
  auto engine = Load({.context = int64_t{1} << 36});
  Request r = TokensRequest(3, 1);
  r.max_tokens = int64_t{1} << 45;
  auto batch = engine->GenerateBatch(std::vector<Request>(20, r));
  ASSERT_FALSE(batch.ok());
  EXPECT_NE(batch.error().message().find("request 0: KV cache"), std::string::npos)
      << batch.error().ToString();
}

TEST_P(GenerateTest, FullCacheLeavesTheSessionUsable) {
  auto engine = Load();
  Session session = NewSession(*engine, 64);
  const auto room = session.store().max_tokens();
  const auto tokens = RandomTokens(room + 1, 1);
  const Status full = session.Prefill(tokens);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().code(), Error::Code::kResource);
  session.Truncate(0);
  const Logits after = Prefill(session, std::span(tokens).first(static_cast<size_t>(room)));
  Session fresh = NewSession(*engine, room);
  EXPECT_EQ(Prefill(fresh, std::span(tokens).first(static_cast<size_t>(room))), after);
}

INSTANTIATE_TEST_SUITE_P(Backends, GenerateTest, ::testing::ValuesIn(BackendCases()), NameOf);

TEST(EngineLoad, BadFilesAndOptionsAreErrors) {
  EXPECT_EQ(Engine::Load(Scratch().File("none.gguf"), {}).error().code(), Error::Code::kNotFound);
  std::string model;
  {
    std::ifstream in(ModelFile(TinySpec()), std::ios::binary);
    model.assign(std::istreambuf_iterator<char>(in), {});
  }
  for (size_t size : {size_t{0}, size_t{3}, size_t{100}, model.size() / 2, model.size() - 1}) {
    auto engine = Engine::Load(WriteFile("cut.gguf", model.substr(0, size)), {});
    ASSERT_FALSE(engine.ok()) << size;
    EXPECT_EQ(engine.error().ToString().find('\n'), std::string::npos);
  }
  EXPECT_FALSE(Engine::Load(WriteFile("text.gguf", std::string(5000, 'x')), {}).ok());
  EXPECT_FALSE(Engine::Load(ModelFile(TinySpec()), {.threads = -1}).ok());
  EXPECT_FALSE(Engine::Load(ModelFile(TinySpec()), {.threads = 5000}).ok());
  EXPECT_FALSE(Engine::Load(ModelFile(TinySpec()), {.prompt_chunk = -1}).ok());
}

// The tiny model with a chat template in its metadata.
std::string ChatModel() {
  const std::string path = Scratch().File("chat.gguf");
  if (std::filesystem::exists(path)) return path;
  auto bytes = MappedFile::Open(ModelFile(TinySpec()));
  EXPECT_TRUE(bytes.ok());
  auto file = ParseGguf(bytes->bytes());
  EXPECT_TRUE(file.ok());
  GgufWriter writer;
  writer.Set(file->metadata);
  writer.Set(
      "tokenizer.chat_template",
      std::string("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
                  "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if "
                  "add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"));
  for (const TensorInfo& t : file->tensors)
    writer.AddTensor(t.name, t.dtype, t.shape, std::vector<std::byte>(t.data, t.data + t.bytes));
  EXPECT_TRUE(writer.WriteFile(path).ok());
  return path;
}

class ChatTest : public ::testing::Test {
 protected:
  std::unique_ptr<Engine> Load(EngineOptions options = {}) {
    options.backend = Backend::kReference;
    options.kv = KvType::kF32;
    options.threads = 2;
    auto engine = Engine::Load(ChatModel(), options);
    EXPECT_TRUE(engine.ok()) << engine.error().ToString();
    return std::move(engine).value();
  }
  static Request Turn(std::vector<ChatTurn> chat) {
    Request r;
    r.chat = std::move(chat);
    r.max_tokens = 10;
    return r;
  }
};

TEST_F(ChatTest, ConversationThatContinuesEqualsAColdRun) {
  auto warm = Load();
  std::vector<ChatTurn> chat = {{"user", "Hello there, how are you today?"}};
  for (int turn = 0; turn < 3; ++turn) {
    auto a = warm->Generate(Turn(chat));
    auto b = Load()->Generate(Turn(chat));
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(a->tokens, b->tokens) << "turn " << turn;
    EXPECT_EQ(b->stats.reused_tokens, 0);
    if (turn > 0) {
      EXPECT_GT(a->stats.reused_tokens, 30);
    }
    chat.push_back({"assistant", a->text});
    chat.push_back({"user", fmt::format("And question number {}?", turn)});
  }
  // Another conversation shares only the beginning.
  auto a = warm->Generate(Turn({{"user", "Hello there, my friend"}}));
  auto b = Load()->Generate(Turn({{"user", "Hello there, my friend"}}));
  EXPECT_EQ(a->tokens, b->tokens);
  EXPECT_GT(a->stats.reused_tokens, 10);
}

// Short windows draft, and rarely well.
Request Exact(Request r) {
  Plan plan = Plan::Dense(6);
  plan.budget = {8, 0};
  plan.sink = 1;
  plan.recent = 3;
  for (int l = 1; l < 6; ++l)
    plan.layers[static_cast<size_t>(l)] = {.role = Role::kWindow, .sink = 1, .recent = 7};
  r.plan = plan;
  r.exact = ExactOptions{.most_drafts = 5, .adaptive = false};
  return r;
}

TEST_F(ChatTest, ExactConversationThatWasCancelledAmongDraftsGoesOnDensely) {
  int continued = 0;  // the first pieces may come before the conversation's prompt is done
  for (int pieces = 1; pieces < 8; ++pieces) {
    auto warm = Load();
    RequestCallbacks cancels;
    cancels.on_text = [&warm, left = pieces](std::string_view) mutable {
      if (--left == 0) warm->Cancel();
      return true;
    };
    Request other{.tokens = RandomTokens(20, 3), .max_tokens = 60, .ignore_end = true};
    ASSERT_TRUE(warm->Submit(other, cancels).ok());
    std::vector<ChatTurn> chat = {{"user", "Hello there, how are you today?"}};
    auto first = warm->Generate(Exact(Turn(chat)));
    warm->ResetCancel();
    ASSERT_TRUE(first.ok());
    chat.push_back({"assistant", first->text});
    chat.push_back({"user", "And then?"});
    const Generation want = Load()->Generate(Turn(chat)).value();
    const Generation got = warm->Generate(Exact(Turn(chat))).value();
    continued += got.stats.reused_tokens > 10;
    EXPECT_EQ(got.tokens, want.tokens) << pieces;
    EXPECT_EQ(got.stats.logits_hash, want.stats.logits_hash) << pieces;
  }
  EXPECT_GE(continued, 4);
}

// What a plan decoded is no cache of dense decoding's.
TEST_F(ChatTest, ExactConversationDoesNotContinueAPlansOwn) {
  auto warm = Load();
  std::vector<ChatTurn> chat = {{"user", "Hello there, how are you today?"}};
  Request planned = Exact(Turn(chat));
  planned.exact.reset();
  chat.push_back({"assistant", warm->Generate(planned)->text});
  chat.push_back({"user", "And then?"});
  const Generation want = Load()->Generate(Turn(chat)).value();
  const Generation got = warm->Generate(Exact(Turn(chat))).value();
  EXPECT_EQ(got.stats.reused_tokens, 0);
  EXPECT_EQ(got.stats.logits_hash, want.stats.logits_hash);
}

TEST_F(ChatTest, ConversationThatOutgrowsTheCacheIsAnErrorAndGoesOn) {
  auto warm = Load({.kv_tokens = 256});
  std::vector<ChatTurn> chat = {{"user", "short"}};
  auto first = warm->Generate(Turn(chat));
  ASSERT_TRUE(first.ok()) << first.error().ToString();
  chat.push_back({"assistant", first->text});
  chat.push_back({"user", std::string(250, 'x')});
  auto outgrown = warm->Generate(Turn(chat));
  ASSERT_FALSE(outgrown.ok());
  EXPECT_EQ(outgrown.error().code(), Error::Code::kResource);
  chat.back().content = "shorter";
  auto a = warm->Generate(Turn(chat));
  ASSERT_TRUE(a.ok()) << a.error().ToString();
  EXPECT_GT(a->stats.reused_tokens, 50);
  EXPECT_EQ(a->tokens, Load()->Generate(Turn(chat))->tokens);
}

TEST_F(ChatTest, ConversationGivesWayOnlyToRequestsThatNeedItsRoom) {
  auto engine = Load({.kv_tokens = 192});
  std::vector<ChatTurn> chat = {{"user", "short"}};
  const Generation cold = engine->Generate(Turn(chat)).value();  // two of three pages
  for (const bool small : {true, false}) {
    const Request other = TokensRequest(small ? 30 : 170, 9);
    std::optional<Generation> done;
    ASSERT_TRUE(
        engine->Submit(other, {.on_done = [&](Result<Generation> g) { done = *std::move(g); }})
            .ok());
    while (engine->Step()) {
    }
    ASSERT_TRUE(done.has_value());
    EXPECT_EQ(done->tokens, Load()->Generate(other)->tokens);
    const Generation again = engine->Generate(Turn(chat)).value();
    EXPECT_EQ(again.tokens, cold.tokens);
    EXPECT_EQ(again.stats.reused_tokens > 0, small);
  }
}

TEST_F(ChatTest, OtherPlansAndFailuresDoNotDisturbAConversation) {
  auto warm = Load();
  const Request first = Turn({{"user", "Tell me a story about a long road."}});
  const Generation cold = warm->Generate(first).value();
  Request planned = first;
  planned.plan = SparsePlan(16);
  ASSERT_TRUE(warm->Generate(planned).ok());
  Request bad = first;
  bad.sampling.top_p = 5;
  ASSERT_FALSE(warm->Generate(bad).ok());
  warm->Cancel();
  EXPECT_EQ(warm->Generate(first)->stop, Generation::Stop::kCancelled);
  warm->ResetCancel();
  EXPECT_EQ(warm->Generate(first)->tokens, cold.tokens);
  ASSERT_TRUE(warm->GenerateBatch(std::vector<Request>{first, planned}).ok());
  EXPECT_EQ(warm->Generate(first)->tokens, cold.tokens);
}

}  // namespace
}  // namespace baton
