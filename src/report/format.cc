#include "report/format.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdlib>

namespace baton {

std::string Bytes(double bytes) {
  const char* units[] = {"B", "KB", "MB", "GB", "TB"};
  int unit = 0;
  while (std::abs(bytes) >= 1000 && unit < 4) bytes /= 1000, ++unit;
  return fmt::format("{} {}", unit == 0 ? fmt::format("{:.0f}", bytes) : Number(bytes),
                     units[unit]);
}

std::string Count(int64_t n) {
  std::string s = std::to_string(std::abs(n));
  for (int at = static_cast<int>(s.size()) - 3; at > 0; at -= 3)
    s.insert(static_cast<size_t>(at), ",");
  return (n < 0 ? "-" : "") + s;
}

std::string Percent(double share) {
  const double percent = share * 100;
  return percent >= 99.95 || percent == 0 ? fmt::format("{:.0f} %", percent)
                                          : fmt::format("{:.1f} %", percent);
}

std::string Number(double value) {
  if (!std::isfinite(value)) return "-";
  const double size = std::abs(value);
  if (size == 0) return "0";
  if (size >= 1000) return Count(std::llround(value));
  if (size >= 100) return fmt::format("{:.0f}", value);
  if (size >= 10) return fmt::format("{:.1f}", value);
  if (size >= 1) return fmt::format("{:.2f}", value);
  if (size >= 0.001) return fmt::format("{:.4f}", value);
  return fmt::format("{:.2e}", value);
}

std::string Duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "-";
  if (seconds < 60) return fmt::format("{:.0f} s", seconds);
  const auto whole = static_cast<int64_t>(seconds);
  if (seconds < 3600) return fmt::format("{}:{:02} min", whole / 60, whole % 60);
  return fmt::format("{}:{:02} h", whole / 3600, whole / 60 % 60);
}

}  // namespace baton
