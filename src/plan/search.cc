#include "plan/search.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "plan/search_tables.h"

namespace baton {
namespace {

using internal::DenseCost;
using internal::kForbidden;
using internal::ReuseLoss;
using internal::ScanLoss;
using internal::SelectCost;
using internal::WindowLoss;

constexpr int kMaxLayers = 256;  // the table of BestByCount has layers^3 cells of 16 bytes

Status CheckLosses(const std::vector<double>& row, const std::string& name, int layers, int from) {
  if (static_cast<int>(row.size()) != layers)
    return Error::InvalidArgument("{}: expected {} layers, got {}", name, layers, row.size());
  for (int l = from; l < layers; ++l)
    if (std::isnan(row[l])) return Error::InvalidArgument("{}: layer {} is NaN", name, l);
  return Status::Ok();
}

// The programme of hylra 3.4: layers 0..j assigned, c of them dense, i = latest publisher.
class Programme {
 public:
  struct Mode {
    double lambda = 0;   // price per unit of cost, not of share
    bool count = false;  // the number of dense layers is part of the state
    bool full = true;    // false: a layer the model does not limit is dense only as a publisher
  };
  Programme(const PlanProblem& problem, std::vector<int> budgets, const Mode& mode)
      : p_(problem),
        budgets_(std::move(budgets)),
        mode_(mode),
        counts_(mode.count ? problem.layers + 1 : 1),
        cells_(static_cast<size_t>(problem.layers) * counts_ * (problem.layers + 1)) {
    for (int j = 0; j < p_.layers; ++j) Advance(j);
  }

  int counts() const { return counts_; }
  // The best roles with c dense layers (c = 0 without `count`); empty if there are none.
  std::vector<LayerRole> Best(int c) const;

 private:
  // Latest publisher i is stored as column i + 1; column 0 = none.
  struct Cell {
    double value = kForbidden;
    int16_t previous = 0;  // column before this layer
    int16_t index = 0;     // budget or window
    Role role = Role::kFull;
  };
  static_assert(sizeof(Cell) <= 24);

  struct Option {
    Role role;
    int index;
    double loss, cost;
  };

  Cell& At(int j, int c, int column) {
    return cells_[(static_cast<size_t>(j) * counts_ + c) * (p_.layers + 1) + column];
  }
  const Cell& At(int j, int c, int column) const {
    return const_cast<Programme*>(this)->At(j, c, column);
  }
  bool Counted(int j, Role role) const {
    return counts_ > 1 && internal::IsDenseRole(role) && !p_.IsFixed(j);
  }
  double Cost(int j, Role role, int index) const {
    switch (role) {
      case Role::kFull:
        return p_.costs.full[j];
      case Role::kSelect:
        return SelectCost(p_, j);
      case Role::kScan:
        return p_.costs.scan[index][j];
      case Role::kReuse:
        return p_.costs.reuse[index][j];
      case Role::kWindow:
        return p_.costs.window[index][j];
      default:  // the search offers no other role
        return 0;
    }
  }
  void Advance(int j);
  void Extend(int j, int c, int column, double value);
  void Offer(int j, int c, int column, double value, const Option& option);

  const PlanProblem& p_;
  std::vector<int> budgets_;
  Mode mode_;
  int counts_;
  std::vector<Cell> cells_;
};

void Programme::Advance(int j) {
  if (j == 0) {
    Extend(0, 0, 0, 0.0);
    return;
  }
  for (int c = 0; c < std::min(counts_, j + 1); ++c)
    for (int column = 0; column <= j; ++column)
      if (const double value = At(j - 1, c, column).value; value < kForbidden)
        Extend(j, c, column, value);
}

// Every role of layer j after a prefix with c dense layers whose latest publisher is column - 1.
void Programme::Extend(int j, int c, int column, double value) {
  if (mode_.full || p_.IsFixed(j))
    Offer(j, c, column, value, {Role::kFull, 0, 0, p_.costs.full[j]});
  if (internal::MaySelect(p_, j))
    Offer(j, c, column, value, {Role::kSelect, 0, 0, SelectCost(p_, j)});
  for (int b : budgets_) {
    Offer(j, c, column, value, {Role::kScan, b, ScanLoss(p_, b, j), p_.costs.scan[b][j]});
    if (column > 0)
      Offer(j, c, column, value,
            {Role::kReuse, b, ReuseLoss(p_, b, column - 1, j), p_.costs.reuse[b][j]});
  }
  for (int w = 0; w < static_cast<int>(p_.windows.size()); ++w)
    Offer(j, c, column, value, {Role::kWindow, w, WindowLoss(p_, w, j), p_.costs.window[w][j]});
}

void Programme::Offer(int j, int c, int column, double value, const Option& option) {
  if (option.loss == kForbidden) return;
  const double total = value + option.loss + mode_.lambda * option.cost;
  const int to = internal::Publishes(option.role) ? j + 1 : column;
  Cell& cell = At(j, c + Counted(j, option.role), to);
  bool better = total < cell.value;
  if (total == cell.value && cell.value < kForbidden) {
    better = column != cell.previous ? column > cell.previous
                                     : option.cost < Cost(j, cell.role, cell.index);
  }
  if (better)
    cell = {total, static_cast<int16_t>(column), static_cast<int16_t>(option.index), option.role};
}

std::vector<LayerRole> Programme::Best(int c) const {
  int column = 0;
  for (int i = 1; i <= p_.layers; ++i)
    if (At(p_.layers - 1, c, i).value <= At(p_.layers - 1, c, column).value) column = i;
  if (At(p_.layers - 1, c, column).value == kForbidden) return {};
  std::vector<LayerRole> roles(p_.layers);
  for (int j = p_.layers - 1; j >= 0; --j) {
    const Cell& cell = At(j, c, column);
    LayerRole& role = roles[j];
    role.role = cell.role;
    if (role.role == Role::kScan || role.role == Role::kReuse) role.k = {p_.budgets[cell.index], 0};
    if (role.role == Role::kReuse) role.source = cell.previous - 1;
    if (role.role == Role::kWindow) {
      role.sink = p_.windows[cell.index].sink;
      role.recent = p_.windows[cell.index].recent;
    }
    c -= Counted(j, role.role);
    column = cell.previous;
  }
  internal::DemoteUnused(&roles);
  return roles;
}

std::vector<int> AllBudgets(const PlanProblem& p) {
  std::vector<int> all(p.budgets.size());
  for (size_t b = 0; b < all.size(); ++b) all[b] = static_cast<int>(b);
  return all;
}

Result<PlanCandidate> ByPriceChecked(const PlanProblem& p, double lambda) {
  if (!std::isfinite(lambda) || lambda < 0)
    return Error::InvalidArgument("price: expected a number of nats from 0, got {}", lambda);
  const double dense = DenseCost(p);
  const Programme programme(p, AllBudgets(p), {.lambda = dense > 0 ? lambda / dense : 0});
  return internal::EvaluateChecked(p, programme.Best(0));
}

Result<std::vector<PlanCandidate>> FrontByCount(const PlanProblem& p, int budget, bool full) {
  const Programme programme(p, {budget}, {.count = true, .full = full});
  std::vector<PlanCandidate> front;
  for (int c = 0; c < programme.counts(); ++c) {
    std::vector<LayerRole> roles = programme.Best(c);
    if (roles.empty()) continue;
    BATON_ASSIGN(PlanCandidate candidate, internal::EvaluateChecked(p, std::move(roles)));
    front.push_back(std::move(candidate));
  }
  return front;
}

Status CheckBudgetIndex(const PlanProblem& p, int budget) {
  if (budget >= 0 && budget < static_cast<int>(p.budgets.size())) return Status::Ok();
  return Error::InvalidArgument("budget index: expected 0 to {}, got {}",
                                static_cast<int>(p.budgets.size()) - 1, budget);
}

}  // namespace

Status CheckProblem(const PlanProblem& p) {
  if (p.layers < 1 || p.layers > kMaxLayers)
    return Error::InvalidArgument("plan problem: expected 1 to {} layers, got {}", kMaxLayers,
                                  p.layers);
  const size_t layers = p.layers;
  if ((!p.forced.empty() && p.forced.size() != layers) ||
      (!p.fixed.empty() && p.fixed.size() != layers))
    return Error::InvalidArgument("plan problem: forced lists {} and fixed {} of {} layers",
                                  p.forced.size(), p.fixed.size(), layers);
  for (size_t b = 0; b < p.budgets.size(); ++b)
    if (p.budgets[b] < 1 || (b && p.budgets[b] <= p.budgets[b - 1]))
      return Error::InvalidArgument(
          "plan problem: budgets must be positive and ascend, got {} at {}", p.budgets[b], b);
  if (p.loss.size() != p.budgets.size() || p.scan_loss.size() != p.budgets.size() ||
      p.window_loss.size() != p.windows.size())
    return Error::InvalidArgument(
        "plan problem: {} budgets and {} windows, but {} loss, {} scan and {} window tables",
        p.budgets.size(), p.windows.size(), p.loss.size(), p.scan_loss.size(),
        p.window_loss.size());
  for (size_t b = 0; b < p.budgets.size(); ++b) {
    if (p.loss[b].size() != layers)
      return Error::InvalidArgument("loss[{}]: expected {} sources, got {}", b, layers,
                                    p.loss[b].size());
    for (int i = 0; i < p.layers; ++i)
      BATON_TRY(CheckLosses(p.loss[b][i], fmt::format("loss[{}][{}]", b, i), p.layers, i + 1));
    BATON_TRY(CheckLosses(p.scan_loss[b], fmt::format("scan_loss[{}]", b), p.layers, 1));
  }
  for (size_t w = 0; w < p.windows.size(); ++w) {
    if (p.windows[w].sink < 0 || p.windows[w].recent < 1)
      return Error::InvalidArgument("window {}: sink {} must be 0 or more and recent {} 1 or more",
                                    w, p.windows[w].sink, p.windows[w].recent);
    BATON_TRY(CheckLosses(p.window_loss[w], fmt::format("window_loss[{}]", w), p.layers, 0));
  }
  if (std::isnan(p.max_edge_nats) || p.max_chain < 0)
    return Error::InvalidArgument(
        "plan problem: max_edge_nats {} and max_chain {} must be 0 or more", p.max_edge_nats,
        p.max_chain);
  return CheckCosts(p.costs, p.layers, static_cast<int>(p.budgets.size()),
                    static_cast<int>(p.windows.size()));
}

Result<std::vector<PlanCandidate>> BestByCount(const PlanProblem& p, int budget) {
  BATON_TRY(CheckProblem(p));
  BATON_TRY(CheckBudgetIndex(p, budget));
  return FrontByCount(p, budget, true);
}

Result<PlanCandidate> BestByPrice(const PlanProblem& p, double lambda) {
  BATON_TRY(CheckProblem(p));
  return ByPriceChecked(p, lambda);
}

Result<std::vector<PlanCandidate>> SweepPrice(const PlanProblem& p,
                                              const std::vector<double>& lambdas) {
  BATON_TRY(CheckProblem(p));
  std::vector<PlanCandidate> out;
  for (double lambda : lambdas) {
    BATON_ASSIGN(PlanCandidate candidate, ByPriceChecked(p, lambda));
    const bool known = std::any_of(out.begin(), out.end(), [&](const PlanCandidate& c) {
      return c.layers == candidate.layers;
    });
    if (!known) out.push_back(std::move(candidate));
  }
  std::stable_sort(out.begin(), out.end(), [](const PlanCandidate& a, const PlanCandidate& b) {
    return a.cost != b.cost ? a.cost < b.cost : a.loss < b.loss;
  });
  return out;
}

std::vector<double> DefaultPrices() {
  // Useful plans of a 30-layer model (10 % to 60 % of the bytes, KL 0.003 to 0.03) were found
  // between 0.06 and 0.6 nats per dense step. A decade and more on both sides, half an octave a
  // step: 26 programmes of milliseconds.
  std::vector<double> prices;
  for (double price = 0.0025; price < 20; price *= std::sqrt(2.0)) prices.push_back(price);
  return prices;
}

Result<PlanCandidate> PaperPlan(const PlanProblem& problem,
                                const std::vector<std::vector<double>>& overlap, double theta,
                                int budget) {
  BATON_TRY(CheckProblem(problem));
  BATON_TRY(CheckBudgetIndex(problem, budget));
  if (overlap.size() != static_cast<size_t>(problem.layers))
    return Error::InvalidArgument("overlap: expected {} sources, got {}", problem.layers,
                                  overlap.size());
  PlanProblem p = problem;
  p.allow_select = p.allow_reuse = true;
  p.allow_scan = p.allow_window = false;
  p.max_edge_nats = kForbidden;
  for (int i = 0; i < p.layers; ++i) {
    BATON_TRY(CheckLosses(overlap[i], fmt::format("overlap[{}]", i), p.layers, i + 1));
    for (int j = i + 1; j < p.layers; ++j)
      p.loss[budget][i][j] = overlap[i][j] >= theta ? 1 - overlap[i][j] : kForbidden;
  }
  // At equal counts as many layers reuse, so the least summed 1 - overlap is the largest summed
  // overlap.
  BATON_ASSIGN(std::vector<PlanCandidate> front, FrontByCount(p, budget, false));
  return std::move(front.front());
}

namespace internal {
namespace {

int IndexOf(const std::vector<int64_t>& budgets, const Budget& k) {
  if (k.fraction != 0) return -1;
  const auto it = std::find(budgets.begin(), budgets.end(), k.tokens);
  return it == budgets.end() ? -1 : static_cast<int>(it - budgets.begin());
}

struct Price {
  double loss = 0, cost = 0;
};

Result<Price> PriceOf(const PlanProblem& p, const std::vector<LayerRole>& layers, int j) {
  const LayerRole& role = layers[j];
  const std::string name = fmt::format("layer {} ({})", j, ToString(role.role));
  if (p.IsFixed(j) && role.role != Role::kFull)
    return Error::InvalidArgument("{}: the model limits the layer's window, it must be full", name);
  if (p.IsForced(j) && !IsDenseRole(role.role))
    return Error::InvalidArgument("{}: the layer is forced and must be full or select", name);
  if (role.role == Role::kFull) return Price{0, p.costs.full[j]};
  if (role.role == Role::kSelect) return Price{0, SelectCost(p, j)};
  if (role.role == Role::kWindow) {
    const auto it =
        std::find(p.windows.begin(), p.windows.end(), WindowOption{role.sink, role.recent});
    if (it == p.windows.end())
      return Error::InvalidArgument("{}: no window of sink {}, recent {} was measured", name,
                                    role.sink, role.recent);
    const size_t w = it - p.windows.begin();
    return Price{Clamped(p.window_loss[w][j]), p.costs.window[w][j]};
  }
  const int b = IndexOf(p.budgets, role.k);
  if (b < 0)
    return Error::InvalidArgument("{}: no budget of {} tokens was measured", name, role.k.tokens);
  if (role.role == Role::kScan) {
    if (j == 0) return Error::InvalidArgument("{}: layer 0 has no measured scan loss", name);
    return Price{Clamped(p.scan_loss[b][j]), p.costs.scan[b][j]};
  }
  if (role.source < 0 || role.source >= j || !Publishes(layers[role.source].role))
    return Error::InvalidArgument("{}: layer {} is no earlier publisher", name, role.source);
  return Price{EdgeLoss(p, b, role.source, j), p.costs.reuse[b][j]};
}

}  // namespace

Result<PlanCandidate> EvaluateChecked(const PlanProblem& p, std::vector<LayerRole> layers) {
  if (static_cast<int>(layers.size()) != p.layers)
    return Error::InvalidArgument("plan has {} layers, the problem {}", layers.size(), p.layers);
  PlanCandidate out;
  int latest = -1;
  for (int j = 0; j < p.layers; ++j) {
    if (layers[j].role == Role::kReuse && layers[j].source == -1) layers[j].source = latest;
    BATON_ASSIGN(const Price price, PriceOf(p, layers, j));
    if (!std::isfinite(price.loss))
      return Error::InvalidArgument("layer {} ({}): the option is forbidden (infinite loss)", j,
                                    ToString(layers[j].role));
    out.loss += price.loss;
    out.cost += price.cost;
    out.dense += IsDenseRole(layers[j].role) && !p.IsFixed(j);
    if (Publishes(layers[j].role)) latest = j;
  }
  const double dense = DenseCost(p);
  out.share = dense > 0 ? out.cost / dense : 1;
  out.layers = std::move(layers);
  return out;
}

}  // namespace internal

Result<PlanCandidate> Evaluate(const PlanProblem& problem, std::vector<LayerRole> layers) {
  BATON_TRY(CheckProblem(problem));
  return internal::EvaluateChecked(problem, std::move(layers));
}

std::vector<int> LayersWithoutCheapOption(const PlanProblem& p, double nats) {
  std::vector<int> out;
  for (int j = 0; j < p.layers; ++j) {
    if (p.IsFixed(j) || p.IsForced(j)) continue;
    double least = kForbidden;
    for (int w = 0; w < static_cast<int>(p.windows.size()); ++w)
      least = std::min(least, WindowLoss(p, w, j));
    for (int b = 0; b < static_cast<int>(p.budgets.size()); ++b) {
      least = std::min(least, ScanLoss(p, b, j));
      for (int i = 0; i < j; ++i)
        if (!p.IsFixed(i)) least = std::min(least, ReuseLoss(p, b, i, j));
    }
    if (least > nats) out.push_back(j);
  }
  return out;
}

}  // namespace baton
