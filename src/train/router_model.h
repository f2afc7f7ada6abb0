// A frozen model under gates: what its rows after a prompt become, and how far that is from dense
// attention.
#pragma once

#include <functional>
#include <vector>

#include "train/router_recipe.h"
#include "train/router_samples.h"
#include "train/transformer.h"

namespace baton::train {

using GateFunction = std::function<Tensor(int layer, const Tensor& pooled)>;

class RoutedModel {
 public:
  // `model` must outlive it.
  RoutedModel(const Transformer& model, const RouterRecipe& recipe)
      : model_(model), recipe_(recipe) {}

  // The stream at the batch's rows, [B, R, C], on dense attention; `kept` receives what Rows needs.
  Tensor Dense(const RouterBatch& batch, Kept* kept) const;
  // The same under gates. `kept`: of Dense, read in dense mode alone.
  Tensor Rows(const RouterBatch& batch, const GateFunction& gate, const Kept& kept) const;
  // The same and the whole stream, [B, n, C]; exact mode.
  Tensor Whole(const RouterBatch& batch, const GateFunction& gate) const;

  Tensor Logits(const RouterBatch& batch,
                const Tensor& rows) const;  // [M, vocab], of scored tokens
  // Nats from dense attention, [B]: means over each sample's scored tokens.
  Tensor Divergence(const RouterBatch& batch, const Tensor& dense, const Tensor& rows) const;

  const Transformer& transformer() const { return model_; }
  const RouterRecipe& recipe() const { return recipe_; }
  int layers() const { return model_.config().layers; }

 private:
  Routing RoutingOf(const RouterBatch& batch, const GateFunction& gate) const;

  const Transformer& model_;
  RouterRecipe recipe_;
};

// [B]: the sum of `values` [M] over each sample's scored tokens, times `share`.
Tensor PerSample(const RouterBatch& batch, const Tensor& values);

// Dense attention on all samples.
struct Teacher {
  Tensor stream;               // [N, R, C]
  Tensor pooled;               // [N, L, D] f32
  std::vector<bool> answered;  // every scored token of an answer is the likeliest; text: true
};
Teacher Teach(const RoutedModel& model, const RouterSamples& samples, torch::Device device);

// Samples of one length, at most `tokens` together; those that `wanted` allows.
std::vector<std::vector<size_t>> BatchesOf(const RouterSamples& samples, int64_t tokens,
                                           const std::function<bool(size_t)>& wanted);

}  // namespace baton::train
