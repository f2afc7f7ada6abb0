#include "server/fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace baton::server {
namespace {

constexpr size_t kMostLevels = 64;
constexpr int64_t kMostMembers = 1024;  // of an object, whose members are looked up one by one
constexpr int64_t kMostValues = 2 << 20;

// Counts brackets and commas outside of texts. Before the parser, which would need a stack frame
// for each level wherever a value is copied, time for each member, and memory for each value.
std::string ExcessOf(std::string_view body) {
  std::vector<int64_t> commas;  // by level
  int64_t values = 0;
  bool text = false;
  for (size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (text) {
      if (c == '\\') ++i;
      if (c == '"') text = false;
      continue;
    }
    if (c == '"') text = true;
    if (c == '[') commas.push_back(std::numeric_limits<int64_t>::min());  // any number
    if (c == '{') commas.push_back(0);
    if ((c == ']' || c == '}') && !commas.empty()) commas.pop_back();
    if (c == ',' && !commas.empty() && ++commas.back() >= kMostMembers)
      return fmt::format("has an object of more than {} members", kMostMembers);
    if (commas.size() > kMostLevels) return fmt::format("nests deeper than {} levels", kMostLevels);
    values += c == ',' || c == '[' || c == '{';
  }
  return values > kMostValues ? fmt::format("has more than {} values", kMostValues) : "";
}

}  // namespace

std::optional<ApiError> ParseObject(std::string_view body, Json& object) {
  if (const std::string excess = ExcessOf(body); !excess.empty())
    return ApiError{.message = "the body " + excess};
  object = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded())
    return ApiError{.message = fmt::format("the body is not JSON: expected an object, got {} bytes",
                                           body.size())};
  if (!object.is_object())
    return ApiError{.message = "the body must be a JSON object, got " + KindOf(object)};
  return std::nullopt;
}

std::string KindOf(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::string:
      return "a text";
    case Json::value_t::boolean:
      return value.get<bool>() ? "true" : "false";
    default:
      return value.dump();
  }
}

void Fields::Fail(std::string_view name, std::string_view expected) {
  const Json* value = Find(name);
  Fail(ApiError{.message = fmt::format("{}: expected {}, got {}", name, expected,
                                       value ? KindOf(*value) : "nothing"),
                .param = std::string(name)});
}

const Json* Fields::Find(std::string_view name) const {
  const auto at = object_.find(name);
  return at == object_.end() || at->is_null() ? nullptr : &*at;
}

bool Fields::Read(std::string_view name, bool& out) {
  const Json* value = ok() ? Find(name) : nullptr;
  if (!value) return false;
  if (!value->is_boolean()) return Fail(name, "true or false"), false;
  out = value->get<bool>();
  return true;
}

bool Fields::Read(std::string_view name, std::string& out) {
  const Json* value = ok() ? Find(name) : nullptr;
  if (!value) return false;
  if (!value->is_string()) return Fail(name, "a text"), false;
  out = value->get<std::string>();
  return true;
}

bool Fields::Read(std::string_view name, double least, double most, float& out) {
  const Json* value = ok() ? Find(name) : nullptr;
  if (!value) return false;
  const double number = value->is_number() ? value->get<double>() : NAN;
  if (!(number >= least && number <= most))
    return Fail(name, fmt::format("a number from {:g} to {:g}", least, most)), false;
  out = static_cast<float>(number);
  return true;
}

bool Fields::Read(std::string_view name, int64_t least, int64_t most, int64_t& out) {
  const Json* value = ok() ? Find(name) : nullptr;
  if (!value) return false;
  // Some clients write 16.0. As a double, the largest int64_t is one more than it is.
  const double number = value->is_number() ? value->get<double>() : NAN;
  const bool whole = number >= -0x1p63 && number < 0x1p63 && number == std::floor(number);
  const bool integer = value->is_number_integer() &&
                       !(value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX);
  const int64_t n = integer ? value->get<int64_t>() : whole ? static_cast<int64_t>(number) : 0;
  if (!(integer || whole) || n < least || n > most)
    return Fail(name, fmt::format("a whole number from {} to {}", least, most)), false;
  out = n;
  return true;
}

bool Fields::Read(std::string_view name, int64_t least, int64_t most, int& out) {
  int64_t number = 0;
  if (!Read(name, least, most, number)) return false;
  out = static_cast<int>(number);
  return true;
}

bool Fields::Read(std::string_view name, size_t most, std::vector<std::string>& out) {
  const Json* value = ok() ? Find(name) : nullptr;
  if (!value) return false;
  std::vector<std::string> texts;
  const auto add = [&](const Json& text) {
    if (!text.is_string() || text.get_ref<const std::string&>().empty()) return false;
    texts.push_back(text.get<std::string>());
    return true;
  };
  const bool good = value->is_array()
                        ? value->size() <= most && std::all_of(value->begin(), value->end(), add)
                        : add(*value);
  if (!good)
    return Fail(name, fmt::format("a text that is not empty, or an array of up to {}", most)),
           false;
  out = std::move(texts);
  return true;
}

void Fields::Adopt(std::string_view name, const Fields& inner) {
  if (inner.ok()) return;
  ApiError error = *inner.error();
  error.message = fmt::format("{}.{}", name, error.message);
  error.param = error.param.empty() ? std::string(name) : fmt::format("{}.{}", name, error.param);
  Fail(std::move(error));
}

}  // namespace baton::server
