// What routed layers cost and save on a real model, with a random router.
//
//   routing MODEL [--threads N] [--rounds N]
//
// prompt: time of the routers, their queries included, over the time of a prompt of 4,096 tokens.
//   Limit 0.01.
// decode: attention of a decode step at depth 7,168 with a share s of the layers on sink + window
//   over that of dense decoding; both alternate within one run. Limit 1 - s + 0.1.
#include "engine/prompt/routing.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "baton/engine.h"
#include "engine/engine_impl.h"
#include "engine/session.h"
#include "or_die.h"
#include "profile/measure.h"

namespace baton {
namespace {

constexpr int64_t kPrompt = 4096, kDepth = 7168;
constexpr RouterSettings kSettings{.pool = 100, .sink = 64, .window = 512};

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double AttentionSeconds(const Engine& engine) {
  double sum = 0;
  for (const OpTime& op : engine.OpTimes()) {
    if (op.name == "attend" || op.name == "gather" || op.name == "merge") sum += op.seconds;
  }
  return sum;
}

// All layers' routers for the rows that they pool, as a prompt asks them.
double AskAll(Engine& engine) {
  Engine::Impl& impl = engine.impl();
  const ModelConfig& c = impl.model->config();
  const int64_t rows = 2 * kSettings.pool;
  const std::vector<float> stream(static_cast<size_t>(rows * c.width), 0.1f);
  const Array<float> x = UploadArray(std::span(stream), impl.ops->device());
  Array<float> q(impl.ops->device()), answer(impl.ops->device());
  q.Reserve(rows * c.heads * c.head_dim);
  const double start = Now();
  const Ops::Pass pass(*impl.ops);
  for (int l = 0; l < c.layers; ++l) {
    const View<float> queries(q.data(), {rows, c.heads, c.head_dim});
    impl.model->Queries(l, View<const float>(x.data(), {rows, c.width}), queries);
    impl.ops->Route({.q = queries,
                     .weights = &impl.router->layers[static_cast<size_t>(l)],
                     .logits = answer.Reserve(2)});
  }
  return Now() - start;
}

bool Prompt(Engine& engine, int rounds) {
  Request request;
  request.max_tokens = 1;
  request.route = RouteOptions{};
  for (int64_t i = 0; i < kPrompt; ++i)
    request.tokens.push_back(static_cast<int32_t>(100 + i * 37 % 4000));
  AskAll(engine);
  std::vector<double> shares, router, prompt;
  for (int round = 0; round < rounds; ++round) {
    const double seconds = OrDie(engine.Generate(request)).stats.prompt_seconds;
    const double asked = AskAll(engine);
    shares.push_back(asked / seconds);
    router.push_back(asked), prompt.push_back(seconds);
  }
  const bool met = Median(shares) <= 0.01;
  std::printf("prompt  routers %.1f ms of %.2f s: %.4f, limit 0.01: %s  (median of %d rounds)\n",
              1e3 * Median(router), Median(prompt), Median(shares), met ? "met" : "MISSED", rounds);
  return met;
}

bool Decode(Engine& engine, int rounds) {
  const Engine::Impl& impl = engine.impl();
  const ResolvedPlan dense = impl.model_plan;
  ResolvedPlan sparse = OrDie(impl.ResolvePlan(RouteEveryLayer(impl.shape(), kSettings), nullptr));
  int routed = 0, windows = 0;
  for (int l = 0; l < engine.info().layers; ++l) {
    if (sparse.layer(l).role != Role::kRoute) continue;
    const bool full = routed++ % 2 == 0;
    sparse.Decide(l, full, impl.shape(), true);
    windows += !full;
  }
  Session session = OrDie(Session::Create(engine, dense.caches, kDepth + 2, {.rollback = 2}));
  OrDie(session.FillSynthetic(kDepth, 1));
  const auto step = [&](const ResolvedPlan& plan) {
    const int32_t token = 7;
    engine.SetTracing(true);
    OrDie(session.Decode(std::span(&token, 1),
                         {.plan = &plan, .on_logits = [](int64_t, View<const float>) {}}));
    const double seconds = AttentionSeconds(engine);
    engine.SetTracing(false);
    session.Truncate(kDepth);
    return seconds;
  };
  std::vector<double> ratios;
  for (int round = -1; round < 20 * rounds; ++round) {
    const double all = step(dense), some = step(sparse);
    if (round >= 0) ratios.push_back(some / all);
  }
  const double s = static_cast<double>(windows) / engine.info().layers, limit = 1 - s + 0.1;
  const bool met = Median(ratios) <= limit;
  std::printf(
      "decode  %d of %d layers on %lld + %lld tokens: attention %.3f of dense, limit %.2f: "
      "%s  (median of %d steps)\n",
      windows, engine.info().layers, static_cast<long long>(kSettings.sink),
      static_cast<long long>(kSettings.window), Median(ratios), limit, met ? "met" : "MISSED",
      20 * rounds);
  return met;
}

int Main(int argc, char** argv) {
  std::string model;
  int threads = 0, rounds = 3;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const bool more = i + 1 < argc;
    if (arg == "--threads" && more) {
      threads = std::atoi(argv[++i]);
    } else if (arg == "--rounds" && more) {
      rounds = std::max(1, std::atoi(argv[++i]));
    } else {
      model = arg;
    }
  }
  if (model.empty()) {
    std::fprintf(stderr, "usage: routing MODEL [--threads N] [--rounds N]\n");
    return 2;
  }
  const ModelInfo info = OrDie(Engine::Load(model, {.weights = false}))->info();
  const std::string router =
      (std::filesystem::temp_directory_path() / "baton-routing.safetensors").string();
  OrDie(WriteRouter(router, SyntheticRouter(kSettings, info.layers, info.head_dim, 1)));
  EngineOptions options;
  options.threads = threads;
  options.router = router;
  auto engine = OrDie(Engine::Load(model, options));
  const bool prompt = Prompt(*engine, rounds), decode = Decode(*engine, rounds);
  return prompt && decode ? 0 : 1;
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) { return baton::Main(argc, argv); }
