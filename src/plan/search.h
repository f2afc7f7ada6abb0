// Choosing a plan from measured losses: the exact dynamic programme of arXiv 2602.00777 with the
// additive loss, the scan and window roles and the per-layer budgets of docs/plan-format.md, and
// the moves of a local search around its answers. Everything here is a pure function of the tables;
// nothing runs a model.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "baton/error.h"
#include "baton/plan.h"
#include "plan/cost.h"

namespace baton {

// Losses are nats of next-token KL, additive over layers. An infinite loss forbids the option, a
// negative one (rounding of 1 - recovered mass) counts as 0, a NaN is an error.
struct PlanProblem {
  int layers = 0;
  std::vector<int64_t> budgets;  // tokens, strictly ascending
  std::vector<std::vector<std::vector<double>>>
      loss;  // [budgets][layers i][layers j], read for i < j: j reuses i
  std::vector<std::vector<double>>
      scan_loss;  // [budgets][layers]; layer 0 is never read (nothing prices it)
  std::vector<WindowOption> windows;
  std::vector<std::vector<double>> window_loss;  // [windows][layers]
  std::vector<bool> forced;                      // [layers] or empty: full or select, nothing else
  std::vector<bool> fixed;  // [layers] or empty: limited by the model's own window: full, no
                            // publisher, not counted as dense
  bool allow_select = true, allow_scan = true, allow_reuse = true,
       allow_window = true;  // full is always allowed
  double max_edge_nats =
      std::numeric_limits<double>::infinity();  // reuse edges above this are not taken
  int max_chain = 0;                            // largest layer - source of a reuse; 0 = no limit
  LayerCosts costs;

  bool IsForced(int l) const { return !forced.empty() && forced[l]; }
  bool IsFixed(int l) const { return !fixed.empty() && fixed[l]; }
};

// Roles carry explicit sources and explicit budgets in tokens. A select has at least one user.
struct PlanCandidate {
  std::vector<LayerRole> layers;
  double loss = 0;   // predicted nats, summed
  double cost = 0;   // summed, in the unit of the cost table
  double share = 0;  // cost / cost of every layer full
  int dense = 0;     // layers that are full or select, without the fixed ones
};

// Sizes agree, no NaN, budgets ascend. Every function below checks this first.
Status CheckProblem(const PlanProblem& problem);

// For each number c of dense layers that is possible, ascending, the plan of least loss with
// exactly c, every reuse and scan at budgets[budget]. Windows and scans compete if allowed.
Result<std::vector<PlanCandidate>> BestByCount(const PlanProblem& problem, int budget);

// The plan that minimises loss + lambda * share, every budget and window free per layer. lambda >=
// 0: nats that reading the whole dense KV once is worth. Always exists (all full).
Result<PlanCandidate> BestByPrice(const PlanProblem& problem, double lambda);

// One candidate per distinct plan over all lambdas, cheapest first.
Result<std::vector<PlanCandidate>> SweepPrice(const PlanProblem& problem,
                                              const std::vector<double>& lambdas);

// A geometric ladder of prices that spans from "nearly all dense" to "nearly all at the smallest
// budget" on real models.
std::vector<double> DefaultPrices();

// The paper's own objective, for comparison: only select and reuse; layer j may reuse the latest
// select i if overlap[i][j] >= theta; fewest selects first, then the largest summed overlap. `loss`
// is the summed 1 - overlap. `overlap`: [layers][layers], read for i < j. Uses layers, forced,
// fixed, max_chain and costs of the problem.
Result<PlanCandidate> PaperPlan(const PlanProblem& problem,
                                const std::vector<std::vector<double>>& overlap, double theta,
                                int budget);

// Predicted loss and cost of given roles; an error where a role, source, budget or window is not
// one of the problem's.
Result<PlanCandidate> Evaluate(const PlanProblem& problem, std::vector<LayerRole> layers);

// Layers no sparse option of which costs at most `nats`: candidates for `forced`.
std::vector<int> LayersWithoutCheapOption(const PlanProblem& problem, double nats);

struct PlanMove {
  enum class Kind { kDemote, kPromote, kShift, kResource, kBudget, kWindow } kind = Kind::kDemote;
  int layer = 0;
  std::string what;  // "layer 7: select -> reuse(3, 512)"
  PlanCandidate result;
};

// All valid plans one move away, in a fixed order: demote an unforced dense layer or publisher (its
// users go to their cheapest remaining publisher), promote a reuse or window to select, scan or
// full (later users follow where that predicts less loss), shift a publisher by one layer,
// re-source a reuse to any other earlier publisher, step the budget of a reuse or scan, swap window
// and reuse. New reuses and scans get budgets[budget]. `layers` must pass Evaluate.
Result<std::vector<PlanMove>> Neighbours(const PlanProblem& problem,
                                         const std::vector<LayerRole>& layers, int budget);

}  // namespace baton
