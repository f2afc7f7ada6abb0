// The requests that tests of the engine mix, and what a request told its callbacks.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tests/attention/engine_test_util.h"

namespace baton::test {

inline Plan SparsePlan(int64_t k, int first = 0) {
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

inline Request TokensRequest(int64_t prompt, uint64_t seed, int64_t max_tokens = 12,
                             std::optional<Plan> plan = {}) {
  Request r;
  r.tokens = RandomTokens(prompt, seed);
  r.max_tokens = max_tokens;
  r.ignore_end = true;
  r.plan = std::move(plan);
  return r;
}

// Dense and planned, greedy and sampled, watched, with a sparse prompt, with and without an end.
inline std::vector<Request> MixedRequests() {
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
  requests[3].plan->pool = Pool::kMax;
  requests[4].plan->prefill = {.sparse = true, .tile = 16, .fraction = 0.1, .min = 24};
  return requests;
}

inline std::string Fingerprint(const Generation& g) {
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

inline RequestCallbacks Into(Seen& seen) {
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

inline RequestId Submit(Engine& engine, const Request& request, Seen& seen) {
  auto id = engine.Submit(request, Into(seen));
  EXPECT_TRUE(id.ok()) << id.error().ToString();
  return id.ok() ? *id : -1;
}

inline void StepUntilIdle(Engine& engine) {
  while (engine.Step()) {
  }
}

}  // namespace baton::test
