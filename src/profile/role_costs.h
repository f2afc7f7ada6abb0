// Microseconds of one layer's attention in a decode step, by role, on this machine.
#pragma once

#include "baton/profile.h"

namespace baton {

// Fills profile.costs: plans that use one role everywhere are decoded on synthetic KV of
// options.context tokens.
Status MeasureRoleCosts(Engine& engine, const ProfileOptions& options, Profile& profile);

}  // namespace baton
