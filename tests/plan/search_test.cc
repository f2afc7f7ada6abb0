// The planner against brute force, and the laws its fronts obey.
#include "plan/search.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>

namespace baton {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// Random instances; half of them on a coarse grid, where ties and zeros are common.
class Instances {
 public:
  explicit Instances(uint32_t seed) : rng_(seed) {}

  bool Chance(double p) { return std::uniform_real_distribution<>(0, 1)(rng_) < p; }
  int Int(int low, int high) { return std::uniform_int_distribution<>(low, high)(rng_); }
  double Real(double high) { return std::uniform_real_distribution<>(0, high)(rng_); }

  PlanProblem Make(int layers) {
    coarse_ = Chance(0.5);
    PlanProblem p;
    p.layers = layers;
    p.budgets = {256, 1024};
    p.windows = {{4, 508}};
    for (size_t b = 0; b < p.budgets.size(); ++b) {
      p.loss.emplace_back();
      for (int i = 0; i < layers; ++i) p.loss[b].push_back(Losses(layers, 2.0 / (1 + b)));
      p.scan_loss.push_back(Losses(layers, 1.0 / (1 + b)));
      p.costs.scan.push_back(Costs(layers, 0.2 + 0.2 * b));
      p.costs.reuse.push_back(Costs(layers, 0.1 + 0.2 * b));
    }
    p.window_loss = {Losses(layers, 1.5)};
    p.costs.window = {Costs(layers, 0.2)};
    p.costs.full = Costs(layers, 1);
    p.costs.select = p.costs.full;
    for (double& c : p.costs.select) c += coarse_ ? 0 : Real(0.1) - 0.02;
    for (int l = 0; l < layers; ++l) {
      p.forced.push_back(Chance(0.1));
      p.fixed.push_back(Chance(0.1));
    }
    p.allow_select = Chance(0.9);
    p.allow_scan = Chance(0.8);
    p.allow_reuse = Chance(0.9);
    p.allow_window = Chance(0.7);
    if (Chance(0.3)) p.max_edge_nats = Real(2);
    if (Chance(0.3)) p.max_chain = Int(1, 3);
    return p;
  }

 private:
  std::vector<double> Losses(int n, double high) {
    std::vector<double> out(n);
    for (double& v : out) {
      v = coarse_ ? Int(0, 4) * high / 4 : Real(high);
      if (Chance(0.05)) v = kInf;
      if (Chance(0.02)) v = -1e-9;
    }
    return out;
  }
  std::vector<double> Costs(int n, double about) {
    std::vector<double> out(n, about);
    if (!coarse_)
      for (double& v : out) v *= 0.5 + Real(1);
    return out;
  }
  std::mt19937 rng_;
  bool coarse_ = false;
};

// Every assignment of all five roles with latest-publisher sources, straight from the definitions.
struct BruteForce {
  const PlanProblem& p;
  std::vector<int> budgets;
  std::vector<double> lambdas;
  std::map<int, double> by_count;
  std::vector<double> by_price = std::vector<double>(lambdas.size(), kInf);
  double dense_cost = 0;

  void Run() {
    for (double c : p.costs.full) dense_cost += c;
    Visit(0, -1, 0, 0, 0);
  }
  void Visit(int j, int latest, int dense, double loss, double cost) {
    if (j == p.layers) {
      const auto [it, fresh] = by_count.emplace(dense, loss);
      it->second = std::min(it->second, loss);
      for (size_t n = 0; n < lambdas.size(); ++n)
        by_price[n] = std::min(by_price[n], loss + lambdas[n] * cost / dense_cost);
      return;
    }
    const auto step = [&](double l, double c, int counted, int publisher) {
      if (l < kInf) Visit(j + 1, publisher, dense + counted, loss + std::max(0.0, l), cost + c);
    };
    if (p.fixed[j]) return step(0, p.costs.full[j], 0, latest);
    step(0, p.costs.full[j], 1, latest);
    if (p.allow_select) step(0, std::max(p.costs.full[j], p.costs.select[j]), 1, j);
    if (p.forced[j]) return;
    if (p.allow_window) step(p.window_loss[0][j], p.costs.window[0][j], 0, latest);
    for (int b : budgets) {
      if (p.allow_scan && j > 0) step(p.scan_loss[b][j], p.costs.scan[b][j], 0, j);
      if (p.allow_reuse && latest >= 0 && p.loss[b][latest][j] <= p.max_edge_nats &&
          (p.max_chain == 0 || j - latest <= p.max_chain))
        step(p.loss[b][latest][j], p.costs.reuse[b][j], 0, latest);
    }
  }
};

void ExpectFits(const PlanProblem& p, const PlanCandidate& c) {
  const auto again = Evaluate(p, c.layers);
  ASSERT_TRUE(again.ok()) << again.error().ToString();
  EXPECT_NEAR(again->loss, c.loss, 1e-12);
  EXPECT_NEAR(again->cost, c.cost, 1e-12);
  std::vector<bool> used(p.layers);
  for (int j = 0; j < p.layers; ++j) {
    if (c.layers[j].role != Role::kReuse) continue;
    ASSERT_GE(c.layers[j].source, 0);
    ASSERT_LT(c.layers[j].source, j);
    used[c.layers[j].source] = true;
  }
  for (int j = 0; j < p.layers; ++j)
    EXPECT_TRUE(c.layers[j].role != Role::kSelect || used[j]) << "select without users at " << j;
}

TEST(Search, CountFrontEqualsBruteForce) {
  Instances make(1);
  for (int n = 0; n < 3000; ++n) {
    const PlanProblem p = make.Make(make.Int(1, n % 20 ? 4 : 6));
    const int budget = make.Int(0, 1);
    BruteForce brute{p, {budget}, {}};
    brute.Run();
    const auto front = BestByCount(p, budget);
    ASSERT_TRUE(front.ok()) << front.error().ToString();
    ASSERT_EQ(front->size(), brute.by_count.size()) << "instance " << n;
    size_t at = 0;
    for (const auto& [dense, loss] : brute.by_count) {
      const PlanCandidate& c = (*front)[at++];
      EXPECT_EQ(c.dense, dense) << "instance " << n;
      EXPECT_NEAR(c.loss, loss, 1e-12) << "instance " << n << ", " << dense << " dense";
      ExpectFits(p, c);
    }
  }
}

TEST(Search, PricedPlanEqualsBruteForce) {
  Instances make(2);
  for (int n = 0; n < 3000; ++n) {
    const PlanProblem p = make.Make(make.Int(1, n % 20 ? 4 : 6));
    BruteForce brute{p, {0, 1}, {0, make.Real(1), make.Real(10), 1000}};
    brute.Run();
    for (size_t i = 0; i < brute.lambdas.size(); ++i) {
      const auto best = BestByPrice(p, brute.lambdas[i]);
      ASSERT_TRUE(best.ok()) << best.error().ToString();
      EXPECT_NEAR(best->loss + brute.lambdas[i] * best->share, brute.by_price[i],
                  1e-12 * (1 + brute.lambdas[i]))
          << "instance " << n;
      ExpectFits(p, *best);
    }
  }
}

TEST(Search, MoreDenseLayersNeverLoseMore) {
  Instances make(3);
  for (int n = 0; n < 500; ++n) {
    PlanProblem p = make.Make(make.Int(1, 24));
    p.allow_select = true;
    const auto front = *BestByCount(p, make.Int(0, 1));
    ASSERT_FALSE(front.empty());
    for (size_t i = 1; i < front.size(); ++i) {
      EXPECT_EQ(front[i].dense, front[i - 1].dense + 1);
      EXPECT_LE(front[i].loss, front[i - 1].loss + 1e-12);
    }
    EXPECT_EQ(front.back().loss, 0);
    int countable = 0;
    for (bool fixed : p.fixed) countable += !fixed;
    EXPECT_EQ(front.back().dense, countable);
  }
}

TEST(Search, LargerPriceNeverBuysMore) {
  Instances make(4);
  for (int n = 0; n < 500; ++n) {
    const PlanProblem p = make.Make(make.Int(1, 24));
    double cost = kInf, loss = 0, lambda = 0;
    for (int i = 0; i < 8; ++i) {
      const auto best = *BestByPrice(p, lambda);
      EXPECT_LE(best.cost, cost + 1e-9);
      EXPECT_GE(best.loss, loss - 1e-9);
      cost = best.cost;
      loss = best.loss;
      lambda += make.Real(1);
    }
  }
}

TEST(Search, SweepHoldsEachPlanOnceCheapestFirst) {
  Instances make(5);
  PlanProblem p = make.Make(20);
  p.allow_select = p.allow_scan = p.allow_reuse = p.allow_window = true;
  p.max_edge_nats = kInf;
  p.max_chain = 0;
  const auto sweep = *SweepPrice(p, DefaultPrices());
  ASSERT_GT(sweep.size(), 3u);
  for (size_t i = 1; i < sweep.size(); ++i) {
    EXPECT_GE(sweep[i].cost, sweep[i - 1].cost);
    EXPECT_LE(sweep[i].loss, sweep[i - 1].loss + 1e-9);
    for (size_t j = 0; j < i; ++j) EXPECT_NE(sweep[i].layers, sweep[j].layers);
  }
}

// A problem without accidents: four layers, one budget, one window, every option open.
PlanProblem Plain(int layers = 4) {
  PlanProblem p;
  p.layers = layers;
  p.budgets = {128, 256};
  p.windows = {{4, 60}};
  const std::vector<double> ones(layers, 1.0);
  for (int b = 0; b < 2; ++b) {
    p.loss.push_back(std::vector<std::vector<double>>(layers, ones));
    p.scan_loss.push_back(ones);
    p.costs.scan.push_back(std::vector<double>(layers, 0.3));
    p.costs.reuse.push_back(std::vector<double>(layers, 0.1));
  }
  p.window_loss = {ones};
  p.costs.window = {std::vector<double>(layers, 0.05)};
  p.costs.full = p.costs.select = ones;
  return p;
}

TEST(Search, EqualLossTakesTheNearerSource) {
  PlanProblem p = Plain(3);
  p.allow_scan = p.allow_window = false;
  p.forced = {false, true, false};
  const auto front = *BestByCount(p, 0);
  ASSERT_EQ(front[0].dense, 2);  // layer 2 loses as much on layer 0's set as on layer 1's
  EXPECT_EQ(front[0].layers[2].role, Role::kReuse);
  EXPECT_EQ(front[0].layers[2].source, 1);
}

TEST(Search, NegativeLossesCountAsZeroAndNaNIsAnError) {
  PlanProblem p = Plain();
  p.allow_window = p.allow_scan = false;
  for (auto& row : p.loss[0]) row.assign(4, -0.5);
  EXPECT_EQ(BestByCount(p, 0)->front().loss, 0);
  p.loss[1][1][2] = std::nan("");
  const auto result = BestByPrice(p, 1);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().message(), "loss[1][1]: layer 2 is NaN");
}

TEST(Search, MalformedProblemsAreErrors) {
  const auto broken = [](auto change) {
    PlanProblem p = Plain();
    change(p);
    EXPECT_FALSE(BestByPrice(p, 1).ok());
    EXPECT_FALSE(BestByCount(p, 0).ok());
    EXPECT_FALSE(Neighbours(p, std::vector<LayerRole>(4), 0).ok());
  };
  broken([](PlanProblem& p) { p.layers = 0; });
  broken([](PlanProblem& p) { p.layers = 5; });
  broken([](PlanProblem& p) { p.budgets = {256, 128}; });
  broken([](PlanProblem& p) { p.forced = {true}; });
  broken([](PlanProblem& p) { p.loss.pop_back(); });
  broken([](PlanProblem& p) { p.loss[0].pop_back(); });
  broken([](PlanProblem& p) { p.scan_loss[1].clear(); });
  broken([](PlanProblem& p) { p.windows[0].recent = 0; });
  broken([](PlanProblem& p) { p.costs.full[2] = kInf; });
  broken([](PlanProblem& p) { p.costs.scan.clear(); });
  broken([](PlanProblem& p) { p.max_chain = -1; });
  EXPECT_FALSE(BestByPrice(Plain(), -1).ok());
  EXPECT_FALSE(BestByPrice(Plain(), std::nan("")).ok());
  EXPECT_FALSE(BestByCount(Plain(), 2).ok());
}

TEST(Search, PaperObjectiveUsesFewestSelectsThenMostOverlap) {
  Instances make(6);
  for (int n = 0; n < 500; ++n) {
    const int layers = make.Int(1, 7);
    PlanProblem p = Plain(layers);
    std::vector<std::vector<double>> overlap(layers, std::vector<double>(layers));
    for (auto& row : overlap)
      for (double& v : row) v = make.Real(1);
    const double theta = make.Real(1);
    // Brute force over which layers select.
    int fewest = layers + 1;
    double most = 0;
    for (int mask = 1; mask < 1 << layers; mask += 2) {
      double sum = 0;
      int latest = 0, selects = 0;
      bool valid = true;
      for (int j = 0; j < layers; ++j) {
        if (mask >> j & 1) {
          latest = j, ++selects;
        } else {
          valid = valid && overlap[latest][j] >= theta;
          sum += overlap[latest][j];
        }
      }
      if (!valid || selects > fewest) continue;
      most = selects < fewest ? sum : std::max(most, sum);
      fewest = selects;
    }
    const auto plan = PaperPlan(p, overlap, theta, 0);
    ASSERT_TRUE(plan.ok()) << plan.error().ToString();
    EXPECT_EQ(plan->dense, fewest);
    EXPECT_NEAR(layers - fewest - plan->loss, most, 1e-12);
  }
}

TEST(Search, EvaluateNamesTheLayerOfAnUnmeasuredOption) {
  const PlanProblem p = Plain();
  const auto error = [&](int layer, LayerRole role) {
    std::vector<LayerRole> roles(4);
    roles[0].role = Role::kSelect;
    roles[layer] = role;
    const auto result = Evaluate(p, roles);
    return result.ok() ? "ok" : result.error().message();
  };
  EXPECT_EQ(error(1, {.role = Role::kReuse, .k = {100, 0}}),
            "layer 1 (reuse): no budget of 100 tokens was measured");
  EXPECT_EQ(error(2, {.role = Role::kReuse, .source = 1, .k = {128, 0}}),
            "layer 2 (reuse): layer 1 is no earlier publisher");
  EXPECT_EQ(error(2, {.role = Role::kWindow, .sink = 4, .recent = 61}),
            "layer 2 (window): no window of sink 4, recent 61 was measured");
  EXPECT_EQ(error(0, {.role = Role::kScan, .k = {128, 0}}),
            "layer 0 (scan): layer 0 has no measured scan loss");
  EXPECT_EQ(error(1, {.role = Role::kReuse, .k = {128, 0}}), "ok");
}

TEST(Search, LayersWithoutCheapOptionAreThoseWhereEverythingIsDear) {
  PlanProblem p = Plain();
  p.scan_loss[1][2] = 0.01;
  p.window_loss[0][0] = 0.02;
  p.loss[0][1][3] = 0.03;
  EXPECT_EQ(LayersWithoutCheapOption(p, 0.05), (std::vector<int>{1}));
}

bool Has(const std::vector<PlanMove>& moves, PlanMove::Kind kind, const std::string& what) {
  for (const PlanMove& m : moves)
    if (m.kind == kind && m.what == what) return true;
  return false;
}

TEST(Neighbours, EveryKindOfMoveIsFound) {
  PlanProblem p = Plain(6);
  p.loss[0][4][5] = 0.5;
  const LayerRole select{.role = Role::kSelect};
  const auto reuse = [](int i) {
    return LayerRole{.role = Role::kReuse, .source = i, .k = {128, 0}};
  };
  const LayerRole window{.role = Role::kWindow, .sink = 4, .recent = 60};
  const auto moves = *Neighbours(p, {select, window, select, reuse(2), reuse(0), reuse(2)}, 1);
  using Kind = PlanMove::Kind;
  EXPECT_TRUE(Has(moves, Kind::kDemote, "layer 2: select -> reuse(0, 256)"));
  EXPECT_TRUE(Has(moves, Kind::kDemote, "layer 2: select -> scan(256)"));
  EXPECT_TRUE(Has(moves, Kind::kDemote, "layer 2: select -> window(4, 60)"));
  EXPECT_TRUE(Has(moves, Kind::kPromote, "layer 4: reuse(0, 128) -> select"));
  EXPECT_TRUE(Has(moves, Kind::kPromote, "layer 4: reuse(0, 128) -> scan(128)"));
  EXPECT_TRUE(Has(moves, Kind::kPromote, "layer 5: reuse(2, 128) -> full"));
  EXPECT_TRUE(Has(moves, Kind::kShift, "layer 2: select moves to layer 1"));
  EXPECT_TRUE(Has(moves, Kind::kShift, "layer 2: select moves to layer 3"));
  EXPECT_TRUE(Has(moves, Kind::kResource, "layer 3: reuse(2, 128) -> reuse(0, 128)"));
  EXPECT_TRUE(Has(moves, Kind::kResource, "layer 4: reuse(0, 128) -> reuse(2, 128)"));
  EXPECT_TRUE(Has(moves, Kind::kBudget, "layer 3: reuse(2, 128) -> reuse(2, 256)"));
  EXPECT_TRUE(Has(moves, Kind::kWindow, "layer 1: window(4, 60) -> reuse(0, 256)"));
  EXPECT_TRUE(Has(moves, Kind::kWindow, "layer 3: reuse(2, 128) -> window(4, 60)"));
  for (const PlanMove& m : moves) {
    if (m.what == "layer 4: reuse(0, 128) -> select") {
      EXPECT_EQ(m.result.layers[5].source, 4) << "layer 5 follows where that predicts less loss";
    }
    if (m.what == "layer 2: select moves to layer 1") {
      EXPECT_EQ(m.result.layers[3].source, 1);
      EXPECT_EQ(m.result.layers[2].role, Role::kWindow);
    }
  }
}

TEST(Neighbours, EveryMoveIsValidNewAndDifferent) {
  Instances make(7);
  int64_t checked = 0;
  for (int n = 0; n < 300; ++n) {
    const PlanProblem p = make.Make(make.Int(1, 12));
    PlanCandidate at = *BestByPrice(p, make.Real(3));
    for (int step = 0; step < 4; ++step) {
      const auto moves = Neighbours(p, at.layers, make.Int(0, 1));
      ASSERT_TRUE(moves.ok()) << moves.error().ToString();
      if (moves->empty()) break;
      for (size_t i = 0; i < moves->size(); ++i) {
        const PlanCandidate& c = (*moves)[i].result;
        ExpectFits(p, c);
        EXPECT_NE(c.layers, at.layers) << (*moves)[i].what;
        for (size_t j = 0; j < i; ++j) EXPECT_NE(c.layers, (*moves)[j].result.layers);
        for (int l = 0; l < p.layers; ++l) {
          const Role role = c.layers[l].role;
          EXPECT_TRUE(!p.fixed[l] || role == Role::kFull);
          EXPECT_TRUE(!p.forced[l] || role == Role::kFull || role == Role::kSelect);
        }
        ++checked;
      }
      at = (*moves)[make.Int(0, static_cast<int>(moves->size()) - 1)].result;
    }
  }
  EXPECT_GT(checked, 1000);
}

TEST(Neighbours, NoMoveWithLatestSourcesImprovesOnTheOptimum) {
  // With the latest publisher as the only source in reach, the programme's answer is a local
  // optimum.
  Instances make(8);
  for (int n = 0; n < 300; ++n) {
    PlanProblem p = make.Make(make.Int(1, 8));
    p.max_chain = 0;
    const double lambda = make.Real(3);
    const PlanCandidate best = *BestByPrice(p, lambda);
    const auto moves = Neighbours(p, best.layers, 0);
    ASSERT_TRUE(moves.ok());
    for (const PlanMove& move : *moves) {
      bool latest_only = true;
      int latest = -1;
      for (int l = 0; l < p.layers; ++l) {
        const LayerRole& r = move.result.layers[l];
        if (r.role == Role::kReuse) latest_only = latest_only && r.source == latest;
        if (r.role == Role::kSelect || r.role == Role::kScan) latest = l;
      }
      if (latest_only) {
        EXPECT_GE(move.result.loss + lambda * move.result.share,
                  best.loss + lambda * best.share - 1e-9)
            << move.what;
      }
    }
  }
}

}  // namespace
}  // namespace baton
