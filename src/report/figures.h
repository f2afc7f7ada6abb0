// The figures of a report. Each is one SVG, or empty when its numbers are absent.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "report/inputs.h"

namespace baton {

struct RoleLook {
  std::string letter, css, name, meaning;
};
RoleLook LookOf(Role role);

// The layer whose ranking a reuse layer takes; -1 for others.
int SourceOf(const Plan& plan, int layer);

// One cell per layer, arcs from publishers to their users, and what each layer reads of its KV
// cache with `context` visible keys. `model_window`: [layers] or empty.
std::string PlanStrip(const Plan& plan, int64_t context, const std::vector<int64_t>& model_window);

// Mass of layer j (column) that the top-k set of layer i (row) recovers, from `lost` [i * L + j];
// the edges of `plan` (may be null) are outlined.
std::string RecoveredMass(const std::vector<float>& lost, int layers, const Plan* plan,
                          const std::string& what);

// One bar per layer.
std::string LayerBars(const std::vector<float>& values, const Plan* plan, const std::string& what,
                      const std::string& unit);

std::string Front(const SearchRecord& record);
std::string PredictedAndMeasured(const SearchRecord& record);

struct SpeedPoint {
  int64_t depth = 0;
  Maybe dense, planned;
};
std::string SpeedBars(const std::vector<SpeedPoint>& points, const std::string& what);

// By depth (rows) and length (columns): how many of the needles that dense finds the plan finds.
std::string RetrievalGrid(const std::vector<NeedleResult>& grid);

// One cell per layer, F full or W for one that became a window; what the request holds of its
// cache; and, where a router ran, how much the logit for full exceeds that for sparse.
std::string RoutingStrip(const RoutingReport& routing);

}  // namespace baton
