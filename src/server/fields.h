// Reads fields of a JSON object that came from a client. The first fault is kept, and after it
// nothing more is read, so that a parser can read all its fields and ask once.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"
#include "server/json.h"

namespace baton::server {

class Fields {
 public:
  // `object` must be an object and outlive this.
  explicit Fields(const Json& object) : object_(object) {}

  const std::optional<ApiError>& error() const { return error_; }
  bool ok() const { return !error_; }
  void Fail(ApiError error) {
    if (!error_) error_ = std::move(error);
  }
  void Fail(std::string_view name, std::string_view expected);

  // The field, or null where it is missing or null.
  const Json* Find(std::string_view name) const;

  // A field that is missing, or null, leaves `out` as it is. Each returns whether it was set.
  bool Read(std::string_view name, bool& out);
  bool Read(std::string_view name, std::string& out);
  bool Read(std::string_view name, double least, double most, float& out);
  bool Read(std::string_view name, int64_t least, int64_t most, int64_t& out);
  bool Read(std::string_view name, int64_t least, int64_t most, int& out);
  // A text, or several.
  bool Read(std::string_view name, size_t most, std::vector<std::string>& out);

  // The fields of an object within this one are read by their own reader; its fault becomes ours.
  void Adopt(std::string_view name, const Fields& inner);

 private:
  const Json& object_;
  std::optional<ApiError> error_;
};

// An object; anything else, too many levels included, is a fault. Texts must be UTF-8.
std::optional<ApiError> ParseObject(std::string_view body, Json& object);

// What a value is, for messages: "a text", "an array", ...
std::string KindOf(const Json& value);

}  // namespace baton::server
