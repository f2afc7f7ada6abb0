// What a dense decoder-only model is, as data: the forward pass reads these fields and knows no
// architecture names.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

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
  std::vector<float> divisors;                // [D/2], from a GGUF rope_freqs tensor; empty if none
};

struct LayerConfig {
  int64_t window = 0;  // keys a query sees, itself included; 0 = all earlier keys
  int rope = 0;        // index into ModelConfig::rope
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
};

// Inverse frequency of each rotary pair, [head_dim / 2], scaling applied.
std::vector<float> RopeFrequencies(const RopeConfig& rope, int64_t head_dim);

}  // namespace baton
