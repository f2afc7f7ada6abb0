#include "formats/python_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "formats/lfs_pointer.h"
#include "formats/printable.h"

namespace baton {
namespace {

// The text with its non-numbers in quotes.
std::string QuoteNonNumbers(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string && c == '\\' && i + 1 < text.size()) {
      out += c;
      out += text[++i];
      continue;
    }
    if (c == '"') in_string = !in_string;
    if (!in_string && (c == 'I' || c == 'N' || c == '-')) {
      bool found = false;
      for (std::string_view name : {"Infinity", "-Infinity", "NaN"}) {
        if (found || !text.substr(i).starts_with(name)) continue;
        out += fmt::format("\"{}\"", name);
        i += name.size() - 1;
        found = true;
      }
      if (found) continue;
    }
    out += c;
  }
  return out;
}

}  // namespace

Result<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view what) {
  using Json = nlohmann::json;
  Json j = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (j.is_object()) return j;
  if (!j.is_discarded()) return Error::Corrupt("{}: expected a JSON object", what);
  if (Status content = RefuseLfsPointer(text, "a JSON object"); !content.ok())
    return std::move(content).error().At(std::string(what));
  const std::string quoted = QuoteNonNumbers(text);
  try {
    j = Json::parse(quoted);
  } catch (const Json::exception& e) {
    const auto* at = dynamic_cast<const Json::parse_error*>(&e);
    const size_t byte = at == nullptr ? 0 : std::min(at->byte, quoted.size());
    const auto line =
        1 + std::count(quoted.begin(), quoted.begin() + static_cast<std::ptrdiff_t>(byte), '\n');
    if (text.empty()) return Error::Corrupt("{}: expected a JSON object, the file is empty", what);
    return Error::Corrupt("{}: expected a JSON object, but line {} is not JSON", what, line);
  }
  if (!j.is_object()) return Error::Corrupt("{}: expected a JSON object", what);
  return j;
}

}  // namespace baton
