// Sections on what each layer does: as routed for a request, and by the model's own design.
#pragma once

#include <string>

#include "report/inputs.h"

namespace baton {

std::string RoutingSection(const ReportData& d);
std::string LayersSection(const ReportData& d);

}  // namespace baton
