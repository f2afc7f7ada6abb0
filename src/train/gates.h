// What decides whether a layer attends fully: a router per layer that sees the prompt's queries
// (arXiv 2604.07394, section 3; model/spec/router.h), or one learnt value a layer, the same for all
// requests.
#pragma once

#include <vector>

#include "model/spec/router.h"
#include "train/torch.h"

namespace baton::train {

class Gates {
 public:
  // Full attention begins with a logit of `bias` against 0, whatever the input.
  static Gates Routers(int layers, int64_t head_dim, double bias, uint64_t seed,
                       const torch::TensorOptions& options);
  static Gates List(int layers, double bias, const torch::TensorOptions& options);
  // Routers that were loaded for the model.
  static Gates Of(const RouterFile& file, const torch::TensorOptions& options);

  // [B, 2], window and full, from pooled queries [B, D].
  Tensor Logits(int layer, const Tensor& pooled) const;
  // Routers see (input - mean) / deviation, both [L, D].
  void Standardise(const Tensor& mean, const Tensor& deviation);
  // Adds to the logit of a window, in every layer.
  void Shift(double by);

  bool is_list() const { return layers_.empty(); }
  std::vector<Tensor> values() const;  // what learns
  // Of a list: the logit of full attention of each layer.
  std::vector<double> Full() const;
  // Of routers, the standardisation inside the first matrix; inputs in the order of the model's own
  // query dims.
  RouterFile ToFile(const RouterSettings& settings) const;

 private:
  struct Linear {
    Tensor weight, bias;
  };
  std::vector<std::array<Linear, 5>> layers_;
  Tensor list_;              // [L]
  Tensor mean_, deviation_;  // [L, D]; undefined: inputs as they are
};

}  // namespace baton::train
