#include "plan/cost.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/check.h"
#include "plan/kv_bytes.h"
#include "plan/roles.h"

namespace baton {
namespace {

Status CheckRow(const std::vector<double>& row, const std::string& name, int layers) {
  if (static_cast<int>(row.size()) != layers)
    return Error::InvalidArgument("cost table {}: expected {} layers, got {}", name, layers,
                                  row.size());
  for (int l = 0; l < layers; ++l)
    if (!std::isfinite(row[l]) || row[l] < 0)
      return Error::InvalidArgument("cost table {}: layer {} costs {}", name, l, row[l]);
  return Status::Ok();
}

Status CheckTable(const std::vector<std::vector<double>>& table, const std::string& name, int rows,
                  int layers) {
  if (static_cast<int>(table.size()) != rows)
    return Error::InvalidArgument("cost table {}: expected {} rows, got {}", name, rows,
                                  table.size());
  for (int r = 0; r < rows; ++r)
    BATON_TRY(CheckRow(table[r], fmt::format("{}[{}]", name, r), layers));
  return Status::Ok();
}

LayerCosts CostsOf(RoleBytes bytes, const ModelShape& model, const std::vector<int64_t>& budgets,
                   const std::vector<WindowOption>& windows, int64_t tokens) {
  const auto table = [&](const LayerRole& role) {
    std::vector<double> out(model.layers);
    for (int l = 0; l < model.layers; ++l)
      out[l] = static_cast<double>(bytes(model, l, role, tokens));
    return out;
  };
  LayerCosts costs;
  costs.full = table({.role = Role::kFull});
  costs.select = table({.role = Role::kSelect});
  for (int64_t k : budgets) {
    costs.scan.push_back(table({.role = Role::kScan, .k = {k, 0}}));
    costs.reuse.push_back(table({.role = Role::kReuse, .k = {k, 0}}));
  }
  for (const WindowOption& w : windows)
    costs.window.push_back(table({.role = Role::kWindow, .sink = w.sink, .recent = w.recent}));
  return costs;
}

}  // namespace

int64_t RoleKvBytes(const ModelShape& model, int layer, const LayerRole& role, int64_t visible) {
  ResolvedPlan plan = ModelPlan(model);
  const int cache = plan.OwnCache(layer);
  LayerPlan& l = plan.layers[static_cast<size_t>(layer)];
  TokenSet& set = l.branches[0].set;
  const RoleRow& row = RowOf(role.role);
  if (role.role == Role::kWindow) {
    set = {.kind = TokenSet::Kind::kWindow, .sink = role.sink, .recent = role.recent};
  } else if (row.branches[0].tokens == TokenSet::Kind::kIndex) {
    set = {.kind = TokenSet::Kind::kIndex, .k = role.k};
    if (row.publishes) l.publish = Publish{.ranking = Publish::Ranking::kLowBit};
  }
  BATON_CHECK_GE(cache, 0);
  return LayerKvBytes(plan, layer, visible);
}

LayerCosts ByteCosts(const ModelShape& model, const std::vector<int64_t>& budgets,
                     const std::vector<WindowOption>& windows, int64_t visible) {
  return CostsOf(RoleKvBytes, model, budgets, windows, visible);
}

int64_t RoleHeldBytes(const ModelShape& model, int layer, const LayerRole& role, int64_t tokens) {
  const ResolvedPlan plan = ModelPlan(model);
  CacheSpec cache = plan.caches[static_cast<size_t>(plan.OwnCache(layer))];
  if (role.role == Role::kScan) cache.low_bit = true;
  if (role.role == Role::kWindow) cache.sink = role.sink, cache.recent = role.recent;
  return KvBytesHeld({cache}, tokens);
}

LayerCosts HeldCosts(const ModelShape& model, const std::vector<int64_t>& budgets,
                     const std::vector<WindowOption>& windows, int64_t tokens) {
  return CostsOf(RoleHeldBytes, model, budgets, windows, tokens);
}

Status CheckCosts(const LayerCosts& costs, int layers, int budgets, int windows) {
  BATON_TRY(CheckRow(costs.full, "full", layers));
  BATON_TRY(CheckRow(costs.select, "select", layers));
  BATON_TRY(CheckTable(costs.scan, "scan", budgets, layers));
  BATON_TRY(CheckTable(costs.reuse, "reuse", budgets, layers));
  return CheckTable(costs.window, "window", windows, layers);
}

}  // namespace baton
