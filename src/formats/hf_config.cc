#include "formats/hf_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/mapped_file.h"
#include "formats/printable.h"
#include "formats/python_json.h"

namespace baton {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = 4 << 20;
constexpr int kMaxDepth = 8;

template <typename T>
std::vector<T> AsVector(const json& j) {
  std::vector<T> out;
  for (const json& v : j) out.push_back(v.get<T>());
  return out;
}

bool FitsInt64(const json& j) {
  return j.is_number_integer() &&
         !(j.is_number_unsigned() && !std::in_range<int64_t>(j.get<uint64_t>()));
}

Status Flatten(const json& j, const std::string& prefix, int depth, Metadata& out) {
  if (depth > kMaxDepth)
    return Error::Corrupt("'{}' is nested more than {} levels deep", Printable(prefix), kMaxDepth);
  for (const auto& [key, v] : j.items()) {
    const std::string name = prefix + key;
    MetaValue value;
    if (v.is_object()) {
      BATON_TRY(Flatten(v, name + ".", depth + 1, out));
      continue;
    } else if (v.is_boolean()) {
      value = v.get<bool>();
    } else if (v.is_number_integer()) {
      if (FitsInt64(v)) {
        value = v.get<int64_t>();
      } else {
        value = v.get<double>();
      }
    } else if (v.is_number_float()) {
      value = v.get<double>();
    } else if (v.is_string()) {
      value = v.get<std::string>();
    } else if (v.is_array() && !v.empty() &&
               std::all_of(v.begin(), v.end(), [](const json& e) { return e.is_boolean(); })) {
      std::vector<int64_t> flags;
      for (const json& e : v) flags.push_back(e.get<bool>() ? 1 : 0);
      value = std::move(flags);
    } else if (v.is_array() && std::all_of(v.begin(), v.end(), FitsInt64)) {
      value = AsVector<int64_t>(v);
    } else if (v.is_array() &&
               std::all_of(v.begin(), v.end(), [](const json& e) { return e.is_number(); })) {
      value = AsVector<double>(v);
    } else if (v.is_array() &&
               std::all_of(v.begin(), v.end(), [](const json& e) { return e.is_string(); })) {
      value = AsVector<std::string>(v);
    } else if (v.is_null()) {
      continue;
    } else {  // a list of several kinds: no key has one, so its text serves for messages
      value = v.dump(-1, ' ', false, json::error_handler_t::replace);
    }
    if (!out.values.emplace(name, std::move(value)).second)
      return Error::Corrupt("'{}' is given twice", Printable(name));
  }
  return Status::Ok();
}

}  // namespace

Result<Metadata> ParseHfConfig(std::string_view json_text) {
  if (json_text.size() > kMaxConfigBytes)
    return Error::Corrupt("{} bytes, expected at most {}", json_text.size(), kMaxConfigBytes);
  BATON_ASSIGN(const json j, ParseJsonObject(json_text, "config"));
  Metadata out;
  BATON_TRY(Flatten(j, "", 0, out));
  return out;
}

Result<Metadata> ReadHfConfig(const std::string& path) {
  BATON_ASSIGN(const MappedFile file, MappedFile::Open(path));
  Result<Metadata> out =
      ParseHfConfig({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()});
  if (!out.ok()) return std::move(out).error().At(path);
  return out;
}

std::string ToFlatConfig(const Metadata& metadata) {
  json j = json::object();
  for (const auto& [key, value] : metadata.values) {
    json& field = j[key];
    std::visit([&](const auto& v) { field = v; }, value);
  }
  return j.dump(1) + "\n";
}

std::string ToHfConfig(const Metadata& metadata) {
  json j = json::object();
  for (const auto& [key, value] : metadata.values) {
    std::string pointer = "/" + key;
    std::replace(pointer.begin(), pointer.end(), '.', '/');
    std::visit([&](const auto& v) { j[json::json_pointer(pointer)] = v; }, value);
  }
  return j.dump(2) + "\n";
}

}  // namespace baton
