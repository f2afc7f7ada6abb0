// JSON of requests and answers.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace baton::server {

using Json = nlohmann::ordered_json;

// On one line. Bytes that are not UTF-8 become U+FFFD.
inline std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace baton::server
