// The keys of one object of a JSON file, with limits.
#pragma once

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>

#include "baton/error.h"

namespace baton::train {

// Keys that nobody asked for are unknown. The first mistake is the one that Finish reports.
class JsonReader {
 public:
  JsonReader(const nlohmann::json& object, std::string_view what) : object_(object), what_(what) {}

  template <typename T>
  void Read(const char* key, T& value, double low, double high) {
    const nlohmann::json* v = Find(key);
    if (v == nullptr) return;
    if (!v->is_number() || !(v->get<double>() >= low && v->get<double>() <= high) ||
        (std::is_integral_v<T> && !v->is_number_integer())) {
      Fail(fmt::format("{} is {}, expected {} from {} to {}", key, v->dump(),
                       std::is_integral_v<T> ? "an integer" : "a number", low, high));
      return;
    }
    value = v->get<T>();
  }
  void Read(const char* key, bool& value) {
    const nlohmann::json* v = Find(key);
    if (v == nullptr) return;
    if (!v->is_boolean())
      return Fail(fmt::format("{} is {}, expected true or false", key, v->dump()));
    value = v->get<bool>();
  }
  const nlohmann::json* Find(const char* key) {
    known_.insert(key);
    const auto it = object_.find(key);
    return it == object_.end() ? nullptr : &*it;
  }
  void Fail(std::string message) {
    if (message_.empty()) message_ = std::move(message);
  }
  Status Finish() {
    for (const auto& [key, value] : object_.items())
      if (!known_.contains(key)) Fail(fmt::format("{}: unknown", key));
    if (!message_.empty()) return Error::InvalidArgument("{}: {}", what_, message_);
    return Status::Ok();
  }

 private:
  const nlohmann::json& object_;
  std::string_view what_;
  std::set<std::string> known_;
  std::string message_;
};

}  // namespace baton::train
