// The rotary embeddings of a model's config.
#pragma once

#include "baton/error.h"
#include "model/spec/config_reader.h"

namespace baton {

// One for layers that see everything, and one for window layers where the architecture or the file
// has another for these. Also stretches config.context as YaRN says. Needs sizes.
Status ReadRope(const ConfigReader& r, const Architecture& a, ModelConfig& config);

}  // namespace baton
