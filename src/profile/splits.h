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

// Tokens of each context of a split: a short split gives shorter ones rather than text that repeats
// itself.
int64_t ContextLength(const Corpus& corpus, Corpus::Split split, const ProfileOptions& options);
// options.probes in the profile split, two thirds of that in the others.
int ProbesOf(Corpus::Split split, const ProfileOptions& options);

// Spec of context `index` of a split.
CalibrationContext::Spec ContextSpec(const Corpus& corpus, Corpus::Split split, int index,
                                     const ProfileOptions& options);

// How many of the probes that dense finds a plan has to find: the share, rounded up.
int RequiredProbes(double share, int dense_found);

}  // namespace baton
