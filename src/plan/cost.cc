#include "plan/cost.h"

#include <algorithm>
#include <cmath>
#include <string>

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

}  // namespace

int64_t LayerKvBytes(const ModelShape& model, int layer, const LayerRole& role, int64_t visible) {
  const int64_t row = 2 * model.kv_heads * model.head_dim * 2;
  const int64_t limit = model.window.empty() ? 0 : model.window[layer];
  switch (role.role) {
    case Role::kFull:
    case Role::kSelect:
      return (limit > 0 ? std::min(visible, limit) : visible) * row;
    case Role::kScan:
      return visible * LowBitBytes(model.head_dim) * model.kv_heads +
             std::min(role.k.At(visible), visible) * row;
    case Role::kReuse:
      return std::min(role.k.At(visible), visible) * row;
    case Role::kWindow:
      return std::min(visible, role.sink + role.recent) * row;
  }
  return 0;
}

LayerCosts ByteCosts(const ModelShape& model, const std::vector<int64_t>& budgets,
                     const std::vector<WindowOption>& windows, int64_t visible) {
  const auto table = [&](const LayerRole& role) {
    std::vector<double> out(model.layers);
    for (int l = 0; l < model.layers; ++l)
      out[l] = static_cast<double>(LayerKvBytes(model, l, role, visible));
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

Status CheckCosts(const LayerCosts& costs, int layers, int budgets, int windows) {
  BATON_TRY(CheckRow(costs.full, "full", layers));
  BATON_TRY(CheckRow(costs.select, "select", layers));
  BATON_TRY(CheckTable(costs.scan, "scan", budgets, layers));
  BATON_TRY(CheckTable(costs.reuse, "reuse", budgets, layers));
  return CheckTable(costs.window, "window", windows, layers);
}

}  // namespace baton
