// How routers and lists are trained, as a file (configs/router).
#pragma once

#include <cstdint>
#include <string>

#include "baton/error.h"
#include "model/spec/router.h"

namespace baton::train {

// A value for samples with an answer, and one for text.
struct ByKind {
  double answer = 0, text = 0;
  double of(bool is_answer) const { return is_answer ? answer : text; }
};

struct RouterRecipe {
  // Windows hold in the prompt too, or after a prompt that attended to everything.
  enum class Mode { kExact, kDense } mode = Mode::kExact;
  RouterSettings settings{.pool = 64, .sink = 64, .window = 512};

  // Divergence from dense attention at scored tokens; or the paper's: cross-entropy of all tokens
  // that windows affect, and lambda1 |s - t| + lambda2 (s - t)^2 for the share s of windows.
  enum class Loss { kDistill, kPaper } loss = Loss::kDistill;
  double text_weight = 1;  // of text's divergence
  // Distillation: nats for a share of 1 of full layers. With a target, a task's price rises while
  // its share of windows is below it, and falls otherwise (`ascent` a step and share).
  ByKind price{.answer = 0.1, .text = 0.1};
  bool has_target = false;
  ByKind target{.answer = 0.45, .text = 1.0};  // shares of windows; also the paper's t
  double ascent = 0.01;

  uint64_t seed = 1;
  int64_t steps = 300;
  int64_t tokens = 16384;  // of a step
  double rate = 2e-3;      // of routers
  double list_rate = 0.05;
  double bias = 2;          // logit of full attention at the start
  bool standardise = true;  // inputs of routers
  bool soft = false;        // gates mix both kinds of attention in training
  double weight_decay = 0.1, clip = 5;

  double Rate(int64_t step, bool list) const;  // linear up over a fifth of the steps, cosine down
  double Temperature(int64_t step) const;      // cosine from 1.5 to 1 over 60 % of the steps

  // Unknown keys, and values out of range, are errors.
  static Result<RouterRecipe> Parse(const std::string& json);
};

}  // namespace baton::train
