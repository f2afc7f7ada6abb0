// The section on training: curves of losses, recall and windows, and what the runs came to.
#pragma once

#include <string>

#include "report/inputs.h"

namespace baton {

std::string TrainingSection(const ReportData& d);

}  // namespace baton
