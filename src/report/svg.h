// Pictures as SVG text: shapes with CSS classes, so that one picture serves light and dark pages.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace baton {

std::string EscapeHtml(std::string_view text);

// Coordinates in user units; `title` becomes the tooltip.
class Svg {
 public:
  // `label` is what a screen reader says.
  Svg(double width, double height, std::string_view label);
  void Rect(double x, double y, double w, double h, std::string_view css,
            std::string_view title = "", double opacity = 1);
  void Line(double x1, double y1, double x2, double y2, std::string_view css);
  void Circle(double x, double y, double r, std::string_view css, std::string_view title = "");
  void Path(std::string_view d, std::string_view css, std::string_view title = "");
  enum class Anchor { kStart, kMiddle, kEnd };
  void Text(double x, double y, std::string_view text, Anchor anchor = Anchor::kStart,
            std::string_view css = "");
  // Reads upwards, centred at (x, y).
  void TextUp(double x, double y, std::string_view text);
  std::string ToString() const { return out_ + "</svg>\n"; }

 private:
  void Close(std::string_view element, std::string_view title);
  std::string out_;
};

// A number line drawn from pixel `from` to pixel `to`.
struct Axis {
  double low = 0, high = 1;
  double from = 0, to = 1;
  bool log = false;

  double At(double value) const;
  std::vector<double> Ticks(int about) const;
};

// "0.005", "50", "1,200": without superfluous digits.
std::string TickText(double value);

// Both axes with ticks and names, and the grid of y; `x_tick` writes the numbers of x.
void DrawFrame(Svg& svg, const Axis& x, const Axis& y, const std::string& x_name,
               const std::string& y_name, std::string (*x_tick)(double) = TickText);

// An axis over the values: from 0 when linear, over the positive ones when logarithmic, with a
// small margin at the ends.
Axis MakeAxis(const std::vector<double>& values, bool log, double from, double to);

}  // namespace baton
