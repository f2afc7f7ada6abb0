// The weights of a dense decoder-only model in a backend's layout, and the one forward pass that
// all architectures share.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "attention/attention.h"
#include "model/checkpoint.h"
#include "ops/ops.h"

namespace baton {

struct LayerWeights {
  std::vector<float> attn_norm, q_norm, k_norm, post_attn_norm, ffn_norm,
      post_ffn_norm;  // empty where absent
  std::vector<float> q_bias, k_bias, v_bias;
  std::unique_ptr<Matrix> q, k, v, o, gate, up, down;
};

struct Weights {
  std::vector<LayerWeights> layers;
  std::vector<float> output_norm;
  std::unique_ptr<Matrix> output;  // [vocab, C]
  RawMatrix embedding;             // rows are expanded on look-up, straight from the file
  int64_t bytes_per_token = 0;     // what one decode step reads of all matrices

  static Result<Weights> Load(const Checkpoint& checkpoint, Ops& ops);
};

// What one forward pass processes. Rows of all segments are consecutive in `tokens`.
struct ForwardBatch {
  std::span<const int32_t> tokens;  // [T]
  std::span<const AttentionSegment> segments;
  std::span<const int64_t> logit_rows;  // ascending rows whose logits are wanted
  // Called with consecutive pieces of the wanted logits: [n, vocab] for logit_rows[first, first +
  // n).
  std::function<void(int64_t first, View<const float> logits)> on_logits;

  AttentionObserver* observer = nullptr;
  // One-layer measurements restart in the middle: the residual stream that enters `first_layer` is
  // given, layers before it are not run. `capture`, if given, receives the stream that enters each
  // layer: [layers][T, C].
  int first_layer = 0;
  int end_layer = -1;             // layers from here on are not run; -1: all are
  const float* hidden = nullptr;  // [T, C]; null: embed the tokens
  float* capture = nullptr;
  // Receives the attention output after the output projection, before the residual add, of one
  // layer: [T, C].
  int tap_layer = -1;
  float* tap = nullptr;
};

class Transformer {
 public:
  Transformer(const ModelConfig& config, Weights weights, Ops& ops, ModelShape shape);

  // An error only from attention (a mass that is not a number) or when the interrupt flag is up.
  Status Forward(const ForwardBatch& batch);

  const ModelConfig& config() const { return config_; }
  const ModelShape& shape() const { return shape_; }
  const Weights& weights() const { return weights_; }
  Ops& ops() { return ops_; }

 private:
  struct RopeTable {
    std::vector<float> frequencies;  // [D/2]
    std::vector<float> cos, sin;     // [T, D/2] of the current batch
  };
  void PrepareRope(const ForwardBatch& batch);
  Status Layer(int l, const ForwardBatch& batch);
  void Output(const ForwardBatch& batch);
  void AddBranch(const View<float>& input, const Matrix& w, const std::vector<float>& norm,
                 std::span<const Matrix* const> then, float* tap);

  ModelConfig config_;
  Weights weights_;
  Ops& ops_;
  ModelShape shape_;
  Attention attention_;
  std::vector<RopeTable> rope_;
  int64_t rows_ = 0;
  bool fine_ = false;  // the batch decodes: see LinearParams
  std::vector<float> x_, q_, k_, v_, o_, branch_, ffn_, rows_x_, logits_;
};

}  // namespace baton
