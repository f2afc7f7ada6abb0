// The samples of a training step: a function of the recipe and the step's number alone, so that a
// run that was stopped goes on as if it had not been.
#pragma once

#include "train/recipe.h"
#include "train/tasks.h"

namespace baton::train {

struct Batch {
  Samples samples;
  Tensor starts;          // [B, n] of packed documents; otherwise undefined
  Tensor distilled_rows;  // [R], ascending
};

class Batches {
 public:
  // `text`: as in Tasks. `align`: positions at which packed documents begin are multiples of it.
  Batches(const Recipe& recipe, const Tensor& text, int64_t vocab, int64_t align);

  // Part `part` of the recipe's `accumulate` of a step.
  Batch Make(int64_t step, int64_t part) const;

  const Tasks& tasks() const { return tasks_; }

 private:
  // Rows of whole documents, drawn at random, the last one cut.
  void Pack(int64_t rows, int64_t n, uint64_t seed, Samples* samples, Tensor* starts) const;

  const Recipe& recipe_;
  Tasks tasks_;
  Tensor on_host_;                  // the text, where documents are packed
  std::vector<int64_t> documents_;  // where they begin in the text, and its end
  int64_t align_;
};

// <|text|>: a document begins.
constexpr int64_t kDocumentToken = 1;

}  // namespace baton::train
