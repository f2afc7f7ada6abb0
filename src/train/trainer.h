// A training run: steps, their losses, and a state from which it continues exactly.
#pragma once

#include <array>
#include <string>

#include "train/batches.h"
#include "train/transformer.h"

namespace baton::train {

// Means over what was trained on; NaN where there was none.
struct Losses {
  std::array<double, kTokenKinds> by_kind{};  // nats a token, by TokenKind
  double distillation = 0;                    // of an indexer
};

class Trainer {
 public:
  // `text`: token ids, on the device that trains. Everything given must outlive it.
  Trainer(const ModelFile& model, Parameters& parameters, const Recipe& recipe, const Tensor& text);

  // One step. Losses of steps are summed on the device until they are asked for.
  void Step();
  bool done() const { return step_ == recipe_.steps(); }
  int64_t step() const { return step_; }
  int64_t tokens() const { return tokens_; }
  // Means since the last call.
  Losses TakeLosses();

  const Transformer& transformer() const { return transformer_; }
  const Batches& batches() const { return batches_; }
  // Whether lists of an indexer are used, at this step.
  bool sparse() const { return step_ >= recipe_.sparse_from; }

  // A file with parameters, the optimizer's state and the step.
  Status Save(const std::string& path) const;
  Status Load(const std::string& path);

 private:
  Tensor Loss(const Batch& batch);

  const ModelFile& model_;
  Parameters& parameters_;
  const Recipe& recipe_;
  Transformer transformer_;
  Batches batches_;
  Optimizer optimizer_;
  int64_t step_ = 0, tokens_ = 0;
  Tensor sums_;  // [kTokenKinds + 1], then the counts
};

// The mean loss of each token by its kind and the number of them, [kTokenKinds] each; gradients
// flow through the first. Targets are the tokens one to the right.
struct KindLosses {
  Tensor mean, count;
};
KindLosses LossesByKind(const Tensor& logits, const Samples& samples);

// The type that products are computed in.
torch::ScalarType ComputeType(const Recipe& recipe, torch::Device device);

}  // namespace baton::train
