#include "report/html.h"

#include <fmt/format.h>

namespace baton {

std::string Section(const std::string& id, const std::string& title, const std::string& note,
                    const std::string& body) {
  if (body.empty()) return "";
  return fmt::format("<section id=\"{}\">\n<h2>{}</h2>\n<p class=\"note\">{}</p>\n{}</section>\n",
                     id, title, note, body);
}

std::string Figure(const std::string& svg) {
  return svg.empty() ? "" : "<figure>" + svg + "</figure>\n";
}

std::string Row(const std::string& css, const std::vector<std::string>& figures) {
  std::string inner;
  for (const std::string& svg : figures) inner += Figure(svg);
  return inner.empty() ? "" : fmt::format("<div class=\"row {}\">\n{}</div>\n", css, inner);
}

}  // namespace baton
