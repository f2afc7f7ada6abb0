// What the programme and the local search read from a problem: the loss and cost of one option,
// with every rule about which options exist in one place.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "plan/search.h"

namespace baton::internal {

constexpr double kForbidden = std::numeric_limits<double>::infinity();

inline bool Publishes(Role role) { return role == Role::kSelect || role == Role::kScan; }
inline bool IsDenseRole(Role role) { return role == Role::kFull || role == Role::kSelect; }

// 1 - recovered mass may round below zero; no layer gains from losing keys.
inline double Clamped(double loss) { return std::max(0.0, loss); }

inline bool MayBeSparse(const PlanProblem& p, int j) { return !p.IsForced(j) && !p.IsFixed(j); }

// Loss of layer j attending to the first budgets[b] tokens of layer i's ranking, without the limits
// of the search.
inline double EdgeLoss(const PlanProblem& p, int b, int i, int j) {
  return Clamped(p.loss[b][i][j]);
}

// The same, infinite where the search may not take the edge.
inline double ReuseLoss(const PlanProblem& p, int b, int i, int j) {
  if (!p.allow_reuse || !MayBeSparse(p, j) || (p.max_chain > 0 && j - i > p.max_chain))
    return kForbidden;
  const double loss = EdgeLoss(p, b, i, j);
  return loss <= p.max_edge_nats ? loss : kForbidden;
}

inline double ScanLoss(const PlanProblem& p, int b, int j) {
  if (!p.allow_scan || !MayBeSparse(p, j) || j == 0) return kForbidden;
  return Clamped(p.scan_loss[b][j]);
}

inline double WindowLoss(const PlanProblem& p, int w, int j) {
  if (!p.allow_window || !MayBeSparse(p, j)) return kForbidden;
  return Clamped(p.window_loss[w][j]);
}

inline bool MaySelect(const PlanProblem& p, int j) { return p.allow_select && !p.IsFixed(j); }

// Ranking is work on top of attending; a measurement that says otherwise is noise.
inline double SelectCost(const PlanProblem& p, int j) {
  return std::max(p.costs.full[j], p.costs.select[j]);
}

inline double DenseCost(const PlanProblem& p) {
  double sum = 0;
  for (double c : p.costs.full) sum += c;
  return sum;
}

// Selects that no layer reuses become full.
inline void DemoteUnused(std::vector<LayerRole>* layers) {
  std::vector<bool> used(layers->size(), false);
  for (const LayerRole& role : *layers)
    if (role.role == Role::kReuse) used[role.source] = true;
  for (size_t l = 0; l < layers->size(); ++l)
    if ((*layers)[l].role == Role::kSelect && !used[l]) (*layers)[l] = LayerRole{};
}

// Evaluate for a problem that passed CheckProblem.
Result<PlanCandidate> EvaluateChecked(const PlanProblem& problem, std::vector<LayerRole> layers);

}  // namespace baton::internal
