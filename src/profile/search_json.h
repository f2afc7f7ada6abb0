// Evidence that a plan carries about the search that chose it.
#pragma once

#include <string>

#include "baton/profile.h"

namespace baton {

// A JSON object: seeds, figures of the search and test splits, and the front the plan was chosen
// from.
std::string EvidenceDetails(const PlanSearch& search, const Profile& profile);
// The same of a static list: the seed, the ranking and what was measured.
std::string EvidenceDetails(const WindowPlan& list, const WindowOptions& options,
                            const Profile& profile);

}  // namespace baton
