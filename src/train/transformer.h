// The forward pass of every architecture that is trained here, over the same config, plan and
// tensors that the engine runs (model/run/transformer.h): whole rows, with gradients. Ordinary
// models of Llama's form run as well, their layers all full or routed.
#pragma once

#include <functional>
#include <map>

#include "train/attend.h"
#include "train/parameters.h"

namespace baton::train {

// How much of the teacher's attention an indexer's lists hold, and the best lists of that length
// would: means over rows.
struct Coverage {
  double held = 0, best = 0;
};

// Layers that attend to all keys or to a sink and a window, by sequence (arXiv 2604.07394).
struct Routing {
  int64_t pool = 0;  // rows at each end of a prompt; the gate sees the mean of their queries
  int64_t sink = 0, window = 0;
  Tensor prompts;  // [B] int64, tokens of each prompt: more than `pool`
  // The share of full attention of a layer, [B], 0 to 1, from its pooled queries [B, D]: a mean
  // over heads and rows, before positions are rotated in. Asked for layer after layer. Empty: 1.
  std::function<Tensor(int layer, const Tensor& pooled)> gate;
};

// What a pass leaves of every layer, so that some of its rows can be run again.
struct Kept {
  std::vector<Tensor> k, v;    // [B, Hkv, n, D]
  std::vector<Tensor> pooled;  // [B, D]
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
  // > 0: lists are ranked by keys rounded to so many bits, like a scan layer's copy, and layers
  // that rank read their own list in place of all keys.
  int64_t rank_bits = 0;
  // Of models whose layers are all full: routes them, in prompts too.
  const Routing* routing = nullptr;
  Kept* keep = nullptr;  // with a routing
};

struct ForwardOutput {
  Tensor stream;        // [B, n, C], normed: what the output layer multiplies
  Tensor distillation;  // the indexer's loss, a scalar; undefined without distilled rows
};

// Unsupported: a model with parts that the trainer does not compute.
Status CheckTrainable(const ModelConfig& config);

class Transformer {
 public:
  // Products and attention are computed in `type`; parameters, which must outlive it, keep theirs.
  Transformer(const ModelConfig& config, const Parameters& parameters, torch::ScalarType type);

  ForwardOutput Forward(const ForwardInput& in) const;
  // Rows that follow prompts which attended to everything: `tokens` at positions `rows`, both [B,
  // R], whose keys and values replace those of `kept`. Layers are routed for rows behind the
  // prompt. The stream of these rows.
  Tensor ForwardRows(const Kept& kept, const Tensor& tokens, const Tensor& rows,
                     const Routing& routing) const;
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
    // ForwardRows: the rows' positions, and what they see in full layers and in windows.
    const Kept* kept = nullptr;
    Tensor rows;                    // [B, R]
    Tensor full_bias, window_bias;  // [B, 1, R, n]
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
  c10::intrusive_ptr<Visible> Listed(const Pass& pass, int publisher) const;
  Tensor Attention(Pass& pass, int l, const Tensor& h, const Tensor& q) const;
  Tensor Routed(Pass& pass, int l, const Tensor& plain, const Tensor& q) const;
  Tensor Gated(const Tensor& o, int l, size_t branch, const Tensor& h) const;
  Tensor Distillation(const Pass& pass) const;

  const ModelConfig config_;
  const Parameters& parameters_;
  torch::ScalarType type_;
  std::vector<float> frequencies_;  // [pairs]
};

}  // namespace baton::train
