// What the programme of plan/search.h is given: a profile's tables as losses and costs.
#pragma once

#include <span>

#include "baton/profile.h"
#include "plan/layer_plan.h"
#include "plan/search.h"

namespace baton {

// Losses are means over these kinds of text, indices of profile.kinds. The costs are bytes,
// held where the target bounds these, else read.
PlanProblem ProblemOf(const Profile& profile, const PlanOptions& options,
                      std::span<const size_t> kinds, const ModelShape& shape);
// The same costs in measured microseconds; layers with the model's own window are part of the rest
// of the step.
LayerCosts TimeCosts(const Profile& profile, const PlanProblem& problem);

}  // namespace baton
