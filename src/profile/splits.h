// Where the contexts of each split lie and which probes they hide: the same for profile and search,
// from the recorded seeds.
#pragma once

#include <memory>
#include <vector>

#include "baton/profile.h"
#include "profile/calibration.h"
#include "profile/corpus.h"

namespace baton {

// Contexts of a split: as many as fit five minutes of planning on two cores at 8K, but one at least
// of each kind of text, four in the test split. Kinds take turns: context i is of kind i % kinds.
int Contexts(const Corpus& corpus, Corpus::Split split);
// Rows of text that are scored in each: more where there are few contexts, and in the test split,
// which few plans are decoded on.
int64_t TextRows(const Corpus& corpus, Corpus::Split split, int64_t length);

// Tokens of each context of a split: a short split gives shorter ones rather than text that repeats
// itself.
int64_t ContextLength(const Corpus& corpus, Corpus::Split split, const ProfileOptions& options);
// A warning for each of several kinds whose splits are shorter than a context.
std::vector<std::string> ShortKinds(const Corpus& corpus, const ProfileOptions& options);
// options.probes in the profile split, two thirds of that in the others.
int ProbesOf(Corpus::Split split, const ProfileOptions& options);

// Spec of context `index` of a split. Its last part, which is scored, is of its kind; where the
// kind has too little text for the whole context, text of the other kinds comes before.
CalibrationContext::Spec ContextSpec(const Corpus& corpus, Corpus::Split split, int index,
                                     const ProfileOptions& options);

// How many of the probes that dense finds a plan has to find: the share, rounded up.
int RequiredProbes(double share, int dense_found);

}  // namespace baton
