// config.json of a Hugging Face folder as flat metadata, so that one piece of code reads both kinds
// of model files.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "baton/error.h"
#include "formats/gguf.h"

namespace baton {

// Nested objects become dotted keys ("rope_scaling.factor"); arrays of booleans become 0 and 1, as
// in GGUF files; nulls and mixed or nested arrays are left out.
Result<Metadata> ParseHfConfig(std::string_view json_text);
Result<Metadata> ReadHfConfig(const std::string& path);

// The inverse: dotted keys become nested objects.
std::string ToHfConfig(const Metadata& metadata);
// One object with the dotted keys as they are.
std::string ToFlatConfig(const Metadata& metadata);

}  // namespace baton
