#include "report/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report/format.h"

namespace baton {

std::string EscapeHtml(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

Svg::Svg(double width, double height, std::string_view label)
    // Scaled up by more than a tenth, a picture's text would be much larger than the page's.
    : out_(fmt::format(
          "<svg viewBox=\"0 0 {:.0f} {:.0f}\" style=\"max-width:{:.0f}px\" role=\"img\" "
          "aria-label=\"{}\">\n",
          width, height, width * 1.1, EscapeHtml(label))) {}

void Svg::Close(std::string_view element, std::string_view title) {
  out_ +=
      title.empty() ? "/>\n" : fmt::format("><title>{}</title></{}>\n", EscapeHtml(title), element);
}

void Svg::Rect(double x, double y, double w, double h, std::string_view css, std::string_view title,
               double opacity) {
  out_ += fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" "
      "class=\"{}\"",
      x, y, std::max(w, 0.0), std::max(h, 0.0), css);
  if (opacity < 1) out_ += fmt::format(" fill-opacity=\"{:.2f}\"", opacity);
  Close("rect", title);
}

void Svg::Line(double x1, double y1, double x2, double y2, std::string_view css) {
  out_ += fmt::format(
      "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" "
      "class=\"{}\"/>\n",
      x1, y1, x2, y2, css);
}

void Svg::Circle(double x, double y, double r, std::string_view css, std::string_view title) {
  out_ +=
      fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:.1f}\" class=\"{}\"", x, y, r, css);
  Close("circle", title);
}

void Svg::Path(std::string_view d, std::string_view css, std::string_view title) {
  out_ += fmt::format("<path d=\"{}\" class=\"{}\"", d, css);
  Close("path", title);
}

void Svg::Text(double x, double y, std::string_view text, Anchor anchor, std::string_view css) {
  const char* anchors[] = {"start", "middle", "end"};
  out_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"", x, y,
                      anchors[static_cast<int>(anchor)]);
  if (!css.empty()) out_ += fmt::format(" class=\"{}\"", css);
  out_ += fmt::format(">{}</text>\n", EscapeHtml(text));
}

void Svg::TextUp(double x, double y, std::string_view text) {
  out_ += fmt::format(
      "<text transform=\"translate({:.1f} {:.1f}) rotate(-90)\" "
      "text-anchor=\"middle\" class=\"axis-name\">{}</text>\n",
      x, y, EscapeHtml(text));
}

double Axis::At(double value) const {
  const double share = log ? std::log(std::max(value, low) / low) / std::log(high / low)
                           : (value - low) / (high - low);
  return from + std::clamp(share, 0.0, 1.0) * (to - from);
}

std::string TickText(double value) {
  return std::abs(value) >= 1000 ? Number(value) : fmt::format("{:.4g}", value);
}

std::vector<double> Axis::Ticks(int about) const {
  std::vector<double> ticks;
  if (log) {
    for (double decade = std::pow(10, std::floor(std::log10(low))); decade <= high; decade *= 10)
      for (const double step : {1.0, 2.0, 5.0})
        if (decade * step >= low * 0.999 && decade * step <= high * 1.001)
          ticks.push_back(decade * step);
    if (static_cast<int>(ticks.size()) > about * 2)
      std::erase_if(ticks, [](double t) {
        const double mantissa = t / std::pow(10, std::floor(std::log10(t) + 1e-9));
        return mantissa > 1.5;
      });
    return ticks;
  }
  const double rough = (high - low) / std::max(about, 1);
  const double decade = std::pow(10, std::floor(std::log10(rough)));
  const double ratio = rough / decade;
  const double step = decade * (ratio < 1.5 ? 1 : ratio < 3.5 ? 2 : ratio < 7.5 ? 5 : 10);
  for (double t = std::ceil(low / step) * step; t <= high + step * 1e-6; t += step)
    ticks.push_back(std::abs(t) < step * 1e-9 ? 0 : t);
  return ticks;
}

void DrawFrame(Svg& svg, const Axis& x, const Axis& y, const std::string& x_name,
               const std::string& y_name, std::string (*x_tick)(double)) {
  using enum Svg::Anchor;
  for (const double tick : y.Ticks(6)) {
    svg.Line(x.from, y.At(tick), x.to, y.At(tick), "grid");
    svg.Text(x.from - 7, y.At(tick) + 4, TickText(tick), kEnd);
  }
  for (const double tick : x.Ticks(8)) {
    svg.Line(x.At(tick), y.from, x.At(tick), y.from + 4, "axis");
    svg.Text(x.At(tick), y.from + 18, x_tick(tick), kMiddle);
  }
  svg.Line(x.from, y.from, x.to, y.from, "axis");
  svg.Line(x.from, y.from, x.from, y.to, "axis");
  svg.Text((x.from + x.to) / 2, y.from + 38, x_name, kMiddle, "axis-name");
  svg.TextUp(12, (y.from + y.to) / 2, y_name);
}

Axis MakeAxis(const std::vector<double>& values, bool log, double from, double to) {
  double low = 0, high = 0;
  for (const double v : values) {
    if (!std::isfinite(v)) continue;
    high = std::max(high, v);
    if (v > 0) low = low == 0 ? v : std::min(low, v);
  }
  if (high <= 0) return {0, 1, from, to, false};
  if (!log) return {0, high * 1.06, from, to, false};
  low /= 1.25, high *= 1.25;
  return {low, std::max(high, low * 2), from, to, true};
}

}  // namespace baton
