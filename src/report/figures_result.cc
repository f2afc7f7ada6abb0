// Pictures of what was measured: the front, the prediction, speed, retrieval.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "report/figures.h"
#include "report/format.h"
#include "report/svg.h"

namespace baton {
namespace {

using Anchor = Svg::Anchor;

std::string PercentTick(double share) {
  return fmt::format("{:g} %", std::round(share * 1e4) / 100);
}

std::string RoleCounts(const Plan& plan) {
  const std::string roles = results::Letters(plan);
  std::string text;
  for (const char letter : {'F', 'S', 'C', 'R', 'W'}) {
    const auto n = std::count(roles.begin(), roles.end(), letter);
    if (n > 0) text += fmt::format("{}{}{}", text.empty() ? "" : " ", n, letter);
  }
  return text;
}

std::string Describe(const Candidate& c) {
  std::string text = c.origin.empty() ? "candidate" : c.origin;
  const auto add = [&](const char* name, const std::string& value) {
    text += fmt::format("\n{} {}", name, value);
  };
  if (Known(c.kv_bytes_share)) add("KV bytes", Percent(c.kv_bytes_share));
  if (Known(c.kl)) add("KL", Number(c.kl));
  if (c.kind_kl.size() > 1) add("KL of the worst kind", Number(c.WorstKl()));
  if (!c.left_out_kl.empty()) add("KL of the worst kind left out", Number(c.LeftOutKl()));
  if (Known(c.answer_kl)) add("KL at answers", Number(c.answer_kl));
  if (Known(c.predicted_nats)) add("predicted", Number(c.predicted_nats));
  if (Known(c.top1)) add("top-1", Percent(c.top1));
  if (Known(c.found) && Known(c.dense_found))
    add("found", fmt::format("{} of {}", c.found, c.dense_found));
  if (!c.plan.layers.empty()) add("layers", results::Letters(c.plan));
  return text;
}

std::string Star(double x, double y, double r) {
  std::string d;
  for (int i = 0; i < 10; ++i) {
    const double angle = M_PI * i / 5 - M_PI / 2, size = i % 2 ? r * 0.45 : r;
    d += fmt::format("{}{:.1f} {:.1f}", i ? "L" : "M", x + size * std::cos(angle),
                     y + size * std::sin(angle));
  }
  return d + "Z";
}

// Text and, where it was measured, answers; NaN without text.
double MeasuredLoss(const Candidate& c) { return c.kl + Known(c.answer_kl).value_or(0); }

bool Plottable(const Candidate& c) { return Known(c.kv_bytes_share) && c.kl > 0; }

void DrawTargets(Svg& svg, const PlanTarget& target, const Axis& x, const Axis& y) {
  for (const auto& [kl, what] : {std::pair{target.max_kl_mean, "target: KL at most "},
                                 {target.max_kl, "target: KL of every kind at most "}}) {
    if (!(kl > y.low && kl < y.high)) continue;
    svg.Line(x.from, y.At(kl), x.to, y.At(kl), "target");
    svg.Text(x.to, y.At(kl) - 5, what + Number(kl), Anchor::kEnd);
  }
  const double share = target.max_held > 0 ? target.max_held : target.max_bytes;
  if (share > x.low && share < x.high) {
    svg.Line(x.At(share), y.from, x.At(share), y.to, "target");
    svg.Text(x.At(share) + 5, y.to + 10, "target: at most " + PercentTick(share));
  }
}

}  // namespace

std::string Front(const SearchRecord& record) {
  const PlanSearch& search = record.search;
  const bool held = record.target.max_held > 0;
  const auto share = [&](const Candidate& c) { return held ? c.kv_held_share : c.kv_bytes_share; };
  std::vector<Candidate> all;
  for (const Candidate& c : search.candidates)
    if (Plottable(c)) all.push_back(c);
  if (all.size() < 2) return "";
  std::sort(all.begin(), all.end(),
            [&](const Candidate& a, const Candidate& b) { return share(a) < share(b); });
  std::vector<double> shares, losses;
  for (const Candidate& c : all) shares.push_back(share(c)), losses.push_back(c.kl);
  const Axis x = MakeAxis(shares, false, 66, 640), y = MakeAxis(losses, true, 340, 26);
  Svg svg(660, 388, "KV bytes and KL of the measured candidates");
  DrawFrame(svg, x, y,
            held ? "KV bytes held after the prompt, share of dense"
                 : "KV bytes a decode step reads, share of dense",
            "KL to dense, nats", PercentTick);
  DrawTargets(svg, record.target, x, y);
  std::string line;
  for (const Candidate& c : all)
    if (c.on_front)
      line += fmt::format("{}{:.1f} {:.1f}", line.empty() ? "M" : "L", x.At(share(c)), y.At(c.kl));
  if (!line.empty()) svg.Path(line, "front-line");
  for (const Candidate& c : all)
    if (!c.on_front) svg.Circle(x.At(share(c)), y.At(c.kl), 3.2, "dot", Describe(c));
  // No candidate lies below and left of the front: that is where its labels go.
  double last_x = -100, last_y = -100;
  for (const Candidate& c : all) {
    if (!c.on_front) continue;
    const double px = x.At(share(c)), py = y.At(c.kl);
    svg.Circle(px, py, 5, c.meets_target ? "front-dot" : "front-dot weak", Describe(c));
    const bool chosen =
        results::Letters(c.plan) == results::Letters(search.chosen.plan) && !c.plan.layers.empty();
    if (chosen || px < x.from + 100 || std::hypot(px - last_x, (py - last_y) * 4) < 90) continue;
    svg.Text(px - 7, py + 15, RoleCounts(c.plan), Anchor::kEnd, "small");
    last_x = px, last_y = py;
  }
  if (Plottable(search.chosen)) {
    const double px = x.At(share(search.chosen)), py = y.At(search.chosen.kl);
    const bool right = px > x.from + 180;
    svg.Path(Star(px, py, 11), "star", "chosen: " + Describe(search.chosen));
    svg.Text(right ? px - 6 : x.from + 8, py + 27, "chosen: " + RoleCounts(search.chosen.plan),
             right ? Anchor::kEnd : Anchor::kStart, "strong");
  }
  return svg.ToString();
}

std::string PredictedAndMeasured(const SearchRecord& record) {
  const PlanSearch& search = record.search;
  struct Point {
    double predicted, measured;
    const Candidate* candidate;
  };
  std::vector<Point> points;
  std::vector<double> values;
  for (const Candidate& c : search.candidates) {
    const double measured = MeasuredLoss(c);
    if (!(c.predicted_nats > 0 && measured > 0)) continue;
    points.push_back({c.predicted_nats, measured, &c});
    values.push_back(c.predicted_nats), values.push_back(measured);
  }
  if (points.size() < 2) return "";
  const Axis x = MakeAxis(values, true, 66, 420), y = MakeAxis(values, true, 340, 26);
  Svg svg(440, 388, "Predicted and measured loss");
  DrawFrame(svg, x, y, "predicted loss, nats", "measured KL, text + answers");
  svg.Line(x.At(x.low), y.At(x.low), x.At(x.high), y.At(x.high), "diagonal");
  for (const Point& p : points)
    svg.Circle(x.At(p.predicted), y.At(p.measured), p.candidate->on_front ? 5 : 3.2,
               p.candidate->on_front ? "front-dot" : "dot", Describe(*p.candidate));
  const Candidate& c = search.chosen;
  if (c.predicted_nats > 0 && Known(c.kl))
    svg.Path(Star(x.At(c.predicted_nats), y.At(MeasuredLoss(c)), 11), "star",
             "chosen: " + Describe(c));
  svg.Text(x.to - 34, y.At(x.high) + 12, "as predicted", Anchor::kEnd, "small");
  return svg.ToString();
}

std::string SpeedBars(const std::vector<SpeedPoint>& points, const std::string& what) {
  std::vector<double> values;
  for (const SpeedPoint& p : points)
    for (const Maybe& value : {p.dense, p.planned})
      if (value) values.push_back(*value);
  if (values.empty()) return "";
  constexpr double kLeft = 60, kWidth = 530, kFoot = 230;
  const Axis axis = MakeAxis(values, false, kFoot, 44);
  Svg svg(kWidth, 290, what + " speed by context");
  svg.Text(kLeft, 18, what, Anchor::kStart, "panel");
  svg.TextUp(12, 136, "tokens per second");
  for (const double tick : axis.Ticks(5)) {
    svg.Line(kLeft, axis.At(tick), kWidth - 6, axis.At(tick), "grid");
    svg.Text(kLeft - 6, axis.At(tick) + 4, TickText(tick), Anchor::kEnd);
  }
  const double group = (kWidth - kLeft - 6) / static_cast<double>(points.size());
  const double bar = std::min(group * 0.3, 54.0);
  for (size_t i = 0; i < points.size(); ++i) {
    const SpeedPoint& p = points[i];
    const double middle = kLeft + (static_cast<double>(i) + 0.5) * group;
    const auto draw = [&](const Maybe& value, double x, const char* css, const char* name) {
      if (!value) return;
      svg.Rect(x, axis.At(*value), bar, kFoot - axis.At(*value), css,
               fmt::format("{} at depth {}: {} tokens/s", name, Count(p.depth), Number(*value)));
      svg.Text(x + bar / 2, axis.At(*value) - 5, Number(*value), Anchor::kMiddle, "small");
    };
    draw(p.dense, p.planned ? middle - bar - 1 : middle - bar / 2, "c-dense", "dense");
    draw(p.planned, p.dense ? middle + 1 : middle - bar / 2, "c-plan", "planned");
    if (p.dense && p.planned)
      svg.Text(middle, kFoot + 35, fmt::format("{:.2f}×", *p.planned / *p.dense), Anchor::kMiddle,
               "strong");
    svg.Text(middle, kFoot + 17, Count(p.depth), Anchor::kMiddle);
  }
  svg.Line(kLeft, kFoot, kWidth - 6, kFoot, "axis");
  svg.Text(kLeft + (kWidth - kLeft) / 2, kFoot + 54, "tokens in the context", Anchor::kMiddle,
           "axis-name");
  return svg.ToString();
}

std::string RetrievalGrid(const std::vector<NeedleResult>& grid) {
  struct Cell {
    int found = 0, dense = 0, total = 0;
  };
  std::map<std::pair<int64_t, int64_t>, Cell> cells;  // depth in %, length
  std::set<int64_t> depths, lengths;
  for (const NeedleResult& n : grid) {
    const int64_t depth = std::llround(n.depth * 100);
    Cell& cell = cells[{depth, n.length}];
    cell.found += n.dense_found && n.found, cell.dense += n.dense_found, ++cell.total;
    depths.insert(depth), lengths.insert(n.length);
  }
  if (cells.empty() || depths.size() > 60 || lengths.size() > 40) return "";
  constexpr double kLeft = 74, kTop = 12, kHeight = 30;
  const double width = std::min(110.0, 900 / static_cast<double>(lengths.size()));
  const double bottom = kTop + kHeight * static_cast<double>(depths.size());
  Svg svg(kLeft + width * static_cast<double>(lengths.size()) + 10, bottom + 48,
          "Retrieval by depth and length");
  double y = kTop;
  for (const int64_t depth : depths) {
    svg.Text(kLeft - 8, y + kHeight / 2 + 4, fmt::format("{} %", depth), Anchor::kEnd);
    double x = kLeft;
    for (const int64_t length : lengths) {
      if (const auto it = cells.find({depth, length}); it != cells.end()) {
        const Cell& c = it->second;
        const std::string title =
            fmt::format("{} tokens, depth {} %: dense finds {} of {}, the plan {} of those",
                        Count(length), depth, c.dense, c.total, c.found);
        const double share = c.dense ? static_cast<double>(c.found) / c.dense : 0;
        const char* css = c.dense == 0   ? "trough"
                          : share == 1   ? "good"
                          : share >= 0.5 ? "fair"
                                         : "bad";
        svg.Rect(x + 1, y + 1, width - 2, kHeight - 2, css, title);
        svg.Text(x + width / 2, y + kHeight / 2 + 4,
                 c.dense ? fmt::format("{}/{}", c.found, c.dense) : "–", Anchor::kMiddle,
                 c.dense ? "cell" : "");
      }
      x += width;
    }
    y += kHeight;
  }
  double x = kLeft + width / 2;
  for (const int64_t length : lengths) {
    svg.Text(x, bottom + 18, Count(length), Anchor::kMiddle);
    x += width;
  }
  svg.Text(kLeft + width * static_cast<double>(lengths.size()) / 2, bottom + 38,
           "tokens in the context", Anchor::kMiddle, "axis-name");
  svg.TextUp(12, (kTop + bottom) / 2, "depth of the fact");
  return svg.ToString();
}

}  // namespace baton
