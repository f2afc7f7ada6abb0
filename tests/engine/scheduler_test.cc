// Requests that come and go while others run: nobody's bits, text or errors depend on who else is
// there, or when.
#include "engine/scheduler.h"

#include <rapidcheck.h>

#include <map>
#include <mutex>
#include <thread>

#include "engine/prompt/prompt_run.h"
#include "tests/engine/test_requests.h"

namespace baton {
namespace {

using namespace test;

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
  const std::vector<Request> requests = MixedRequests();
  const std::vector<Generation> alone = Alone(requests, {.kv_tokens = 512});
  // Of every pass and of its smallest parts.
  const std::unique_ptr<Engine> engines[] = {Load({.kv_tokens = 512, .prompt_chunk = 64}),
                                             Load({.kv_tokens = 512, .prompt_share = 0.001})};
  const bool reference = GetParam().backend == Backend::kReference;
  const int most_events = kSlowBuild ? (reference ? 6 : 12) : (reference ? 24 : 60);
  EXPECT_TRUE(rc::check("a batch of any history equals single runs", [&] {
    Engine& engine = *engines[*rc::gen::inRange<size_t>(0, 2)];
    RunHistory(engine, requests, alone, most_events);
  }));
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

// More than one decode pass holds, on a GPU and elsewhere.
TEST_P(SchedulerTest, ManyRequestsChangeNoBitOfEachOther) {
  const std::vector<Request> requests = MixedRequests();
  const std::vector<Generation> alone = Alone(requests);
  auto engine = Load({.kv_tokens = 1 << 15});
  const size_t count = GetParam().backend == Backend::kReference || kSlowBuild ? 20 : 80;
  std::vector<Seen> seen(count);
  for (size_t i = 0; i < count; ++i) Submit(*engine, requests[i % requests.size()], seen[i]);
  StepUntilIdle(*engine);
  for (size_t i = 0; i < count; ++i) {
    ASSERT_TRUE(seen[i].ok());
    EXPECT_EQ(Fingerprint(seen[i].generation()), Fingerprint(alone[i % requests.size()])) << i;
  }
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

TEST_P(SchedulerTest, TokensComeBetweenThePartsOfAPass) {
  auto engine = Load({.prompt_share = 0.001});
  constexpr int64_t kRows = 8 * 64;
  // Other devices cut passes between layers alone.
  const int64_t pieces = engine->impl().ops->device().host() ? kRows / 64 : 1;
  const int64_t parts = pieces * engine->info().layers;
  Seen decoding, prompt;
  Submit(*engine, TokensRequest(5, 1, parts + 20), decoding);
  for (int i = 0; i < 4; ++i) engine->Step();
  const Request request = TokensRequest(kRows, 2, 1);
  Submit(*engine, request, prompt);
  int64_t steps = 0;
  for (; prompt.prompt.empty(); ++steps) ASSERT_TRUE(engine->Step());
  EXPECT_EQ(steps, 2 * engine->info().layers - 1);  // until the first rows are through
  for (; !prompt.done(); ++steps) ASSERT_TRUE(engine->Step());
  EXPECT_EQ(steps, 2 * parts - 1);
  EXPECT_EQ(std::ssize(prompt.prompt), pieces);
  StepUntilIdle(*engine);
  EXPECT_EQ(Fingerprint(prompt.generation()), Fingerprint(Alone({request})[0]));
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
  for (const double share : {1.0, 0.001}) {  // between two passes of a prompt, and within one
    Seen running, in_prompt, waiting, submitted;
    auto engine = Load({.kv_tokens = 256, .prompt_chunk = 16, .prompt_share = share});
    Submit(*engine, TokensRequest(10, 1, 50), running);
    Submit(*engine, TokensRequest(100, 1, 20, SparsePlan(16)), in_prompt);
    Submit(*engine, TokensRequest(200, 1, 20), waiting);
    for (int i = 0; i < 4; ++i) engine->Step();
    Submit(*engine, TokensRequest(10, 1, 50), submitted);
    engine.reset();
    for (const Seen* s : {&running, &in_prompt, &waiting, &submitted}) EXPECT_FALSE(s->done());
    EXPECT_EQ(in_prompt.prompt.empty(), share < 1);
    EXPECT_TRUE(waiting.prompt.empty());
  }
}

TEST_P(SchedulerTest, TokensOfAnySamplingAreWhatTheyAreAlone) {
  auto engine = Load({.prompt_chunk = 16});
  std::vector<Request> requests;
  for (const Sampling& s :
       {Sampling{}, Sampling{.temperature = 1, .seed = 1},
        Sampling{.temperature = 2, .top_k = 5, .seed = 2},
        Sampling{.temperature = 0.7f, .top_p = 0.8f, .min_p = 0.01f, .seed = 3},
        Sampling{.repetition_penalty = 1.5f, .penalty_window = 8},
        Sampling{.temperature = 1.5f, .frequency_penalty = 0.5f, .logit_bias = {{7, 4}, {5, -4}}},
        Sampling{.presence_penalty = 1, .logit_bias = {{9, 2}}}}) {
    for (const int logprobs : {-1, 2}) {
      requests.push_back(TokensRequest(20 + std::ssize(requests), 5, 15));
      requests.back().sampling = s;
      requests.back().logprobs = logprobs;
    }
  }
  const auto together = engine->GenerateBatch(requests);
  ASSERT_TRUE(together.ok()) << together.error().ToString();
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto alone = engine->Generate(requests[i]);
    ASSERT_TRUE(alone.ok()) << alone.error().ToString();
    const Generation& got = (*together)[i];
    EXPECT_EQ(Fingerprint(got), Fingerprint(*alone)) << i;
    ASSERT_EQ(got.logprobs.size(), alone->logprobs.size());
    for (size_t t = 0; t < got.logprobs.size(); ++t) {
      EXPECT_EQ(got.logprobs[t].chosen.token, got.tokens[t]);
      EXPECT_EQ(got.logprobs[t].chosen.logprob, alone->logprobs[t].chosen.logprob);
      EXPECT_EQ(got.logprobs[t].top.size(), 2u);
    }
  }
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

}  // namespace
}  // namespace baton
