#include "profile/role_costs.h"

#include <algorithm>

#include "engine/session.h"
#include "profile/measure.h"
#include "profile/time_pass.h"

namespace baton {
namespace {

constexpr int kSteps = 7;

struct StepTime {
  double attention = 0;  // seconds of attend, mass and select
  double all = 0;
};

class Timer {
 public:
  Timer(Engine& engine, const ProfileOptions& options, Session session)
      : engine_(engine), options_(options), session_(std::move(session)) {}

  // Median over steps of a plan whose layers, past the first eligible ones, all have `role`.
  Result<StepTime> Measure(const std::vector<LayerRole>& layers) {
    Plan plan;
    plan.architecture = engine_.info().architecture;
    plan.budget = {options_.budgets.front(), 0};
    plan.sink = options_.sink;
    plan.recent = options_.recent;
    plan.scope = options_.scope;
    plan.pool = options_.pool;
    plan.block = options_.block;
    plan.min_context = 0;
    plan.layers = layers;
    BATON_ASSIGN(ResolvedPlan resolved, engine_.impl().ResolvePlan(plan, nullptr));
    std::vector<double> attention, all;
    Trace& trace = engine_.impl().ops->trace();
    const bool before = trace.enabled;
    trace.enabled = true;
    for (int i = 0; i < kSteps; ++i) {
      trace.Reset();
      BATON_ASSIGN(const double step, TimePass(engine_, session_, &resolved, 1));
      all.push_back(step);
      attention.push_back(trace[OpKind::kAttend].seconds + trace[OpKind::kMass].seconds +
                          trace[OpKind::kSelect].seconds);
    }
    trace.enabled = before;
    trace.Reset();
    return StepTime{Median(attention), Median(all)};
  }

 private:
  Engine& engine_;
  const ProfileOptions& options_;
  Session session_;
};

}  // namespace

Status MeasureRoleCosts(Engine& engine, const ProfileOptions& options, Profile& profile) {
  const ModelInfo& info = engine.info();
  std::vector<int> global;
  for (int l = 0; l < info.layers; ++l) {
    if (info.window[static_cast<size_t>(l)] == 0) global.push_back(l);
  }
  const bool low_bit = info.head_dim % 32 == 0;
  std::vector<CacheSpec> caches = engine.impl().model_plan.caches;
  for (CacheSpec& c : caches) c.low_bit = low_bit;
  BATON_ASSIGN(Session session, Session::Create(engine, caches, options.context + 64));
  BATON_TRY(session.FillSynthetic(options.context - 1, 1));
  Timer timer(engine, options, std::move(session));

  const std::vector<LayerRole> dense(static_cast<size_t>(info.layers));
  const auto n = static_cast<double>(global.size());
  BATON_ASSIGN(StepTime full, timer.Measure(dense));
  BATON_ASSIGN(full, timer.Measure(dense));  // again: the first touched the memory
  // Window-limited layers cost the same under every plan: what they cost is what full layers do
  // not.
  std::vector<LayerRole> all_windows = dense;
  for (int l : global)
    all_windows[static_cast<size_t>(l)] = {.role = Role::kWindow, .sink = 1, .recent = 1};
  BATON_ASSIGN(StepTime fixed, timer.Measure(all_windows));
  const auto per_layer = [&](const StepTime& t, double layers) {
    return std::max(0.0, (t.attention - fixed.attention) / layers * 1e6);
  };
  profile.costs.full = per_layer(full, n);
  profile.costs.rest_of_step = (full.all - full.attention + fixed.attention) * 1e6;

  for (int64_t k : options.budgets) {
    std::vector<LayerRole> plan = dense;
    for (size_t i = 1; i < global.size(); ++i) {
      plan[static_cast<size_t>(global[i])] = {.role = Role::kScan, .k = {k, 0}};
    }
    double scan = profile.costs.full;
    if (low_bit && n > 1) {
      BATON_ASSIGN(StepTime t, timer.Measure(plan));
      scan = std::max(0.0, (per_layer(t, 1) - profile.costs.full) / (n - 1));
    }
    profile.costs.scan.push_back(scan);
    for (size_t i = 1; i < global.size(); ++i) {
      plan[static_cast<size_t>(global[i])] = {
          .role = Role::kReuse, .source = global[0], .k = {k, 0}};
    }
    plan[static_cast<size_t>(global[0])] = {.role = Role::kSelect};
    double reuse = profile.costs.full;
    if (n > 1) {
      BATON_ASSIGN(StepTime t, timer.Measure(plan));
      reuse = std::max(0.0, (per_layer(t, 1) - profile.costs.full) / (n - 1));
    }
    profile.costs.reuse.push_back(reuse);
  }
  // Every other layer selects for the one behind it.
  std::vector<LayerRole> pairs = dense;
  double selects = 0;
  for (size_t i = 0; i + 1 < global.size(); i += 2, ++selects) {
    pairs[static_cast<size_t>(global[i])] = {.role = Role::kSelect};
    pairs[static_cast<size_t>(global[i + 1])] = {
        .role = Role::kReuse, .source = global[i], .k = {options.budgets.front(), 0}};
  }
  profile.costs.select = profile.costs.full;
  if (selects > 0) {
    BATON_ASSIGN(StepTime t, timer.Measure(pairs));
    const double rest = (n - 2 * selects) * profile.costs.full;
    profile.costs.select = std::max(
        profile.costs.full, (per_layer(t, 1) - rest) / selects - profile.costs.reuse.front());
  }
  for (int64_t w : options.windows) {
    std::vector<LayerRole> plan = dense;
    for (int l : global) {
      plan[static_cast<size_t>(l)] = {
          .role = Role::kWindow, .sink = options.sink, .recent = w - options.sink};
    }
    BATON_ASSIGN(StepTime t, timer.Measure(plan));
    profile.costs.window.push_back(per_layer(t, n));
  }
  return Status::Ok();
}

}  // namespace baton
