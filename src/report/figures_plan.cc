// Pictures with one column per layer.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "plan/kv_bytes.h"
#include "plan/roles.h"
#include "report/figures.h"
#include "report/format.h"
#include "report/svg.h"

namespace baton {
namespace {

using Anchor = Svg::Anchor;

// Every n-th layer is numbered, so that the numbers do not touch.
int LabelStep(double column) { return column >= 18 ? 1 : column >= 9 ? 2 : column >= 4 ? 5 : 10; }

std::string Tokens(int64_t k) {
  return k >= 1024 && k % 1024 == 0 ? fmt::format("{}K", k / 1024) : fmt::format("{}", k);
}

Budget BudgetOf(const Plan& plan, const LayerRole& layer) {
  return layer.k == Budget{} ? plan.budget : layer.k;
}

// The share of this layer's K and V that a decode step reads.
double ShareRead(const Plan& plan, const LayerRole& layer, int64_t context, int64_t model_window) {
  const auto n = static_cast<double>(std::max<int64_t>(context, 1));
  const auto of = [&](double tokens) { return std::min(tokens / n, 1.0); };
  // The 4-bit copy of K beside bf16 K and V.
  constexpr double kLowBitShare = static_cast<double>(LowBitBytes(32)) / (4 * 32);
  const RoleRow& row = RowOf(layer.role);
  if (row.branches[0].tokens == TokenSet::Kind::kIndex) {
    const double list = of(static_cast<double>(BudgetOf(plan, layer).At(context)));
    return row.publishes ? std::min(kLowBitShare + list, 1.0) : list;
  }
  if (layer.role == Role::kWindow) return of(static_cast<double>(layer.sink + layer.recent));
  return model_window > 0 ? of(static_cast<double>(model_window)) : 1;
}

std::string CellTitle(const Plan& plan, int l, int64_t context, double share) {
  const LayerRole& layer = plan.layers[static_cast<size_t>(l)];
  std::string title = fmt::format("layer {}: {}", l, LookOf(layer.role).name);
  if (layer.role == Role::kReuse) title += fmt::format(" of layer {}", SourceOf(plan, l));
  if (layer.role == Role::kReuse || layer.role == Role::kScan)
    title += fmt::format(", k = {}", Count(BudgetOf(plan, layer).At(context)));
  if (layer.role == Role::kWindow)
    title += fmt::format(", first {} and last {} tokens", layer.sink, Count(layer.recent));
  return title +
         fmt::format("; reads {} of its KV bytes at {} tokens", Percent(share), Count(context));
}

std::string CellDetail(const Plan& plan, const LayerRole& layer, int64_t context) {
  if (layer.role == Role::kReuse || layer.role == Role::kScan)
    return Tokens(BudgetOf(plan, layer).At(context));
  return layer.role == Role::kWindow ? Tokens(layer.sink + layer.recent) : "";
}

void DrawArcs(Svg& svg, const Plan& plan, double left, double column, double y, double height) {
  const int layers = static_cast<int>(plan.layers.size());
  int longest = 1;
  for (int l = 0; l < layers; ++l)
    if (const int s = SourceOf(plan, l); s >= 0) longest = std::max(longest, l - s);
  for (int l = 0; l < layers; ++l) {
    const int s = SourceOf(plan, l);
    if (s < 0) continue;
    const double x1 = left + (s + 0.5) * column, x2 = left + (l + 0.5) * column;
    // A cubic reaches three quarters of the height of its control points.
    const double top = y - height * std::sqrt(static_cast<double>(l - s) / longest) * 1.3;
    svg.Path(fmt::format("M{:.1f} {:.1f}C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}", x1, y - 2, x1,
                         top, x2, top, x2, y - 5),
             "arc", fmt::format("layer {} passes its top k to layer {}", s, l));
    svg.Path(fmt::format("M{:.1f} {:.1f}l-3 -6h6z", x2, y - 1), "arrow");
  }
}

}  // namespace

RoleLook LookOf(Role role) {
  const RoleRow& row = RowOf(role);
  return {std::string(1, row.letter), fmt::format("c-{}", row.name), std::string(row.name),
          std::string(row.says)};
}

int SourceOf(const Plan& plan, int layer) {
  const LayerRole& role = plan.layers[static_cast<size_t>(layer)];
  if (role.role != Role::kReuse) return -1;
  if (role.source >= 0) return role.source < layer ? role.source : -1;
  for (int l = layer - 1; l >= 0; --l) {
    if (RowOf(plan.layers[static_cast<size_t>(l)].role).publishes) return l;
  }
  return -1;
}

std::string PlanStrip(const Plan& plan, int64_t context, const std::vector<int64_t>& model_window) {
  const int layers = static_cast<int>(plan.layers.size());
  if (layers == 0) return "";
  constexpr double kLeft = 76, kArcs = 92, kCell = 44, kBars = 70, kWidth = 1080;
  const double column = std::min((kWidth - kLeft - 8) / layers, 56.0);
  Svg svg(kWidth, kArcs + kCell + kBars + 44, "Role of each layer");
  const double bars = kArcs + kCell + 12;
  DrawArcs(svg, plan, kLeft, column, kArcs, kArcs - 8);
  svg.Text(kLeft - 10, kArcs + 27, "role", Anchor::kEnd, "axis-name");
  svg.Text(kLeft - 10, bars + 10, "100 %", Anchor::kEnd);
  svg.Text(kLeft - 10, bars + kBars / 2 + 4, "KV read", Anchor::kEnd, "axis-name");
  svg.Text(kLeft - 10, bars + kBars, "0", Anchor::kEnd);
  svg.Text(kLeft - 10, bars + kBars + 17, "layer", Anchor::kEnd, "axis-name");
  svg.Line(kLeft, bars + kBars + 0.5, kLeft + layers * column, bars + kBars + 0.5, "axis");
  for (int l = 0; l < layers; ++l) {
    const LayerRole& layer = plan.layers[static_cast<size_t>(l)];
    const int64_t window =
        static_cast<size_t>(l) < model_window.size() ? model_window[static_cast<size_t>(l)] : 0;
    const double share = ShareRead(plan, layer, context, window);
    const RoleLook look = LookOf(layer.role);
    const double x = kLeft + l * column, gap = column > 8 ? 2 : 0.5;
    const std::string title = CellTitle(plan, l, context, share);
    svg.Rect(x + gap / 2, kArcs, column - gap, kCell, look.css, title);
    const std::string detail = column >= 26 ? CellDetail(plan, layer, context) : "";
    if (column >= 11)
      svg.Text(x + column / 2, kArcs + (detail.empty() ? 27 : 20), look.letter, Anchor::kMiddle,
               "cell");
    if (!detail.empty())
      svg.Text(x + column / 2, kArcs + 36, detail, Anchor::kMiddle, "cell-small");
    svg.Rect(x + gap / 2, bars, column - gap, kBars, "trough", title);
    svg.Rect(x + gap / 2, bars + kBars * (1 - share), column - gap, kBars * share, look.css, title);
    if (l % LabelStep(column) == 0)
      svg.Text(x + column / 2, bars + kBars + 17, std::to_string(l), Anchor::kMiddle);
  }
  return svg.ToString();
}

std::string RoutingStrip(const RoutingReport& r) {
  const int layers = static_cast<int>(r.bitmap.size());
  if (layers == 0) return "";
  constexpr double kLeft = 76, kCell = 34, kBars = 50, kLogits = 84, kWidth = 1080, kTop = 4;
  const double column = std::min((kWidth - kLeft - 8) / layers, 56.0);
  double largest = 0;  // difference of logits
  for (const auto& [sparse, full] : r.logits)
    largest = std::max(largest, std::abs(static_cast<double>(full) - sparse));
  const bool asked = largest > 0 && std::isfinite(largest);
  const double bars = kTop + kCell + 10, foot = bars + kBars + (asked ? 14 + kLogits : 0);
  const double zero = bars + kBars + 14 + kLogits / 2;
  Svg svg(kWidth, foot + 26, "Routing of each layer");
  svg.Text(kLeft - 10, kTop + 22, "routed", Anchor::kEnd, "axis-name");
  svg.Text(kLeft - 10, bars + kBars / 2 + 4, "KV held", Anchor::kEnd, "axis-name");
  svg.Text(kLeft - 10, foot + 17, "layer", Anchor::kEnd, "axis-name");
  if (asked) {
    svg.Text(kLeft - 10, zero + 4, "logits", Anchor::kEnd, "axis-name");
    svg.Text(kLeft - 10, zero - kLogits / 2 + 10, "+" + Number(largest), Anchor::kEnd);
    svg.Text(kLeft - 10, zero + kLogits / 2, "-" + Number(largest), Anchor::kEnd);
    svg.Line(kLeft, zero, kLeft + layers * column, zero, "axis");
  }
  const double tokens = std::max(1.0, static_cast<double>(r.dense_token_equivalents) / layers);
  for (int l = 0; l < layers; ++l) {
    const auto at = static_cast<size_t>(l);
    const RoleLook look = LookOf(r.bitmap[at] == 'S' ? Role::kWindow : Role::kFull);
    const auto& [sparse, full] = r.logits[at];
    const auto held = static_cast<double>(r.held_token_equivalents[at]);
    const double share = std::clamp(held / tokens, 0.0, 1.0), difference = full - sparse;
    const double x = kLeft + l * column, gap = column > 8 ? 2 : 0.5;
    std::string title =
        fmt::format("layer {}: {}, holds {} of {} tokens", l, look.name,
                    Count(r.held_token_equivalents[at]), Count(static_cast<int64_t>(tokens)));
    if (asked) title += fmt::format("; logits: full {:.3f}, sparse {:.3f}", full, sparse);
    svg.Rect(x + gap / 2, kTop, column - gap, kCell, look.css, title);
    if (column >= 11) svg.Text(x + column / 2, kTop + 22, look.letter, Anchor::kMiddle, "cell");
    svg.Rect(x + gap / 2, bars, column - gap, kBars, "trough", title);
    svg.Rect(x + gap / 2, bars + kBars * (1 - share), column - gap, kBars * share, look.css, title);
    if (asked && std::isfinite(difference)) {
      const double height = std::abs(difference) / largest * kLogits / 2;
      svg.Rect(x + gap / 2, difference > 0 ? zero - height : zero, column - gap, height, look.css,
               title);
    }
    if (l % LabelStep(column) == 0)
      svg.Text(x + column / 2, foot + 17, std::to_string(l), Anchor::kMiddle);
  }
  return svg.ToString();
}

std::string RecoveredMass(const std::vector<float>& lost, int layers, const Plan* plan,
                          const std::string& what) {
  const auto n = static_cast<size_t>(layers);
  if (lost.empty() || lost.size() != n * n) return "";
  std::vector<double> values;
  for (size_t i = 0; i < n; ++i)
    for (size_t j = i; j < n; ++j)
      if (std::isfinite(lost[i * n + j])) values.push_back(1.0 - lost[i * n + j]);
  if (values.empty()) return "";
  std::sort(values.begin(), values.end());
  // Up to a tenth of the values may fall below the scale, so that the others are easier to tell
  // apart.
  const double low = std::clamp(std::floor(values[values.size() / 10] * 10) / 10, 0.0, 0.9);
  constexpr double kLeft = 44, kTop = 28, kSide = 462;
  const double cell = kSide / layers;
  Svg svg(kLeft + kSide + 10, kTop + kSide + 78, "Recovered mass, " + what);
  svg.Text(kLeft, 16, what, Anchor::kStart, "panel");
  for (int i = 0; i < layers; ++i) {
    for (int j = i; j < layers; ++j) {
      const double mass = 1.0 - lost[static_cast<size_t>(i) * n + static_cast<size_t>(j)];
      if (!std::isfinite(mass)) continue;
      const double strength = std::clamp((mass - low) / (1 - low), 0.0, 1.0);
      svg.Rect(kLeft + j * cell, kTop + i * cell, cell - (cell > 6 ? 0.6 : 0),
               cell - (cell > 6 ? 0.6 : 0), "heat",
               i == j ? fmt::format("layer {} on its own top k: {} of its mass", j, Percent(mass))
                      : fmt::format("layer {} on the top k of layer {}: {} of its mass", j, i,
                                    Percent(mass)),
               0.05 + 0.94 * strength);
    }
    if (i % LabelStep(cell) == 0) {
      svg.Text(kLeft - 6, kTop + (i + 0.5) * cell + 4, std::to_string(i), Anchor::kEnd);
      svg.Text(kLeft + (i + 0.5) * cell, kTop + kSide + 15, std::to_string(i), Anchor::kMiddle);
    }
  }
  for (int l = 0; plan && l < layers; ++l)
    if (const int s = SourceOf(*plan, l); s >= 0)
      svg.Rect(kLeft + l * cell - 0.3, kTop + s * cell - 0.3, cell, cell, "chosen-edge");
  svg.Text(kLeft + kSide / 2, kTop + kSide + 34, "layer that uses the set", Anchor::kMiddle,
           "axis-name");
  svg.TextUp(12, kTop + kSide / 2, "layer that made the set");
  const double legend = kTop + kSide + 52;
  for (int step = 0; step < 10; ++step)
    svg.Rect(kLeft + 44 + step * 16, legend, 16, 12, "heat", "", 0.05 + 0.94 * step / 9);
  svg.Text(kLeft + 38, legend + 10, (low > 0 ? "≤ " : "") + Percent(low), Anchor::kEnd);
  svg.Text(kLeft + 210, legend + 10, "100 % recovered");
  if (plan) {
    svg.Rect(kLeft + 336, legend, 12, 12, "chosen-edge");
    svg.Text(kLeft + 354, legend + 10, "used by the plan");
  }
  return svg.ToString();
}

std::string LayerBars(const std::vector<float>& values, const Plan* plan, const std::string& what,
                      const std::string& unit) {
  const int layers = static_cast<int>(values.size());
  const Axis axis = MakeAxis({values.begin(), values.end()}, false, 150, 30);
  if (layers == 0 || std::none_of(values.begin(), values.end(), [](double v) { return v > 0; }))
    return "";
  constexpr double kLeft = 58, kWidth = 520;
  const double column = (kWidth - kLeft - 6) / layers;
  Svg svg(kWidth, 192, what);
  svg.Text(kLeft, 16, what, Anchor::kStart, "panel");
  svg.TextUp(11, 90, unit);
  for (const double tick : axis.Ticks(4)) {
    svg.Line(kLeft, axis.At(tick), kWidth - 6, axis.At(tick), "grid");
    svg.Text(kLeft - 6, axis.At(tick) + 4, TickText(tick), Anchor::kEnd);
  }
  for (int l = 0; l < layers; ++l) {
    const double value = values[static_cast<size_t>(l)];
    if (!std::isfinite(value)) continue;
    const double x = kLeft + l * column;
    const bool known = plan && plan->layers.size() == values.size();
    svg.Rect(x + 0.8, axis.At(value), column - 1.6, axis.At(0) - axis.At(value),
             known ? LookOf(plan->layers[static_cast<size_t>(l)].role).css : "c-reuse",
             fmt::format("layer {}: {} {}", l, Number(value), unit));
    if (l % LabelStep(column) == 0)
      svg.Text(x + column / 2, 165, std::to_string(l), Anchor::kMiddle);
  }
  svg.Line(kLeft, axis.At(0), kWidth - 6, axis.At(0), "axis");
  svg.Text(kLeft + (kWidth - kLeft) / 2, 184, "layer", Anchor::kMiddle, "axis-name");
  return svg.ToString();
}

}  // namespace baton
