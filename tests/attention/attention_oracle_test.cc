// Attention::Run against a computation in double precision: the test works out from the definition
// which keys each row of each layer attends to, for every role, on random inputs.
#include <algorithm>
#include <map>
#include <set>

#include "attention/attention.h"
#include "tests/attention/engine_test_util.h"
#if BATON_WITH_CPU
#include "kernels/cpu/cpu_ops.h"
#endif

namespace baton {
namespace {

constexpr int kHeads = 4, kKvHeads = 2, kRepeat = kHeads / kKvHeads;
constexpr int64_t kDim = 32;
constexpr float kScale = 0.2f;

using Tensor = std::vector<float>;

Tensor Random(int64_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  Tensor t(static_cast<size_t>(n));
  // Values that bf16 holds exactly, so that both backends see the same cache.
  for (float& x : t) x = ToFloat(ToBf16(2 * normal(random)));
  return t;
}

struct Inputs {
  Tensor q, k, v;  // [T, heads, D]
};

// Probabilities of one query head over keys [0, position].
std::vector<double> Probabilities(const Inputs& in, int64_t position, int head,
                                  const std::set<int64_t>* keys) {
  std::vector<double> p(static_cast<size_t>(position + 1), 0);
  double sum = 0;
  for (int64_t n = 0; n <= position; ++n) {
    if (keys && !keys->contains(n)) continue;
    double s = 0;
    for (int64_t d = 0; d < kDim; ++d) {
      s += static_cast<double>(in.q[static_cast<size_t>((position * kHeads + head) * kDim + d)]) *
           in.k[static_cast<size_t>((n * kKvHeads + head / kRepeat) * kDim + d)];
    }
    sum += p[static_cast<size_t>(n)] = std::exp(s * kScale);
  }
  for (double& x : p) x /= sum;
  return p;
}

// The set that `in`'s layer publishes for the query at `position`, scope of KV head `group` or all
// heads (-1).
std::set<int64_t> TopK(const Inputs& in, const Plan& plan, int64_t position, int group, int64_t k) {
  std::vector<double> score(static_cast<size_t>(position + 1), 0);
  for (int h = 0; h < kHeads; ++h) {
    if (group >= 0 && h / kRepeat != group) continue;
    const std::vector<double> p = Probabilities(in, position, h, nullptr);
    for (size_t n = 0; n < p.size(); ++n)
      score[n] = plan.pool == Pool::kSum ? score[n] + p[n] : std::max(score[n], p[n]);
  }
  std::vector<int64_t> order;
  std::set<int64_t> chosen;
  for (int64_t n = 0; n <= position; ++n) {
    if (n < plan.sink || n > position - plan.recent) {
      chosen.insert(n);
    } else {
      order.push_back(n);
    }
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return score[static_cast<size_t>(a)] > score[static_cast<size_t>(b)];
  });
  for (int64_t n : order) {
    if (static_cast<int64_t>(chosen.size()) >= k) break;
    chosen.insert(n);
  }
  return chosen;
}

class AttentionOracle : public ::testing::TestWithParam<test::BackendCase> {
 protected:
  AttentionOracle() : pool_(2) {
#if BATON_WITH_CPU
    if (GetParam().backend == Backend::kCpu) {
      auto ops = MakeCpuOps(pool_, DetectCpuIsa());
      EXPECT_TRUE(ops.ok());
      ops_ = std::move(ops).value();
    }
#endif
    if (!ops_) ops_ = MakeReferenceOps(pool_);
  }

  // Runs `rows` decode rows of all layers in one pass, then compares each with the definition.
  void Check(Plan plan, int64_t rows, uint64_t seed) {
    const int layers = static_cast<int>(plan.layers.size());
    const ModelShape shape = ModelShape{.architecture = "test",
                                        .layers = layers,
                                        .heads = kHeads,
                                        .kv_heads = kKvHeads,
                                        .head_dim = kDim}
                                 .Completed();
    auto resolved = Resolve(plan, shape, nullptr);
    ASSERT_TRUE(resolved.ok()) << resolved.error().ToString();
    const KvLayout layout{.dtype = GetParam().kv == KvType::kF32 ? DType::kF32 : DType::kBF16,
                          .kv_heads = kKvHeads,
                          .head_dim = kDim,
                          .low_bit = false};
    auto store = KvStore::Create(
        std::vector<KvCacheSpec>(static_cast<size_t>(layers), {.layout = layout}), rows);
    ASSERT_TRUE(store.ok());
    KvSequence sequence = store.value()->NewSequence();
    ASSERT_TRUE(sequence.Reserve(rows).ok());
    const AttentionSegment segment{.rows = {0, rows, 0},
                                   .kv = &sequence,
                                   .plan = &resolved.value(),
                                   .prompt = false,
                                   .watch = nullptr};
    Attention attention(*ops_, shape, kScale);
    attention.Begin(std::span(&segment, 1), nullptr);
    const Tensor cos(static_cast<size_t>(rows * kDim / 2), 1.0f), sin(cos.size(), 0.0f);
    std::vector<Inputs> inputs;
    for (int l = 0; l < layers; ++l) {
      const uint64_t s = seed * 100 + static_cast<uint64_t>(l) * 3;
      inputs.push_back({Random(rows * kHeads * kDim, s), Random(rows * kKvHeads * kDim, s + 1),
                        Random(rows * kKvHeads * kDim, s + 2)});
      Inputs& in = inputs.back();
      Tensor o(in.q.size());
      StoreParams params;
      params.q = View<float>(in.q.data(), {rows, kHeads, kDim});
      params.k = View<float>(in.k.data(), {rows, kKvHeads, kDim});
      params.v = View<const float>(in.v.data(), {rows, kKvHeads, kDim});
      params.cos = View<const float>(cos.data(), {rows, kDim / 2});
      params.sin = View<const float>(sin.data(), {rows, kDim / 2});
      attention.Run(l, {.store = params}, View<float>(o.data(), {rows, kHeads, kDim}));
      for (int64_t t = 0; t < rows; ++t) Compare(plan, resolved.value(), inputs, l, t, o);
    }
  }

  void Compare(const Plan& plan, const ResolvedPlan& resolved, const std::vector<Inputs>& inputs,
               int l, int64_t t, const Tensor& o) {
    const Inputs& own = inputs[static_cast<size_t>(l)];
    const LayerRole& role = plan.layers[static_cast<size_t>(l)];
    const bool sparse = t + 1 > resolved.min_context;
    for (int h = 0; h < kHeads; ++h) {
      std::set<int64_t> keys;
      bool all = true;
      if (sparse && role.role == Role::kReuse) {
        const Budget k = role.k == Budget{} ? plan.budget : role.k;
        int group = plan.scope == Scope::kAll ? -1 : h / kRepeat;
        if (plan.scope == Scope::kHeadMap)
          group = plan.head_map[static_cast<size_t>(l)][static_cast<size_t>(group)];
        keys = TopK(inputs[static_cast<size_t>(role.source)], plan, t, group, k.At(t + 1));
        all = false;
      } else if (sparse && role.role == Role::kWindow) {
        for (int64_t n = 0; n <= t; ++n) {
          if (n < role.sink || n > t - role.recent) keys.insert(n);
        }
        all = false;
      }
      const std::vector<double> p = Probabilities(own, t, h, all ? nullptr : &keys);
      for (int64_t d = 0; d < kDim; ++d) {
        double expected = 0;
        for (int64_t n = 0; n <= t; ++n) {
          expected += p[static_cast<size_t>(n)] *
                      own.v[static_cast<size_t>((n * kKvHeads + h / kRepeat) * kDim + d)];
        }
        const float got = o[static_cast<size_t>((t * kHeads + h) * kDim + d)];
        ASSERT_NEAR(got, expected, GetParam().backend == Backend::kCpu ? 0.06 : 2e-5)
            << plan.Summary() << " layer " << l << " row " << t << " head " << h;
      }
    }
  }

  Plan Mixed(int64_t k) {
    Plan plan;
    plan.budget = {k, 0};
    plan.sink = 2;
    plan.recent = 3;
    plan.min_context = 10;
    plan.layers = {{.role = Role::kSelect},
                   {.role = Role::kReuse, .source = 0},
                   {.role = Role::kWindow, .sink = 1, .recent = 7},
                   {.role = Role::kSelect},
                   {.role = Role::kReuse, .source = 0, .k = {24, 0}},
                   {.role = Role::kReuse, .source = 3},
                   {.role = Role::kFull}};
    return plan;
  }

  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
};

// Among other things: a reuse layer reads its own K and V of the current step at the source's
// positions, takes its own share of the ranking, and rows at or below min_context are dense.
TEST_P(AttentionOracle, EveryRoleAttendsAsDefined) {
  for (int64_t rows : {1, 3, 10, 11, 40, 70}) Check(Mixed(12), rows, static_cast<uint64_t>(rows));
}

TEST_P(AttentionOracle, ScopesAndPools) {
  for (Scope scope : {Scope::kAll, Scope::kGroup, Scope::kHeadMap}) {
    for (Pool pool : {Pool::kSum, Pool::kMax}) {
      Plan plan = Mixed(8);
      plan.scope = scope;
      plan.pool = pool;
      if (scope == Scope::kHeadMap) plan.head_map.assign(plan.layers.size(), {1, 0});
      Check(plan, 40, 7);
    }
  }
}

TEST_P(AttentionOracle, WithoutForcedTokensAndFractionalBudgets) {
  Plan plan = Mixed(1);
  plan.sink = plan.recent = 0;
  plan.min_context = 0;
  Check(plan, 30, 3);
  plan.budget = {0, 0.25};
  Check(plan, 30, 4);
}

TEST_P(AttentionOracle, MinContextIsTheLastDenseLength) {
  for (int64_t n : {0, 1, 11, 12, 13, 63, 64, 65, 80}) {
    Plan plan = Mixed(12);
    plan.min_context = n;
    Check(plan, 66, 9);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionOracle, ::testing::ValuesIn(test::BackendCases()),
                         test::NameOf);

}  // namespace
}  // namespace baton
