// Facts hidden in a text and asked for at its end: does the plan find what dense attention finds?
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "baton/eval.h"
#include "engine/session.h"
#include "eval/steps.h"

namespace baton {

struct RetrievalParams {
  int needles = 0;
  int64_t length = 0;   // tokens of the text with the facts in it, before the question
  int per_context = 6;  // at most this many facts share a text (fewer in short ones)
  uint64_t seed = 0;
};

// Tokens kept free behind the text for a question and its answer.
constexpr int64_t kQuestionTokens = 256;

struct RetrievalResult {
  std::vector<NeedleResult> needles;  // lengths: RetrievalParams::length
  std::vector<double> answer_kl;      // at each answer token of the needles that dense finds
};

// One result for each plan. The prompt is processed as the plan says, but for the last 8 tokens of
// the question; those and the answer are decoded under the plan. Several needles share one text,
// and so one prefill, which all plans of dense prompts share as well: each question starts from the
// same cache. Plans that evict answer each question a second time, as a turn after the eviction.
// Work done is reported in tokens of prompts. `session` is left with any length.
Result<std::vector<RetrievalResult>> Retrieve(Engine& engine, Session& session,
                                              std::span<const ResolvedPlan> plans,
                                              std::span<const int32_t> text,
                                              const RetrievalParams& params, Steps& steps);

// Texts that Retrieve processes.
int64_t RetrievalContexts(const RetrievalParams& params);

}  // namespace baton
