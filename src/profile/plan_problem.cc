#include "profile/plan_problem.h"

#include <algorithm>
#include <limits>

namespace baton {
namespace {

// Losses of single layers, averaged over some kinds of text: priced lost mass, or lost mass itself.
class Losses {
 public:
  Losses(const Profile& profile, bool nats, std::span<const size_t> kinds)
      : p_(profile), nats_(nats), kinds_(kinds) {}

  double Borrowed(size_t b, size_t i, size_t j) const {
    const size_t at = i * static_cast<size_t>(p_.layers) + j;
    const double text =
        Mean([&](const KindLoss& k) { return Priced(k.price_text[j], k.text[b][at]); });
    return text + (nats_ ? p_.price_answer[j] * p_.answer[b][at] : 0.5 * p_.worst[b][at]);
  }
  double Scan(size_t b, size_t j) const {
    const double text =
        Mean([&](const KindLoss& k) { return Priced(k.own_price_text[j], k.scan_text[b][j]); });
    return text + Priced(p_.own_price_answer[j], p_.scan_answer[b][j]);
  }
  double Window(size_t w, size_t j) const {
    return Mean([&](const KindLoss& k) { return double{k.window_text[w][j]}; }) +
           p_.window_answer[w][j];
  }

 private:
  double Priced(double price, double mass) const { return (nats_ ? price : 0.5) * mass; }
  double Mean(const auto& of_kind) const {
    double sum = 0;
    for (const size_t k : kinds_) sum += of_kind(p_.kinds[k]);
    return sum / static_cast<double>(kinds_.size());
  }

  const Profile& p_;
  bool nats_;
  std::span<const size_t> kinds_;
};

}  // namespace

PlanProblem ProblemOf(const Profile& p, const PlanOptions& options, std::span<const size_t> kinds,
                      const ModelShape& shape) {
  const auto n = static_cast<size_t>(p.layers);
  PlanProblem problem;
  problem.layers = p.layers;
  problem.budgets = p.options.budgets;
  problem.forced.assign(n, false);
  for (int l : options.forced) problem.forced[static_cast<size_t>(l)] = true;
  problem.fixed.assign(n, false);
  for (size_t l = 0; l < n; ++l) problem.fixed[l] = p.model_window[l] > 0;
  for (int64_t w : p.options.windows)
    problem.windows.push_back({p.options.sink, w - p.options.sink});
  const auto allowed = [&](Role r) {
    return std::find(options.roles.begin(), options.roles.end(), r) != options.roles.end();
  };
  problem.allow_select = allowed(Role::kSelect);
  problem.allow_reuse = allowed(Role::kReuse);
  problem.allow_window = allowed(Role::kWindow);
  problem.allow_scan =
      allowed(Role::kScan) && p.head_dim % 32 == 0 && p.options.scope == Scope::kAll;
  const Losses losses(p, options.objective == PlanObjective::kNats, kinds);
  for (size_t b = 0; b < problem.budgets.size(); ++b) {
    std::vector<std::vector<double>> loss(n, std::vector<double>(n, 0));
    std::vector<double> scan(n, 0);
    for (size_t j = 0; j < n; ++j) {
      for (size_t i = 0; i < j; ++i) {
        // A layer with a window of its own publishes nothing useful.
        loss[i][j] = problem.fixed[i] || problem.fixed[j] ? std::numeric_limits<double>::infinity()
                                                          : losses.Borrowed(b, i, j);
      }
      scan[j] = losses.Scan(b, j);
    }
    problem.loss.push_back(std::move(loss));
    problem.scan_loss.push_back(std::move(scan));
  }
  for (size_t w = 0; w < problem.windows.size(); ++w) {
    problem.window_loss.emplace_back(n);
    for (size_t j = 0; j < n; ++j) problem.window_loss.back()[j] = losses.Window(w, j);
  }
  const int64_t context = p.options.context;
  problem.costs =
      options.target.max_held > 0
          ? HeldCosts(shape, problem.budgets, problem.windows, context)
          : ByteCosts(shape, problem.budgets, problem.windows, std::max<int64_t>(1, context - 256));
  return problem;
}

LayerCosts TimeCosts(const Profile& p, const PlanProblem& problem) {
  LayerCosts t = problem.costs;
  for (size_t l = 0; l < static_cast<size_t>(p.layers); ++l) {
    const double scale = problem.fixed[l] ? 0 : 1;
    t.full[l] = scale * p.costs.full;
    t.select[l] = scale * p.costs.select;
    for (size_t b = 0; b < problem.budgets.size(); ++b) {
      t.scan[b][l] = scale * p.costs.scan[b];
      t.reuse[b][l] = scale * p.costs.reuse[b];
    }
    for (size_t w = 0; w < problem.windows.size(); ++w) t.window[w][l] = scale * p.costs.window[w];
  }
  return t;
}

}  // namespace baton
