// What a trained model can do: text loss on held-out text, recall by task and distance, and how
// much of dense attention an indexer's lists hold. The same samples for every model of a
// vocabulary.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "train/tasks.h"
#include "train/transformer.h"

namespace baton::train {

struct Share {
  std::string name;  // "<=1024", "256", "2 hops"
  int64_t right = 0, of = 0;
  double value() const { return of > 0 ? static_cast<double>(right) / static_cast<double>(of) : 0; }
};

struct Evaluation {
  int64_t n = 0;              // tokens of a row
  double text_loss = 0;       // nats a token
  double late_text_loss = 0;  // of the second half of the rows
  std::vector<Share> facts;   // both answer tokens, by distance; the last: all
  std::vector<Share> pairs;   // by keys of the row
  std::vector<Share> chains;  // by links
  bool has_coverage = false;
  Coverage coverage;  // of text and facts

  std::string ToJson() const;
};

struct EvaluateOptions {
  int64_t n = 4096;
  int64_t tokens = 32768;  // of a batch
  int64_t batches = 8;
  bool dense_memory = false;  // this and the next: as in ForwardInput
  int64_t rank_bits = 0;
};

Evaluation Evaluate(const Transformer& model, const Tasks& tasks, const EvaluateOptions& options);

}  // namespace baton::train
