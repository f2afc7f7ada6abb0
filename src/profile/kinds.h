// Losses by kind of text: means over the kinds, and what a kind loses that is left out of the
// choice.
#pragma once

#include <cstddef>
#include <vector>

#include "baton/profile.h"
#include "profile/calibration.h"

namespace baton {

// The mean over the kinds of one of their lists or tables.
std::vector<float> MeanOverKinds(const std::vector<KindLoss>& kinds,
                                 std::vector<float> KindLoss::*list);
std::vector<std::vector<float>> MeanOverKinds(const std::vector<KindLoss>& kinds,
                                              std::vector<std::vector<float>> KindLoss::*table);

// What the search lowers: losses on text and at answers, and a fifth of a nat for all probes lost.
// Answers count as much as text although they are few: with half the weight, plans of an eighth of
// the bytes lost two of 42 unseen needles at less than half of the text loss allowed.
double MeasuredLoss(const Candidate& c);

// Of the candidates whose bounded share is at most `max_share`, the best for the kinds other than
// `kind`; nullptr: none. All have figures of the same two or more kinds.
const Candidate* BestWithout(const std::vector<Candidate>& candidates, size_t kind,
                             double max_share);
// Sets left_out_kl of all candidates, by BestWithout among them.
void LeaveEachKindOut(std::vector<Candidate>& candidates);

// Figures of a candidate from those of contexts, whose kinds take turns.
void SetFigures(const std::vector<PlanMeasure>& contexts, size_t kinds, Candidate& c);
// Candidate::spread, from the KL of each context: [kinds][contexts]. Contexts are taken to be
// log-normal, and to differ by the same factor in every kind. 1 without a kind of two contexts.
double SpreadOf(const std::vector<std::vector<double>>& kinds);

}  // namespace baton
