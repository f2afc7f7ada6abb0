// Reading a JSON document whose every key must be known: a typo in a plan is an error, never a
// default.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "baton/error.h"

namespace baton::internal {

using Json = nlohmann::json;

// Text of a user inside one line of an error: quoted, ASCII, at most about 60 characters.
inline std::string Quoted(std::string_view text) {
  const bool cut = text.size() > 60;
  const std::string shown(cut ? text.substr(0, 57) : text);
  return Json(shown).dump(-1, ' ', true, Json::error_handler_t::replace) + (cut ? "..." : "");
}

inline std::string Shown(const Json& value) {
  if (value.is_string()) return Quoted(value.get_ref<const std::string&>());
  if (value.is_object()) return "an object";
  if (value.is_array()) return fmt::format("an array of {}", value.size());
  return value.dump(-1, ' ', true, Json::error_handler_t::replace);
}

inline size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({change, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

using Names = std::vector<std::string_view>;

inline std::string NearestHint(std::string_view got, const Names& known) {
  std::string_view best;
  size_t distance =
      4;  // three edits and more than a third of the word kept: beyond that it is no typo
  std::string list;
  for (std::string_view name : known) {
    list += fmt::format("{}{}", list.empty() ? "" : ", ", name);
    if (got.size() > 64) continue;
    const size_t d = EditDistance(got, name);
    if (d < distance && d < name.size()) best = name, distance = d;
  }
  return best.empty() ? "one of " + list : fmt::format("did you mean \"{}\"?", best);
}

inline Status ExpectObject(const Json& value, std::string_view where, const Names& known) {
  if (!value.is_object())
    return Error::InvalidArgument("{}: expected an object, got {}", where, Shown(value));
  for (const auto& [key, unused] : value.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    return Error::InvalidArgument("{}: unknown key {}", where, Quoted(key))
        .Hint(NearestHint(key, known));
  }
  return Status::Ok();
}

inline const Json* Find(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() ? nullptr : &*it;
}

inline Result<int64_t> Integer(const Json& value, std::string_view where, int64_t low,
                               int64_t high) {
  // Unsigned values past int64 would wrap: compare them as what they are.
  const bool fits =
      value.is_number_integer() &&
      (!value.is_number_unsigned() || value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX));
  if (fits) {
    const auto v = value.get<int64_t>();
    if (v >= low && v <= high) return v;
  }
  return Error::InvalidArgument("{}: expected an integer from {} to {}, got {}", where, low, high,
                                Shown(value));
}

inline Result<double> Number(const Json& value, std::string_view where) {
  if (!value.is_number())
    return Error::InvalidArgument("{}: expected a number, got {}", where, Shown(value));
  return value.get<double>();
}

// A share of something: above 0, at most 1.
inline Result<double> Fraction(const Json& value, std::string_view where) {
  BATON_ASSIGN(const double v, Number(value, where));
  if (v > 0 && v <= 1) return v;
  return Error::InvalidArgument("{}: expected a fraction above 0 and up to 1, got {}", where, v);
}

inline Result<std::string> Text(const Json& value, std::string_view where) {
  if (!value.is_string())
    return Error::InvalidArgument("{}: expected a string, got {}", where, Shown(value));
  return value.get<std::string>();
}

// Parses one JSON document. Keys given twice and nesting past 32 are errors: the first would hide a
// typo, the second would let a small file exhaust the stack.
inline Result<Json> ParseJson(const std::string& text) {
  struct Stop {
    std::string what;
  };
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (depth > 32) throw Stop{"nested deeper than 32"};
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(parsed.get<std::string>()).second)
      throw Stop{"key " + Quoted(parsed.get_ref<const std::string&>()) + " is given twice"};
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Stop& stop) {
    return Error::InvalidArgument("not valid: {}", stop.what);
  } catch (const Json::exception& e) {
    std::string what = e.what();
    if (const size_t end = what.find("] "); end != std::string::npos) what.erase(0, end + 2);
    for (char& c : what)
      if (c < 0x20 || c == 0x7f || static_cast<unsigned char>(c) > 0x7f) c = '?';
    return Error::InvalidArgument("not valid JSON: {}", what);
  }
}

}  // namespace baton::internal
