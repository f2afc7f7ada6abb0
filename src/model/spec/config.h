// A decoder-only model as data: the forward pass reads these fields and knows no architecture
// names.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "plan/layer_plan.h"

namespace baton {

enum class Activation { kSilu, kGeluTanh };

// Rotary embedding of one kind of layer. Inverse frequencies come from RopeFrequencies().
struct RopeConfig {
  float base = 10000.0f;
  enum class Scaling { kNone, kLinear, kLlama3, kYarn } scaling = Scaling::kNone;
  float factor = 1.0f;
  float low_freq_factor = 1.0f;               // llama3
  float high_freq_factor = 4.0f;              // llama3
  int64_t original_context = 0;               // llama3, yarn
  float attention_factor = 1.0f;              // yarn: multiplies cos and sin
  float beta_fast = 32.0f, beta_slow = 1.0f;  // yarn
  bool truncate = true;                       // yarn: the ramp begins and ends at whole pairs
  std::vector<float> divisors;                // [D/2], from a GGUF rope_freqs tensor; empty if none
};

struct LayerConfig {
  // Keys that a query sees, itself included; 0 = all earlier keys. If the config has a plan, the
  // plan determines this.
  int64_t window = 0;
  int rope = 0;          // index into ModelConfig::rope; -1: no positions
  bool qk_norm = false;  // RMS norm per head before RoPE, on q and, where the layer owns them, on k
};

// One list of tokens per row for all layers that read the memory (arXiv 2606.06467).
struct IndexerConfig {
  int64_t key_length = 0;  // d_idx; 0: no indexer
  float scale = 0;         // multiplies q . k
  bool bf16 = false;       // q and k are rounded to bf16 before the product
};

struct ModelConfig {
  std::string architecture;  // row of the architecture table: llama, mistral, qwen2, qwen3, gemma3
  std::string name;
  int layers = 0;
  int64_t width = 0;     // C
  int heads = 0;         // Hq
  int kv_heads = 0;      // Hkv
  int64_t head_dim = 0;  // D
  int64_t ffn_width = 0;
  int64_t vocab = 0;
  int64_t context = 0;  // longest context the model was made for
  float norm_eps = 1e-5f;
  float attention_scale = 0.125f;  // multiplies q . k
  float embedding_scale = 1.0f;
  Activation activation = Activation::kSilu;
  bool qk_norm = false;  // RMS norm per head on q and k before RoPE (Qwen3, Gemma 3)
  bool post_norms =
      false;  // RMS norm after attention and after FFN, before the residual add (Gemma 3)
  bool attention_bias = false;  // q, k, v biases (Qwen2)
  bool norm_plus_one =
      false;  // norm weights in the file lack the +1 (Gemma in Hugging Face form); applied at load
  bool tied_output = false;  // the output layer is the embedding table
  bool rope_interleaved =
      false;  // rotary pairs (2i, 2i+1) as in GGUF llama files; otherwise (i, i + D/2)
  std::vector<LayerConfig> layer;  // [layers]
  std::vector<RopeConfig> rope;
  int64_t rope_dims = 0;  // the first dims of a head that rotate; the others have no position

  // Set for models trained for sparse attention; empty for those whose layers all attend to their
  // own cache (ModelShape::Completed makes theirs). Caches are in order of their owners, then the
  // memory's K and V, then an indexer's keys.
  std::vector<LayerPlan> plan;  // [layers]
  std::vector<CacheSpec> caches;
  // Prompt rows whose logits are not needed stop before this layer; the stream that enters it still
  // feeds the memory. -1: they run through all layers.
  int exit_layer = -1;
  // K and V of a cross_full layer are projected from the stream that enters layer
  // CacheSpec::kv_input, normed by the layer's own bridge norm; false: by that layer's attn norm.
  bool bridge_norm_own = false;
  // The embedding of the token before is added, times a weight per channel. Models learn to recall
  // much sooner with it (docs/training.md).
  bool smear = false;
  int memory_layer = -1;  // the layer whose entering stream feeds the shared memory; -1: none
  bool memory_qk_norm = false;
  IndexerConfig indexer;

  // Keys of the file that do not affect what the model computes, or that Baton does not need.
  std::vector<std::string> ignored_keys;

  // The cache that a layer's K and V projections write, into `caches`; ordinary models: the layer.
  // -1: it has none.
  int OwnCache(int l) const;
};

// The shape that plans are checked against and that attention uses. Plan and caches are complete.
ModelShape ShapeOf(const ModelConfig& config, std::string_view fingerprint);

// Inverse frequency of each rotary pair, [rope_dims / 2], scaling applied.
std::vector<float> RopeFrequencies(const RopeConfig& rope, int64_t rope_dims);

}  // namespace baton
