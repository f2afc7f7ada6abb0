// The one forward pass that all architectures share: some rows through some layers.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "attention/attention.h"
#include "model/run/weights.h"
#include "ops/ops.h"

namespace baton {

// What one forward pass processes. Rows of all segments are consecutive in `tokens`.
struct ForwardBatch {
  std::span<const int32_t> tokens;  // [T]
  std::span<const AttentionSegment> segments;
  std::span<const int64_t> logit_rows;  // ascending rows whose logits are wanted
  // Called with consecutive pieces of the wanted logits, on the host: [n, vocab] for
  // logit_rows[first, first + n). Not called where the pass ends before the last layer. Failures of
  // segments are known by then.
  std::function<void(int64_t first, View<const float> logits)> on_logits;
  // Called instead of on_logits where it is given: what Ops::Sample picks from the wanted rows,
  // each by its row of `sample` (one for each of logit_rows). logits: [n, vocab], in the device's
  // memory.
  std::function<void(int64_t first, std::span<const SampledRow> sampled, View<const float> logits)>
      on_sampled;
  std::span<const SampleRow> sample;

  // Layers [first_layer, end_layer) run (end_layer -1: all that are left); see plan/
  // prefill_schedule.h for fed and feed_end. The residual stream that enters first_layer is given,
  // and what leaves the last layer run can be had, in the device's memory.
  int first_layer = 0, end_layer = -1;
  bool fed = false, feed_end = false;
  const float* hidden = nullptr;  // [T, C]; null: embed the tokens
  float* leave = nullptr;         // [T - leave_from, C]
  int64_t leave_from = 0;

  // Positions that rows are rotated by, where they are not those of the segments.
  std::span<const Rows> rotated;
  AttentionObserver* observer = nullptr;
  // On the host. Receives the stream that enters each layer: [layers][T, C].
  float* capture = nullptr;
  // On the host. Receives the attention output after the output projection, before the residual
  // add, of one layer: [T, C].
  int tap_layer = -1;
  float* tap = nullptr;
};

class Transformer {
 public:
  // `shape` is complete (ModelShape::Completed).
  Transformer(const ModelConfig& config, Weights weights, Ops& ops, ModelShape shape);

  // What goes wrong concerns one segment: AttentionSegment::failure.
  void Forward(const ForwardBatch& batch);
  // A layer's queries for rows of the stream that enters it, after QK-norm and before rotation:
  // what a router pools (arXiv 2604.07394). x: [n, C]; q: [n, Hq, D]; both on the device.
  void Queries(int layer, View<const float> x, View<float> q);

  const ModelConfig& config() const { return config_; }
  const ModelShape& shape() const { return shape_; }
  const Weights& weights() const { return weights_; }
  Ops& ops() { return ops_; }

 private:
  struct RopeTable {
    std::vector<float> frequencies;  // [pairs]
    Array<float> cos, sin;           // [T, pairs] of the current batch
  };
  void KeepTokens(const ForwardBatch& batch);
  void PrepareRope(const ForwardBatch& batch);
  void SetRotation(int rope, StoreParams* store) const;
  void Feed(int layer);
  void FeedCache(int cache);
  View<float> IndexQueries(bool bf16);
  void Layer(int l, const ForwardBatch& batch);
  void Attend(int l, const ForwardBatch& batch, View<float> o);
  void Output(const ForwardBatch& batch);
  void AddBranch(const View<float>& input, const Matrix& w, const float* norm,
                 std::span<const Matrix* const> then, float* tap);
  std::vector<const Matrix*> FirstProduct(int layer) const;

  ModelConfig config_;
  Weights weights_;
  Ops& ops_;
  ModelShape shape_;
  Attention attention_;
  std::vector<RopeTable> rope_;
  std::vector<int> own_cache_;  // [layers] -1: none
  // [layers + 1] Caches of other owners that a layer's entering stream feeds.
  std::vector<std::vector<int>> feeds_;
  std::vector<std::vector<const Matrix*>> first_product_;  // [layers + 1]; the last: the output
  int64_t rows_ = 0;
  bool fine_ = false;  // the batch decodes: see LinearParams
  std::vector<Rows> rotated_;
  std::vector<int32_t> previous_;  // [T] of a model with smear
  std::vector<LinearParams::Out> outs_;
  // In the device's memory.
  Array<float> x_, q_, k_, v_, o_, index_q_, gates_[2], branch_, ffn_, rows_x_, logits_;
  Array<SampledRow> sampled_;
  std::vector<float> host_logits_;  // of a device that is not the host
  std::vector<SampledRow> host_sampled_;
};

}  // namespace baton
