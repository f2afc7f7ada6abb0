// Where the contexts of each split lie and which probes they hide: the same for profile and search,
// from the recorded seeds.
#pragma once

#include <memory>
#include <vector>

#include "baton/profile.h"
#include "profile/calibration.h"
#include "profile/corpus.h"

namespace baton {

// Contexts per split: what fits five minutes of planning on two cores at 8K.
constexpr int kContexts[] = {3, 2, 2};
constexpr int64_t kTextRows = 96;

// Spec of context `index` of a split. Probes: options.probes in the profile split, two thirds of
// that in the others.
CalibrationContext::Spec ContextSpec(const Corpus& corpus, Corpus::Split split, int index,
                                     const ProfileOptions& options);

// How many of the probes that dense finds a plan has to find: the share, rounded up.
int RequiredProbes(double share, int dense_found);

}  // namespace baton
