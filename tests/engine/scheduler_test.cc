// Requests that come and go while others run: nobody's bits, text or errors depend on who else is
// there, or when.
#include "engine/scheduler.h"

#include <rapidcheck.h>

#include <map>
#include <mutex>
#include <thread>

#include "base/mapped_file.h"
#include "engine/prompt_run.h"
#include "formats/gguf.h"
#include "formats/gguf_writer.h"
#include "tests/attention/engine_test_util.h"

namespace baton {
namespace {

using namespace test;

Plan SparsePlan(int64_t k, int first = 0) {
  Plan plan = Plan::Dense(6);
  plan.budget = {k, 0};
  plan.sink = 2;
  plan.recent = 6;
  plan.layers[static_cast<size_t>(first)].role = Role::kSelect;
  for (int l = first + 1; l < 5; ++l)
    plan.layers[static_cast<size_t>(l)] = {.role = l == 3 ? Role::kScan : Role::kReuse};
  plan.layers[5] = {.role = Role::kWindow, .sink = 2, .recent = 30};
  return plan;
}

Request TokensRequest(int64_t prompt, uint64_t seed, int64_t max_tokens = 12,
                      std::optional<Plan> plan = {}) {
  Request r;
  r.tokens = RandomTokens(prompt, seed);
  r.max_tokens = max_tokens;
  r.ignore_end = true;
  r.plan = std::move(plan);
  return r;
}

// Dense and planned, greedy and sampled, watched, with a sparse prompt, with and without an end.
std::vector<Request> MixedRequests() {
  std::vector<Request> requests = {
      TokensRequest(40, 1, 5),
      TokensRequest(130, 2, 12, SparsePlan(16)),
      TokensRequest(1, 3, 30),
      TokensRequest(64, 4, 7, SparsePlan(20, 1)),
      TokensRequest(200, 5, 9, SparsePlan(16)),
      TokensRequest(90, 6, 1),
  };
  requests[1].watch = {.interval = 3, .threshold = 0.5};
  requests[2].sampling = {.temperature = 1, .top_k = 20, .seed = 5};
  requests[2].ignore_end = false;
  requests[3].plan->scope = Scope::kGroup;
  requests[4].plan->prefill = {.sparse = true, .tile = 16, .fraction = 0.1, .min = 24};
  return requests;
}

std::string Fingerprint(const Generation& g) {
  std::string s = g.stats.logits_hash;
  for (int32_t t : g.tokens) s += fmt::format(" {}", t);
  for (const LayerWatch& w : g.stats.watched)
    s += fmt::format(" {}:{}:{}", w.layer, w.captured, w.promoted);
  return s + fmt::format(" {}", static_cast<int>(g.stop)) + g.text;
}

// What a request told its callbacks.
struct Seen {
  std::string text;
  std::optional<Result<Generation>> result;
  std::vector<int64_t> prompt;  // tokens done, by pass

  bool done() const { return result.has_value(); }
  bool ok() const { return result && result->ok(); }
  const Generation& generation() const { return result->value(); }
};

RequestCallbacks Into(Seen& seen) {
  return {.on_text =
              [&seen](std::string_view piece) {
                EXPECT_FALSE(seen.done()) << "text after the end";
                seen.text += piece;
                return true;
              },
          .on_done =
              [&seen](Result<Generation> r) {
                EXPECT_FALSE(seen.done()) << "done twice";
                seen.result = std::move(r);
              },
          .on_prompt = [&seen](int64_t done, int64_t) { seen.prompt.push_back(done); }};
}

RequestId Submit(Engine& engine, const Request& request, Seen& seen) {
  auto id = engine.Submit(request, Into(seen));
  EXPECT_TRUE(id.ok()) << id.error().ToString();
  return id.ok() ? *id : -1;
}

void StepUntilIdle(Engine& engine) {
  while (engine.Step()) {
  }
}

class SchedulerTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  std::unique_ptr<Engine> Load(EngineOptions options = {}) {
    return LoadEngine(TinySpec(), GetParam(), options);
  }
  // Each request by itself, in an engine of its own.
  std::vector<Generation> Alone(const std::vector<Request>& requests, EngineOptions options = {}) {
    auto engine = Load(options);
    std::vector<Generation> alone;
    for (const Request& r : requests) {
      auto g = engine->Generate(r);
      EXPECT_TRUE(g.ok()) << g.error().ToString();
      alone.push_back(std::move(g).value());
    }
    return alone;
  }
};

// A history of arrivals, steps and cancels, into a cache that holds two or three of the requests.
void RunHistory(Engine& engine, const std::vector<Request>& requests,
                const std::vector<Generation>& alone, int most_events) {
  struct Run {
    size_t which;
    RequestId id;
    bool cancelled = false;
    Seen seen;
  };
  std::vector<std::unique_ptr<Run>> runs;
  const int events = *rc::gen::inRange(1, most_events);
  for (int e = 0; e < events; ++e) {
    const int action = *rc::gen::inRange(0, 8);
    if (action == 0 && !runs.empty()) {
      Run& run = *runs[*rc::gen::inRange<size_t>(0, runs.size())];
      run.cancelled = run.cancelled || !run.seen.done();
      engine.CancelRequest(run.id);
    } else if (action < 4) {
      auto run = std::make_unique<Run>();
      run->which = *rc::gen::inRange<size_t>(0, requests.size());
      run->id = Submit(engine, requests[run->which], run->seen);
      runs.push_back(std::move(run));
    } else {
      engine.Step();
    }
  }
  StepUntilIdle(engine);
  for (const auto& run : runs) {
    RC_ASSERT(run->seen.ok());
    const Generation& got = run->seen.generation();
    const Generation& want = alone[run->which];
    RC_ASSERT(run->seen.text == got.text);
    if (run->cancelled) {
      RC_ASSERT(got.stop == Generation::Stop::kCancelled);
      RC_ASSERT(got.tokens.size() <= want.tokens.size());
      RC_ASSERT(std::equal(got.tokens.begin(), got.tokens.end(), want.tokens.begin()));
    } else {
      RC_ASSERT(Fingerprint(got) == Fingerprint(want));
    }
  }
}

TEST_P(SchedulerTest, ArrivalsAndCancelsChangeNoBitOfOthers) {
  const EngineOptions options{.kv_tokens = 512, .prompt_chunk = 48};
  const std::vector<Request> requests = MixedRequests();
  const std::vector<Generation> alone = Alone(requests, options);
  auto engine = Load(options);
  const bool reference = GetParam().backend == Backend::kReference;
  const int most_events = kSlowBuild ? (reference ? 6 : 12) : (reference ? 24 : 60);
  EXPECT_TRUE(rc::check("a batch of any history equals single runs",
                        [&] { RunHistory(*engine, requests, alone, most_events); }));
}

TEST_P(SchedulerTest, BatchStreamsEachRequestsText) {
  auto engine = Load();
  const std::vector<Request> requests = MixedRequests();
  const std::vector<Generation> alone = Alone(requests);
  std::vector<Seen> seen(requests.size());
  std::vector<RequestCallbacks> callbacks;
  for (Seen& s : seen) callbacks.push_back(Into(s));
  ASSERT_TRUE(engine->GenerateBatch(requests, callbacks).ok());
  for (size_t i = 0; i < seen.size(); ++i) {
    ASSERT_TRUE(seen[i].ok());
    EXPECT_EQ(seen[i].text, alone[i].text);
    EXPECT_EQ(Fingerprint(seen[i].generation()), Fingerprint(alone[i]));
  }
  callbacks.pop_back();
  EXPECT_FALSE(engine->GenerateBatch(requests, callbacks).ok());
  EXPECT_FALSE(engine->Step());  // nothing was submitted
}

TEST_P(SchedulerTest, CancelEndsOneRequestAtTheNextStepAndFreesItsCache) {
  auto engine = Load({.kv_tokens = 256});
  const Request keeps = TokensRequest(60, 2, 40), waits = TokensRequest(100, 3, 20);
  Seen cancelled, other, waiting;
  const RequestId id = Submit(*engine, TokensRequest(50, 1, 70), cancelled);
  Submit(*engine, keeps, other);
  Submit(*engine, waits, waiting);  // two pages and two leave no room for another two
  for (int i = 0; i < 8; ++i) engine->Step();
  EXPECT_FALSE(cancelled.done());
  EXPECT_TRUE(waiting.prompt.empty());
  engine->CancelRequest(id);
  engine->Step();
  ASSERT_TRUE(cancelled.ok());
  EXPECT_EQ(cancelled.generation().stop, Generation::Stop::kCancelled);
  EXPECT_FALSE(cancelled.generation().tokens.empty());
  EXPECT_EQ(waiting.prompt.size(), 1u);  // in the same step
  engine->CancelRequest(id);             // it is gone: no effect
  engine->CancelRequest(12345);
  StepUntilIdle(*engine);
  const std::vector<Generation> alone = Alone({keeps, waits});
  EXPECT_EQ(Fingerprint(other.generation()), Fingerprint(alone[0]));
  EXPECT_EQ(Fingerprint(waiting.generation()), Fingerprint(alone[1]));
}

TEST_P(SchedulerTest, WaitingRequestCanBeCancelled) {
  auto engine = Load({.kv_tokens = 128});
  Seen first, second;
  Submit(*engine, TokensRequest(60, 1, 60), first);
  const RequestId id = Submit(*engine, TokensRequest(60, 2, 60), second);
  engine->Step();
  engine->CancelRequest(id);
  engine->Step();
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second.generation().stop, Generation::Stop::kCancelled);
  EXPECT_TRUE(second.text.empty());
  EXPECT_FALSE(first.done());
  engine->Cancel();  // everybody
  StepUntilIdle(*engine);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first.generation().stop, Generation::Stop::kCancelled);
}

TEST_P(SchedulerTest, FullCacheEndsOneRequestOnly) {
  auto engine = Load({.kv_tokens = 100});
  const Request small = TokensRequest(20, 2, 10);
  Request endless = TokensRequest(70, 1, 1000);
  endless.sampling = {.temperature = 1, .seed = 3};
  Seen before, full, after;
  Submit(*engine, small, before);
  Submit(*engine, endless, full);
  Submit(*engine, small, after);
  StepUntilIdle(*engine);
  ASSERT_TRUE(full.done());
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.result->error().code(), Error::Code::kResource);
  EXPECT_NE(full.result->error().message().find("101 tokens, the cache holds 100"),
            std::string::npos)
      << full.result->error().ToString();
  // 30 tokens in the cache, and the one that no longer fitted, had been made.
  endless.max_tokens = 31;
  const std::vector<Generation> alone = Alone({small, endless});
  EXPECT_EQ(full.text, alone[1].text);
  EXPECT_EQ(Fingerprint(before.generation()), Fingerprint(alone[0]));
  EXPECT_EQ(Fingerprint(after.generation()), Fingerprint(alone[0]));
}

TEST_P(SchedulerTest, RequestThatNeverFitsIsAnErrorOfSubmit) {
  auto engine = Load({.context = 1000, .kv_tokens = 100});
  Seen seen;
  for (int64_t prompt : {101, 1000}) {
    auto id = engine->Submit(TokensRequest(prompt, 1), Into(seen));
    ASSERT_FALSE(id.ok());
    EXPECT_EQ(id.error().code(), Error::Code::kResource);
  }
  EXPECT_FALSE(engine->Submit(TokensRequest(1001, 1), Into(seen)).ok());
  EXPECT_FALSE(engine->Submit({}, Into(seen)).ok());
  EXPECT_FALSE(engine->Step());
  EXPECT_FALSE(seen.done());
  Submit(*engine, TokensRequest(100, 1, 1), seen);
  StepUntilIdle(*engine);
  EXPECT_TRUE(seen.ok());
}

TEST_P(SchedulerTest, WaitingRequestsStartInOrderOfArrival) {
  auto engine = Load({.kv_tokens = 192});
  std::vector<std::string> order;
  const auto submit = [&](const char* name, int64_t prompt, int64_t max_tokens) {
    auto id = engine->Submit(
        TokensRequest(prompt, 1, max_tokens),
        {.on_done = [&order, name](const Result<Generation>&) { order.push_back(name); },
         .on_prompt = [&order, name](int64_t,
                                     int64_t) { order.push_back(std::string(name) + " prompt"); }});
    ASSERT_TRUE(id.ok());
  };
  submit("two pages", 100, 4);
  submit("three pages", 150, 2);
  submit("one page", 10, 2);  // would fit beside the first, but not before the second
  StepUntilIdle(*engine);
  EXPECT_EQ(order, (std::vector<std::string>{"two pages prompt", "two pages", "three pages prompt",
                                             "three pages", "one page prompt", "one page"}));
}

TEST_P(SchedulerTest, LongPromptDelaysEveryTokenByOnePassAtMost) {
  auto engine = Load({.prompt_chunk = 16});
  constexpr int kRequests = 20;  // two decode passes a round
  constexpr int64_t kTokens = 10;
  std::vector<Seen> short_ones(kRequests);
  for (int i = 0; i < kRequests; ++i)
    Submit(*engine, TokensRequest(5, static_cast<uint64_t>(i), kTokens), short_ones[i]);
  while (short_ones.back().prompt.empty()) engine->Step();
  Seen long_prompt;
  Submit(*engine, TokensRequest(16 * 40, 99, 1), long_prompt);
  while (!short_ones.back().done()) ASSERT_TRUE(engine->Step());
  EXPECT_LE(long_prompt.prompt.size(), static_cast<size_t>(kTokens));
  EXPECT_GE(long_prompt.prompt.size(), static_cast<size_t>(kTokens) - 2);  // nor does it starve
  StepUntilIdle(*engine);
  EXPECT_EQ(long_prompt.prompt.size(), 40u);
}

TEST_P(SchedulerTest, PromptsTakeTurns) {
  auto engine = Load({.prompt_chunk = 16});
  std::string order;
  for (const char name : {'a', 'b', 'c'}) {
    auto id = engine->Submit(TokensRequest(16 * 3, 1, 1),
                             {.on_prompt = [&order, name](int64_t, int64_t) { order += name; }});
    ASSERT_TRUE(id.ok());
  }
  StepUntilIdle(*engine);
  EXPECT_EQ(order, "abcabcabc");
}

TEST_P(SchedulerTest, CallbacksMaySubmit) {
  auto engine = Load();
  const std::vector<Request> requests = MixedRequests();
  const std::vector<Generation> alone = Alone(requests);
  std::vector<Seen> seen(4);
  RequestCallbacks first = Into(seen[0]);
  bool from_text = false;
  first.on_prompt = [&](int64_t, int64_t) { Submit(*engine, requests[1], seen[1]); };
  first.on_text = [&](std::string_view) {
    if (!std::exchange(from_text, true)) Submit(*engine, requests[2], seen[2]);
    return true;
  };
  first.on_done = [&](Result<Generation> r) {
    seen[0].result = std::move(r);
    Submit(*engine, requests[3], seen[3]);
    // Waiting for another request inside of one cannot work.
    EXPECT_FALSE(engine->Generate(requests[0]).ok());
    EXPECT_FALSE(engine->GenerateBatch(requests).ok());
  };
  ASSERT_TRUE(engine->Submit(requests[0], first).ok());
  StepUntilIdle(*engine);
  for (size_t i = 0; i < seen.size(); ++i) {
    ASSERT_TRUE(seen[i].ok()) << i;
    EXPECT_EQ(Fingerprint(seen[i].generation()), Fingerprint(alone[i]));
  }
}

TEST_P(SchedulerTest, RequestMayCancelItselfFromItsText) {
  auto engine = Load();
  RequestId id = 0;
  Seen seen;
  RequestCallbacks callbacks = Into(seen);
  callbacks.on_text = [&](std::string_view) {
    engine->CancelRequest(id);
    return true;
  };
  id = engine->Submit(TokensRequest(20, 1, 500), callbacks).value();
  StepUntilIdle(*engine);
  ASSERT_TRUE(seen.ok());
  EXPECT_EQ(seen.generation().stop, Generation::Stop::kCancelled);
  EXPECT_LT(seen.generation().tokens.size(), 20u);
}

TEST_P(SchedulerTest, GenerateAdvancesSubmittedRequests) {
  auto engine = Load();
  const std::vector<Request> requests = MixedRequests();
  const std::vector<Generation> alone = Alone(requests);
  Seen seen;
  Submit(*engine, requests[0], seen);  // shorter than the next
  auto g = engine->Generate(requests[1]);
  ASSERT_TRUE(g.ok());
  EXPECT_EQ(Fingerprint(*g), Fingerprint(alone[1]));
  ASSERT_TRUE(seen.ok());
  EXPECT_EQ(Fingerprint(seen.generation()), Fingerprint(alone[0]));
}

TEST_P(SchedulerTest, StopStringsEndTheirRequestOnly) {
  auto engine = Load();
  Request r = TokensRequest(20, 6, 40);
  r.sampling = {.temperature = 1, .seed = 3};
  const Generation whole = engine->Generate(r).value();
  Request cut = r;
  cut.stop = {whole.text.substr(7, 3)};
  Seen a, b;
  Submit(*engine, cut, a);
  Submit(*engine, r, b);
  StepUntilIdle(*engine);
  EXPECT_EQ(a.generation().stop, Generation::Stop::kStopString);
  EXPECT_EQ(a.text, whole.text.substr(0, whole.text.find(cut.stop[0])));
  EXPECT_EQ(a.generation().text, a.text);
  EXPECT_EQ(b.text, whole.text);
}

TEST_P(SchedulerTest, NoTokensWantedNoPass) {
  auto engine = Load();
  Seen seen;
  Submit(*engine, TokensRequest(20, 6, 0), seen);
  EXPECT_FALSE(seen.done());  // callbacks belong to the stepping thread
  EXPECT_FALSE(engine->Step());
  ASSERT_TRUE(seen.ok());
  EXPECT_EQ(seen.generation().stop, Generation::Stop::kLength);
  EXPECT_TRUE(seen.generation().tokens.empty());
  EXPECT_TRUE(seen.prompt.empty());
}

TEST_P(SchedulerTest, OtherThreadsSubmitAndCancel) {
  auto engine = Load({.kv_tokens = 1024});
  const std::vector<Request> requests = MixedRequests();
  const std::vector<Generation> alone = Alone(requests);
  constexpr size_t kThreads = 3;
  const size_t each = kSlowBuild ? 4 : 20;
  std::vector<std::vector<Seen>> seen(kThreads, std::vector<Seen>(each));
  std::atomic<size_t> running{kThreads};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < each; ++i) {
        const RequestId id = Submit(*engine, requests[(t + i) % requests.size()], seen[t][i]);
        if (i % 3 == 2) engine->CancelRequest(id);
        std::this_thread::yield();
      }
      --running;
    });
  }
  while (running > 0) engine->Step();
  for (std::thread& t : threads) t.join();
  StepUntilIdle(*engine);
  for (size_t t = 0; t < kThreads; ++t) {
    for (size_t i = 0; i < each; ++i) {
      ASSERT_TRUE(seen[t][i].ok());
      const Generation& g = seen[t][i].generation();
      if (g.stop == Generation::Stop::kCancelled) {
        EXPECT_EQ(i % 3, 2u);
      } else {
        EXPECT_EQ(Fingerprint(g), Fingerprint(alone[(t + i) % requests.size()]));
      }
    }
  }
}

TEST_P(SchedulerTest, EngineMayGoWhileRequestsRunAndWait) {
  Seen running, in_prompt, waiting, submitted;
  auto engine = Load({.kv_tokens = 256, .prompt_chunk = 16});
  Submit(*engine, TokensRequest(10, 1, 50), running);
  Submit(*engine, TokensRequest(100, 1, 20, SparsePlan(16)), in_prompt);
  Submit(*engine, TokensRequest(200, 1, 20), waiting);
  for (int i = 0; i < 4; ++i) engine->Step();
  Submit(*engine, TokensRequest(10, 1, 50), submitted);
  engine.reset();
  for (const Seen* s : {&running, &in_prompt, &waiting, &submitted}) EXPECT_FALSE(s->done());
  EXPECT_FALSE(in_prompt.prompt.empty());
  EXPECT_TRUE(waiting.prompt.empty());
}

TEST_P(SchedulerTest, PromptRunCountsItsPasses) {
  auto engine = Load({.prompt_chunk = 16});
  Session session = NewSession(*engine, 200);
  const std::vector<int32_t> tokens = RandomTokens(16 * 3 + 1, 1);
  Logits logits;
  PromptRun run(engine->impl(), {.tokens = tokens,
                                 .kv = &session.sequence(),
                                 .plan = &engine->impl().model_plan,
                                 .on_logits = [&](int64_t, View<const float> l) {
                                   logits.assign(l.data(), l.data() + l.size());
                                 }});
  for (int64_t left = 4; left > 0; --left) {
    EXPECT_EQ(run.passes_left(), left);
    EXPECT_TRUE(logits.empty());
    ASSERT_TRUE(run.Step().ok());
  }
  EXPECT_TRUE(run.done());
  EXPECT_EQ(run.passes_left(), 0);
  EXPECT_EQ(session.length(), std::ssize(tokens));
  Session other = NewSession(*engine, 200);
  EXPECT_EQ(Prefill(other, tokens), logits);
}

INSTANTIATE_TEST_SUITE_P(Backends, SchedulerTest, ::testing::ValuesIn(BackendCases()), NameOf);

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
