// Any layer plan, any batch, any chunks of the prompt: each request must get the result of the slow
// oracle, the reference backend with one request at a time and whole prompts. The plans are user
// plans for ordinary models, and those of models trained for sparse attention.
#include <gtest/gtest.h>

#include <map>

#include "tests/engine/native_test_util.h"

namespace baton {
namespace {

using namespace test;

struct Case {
  std::vector<Request> requests;
  int64_t chunk = 512;
};
std::string Describe(const Case& c) {
  std::ostringstream out;
  for (const Request& r : c.requests) {
    out << r.tokens.size() << " + " << r.max_tokens << " tokens";
    if (r.plan) out << " under " << r.plan->ToJson();
    if (r.route)
      out << (r.route->mode == RouteOptions::Mode::kDense ? " dense " : " exact ") << r.route->mask;
    out << "; ";
  }
  out << "chunk " << c.chunk;
  return out.str();
}

Request RandomRequest() {
  Request r;
  r.tokens = RandomTokens(*rc::gen::inRange<int64_t>(1, 150), *rc::gen::inRange<uint64_t>(1, 999));
  r.max_tokens = *rc::gen::inRange<int64_t>(1, 10);
  r.ignore_end = true;
  return r;
}

int64_t RandomChunk() { return *rc::gen::element<int64_t>(1, 5, 7, 16, 33, 64, 100, 512); }

// The plan may change the layers that have no window in the model itself.
Plan RandomPlan(const ModelShape& model) {
  Plan plan = Plan::Dense(model.layers);
  plan.block = *rc::gen::element<int64_t>(1, 1, 2, 8);
  plan.sink = *rc::gen::inRange<int64_t>(0, 4);
  plan.recent = *rc::gen::inRange<int64_t>(0, 9);
  const auto budget = [&] { return Budget{.tokens = *rc::gen::element<int64_t>(32, 40, 64)}; };
  plan.budget = budget();
  plan.scope = *rc::gen::element(Scope::kAll, Scope::kGroup);
  plan.pool = *rc::gen::element(Pool::kSum, Pool::kMax);
  plan.min_context = *rc::gen::element<int64_t>(-1, 0, 20, 50);
  std::vector<int> publishers;
  for (int l = 0; l < model.layers; ++l) {
    LayerRole& layer = plan.layers[static_cast<size_t>(l)];
    if (model.Window(l) > 0) {
      if (*rc::gen::inRange(0, 3) == 0)
        layer = {.role = Role::kWindow,
                 .recent = *rc::gen::inRange<int64_t>(1, model.Window(l) + 1)};
      continue;
    }
    layer.role = *rc::gen::element(Role::kFull, Role::kSelect, Role::kScan, Role::kReuse,
                                   Role::kReuse, Role::kWindow, Role::kRoute);
    if (layer.role == Role::kReuse && publishers.empty()) layer.role = Role::kSelect;
    if (layer.role == Role::kWindow || layer.role == Role::kRoute) {
      layer.sink = *rc::gen::inRange<int64_t>(0, 5);
      layer.recent = *rc::gen::inRange<int64_t>(1, 80);
    }
    if (layer.role == Role::kReuse) {
      layer.source = *rc::gen::element(-1, *rc::gen::elementOf(publishers));
      if (*rc::gen::arbitrary<bool>()) layer.k = budget();
    }
    if (layer.role == Role::kSelect || layer.role == Role::kScan) publishers.push_back(l);
  }
  plan.evict = std::any_of(plan.layers.begin(), plan.layers.end(),
                           [](const LayerRole& l) { return l.role == Role::kWindow; }) &&
               *rc::gen::arbitrary<bool>();
  return plan;
}

// Layers of role route are decided by a mask, before the prompt or layer by layer.
void RouteByMask(Request& r) {
  const auto& layers = r.plan->layers;
  const bool routes = std::any_of(layers.begin(), layers.end(),
                                  [](const LayerRole& l) { return l.role == Role::kRoute; });
  if (!routes) return;
  RouteOptions options{
      .mode = *rc::gen::element(RouteOptions::Mode::kExact, RouteOptions::Mode::kDense)};
  for (const LayerRole& layer : layers)
    options.mask += layer.role == Role::kRoute ? *rc::gen::element('F', 'S') : 'F';
  r.route = options;
}

Case RandomCase(const ModelShape& model, bool plans) {
  Case c;
  const int requests = *rc::gen::inRange(1, 5);
  for (int i = 0; i < requests; ++i) {
    c.requests.push_back(RandomRequest());
    if (!plans || *rc::gen::inRange(0, 5) == 0) continue;
    c.requests.back().plan = RandomPlan(model);
    RouteByMask(c.requests.back());
  }
  c.chunk = RandomChunk();
  return c;
}

// RapidCheck's ranges begin narrow; this uses the full size from the first case on.
rc::Gen<Case> AnyCase(const ModelShape& model, bool plans) {
  return rc::gen::resize(100, rc::gen::exec([&model, plans] { return RandomCase(model, plans); }));
}

struct Answer {
  std::vector<int32_t> tokens;
  std::string logits_hash;
  int64_t kv_bytes_held = 0;
  bool operator==(const Answer&) const = default;
};
Answer AnswerOf(const Generation& g) {
  return {g.tokens, g.stats.logits_hash, g.stats.kv_bytes_held};
}

std::vector<Answer> Alone(Engine& engine, const Case& c, int64_t chunk) {
  engine.impl().options.prompt_chunk = chunk;
  std::vector<Answer> all;
  for (const Request& r : c.requests) {
    auto g = engine.Generate(r);
    RC_ASSERT(g.ok());
    all.push_back(AnswerOf(*g));
  }
  return all;
}

std::vector<Answer> Together(Engine& engine, const Case& c) {
  engine.impl().options.prompt_chunk = c.chunk;
  auto g = engine.GenerateBatch(c.requests);
  RC_ASSERT(g.ok());
  std::vector<Answer> all;
  for (const Generation& each : *g) all.push_back(AnswerOf(each));
  return all;
}

// The logits after the prompt and after each of `answer`'s tokens but the last.
Logits Follow(Engine& engine, const Request& r, const Answer& answer, int64_t chunk) {
  const ResolvedPlan plan = r.plan ? Resolved(engine, *r.plan) : engine.impl().model_plan;
  const auto length = static_cast<int64_t>(r.tokens.size() + answer.tokens.size());
  auto session = Session::Create(engine, plan.caches, length, {.rollback = 0});
  RC_ASSERT(session.ok());
  Logits all = RunPrompt(engine, session->sequence(), r.tokens, {.chunk = chunk}, &plan);
  const auto rest = std::span(answer.tokens).first(answer.tokens.size() - 1);
  const Logits steps = DecodeSteps(*session, rest, &plan);
  all.insert(all.end(), steps.begin(), steps.end());
  return all;
}

// How often the fast backend was compared with the oracle, and how often it differed: a list is not
// continuous, and of two nearly tied keys, either may be in it.
struct Tally {
  int64_t compared = 0, elsewhere = 0;
  void Count(Engine& fast, Engine& oracle, const Case& c, const std::vector<Answer>& answers) {
    for (size_t i = 0; i < c.requests.size(); ++i) {
      if (c.requests[i].route) continue;  // sessions cannot route
      const Logits expected = Follow(oracle, c.requests[i], answers[i], 512);
      const Logits got = Follow(fast, c.requests[i], answers[i], c.chunk);
      compared++;
      elsewhere += !(LargestDifference(got, expected) < 1e-3);
    }
  }
};

constexpr BackendCase kReference{"ref", Backend::kReference, KvType::kF32, 0};
#if BATON_WITH_CPU
constexpr BackendCase kPortable{"portable", Backend::kCpu, KvType::kF32, 0};
constexpr BackendCase kCpu{"cpu", Backend::kCpu, KvType::kBF16, 0};
#endif

// The engines a case runs on.
struct Engines {
  explicit Engines(const std::function<std::unique_ptr<Engine>(const BackendCase&)>& load)
      : oracle(load(kReference)) {
#if BATON_WITH_CPU
    portable = load(kPortable);
    cpu = load(kCpu);
#endif
  }
  std::unique_ptr<Engine> oracle, portable, cpu;
};

void Check(const Engines& engines, const Case& c, Tally& tally) {
  RC_LOG() << Describe(c);
  const std::vector<Answer> oracle = Alone(*engines.oracle, c, 512);
  RC_ASSERT(Together(*engines.oracle, c) == oracle);
#if BATON_WITH_CPU
  tally.Count(*engines.portable, *engines.oracle, c, oracle);
  for (Engine* fast : {engines.portable.get(), engines.cpu.get()})
    RC_ASSERT(Together(*fast, c) == Alone(*fast, c, c.chunk));
#endif
}

TEST(LayerPlanOracle, PlansOverOrdinaryModels) {
  std::vector<Engines> all;
  for (const char* architecture : {"llama", "gemma3"}) {
    all.emplace_back([&](const BackendCase& c) {
      SyntheticSpec spec = TinySpec(architecture);
      spec.weights = DType::kBF16;  // as the fast backend holds them
      return LoadEngine(spec, c, {.portable = c.kv == KvType::kF32});
    });
  }
  Tally tally;
  EXPECT_TRUE(rc::check([&] {
    if (*rc::gen::inRange(0, kSlowBuild ? 20 : 2) > 0) return;
    const Engines& engines = all[*rc::gen::inRange<size_t>(0, all.size())];
    Check(engines, *AnyCase(engines.oracle->impl().shape(), true), tally);
  }));
  EXPECT_LE(tally.elsewhere * 20, tally.compared);
}

TEST(LayerPlanOracle, ModelsTrainedForSparseAttention) {
  Tally tally;
  EXPECT_TRUE(rc::check([&] {
    if (*rc::gen::inRange(0, kSlowBuild ? 20 : 2) > 0) return;
    SyntheticSpec spec = *AnyNativeSpec();
    spec.weights = DType::kBF16;
    const Engines engines([&](const BackendCase& c) { return LoadNative(spec, c); });
    Check(engines, *AnyCase(engines.oracle->impl().shape(), false), tally);
  }));
  EXPECT_LE(tally.elsewhere * 20, tally.compared);
}

}  // namespace
}  // namespace baton
