// Routed runs at the level of tokens and logits: what a request does, with its parts in the open.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "engine/prompt/prompt_run.h"
#include "engine/prompt/routing.h"
#include "engine/prompt/routing_ahead.h"
#include "tests/attention/engine_test_util.h"

namespace baton::test {

using Mode = RouteOptions::Mode;

struct RoutedRun {
  ResolvedPlan plan;
  std::optional<Session> session;
  std::optional<Routing> routing;  // points at the two above
  RoutingReport report;
  Logits last;     // of the prompt's last token
  Logits decoded;  // of the tokens after it, one by one

  KvSequence& kv() { return session->sequence(); }
  // Full caches fill whole pages; a ring holds sink + window tokens, in two pages more at most.
  void CheckMemory() {
    int64_t most = 0;
    for (int c = 0; c < session->store().caches(); ++c) {
      const CacheSpec& spec = plan.caches[static_cast<size_t>(c)];
      const int64_t held = kv().held_tokens(c);
      EXPECT_EQ(held, spec.Held(kv().length())) << "cache " << c;
      const int64_t pages = (held + KvLayout::kSlots - 1) / KvLayout::kSlots;
      most += session->store().layout(c).arena_bytes(pages + (spec.ring() ? 2 : 0));
    }
    EXPECT_LE(kv().allocated_bytes(), most) << "at " << kv().length();
  }
};

// Routes and runs the first `prompt` tokens, then decodes the others one by one. The caches have
// room for `room` more.
inline std::unique_ptr<RoutedRun> RunRouted(Engine& engine, std::span<const int32_t> tokens,
                                            int64_t prompt, const RouteOptions& options,
                                            const Plan& plan, int64_t room = 1) {
  Engine::Impl& impl = engine.impl();
  auto run = std::make_unique<RoutedRun>();
  run->plan = Resolved(engine, plan);
  const std::span<const int32_t> head = tokens.first(static_cast<size_t>(prompt));
  const ResolvedPlan before = run->plan;
  auto session = Session::Create(engine, before.caches, std::ssize(tokens) + room,
                                 {.store = {}, .rollback = 0});
  EXPECT_TRUE(session.ok()) << session.error().ToString();
  run->session.emplace(std::move(session).value());
  const Router* router = impl.router ? &*impl.router : nullptr;
  run->routing.emplace(impl, router, options, head, &run->plan, &run->kv());
  PrefillOrder order = PrefillOrder::kLayerMajor;
  if (options.mode == Mode::kProbe || options.mode == Mode::kTwoPass) {
    auto ahead = RoutingAhead::Create(impl, options, head, before);
    EXPECT_TRUE(ahead.ok()) << ahead.error().ToString();
    while (!(*ahead)->done()) EXPECT_TRUE((*ahead)->Step().ok());
    run->routing->DecideAs((*ahead)->routing());
    order = PrefillOrder::kTokenMajor;
  } else if (options.mode == Mode::kExact && run->routing->forced()) {
    run->routing->DecideForced();
    if (!before.Evicts()) order = PrefillOrder::kTokenMajor;
  }
  PromptRun prompt_run(
      impl,
      {.tokens = head,
       .kv = &run->kv(),
       .plan = &run->plan,
       .on_logits = [&](int64_t,
                        View<const float> l) { run->last.assign(l.data(), l.data() + l.size()); },
       .order = order,
       .routing = order == PrefillOrder::kLayerMajor ? &*run->routing : nullptr});
  const Status status = prompt_run.RunAll();
  EXPECT_TRUE(status.ok()) << status.error().ToString();
  run->report = run->routing->Report();
  run->CheckMemory();
  for (const int32_t token : tokens.subspan(static_cast<size_t>(prompt))) {
    const Logits row = Decode(*run->session, std::span(&token, 1), &run->plan);
    run->decoded.insert(run->decoded.end(), row.begin(), row.end());
    run->CheckMemory();
  }
  return run;
}

// The same by brute force: every cache keeps every token, and windows mask what they do not see,
// in prompts too where `in_prompts`.
inline std::unique_ptr<RoutedRun> RunMasked(Engine& engine, std::span<const int32_t> tokens,
                                            int64_t prompt, const std::string& bitmap,
                                            const Plan& plan, bool in_prompts = true,
                                            int64_t room = 1) {
  auto run = std::make_unique<RoutedRun>();
  run->plan = Resolved(engine, plan);
  for (size_t l = 0; l < bitmap.size(); ++l) {
    if (run->plan.layers[l].role == Role::kRoute)
      run->plan.Decide(static_cast<int>(l), bitmap[l] == 'F', engine.impl().shape(), in_prompts);
  }
  run->session.emplace(NewSession(engine, std::ssize(tokens) + room));
  run->last = Prefill(*run->session, tokens.first(static_cast<size_t>(prompt)), &run->plan);
  for (const int32_t token : tokens.subspan(static_cast<size_t>(prompt))) {
    const Logits row = Decode(*run->session, std::span(&token, 1), &run->plan);
    run->decoded.insert(run->decoded.end(), row.begin(), row.end());
  }
  return run;
}

// A model's engine with a router file.
inline std::unique_ptr<Engine> LoadWithRouter(const std::string& model, const RouterFile& router,
                                              const BackendCase& c, EngineOptions options = {}) {
  static int files = 0;
  options.router = Scratch().File(fmt::format("router-{}.safetensors", files++));
  const Status written = WriteRouter(options.router, router);
  EXPECT_TRUE(written.ok()) << written.error().ToString();
  options.backend = c.backend;
  options.kv = c.kv;
  if (options.threads == 0) options.threads = 2;
  auto engine = Engine::Load(model, options);
  EXPECT_TRUE(engine.ok()) << engine.error().ToString();
  return std::move(engine).value();
}

// A random router whose decisions depend on the prompt: final biases take off the mean difference
// of the logits over some prompts.
inline RouterFile BalancedRouter(const SyntheticSpec& spec, const RouterSettings& settings,
                                 uint64_t seed) {
  RouterFile router = SyntheticRouter(settings, spec.layers, spec.head_dim, seed);
  auto engine = LoadWithRouter(ModelFile(spec), router, BackendCases()[0]);
  std::vector<std::array<float, 2>> biases(static_cast<size_t>(spec.layers));
  constexpr int kPrompts = 8;
  for (int i = 0; i < kPrompts; ++i) {
    Request r;
    r.tokens = RandomTokens(20 + 23 * i, 1000 + static_cast<uint64_t>(i));
    r.max_tokens = 1;
    r.route = RouteOptions{.mode = Mode::kDense};
    const Generation g = engine->Generate(r).value();
    for (size_t l = 0; l < biases.size(); ++l) {
      const auto& z = g.stats.routing->logits[l];
      biases[l][1] -= (z[1] - z[0]) / kPrompts;
    }
  }
  return SyntheticRouter(settings, spec.layers, spec.head_dim, seed, biases);
}

}  // namespace baton::test
