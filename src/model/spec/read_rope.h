// The rotary embeddings of a model's config.
#pragma once

#include "baton/error.h"
#include "model/spec/config_reader.h"

namespace baton {

// Reads one for full layers, and one for window layers where the architecture or the file has a
// different one for these. Also extends config.context as YaRN says. Needs the config's sizes.
Status ReadRope(const ConfigReader& r, const Architecture& a, ModelConfig& config);

}  // namespace baton
