// AdamW, and Muon for matrices: momentum whose update is orthogonalised (Newton-Schulz), scaled to
// the size of AdamW's steps. Matrices of one shape are updated together.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "train/parameters.h"

namespace baton::train {

struct OptimizerOptions {
  bool muon = true;  // of matrices, the embedding and an indexer apart
  double weight_decay = 0.1;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double momentum = 0.95;
  double clip = 1.0;  // of the norm of all gradients but the indexer's; 0: none
};

class Optimizer {
 public:
  Optimizer(const Parameters& parameters, const OptimizerOptions& options);
  // AdamW alone; matrices decay.
  Optimizer(const std::vector<Tensor>& values, const OptimizerOptions& options);

  // One step by the gradients of the parameters; one without a gradient counts as zero.
  void Step(double rate);

  // What a step depends on beside parameters and gradients, by name.
  std::vector<std::pair<std::string, Tensor>> State() const;
  // Values of a State(), in any order. Corrupt: one is missing or has another shape.
  Status Restore(const std::map<std::string, Tensor>& state);

 private:
  struct Adam {
    std::string name;
    Tensor value, mean, square;
    bool decays = false, clipped = true;
  };
  struct Matrices {
    std::vector<Tensor> values;
    Tensor momentum;  // [matrices, rows, columns]
  };
  void StepAdam(double rate);
  void StepMuon(double rate);
  void Clip();

  OptimizerOptions options_;
  std::vector<Adam> adam_;
  std::map<std::string, Matrices> muon_;  // by shape
  int64_t steps_ = 0;
};

}  // namespace baton::train
