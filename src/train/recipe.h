// How a model is trained, as a file: stages, rates, the mix of samples.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "baton/error.h"
#include "train/optimizer.h"

namespace baton::train {

struct Stage {
  int64_t steps = 0;
  int64_t n = 1024;    // tokens of a row, at least kShortestRow of tasks.h
  int64_t rows = 32;   // of a step
  int64_t window = 0;  // > 0: of all windows, in place of the model's
};

struct Recipe {
  uint64_t seed = 1;
  std::vector<Stage> stages;
  OptimizerOptions optimizer;
  double rate = 6e-3;  // the highest
  enum class Schedule { kWsd, kCosine, kLinear } schedule = Schedule::kWsd;
  int64_t warmup = 60;
  int64_t decay = 0;       // wsd: the last steps, over which the rate falls to its end
  double end = 0.1;        // of the rate
  int64_t accumulate = 1;  // parts of a step, whose gradients are added
  bool bf16 = true;        // products and attention; parameters stay f32

  double text = 0.4;                  // rows that are text; the others are tasks
  double facts = 0.42, pairs = 0.33;  // of the tasks' rows; the rest are chains
  double recall_weight = 2;           // of the tasks' mean loss, beside the text's
  int64_t ramp = 0;                   // steps over which the tasks grow to their full size
  bool pack = false;                  // whole documents in a row, which do not see each other
  int64_t distilled_rows = 128;       // a step, of every sequence; for models with an indexer
  int64_t sparse_from = -1;  // the step from which lists of an indexer are used; -1: the first

  int64_t steps() const;
  int64_t tokens() const;
  const Stage& StageOf(int64_t step) const;
  double Rate(int64_t step) const;

  // Unknown keys, and values out of range, are errors.
  static Result<Recipe> Parse(const std::string& json);
};

}  // namespace baton::train
