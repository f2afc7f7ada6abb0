// JSON as Python writes it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "baton/error.h"

namespace baton {

// Parses an object. Infinity, -Infinity and NaN, which JSON lacks, become strings of that name.
// Errors name `what` and the line.
Result<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view what);

}  // namespace baton
