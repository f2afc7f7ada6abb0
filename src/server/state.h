// What the web page shows: the model, its plans, and what they do.
#pragma once

#include <string>

#include "server/metrics.h"
#include "server/model.h"

namespace baton::server {

// {"model", "plans": [{"name", "layers", "watched", "routed"}], "kv_bytes_read", "cache", ...}
std::string WriteState(const Model& model, const Metrics& metrics, const Gauges& gauges);

}  // namespace baton::server
