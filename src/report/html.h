// Pieces of the page that sections are made of.
#pragma once

#include <string>
#include <vector>

namespace baton {

// A section of the page, empty if the body is empty; title and note are HTML.
std::string Section(const std::string& id, const std::string& title, const std::string& note,
                    const std::string& body);

std::string Figure(const std::string& svg);

// Figures side by side, where there is room; `css` is one more class.
std::string Row(const std::string& css, const std::vector<std::string>& figures);

}  // namespace baton
