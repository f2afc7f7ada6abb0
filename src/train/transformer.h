// The forward pass of every architecture that is trained here, over the same config, plan and
// tensors that the engine runs (model/run/transformer.h): whole rows, with gradients.
#pragma once

#include <map>

#include "train/attend.h"
#include "train/parameters.h"

namespace baton::train {

// How much of the teacher's attention an indexer's lists hold, and the best lists of that length
// would: means over rows.
struct Coverage {
  double held = 0, best = 0;
};

struct ForwardInput {
  Tensor tokens;  // [B, n] int64
  // [B, n] int64: where the row's document begins, a multiple of select.block_size; undefined: one
  // document a row.
  Tensor starts;
  // Readers of an indexer's list attend to all keys: the first stage of arXiv 2606.06467.
  bool dense_memory = false;
  int64_t window = 0;            // > 0: of all windows, in place of the model's
  Tensor distilled_rows;         // [R] int64: rows on which the indexer learns; undefined: none
  Coverage* coverage = nullptr;  // of distilled_rows
};

struct ForwardOutput {
  Tensor stream;        // [B, n, C], normed: what the output layer multiplies
  Tensor distillation;  // the indexer's loss, a scalar; undefined without distilled rows
};

class Transformer {
 public:
  // Products and attention are computed in `type`; parameters keep theirs. Both must outlive it.
  Transformer(const ModelConfig& config, const Parameters& parameters, torch::ScalarType type);

  ForwardOutput Forward(const ForwardInput& in) const;
  Tensor Logits(const Tensor& stream) const;  // [..., vocab]

  const ModelConfig& config() const { return config_; }
  bool has_indexer() const { return config_.indexer.key_length > 0; }

 private:
  struct Cache {
    Tensor k, v;  // [B, Hkv, n, D]; an indexer's k: [B, 1, n, d_idx]
  };
  struct List {
    Tensor index;
    int64_t block = 1, sink = 0, recent = 0;
  };
  // What one pass hands from layer to layer.
  struct Pass {
    const ForwardInput& in;
    Tensor x;                      // [B, n, C]
    Tensor cos, sin;               // [B or 1, 1, n, pairs]
    std::vector<Cache> caches;     // in order of config_.caches
    std::map<int, List> lists;     // by publisher
    Tensor index_q;                // [B, 1, n, d_idx]
    std::vector<Tensor> memory_q;  // of the memory's readers, [B, Hq, n, D]
  };

  Tensor Embed(const ForwardInput& in) const;
  Tensor Norm(const Tensor& x, const Tensor& weight) const;
  Tensor Linear(const Tensor& x, const Tensor& weight) const;
  Tensor Heads(const Tensor& x, const Tensor& weight, const Tensor& norm) const;
  Tensor Rotated(const Pass& pass, const Tensor& x, int rope) const;
  void PrepareRotation(Pass& pass) const;
  void Feed(Pass& pass, int cache) const;
  void Layer(Pass& pass, int l) const;
  void PublishIndexed(Pass& pass, int l) const;
  List Ranked(const Pass& pass, int l, const Tensor& q, const Tensor& k, const Tensor& lse,
              double scale) const;
  c10::intrusive_ptr<Visible> Seen(const Pass& pass, const Branch& branch) const;
  Tensor Attention(Pass& pass, int l, const Tensor& h, const Tensor& q) const;
  Tensor Gated(const Tensor& o, int l, size_t branch, const Tensor& h) const;
  Tensor Distillation(const Pass& pass) const;

  const ModelConfig& config_;
  const Parameters& parameters_;
  torch::ScalarType type_;
  std::vector<float> frequencies_;  // [pairs]
};

}  // namespace baton::train
