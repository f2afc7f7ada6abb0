// With a budget that covers the context, a plan is dense attention: every role, scope, pool, unit,
// prompt mode and architecture, at lengths around page borders.
#include "tests/attention/engine_test_util.h"

namespace baton {
namespace {

using namespace test;

constexpr int64_t kLongest = 200;
constexpr int64_t kRows = 3;  // decoded after each prompt

struct Case {
  BackendCase backend;
  std::string architecture;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.architecture << c.backend.name; }

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const BackendCase& b : BackendCases()) {
    for (const char* a : {"llama", "mistral", "qwen2", "qwen3", "gemma3"}) {
      // The reference is slow even without a sanitizer; one model is enough for what sanitizers
      // check.
      const bool spare =
          kSlowBuild && b.backend == Backend::kReference && a != std::string("llama");
      if (!spare) cases.push_back({b, a});
    }
  }
  return cases;
}

// Every role, where the model leaves the choice; covering windows elsewhere.
Plan EveryRole(const ModelInfo& info, int variant) {
  Plan plan = Plan::Dense(info.layers);
  plan.budget = {512, 0};
  plan.sink = 2;
  plan.recent = 4;
  plan.min_context = 0;
  const LayerRole select{.role = Role::kSelect}, scan{.role = Role::kScan},
      reuse{.role = Role::kReuse}, window{.role = Role::kWindow, .sink = 3, .recent = 300},
      far{.role = Role::kReuse, .source = 0};
  const std::vector<LayerRole> roles[] = {{select, reuse, scan, reuse, window, far},
                                          {scan, select, reuse, scan, far, reuse}};
  size_t next = 0;
  for (int l = 0; l < info.layers; ++l) {
    const int64_t limit = info.window[static_cast<size_t>(l)];
    LayerRole& role = plan.layers[static_cast<size_t>(l)];
    if (limit > 0) {
      role = {.role = Role::kWindow, .sink = 0, .recent = limit};
      continue;
    }
    role = roles[variant % 2][next++ % 6];
    if (role.source == 0 && info.window[0] > 0) role.source = -1;
  }
  return plan;
}

class CoveringBudget : public ::testing::TestWithParam<Case> {
 protected:
  CoveringBudget()
      : engine_(LoadEngine(TinySpec(GetParam().architecture), GetParam().backend)),
        tokens_(RandomTokens(kLongest + kRows, 5)) {
    const Plan dense = Plan::Dense(engine_->info().layers);
    for (int64_t n : Lengths()) {
      Session session = NewSession(*engine_, n + kRows);
      prompt_.push_back(Prefill(session, First(n)));
      dense_.push_back(Decode(session, Rows(n), nullptr));
    }
  }
  static std::vector<int64_t> Lengths() {
    if (kSlowBuild) return {1, 64, 129};
    return {1, 2, 63, 64, 65, 127, 128, 129, 200};
  }
  std::span<const int32_t> First(int64_t n) const {
    return std::span(tokens_).first(static_cast<size_t>(n));
  }
  std::span<const int32_t> Rows(int64_t n) const {
    return std::span(tokens_).subspan(static_cast<size_t>(n), kRows);
  }
  double tolerance() const { return GetParam().backend.tolerance; }

  std::unique_ptr<Engine> engine_;
  std::vector<int32_t> tokens_;
  std::vector<Logits> prompt_, dense_;  // by length
};

TEST_P(CoveringBudget, DecodeEqualsDense) {
  Session session = NewSession(*engine_, kLongest + kRows);
  Prefill(session, First(kLongest));
  int variant = 0;
  for (Scope scope : {Scope::kAll, Scope::kGroup, Scope::kHeadMap}) {
    for (Pool pool : {Pool::kSum, Pool::kMax}) {
      for (int64_t block : {1, 16, 64}) {
        if (kSlowBuild && variant++ % 3 != 0) continue;
        for (Budget budget : {Budget{512, 0}, Budget{0, 1.0}}) {
          Plan plan = EveryRole(engine_->info(), variant++);
          plan.scope = scope;
          plan.pool = pool;
          plan.block = block;
          plan.budget = budget;
          if (scope == Scope::kHeadMap)
            plan.head_map.assign(static_cast<size_t>(engine_->info().layers), {1, 0});
          const ResolvedPlan resolved = Resolved(*engine_, plan);
          const std::vector<int64_t> lengths = Lengths();
          // In descending order: the positions before a length are then still those that the prompt
          // wrote.
          for (size_t i = lengths.size(); i-- > 0;) {
            session.Truncate(lengths[i]);
            const Logits planned = Decode(session, Rows(lengths[i]), &resolved);
            EXPECT_LE(LargestDifference(planned, dense_[i]), tolerance())
                << plan.Summary() << ", prompt of " << lengths[i];
          }
          session = NewSession(*engine_, kLongest + kRows);
          Prefill(session, First(kLongest));
        }
      }
    }
  }
}

TEST_P(CoveringBudget, SparsePromptEqualsDense) {
  int variant = 0;
  for (Scope scope : {Scope::kAll, Scope::kGroup, Scope::kHeadMap}) {
    for (auto [tile, block] : std::vector<std::pair<int64_t, int64_t>>{
             {64, 1}, {16, 16}, {7, 1}, {1, 1}, {48, 64}, {512, 1}}) {
      if (kSlowBuild && variant++ % 4 != 0) continue;
      Plan plan = EveryRole(engine_->info(), variant++);
      plan.scope = scope;
      plan.pool = variant % 4 < 2 ? Pool::kSum : Pool::kMax;
      plan.block = block;
      plan.sink = 1;
      plan.recent = 1;
      if (scope == Scope::kHeadMap)
        plan.head_map.assign(static_cast<size_t>(engine_->info().layers), {1, 1});
      // The share covers all keys; the minimum does not, so tiles do run sparse.
      plan.prefill = {.sparse = true, .tile = tile, .fraction = 1.0, .min = 2 * block};
      const ResolvedPlan resolved = Resolved(*engine_, plan);
      const std::vector<int64_t> lengths = Lengths();
      for (size_t i = static_cast<size_t>(variant % 3); i < lengths.size(); i += 3) {
        Session session = NewSession(*engine_, kLongest + kRows);
        const Logits prompt = Prefill(session, First(lengths[i]), &resolved);
        EXPECT_LE(LargestDifference(prompt, prompt_[i]), tolerance())
            << plan.Summary() << ", prompt of " << lengths[i];
        const Logits planned = Decode(session, Rows(lengths[i]), &resolved);
        EXPECT_LE(LargestDifference(planned, dense_[i]), tolerance())
            << plan.Summary() << ", prompt of " << lengths[i];
      }
    }
  }
}

TEST_P(CoveringBudget, AllFullIsBitIdenticalToNoPlan) {
  const ResolvedPlan full = Resolved(*engine_, Plan::Dense(engine_->info().layers));
  const std::vector<int64_t> lengths = Lengths();
  for (size_t i = 0; i < lengths.size(); ++i) {
    Session session = NewSession(*engine_, kLongest + kRows);
    EXPECT_EQ(Prefill(session, First(lengths[i]), &full), prompt_[i]);
    EXPECT_EQ(Decode(session, Rows(lengths[i]), &full), dense_[i]);
  }
}

TEST_P(CoveringBudget, SelectWithoutReusersAgreesWithDense) {
  Plan plan = Plan::Dense(engine_->info().layers);
  plan.min_context = 0;
  for (int l = 0; l < engine_->info().layers; ++l) {
    if (engine_->info().window[static_cast<size_t>(l)] == 0)
      plan.layers[static_cast<size_t>(l)].role = Role::kSelect;
  }
  const ResolvedPlan select = Resolved(*engine_, plan);
  const std::vector<int64_t> lengths = Lengths();
  for (size_t i = 0; i < lengths.size(); ++i) {
    Session session = NewSession(*engine_, kLongest + kRows);
    Prefill(session, First(lengths[i]));
    EXPECT_LE(LargestDifference(Decode(session, Rows(lengths[i]), &select), dense_[i]),
              tolerance());
  }
}

INSTANTIATE_TEST_SUITE_P(All, CoveringBudget, ::testing::ValuesIn(Cases()), [](const auto& info) {
  return info.param.architecture + "_" + info.param.backend.name;
});

}  // namespace
}  // namespace baton
