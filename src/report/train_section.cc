#include "report/train_section.h"

#include <fmt/format.h>

#include <functional>
#include <type_traits>
#include <utility>

#include "report/format.h"
#include "report/html.h"
#include "report/svg.h"

namespace baton {
namespace {

using results::GateLosses;
using results::LmLosses;
using results::LmTest;

constexpr size_t kMostPoints = 300;  // of a curve; more are thinned out

struct Curve {
  size_t run = 0;
  std::string name;
  bool measured_alone = false;                    // each point gets a mark, not the last one only
  std::vector<std::pair<double, double>> points;  // millions of tokens, value
};

std::string NameOf(const TrainingRun& run) {
  std::string name = run.start.model.empty() ? "a model" : run.start.model;
  if (run.start.trains == "router" || run.start.trains == "list") name += ", " + run.start.trains;
  return fmt::format("{}, seed {}", name, run.start.seed);
}

// The curve of a value of `records`; where it is absent, without a point.
template <typename Record, typename Value>
Curve CurveOf(size_t number, const TrainingRun& run, const std::vector<Record>& records,
              const Value& value) {
  Curve curve{.run = number, .name = NameOf(run), .measured_alone = std::is_same_v<Record, LmTest>};
  for (const Record& r : records)
    if (const Maybe v = Known(value(r)))
      curve.points.emplace_back(static_cast<double>(r.tokens) / 1e6, *v);
  if (curve.points.size() <= kMostPoints) return curve;
  const size_t every = (curve.points.size() + kMostPoints - 1) / kMostPoints;
  std::vector<std::pair<double, double>> kept;
  for (size_t i = 0; i < curve.points.size(); ++i)
    if (i % every == 0 || i + 1 == curve.points.size()) kept.push_back(curve.points[i]);
  curve.points = std::move(kept);
  return curve;
}

std::string Panel(const std::string& what, const std::string& unit, bool is_share,
                  const std::vector<Curve>& curves) {
  std::vector<double> xs, ys;
  for (const Curve& c : curves)
    for (const auto& [x, y] : c.points) xs.push_back(x), ys.push_back(y);
  if (xs.empty()) return "";
  const Axis x = MakeAxis(xs, false, 60, 518);
  const Axis y = is_share ? Axis{0, 1, 230, 38} : MakeAxis(ys, false, 230, 38);
  Svg svg(530, 280, what + " by tokens of training");
  svg.Text(60, 18, what, Svg::Anchor::kStart, "panel");
  DrawFrame(svg, x, y, "tokens of training, millions", unit);
  for (const Curve& c : curves) {
    std::string line;
    for (const auto& [at, value] : c.points)
      line += fmt::format("{}{:.1f} {:.1f}", line.empty() ? "M" : "L", x.At(at), y.At(value));
    const std::string css = fmt::format("run-{}", c.run);
    if (c.points.size() > 1) svg.Path(line, "curve " + css, c.name);
    for (size_t i = 0; i < c.points.size(); ++i) {
      if (!c.measured_alone && i + 1 < c.points.size()) continue;
      const auto& [at, value] = c.points[i];
      svg.Circle(x.At(at), y.At(value), 3.5, "point " + css,
                 fmt::format("{}\n{} at {} M tokens", c.name, Number(value), TickText(at)));
    }
  }
  return svg.ToString();
}

// The value of rows with the most keys that were tested.
double Pairs(const LmTest& t) {
  return Known(t.pairs1024).value_or(Known(t.pairs256).value_or(t.pairs64));
}

std::vector<std::string> Panels(const ReportData& d) {
  const auto panel = [&](const std::string& what, const std::string& unit, bool is_share,
                         auto TrainingRun::*records, auto value) {
    std::vector<Curve> curves;
    for (size_t i = 0; i < d.trainings.size(); ++i)
      curves.push_back(CurveOf(i, d.trainings[i], d.trainings[i].*records, value));
    return Panel(what, unit, is_share, curves);
  };
  const auto losses = [&](const std::string& what, double LmLosses::*value) {
    return panel(what, "nats a token", false, &TrainingRun::lm, std::mem_fn(value));
  };
  const auto recall = [&](const std::string& what, auto value) {
    return panel(what, "share of right answers", true, &TrainingRun::tests, value);
  };
  return {
      losses("Loss, text", &LmLosses::text),
      losses("Loss, facts", &LmLosses::facts),
      losses("Loss, pairs", &LmLosses::pairs),
      losses("Loss, chains", &LmLosses::chains),
      recall("Recall, facts", std::mem_fn(&LmTest::facts)),
      recall("Recall, pairs", Pairs),
      recall("Recall, chains of two", std::mem_fn(&LmTest::chains2)),
      panel("Loss at answers", "nats from dense attention", false, &TrainingRun::gates,
            [](const GateLosses& l) { return l.loss.answer; }),
      panel("Loss on text", "nats from dense attention", false, &TrainingRun::gates,
            [](const GateLosses& l) { return l.loss.text; }),
      panel("Windows at answers", "share of layers", true, &TrainingRun::gates,
            [](const GateLosses& l) { return l.windows.answer; }),
      panel("Windows on text", "share of layers", true, &TrainingRun::gates,
            [](const GateLosses& l) { return l.windows.text; }),
  };
}

std::string TestTable(const ReportData& d) {
  std::string rows;
  const auto three = [](double v) {
    return Known(v) ? fmt::format("{:.3f}", v) : std::string("–");
  };
  for (const TrainingRun& run : d.trainings) {
    if (run.tests.empty()) continue;
    const LmTest& t = run.tests.back();
    rows += fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td>", EscapeHtml(NameOf(run)),
                        Count(run.start.parameters), Count(t.tokens), Count(t.n));
    for (const double v :
         {t.text, t.facts, t.far, Pairs(t), t.chains1, t.chains2, t.chains3, t.held, t.best})
      rows += "<td>" + three(v) + "</td>";
    rows += "</tr>\n";
  }
  if (rows.empty()) return "";
  return "<div class=\"wide\"><table><tr><th>latest test</th><th>parameters</th><th>trained "
         "tokens</th><th>row</th><th>text, nats</th><th>facts</th><th>far</th><th>pairs</th>"
         "<th>chains of 1</th><th>2</th><th>3</th><th>lists hold</th><th>best lists</th></tr>\n" +
         rows + "</table></div>\n";
}

}  // namespace

std::string TrainingSection(const ReportData& d) {
  if (d.trainings.empty()) return "";
  std::string legend = "<ul class=\"legend\">\n";
  for (size_t i = 0; i < d.trainings.size(); ++i) {
    const results::TrainStart& s = d.trainings[i].start;
    legend += fmt::format("<li><i class=\"run-{}\"></i><b>{}</b> {} steps, {}, LibTorch {}</li>\n",
                          i, EscapeHtml(NameOf(d.trainings[i])), Count(s.steps),
                          EscapeHtml(s.device), EscapeHtml(s.torch));
  }
  return Section(
      "training", "Training",
      "Losses are means over the steps since the point before. Recall and text are tested on "
      "held-out samples; far: facts more than 1,024 tokens back; pairs: the most keys that a row "
      "was tested with. What an indexer's lists hold is a share of attention, beside that of the "
      "best lists of their size.",
      legend + "</ul>\n" + Row("", Panels(d)) + TestTable(d));
}

}  // namespace baton
