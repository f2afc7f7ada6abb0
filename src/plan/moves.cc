// The moves of the local search. Each one edits a copy of the roles, mends the sources that the
// edit broke, and is dropped if they cannot be mended.
#include <algorithm>
#include <unordered_set>

#include "plan/search.h"
#include "plan/search_tables.h"

namespace baton {
namespace {

using internal::kForbidden;
using internal::Publishes;
using internal::ReuseLoss;
using Roles = std::vector<LayerRole>;
using Kind = PlanMove::Kind;

std::string Describe(const LayerRole& r) {
  switch (r.role) {
    case Role::kScan:
      return fmt::format("scan({})", r.k.tokens);
    case Role::kReuse:
      return fmt::format("reuse({}, {})", r.source, r.k.tokens);
    case Role::kWindow:
      return fmt::format("window({}, {})", r.sink, r.recent);
    default:
      return ToString(r.role);
  }
}

class Mover {
 public:
  Mover(const PlanProblem& problem, Roles base, int budget)
      : p_(problem), base_(std::move(base)), budget_(budget) {}

  std::vector<PlanMove> Run() {
    for (int l = 0; l < p_.layers; ++l) {
      if (p_.IsFixed(l)) continue;
      const Role role = base_[l].role;
      if (role == Role::kReuse) {
        Resource(l);
      } else if (role != Role::kWindow) {
        Demote(l);
      }
      Promote(l);
      if (role == Role::kReuse || role == Role::kScan) StepBudget(l);
      if (role == Role::kReuse || role == Role::kWindow) SwapWindow(l);
      if (Publishes(role)) {
        Shift(l, l - 1);
        Shift(l, l + 1);
      }
    }
    return std::move(moves_);
  }

 private:
  int BudgetIndex(const LayerRole& role) const {
    const auto it = std::find(p_.budgets.begin(), p_.budgets.end(), role.k.tokens);
    return static_cast<int>(it - p_.budgets.begin());
  }
  LayerRole ReuseOf(int source, int b) const {
    return {.role = Role::kReuse, .source = source, .k = {p_.budgets[b], 0}};
  }
  LayerRole ScanOf(int b) const { return {.role = Role::kScan, .k = {p_.budgets[b], 0}}; }
  LayerRole WindowOf(int w) const {
    return {.role = Role::kWindow, .sink = p_.windows[w].sink, .recent = p_.windows[w].recent};
  }

  // The earlier publisher that layer j reuses at least predicted loss; the nearer of equals; -1 if
  // none may be used.
  int BestSource(const Roles& roles, int j, int b) const {
    int best = -1;
    double least = kForbidden;
    for (int i = j - 1; i >= 0; --i) {
      if (!Publishes(roles[i].role)) continue;
      const double loss = ReuseLoss(p_, b, i, j);
      if (loss < least) best = i, least = loss;
    }
    return best;
  }
  bool Settle(Roles* roles, int j) const {
    LayerRole& role = (*roles)[j];
    role.source = BestSource(*roles, j, BudgetIndex(role));
    return role.source >= 0;
  }
  // New sources for the users of a layer that no longer publishes.
  bool SettleUsers(Roles* roles, int of) const {
    for (int j = of + 1; j < p_.layers; ++j)
      if ((*roles)[j].role == Role::kReuse && (*roles)[j].source == of && !Settle(roles, j))
        return false;
    return true;
  }
  // Later reuse layers follow a new publisher where that predicts less loss.
  void Attract(Roles* roles, int publisher) const {
    for (int j = publisher + 1; j < p_.layers; ++j) {
      LayerRole& role = (*roles)[j];
      if (role.role != Role::kReuse) continue;
      const int b = BudgetIndex(role);
      if (ReuseLoss(p_, b, publisher, j) < internal::EdgeLoss(p_, b, role.source, j))
        role.source = publisher;
    }
  }

  // Equal keys exactly where equal roles: comparing every pair took minutes at 256 layers.
  static std::string Key(const Roles& roles) {
    std::string key;
    key.reserve(roles.size() * 5 * sizeof(int64_t));
    for (const LayerRole& r : roles)
      for (int64_t v :
           {static_cast<int64_t>(r.role), int64_t{r.source}, r.k.tokens, r.sink, r.recent})
        key.append(reinterpret_cast<const char*>(&v), sizeof v);
    return key;
  }

  void Add(Kind kind, int layer, Roles roles, std::string what = "") {
    internal::DemoteUnused(&roles);
    if (roles == base_) return;
    if (!seen_.insert(Key(roles)).second) return;
    if (what.empty())
      what =
          fmt::format("layer {}: {} -> {}", layer, Describe(base_[layer]), Describe(roles[layer]));
    auto result = internal::EvaluateChecked(p_, std::move(roles));
    if (result.ok()) moves_.push_back({kind, layer, std::move(what), std::move(result).value()});
  }
  // Layer l stops publishing and takes `role`.
  void AddWithoutPublisher(Kind kind, int l, const LayerRole& role) {
    Roles roles = base_;
    roles[l] = role;
    if (SettleUsers(&roles, l)) Add(kind, l, std::move(roles));
  }
  void AddPublisher(Kind kind, int l, const LayerRole& role) {
    Roles roles = base_;
    roles[l] = role;
    Attract(&roles, l);
    Add(kind, l, std::move(roles));
  }

  void Demote(int l) {
    if (!internal::MayBeSparse(p_, l)) return;
    if (const int source = BestSource(base_, l, budget_); source >= 0)
      AddWithoutPublisher(Kind::kDemote, l, ReuseOf(source, budget_));
    if (base_[l].role != Role::kScan && internal::ScanLoss(p_, budget_, l) < kForbidden)
      AddPublisher(Kind::kDemote, l, ScanOf(budget_));
    for (int w = 0; w < static_cast<int>(p_.windows.size()); ++w)
      if (internal::WindowLoss(p_, w, l) < kForbidden)
        AddWithoutPublisher(Kind::kDemote, l, WindowOf(w));
  }

  void Promote(int l) {
    const Role role = base_[l].role;
    if (role == Role::kSelect) return;
    if (internal::MaySelect(p_, l)) {
      AddPublisher(Kind::kPromote, l, {.role = Role::kSelect});
    } else if (role == Role::kReuse || role == Role::kWindow) {
      Roles roles = base_;
      roles[l] = LayerRole{};
      Add(Kind::kPromote, l, std::move(roles));
    }
    if (role != Role::kReuse && role != Role::kWindow) return;
    const int b = role == Role::kReuse ? BudgetIndex(base_[l]) : budget_;
    if (internal::ScanLoss(p_, b, l) < kForbidden) AddPublisher(Kind::kPromote, l, ScanOf(b));
  }

  void Resource(int l) {
    const int b = BudgetIndex(base_[l]);
    for (int i = l - 1; i >= 0; --i) {
      if (i == base_[l].source || !Publishes(base_[i].role)) continue;
      if (ReuseLoss(p_, b, i, l) == kForbidden) continue;
      Roles roles = base_;
      roles[l].source = i;
      Add(Kind::kResource, l, std::move(roles));
    }
  }

  void StepBudget(int l) {
    const bool scan = base_[l].role == Role::kScan;
    const int b = BudgetIndex(base_[l]);
    for (int to : {b - 1, b + 1}) {
      if (to < 0 || to >= static_cast<int>(p_.budgets.size())) continue;
      const double loss =
          scan ? internal::ScanLoss(p_, to, l) : ReuseLoss(p_, to, base_[l].source, l);
      if (loss == kForbidden) continue;
      Roles roles = base_;
      roles[l].k = {p_.budgets[to], 0};
      Add(Kind::kBudget, l, std::move(roles));
    }
  }

  void SwapWindow(int l) {
    for (int w = 0; w < static_cast<int>(p_.windows.size()); ++w) {
      if (internal::WindowLoss(p_, w, l) == kForbidden) continue;
      Roles roles = base_;
      roles[l] = WindowOf(w);
      Add(Kind::kWindow, l, std::move(roles));
    }
    if (base_[l].role != Role::kWindow) return;
    if (const int source = BestSource(base_, l, budget_); source >= 0) {
      Roles roles = base_;
      roles[l] = ReuseOf(source, budget_);
      Add(Kind::kWindow, l, std::move(roles));
    }
  }

  // The publisher at `from` and its neighbour `to` swap roles; the publisher's users follow it.
  void Shift(int from, int to) {
    if (to < 0 || to >= p_.layers || p_.IsFixed(to) || Publishes(base_[to].role)) return;
    Roles roles = base_;
    std::swap(roles[from], roles[to]);
    for (int j = std::max(from, to) + 1; j < p_.layers; ++j) {
      LayerRole& role = roles[j];
      if (role.role != Role::kReuse || role.source != from) continue;
      if (ReuseLoss(p_, BudgetIndex(role), to, j) == kForbidden) return;
      role.source = to;
    }
    if (roles[from].role == Role::kReuse && !Settle(&roles, from)) return;
    Add(Kind::kShift, from, std::move(roles),
        fmt::format("layer {}: {} moves to layer {}", from, Describe(base_[from]), to));
  }

  const PlanProblem& p_;
  const Roles base_;
  const int budget_;
  std::vector<PlanMove> moves_;
  std::unordered_set<std::string> seen_;
};

}  // namespace

Result<std::vector<PlanMove>> Neighbours(const PlanProblem& problem, const Roles& layers,
                                         int budget) {
  BATON_TRY(CheckProblem(problem));
  if (budget < 0 || budget >= static_cast<int>(problem.budgets.size()))
    return Error::InvalidArgument("budget index: expected 0 to {}, got {}",
                                  static_cast<int>(problem.budgets.size()) - 1, budget);
  BATON_ASSIGN(PlanCandidate base, internal::EvaluateChecked(problem, layers));
  return Mover(problem, std::move(base.layers), budget).Run();
}

}  // namespace baton
