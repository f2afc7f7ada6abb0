#include "model/architectures.h"

#include "base/check.h"
#include "formats/printable.h"

namespace baton {
namespace {

constexpr TensorRule kCore[] = {
    {Role::kEmbedding,
     "token_embd.weight",
     "model.embed_tokens.weight",
     {Dim::kVocab, Dim::kWidth}},
    {Role::kOutputNorm, "output_norm.weight", "model.norm.weight", {Dim::kWidth}},
    {Role::kOutput,
     "output.weight",
     "lm_head.weight",
     {Dim::kVocab, Dim::kWidth},
     Need::kUnlessTied},
    {Role::kRopeDivisors, "rope_freqs.weight", "", {Dim::kRotaryPairs}, Need::kOptional},
    {Role::kAttnNorm,
     "blk.{}.attn_norm.weight",
     "model.layers.{}.input_layernorm.weight",
     {Dim::kWidth}},
    {Role::kQ,
     "blk.{}.attn_q.weight",
     "model.layers.{}.self_attn.q_proj.weight",
     {Dim::kQueries, Dim::kWidth}},
    {Role::kK,
     "blk.{}.attn_k.weight",
     "model.layers.{}.self_attn.k_proj.weight",
     {Dim::kKeys, Dim::kWidth}},
    {Role::kV,
     "blk.{}.attn_v.weight",
     "model.layers.{}.self_attn.v_proj.weight",
     {Dim::kKeys, Dim::kWidth}},
    {Role::kO,
     "blk.{}.attn_output.weight",
     "model.layers.{}.self_attn.o_proj.weight",
     {Dim::kWidth, Dim::kQueries}},
    {Role::kGate,
     "blk.{}.ffn_gate.weight",
     "model.layers.{}.mlp.gate_proj.weight",
     {Dim::kFfn, Dim::kWidth}},
    {Role::kUp,
     "blk.{}.ffn_up.weight",
     "model.layers.{}.mlp.up_proj.weight",
     {Dim::kFfn, Dim::kWidth}},
    {Role::kDown,
     "blk.{}.ffn_down.weight",
     "model.layers.{}.mlp.down_proj.weight",
     {Dim::kWidth, Dim::kFfn}},
};

constexpr TensorRule kFfnNorm[] = {
    {Role::kFfnNorm,
     "blk.{}.ffn_norm.weight",
     "model.layers.{}.post_attention_layernorm.weight",
     {Dim::kWidth}},
};

// Gemma's post_attention_layernorm is what its name says; elsewhere that name is the norm before
// the FFN.
constexpr TensorRule kFourNorms[] = {
    {Role::kPostAttnNorm,
     "blk.{}.post_attention_norm.weight",
     "model.layers.{}.post_attention_layernorm.weight",
     {Dim::kWidth}},
    {Role::kFfnNorm,
     "blk.{}.ffn_norm.weight",
     "model.layers.{}.pre_feedforward_layernorm.weight",
     {Dim::kWidth}},
    {Role::kPostFfnNorm,
     "blk.{}.post_ffw_norm.weight",
     "model.layers.{}.post_feedforward_layernorm.weight",
     {Dim::kWidth}},
};

constexpr TensorRule kBiases[] = {
    {Role::kQBias, "blk.{}.attn_q.bias", "model.layers.{}.self_attn.q_proj.bias", {Dim::kQueries}},
    {Role::kKBias, "blk.{}.attn_k.bias", "model.layers.{}.self_attn.k_proj.bias", {Dim::kKeys}},
    {Role::kVBias, "blk.{}.attn_v.bias", "model.layers.{}.self_attn.v_proj.bias", {Dim::kKeys}},
};

constexpr TensorRule kHeadNorms[] = {
    {Role::kQNorm,
     "blk.{}.attn_q_norm.weight",
     "model.layers.{}.self_attn.q_norm.weight",
     {Dim::kHeadDim}},
    {Role::kKNorm,
     "blk.{}.attn_k_norm.weight",
     "model.layers.{}.self_attn.k_norm.weight",
     {Dim::kHeadDim}},
};

constexpr Architecture kArchitectures[] = {
    {
        .name = "llama",
        .gguf_name = "llama",
        .hf_type = "llama",
        .tensors = {kCore, kFfnNorm},
        .interleaved_in_gguf = true,
    },
    {
        // GGUF has no name for it: there, a llama file with a sliding window is a Mistral.
        .name = "mistral",
        .gguf_name = "llama",
        .hf_type = "mistral",
        .tensors = {kCore, kFfnNorm},
        .window = WindowRule::kEveryLayer,
        .interleaved_in_gguf = true,
    },
    {
        .name = "qwen2",
        .gguf_name = "qwen2",
        .hf_type = "qwen2",
        .tensors = {kCore, kFfnNorm, kBiases},
        .window = WindowRule::kUpperLayers,
        .attention_bias = true,
    },
    {
        .name = "qwen3",
        .gguf_name = "qwen3",
        .hf_type = "qwen3",
        .tensors = {kCore, kFfnNorm, kHeadNorms},
        .window = WindowRule::kUpperLayers,
        .qk_norm = true,
    },
    {
        .name = "gemma3",
        .gguf_name = "gemma3",
        .hf_type = "gemma3_text",
        .tensors = {kCore, kFourNorms, kHeadNorms},
        .window = WindowRule::kFiveToOne,
        .activation = Activation::kGeluTanh,
        .qk_norm = true,
        .post_norms = true,
        .scaled_embedding = true,
        .norm_plus_one_in_hf = true,
        .tied_by_default_in_hf = true,
        .default_rope_base = 1000000.0,
        .local_rope_base = 10000.0,
    },
};

std::string KnownNames() {
  std::string names;
  for (const Architecture& a : kArchitectures)
    names += (names.empty() ? "" : ", ") + std::string(a.name);
  return names;
}

const Architecture* ByName(std::string_view name) {
  for (const Architecture& a : kArchitectures) {
    if (a.name == name) return &a;
  }
  return nullptr;
}

}  // namespace

std::span<const Architecture> Architectures() { return kArchitectures; }

int64_t SizeOf(Dim d, const ModelConfig& c) {
  switch (d) {
    case Dim::kNone:
      return 1;
    case Dim::kVocab:
      return c.vocab;
    case Dim::kWidth:
      return c.width;
    case Dim::kQueries:
      return c.heads * c.head_dim;
    case Dim::kKeys:
      return c.kv_heads * c.head_dim;
    case Dim::kHeadDim:
      return c.head_dim;
    case Dim::kRotaryPairs:
      return c.head_dim / 2;
    case Dim::kFfn:
      return c.ffn_width;
  }
  return 0;
}

std::string TensorRule::Name(FileKind kind, int layer) const {
  const std::string_view pattern = kind == FileKind::kGguf ? gguf : hf;
  const size_t hole = pattern.find("{}");
  if (hole == std::string_view::npos) return std::string(pattern);
  return fmt::format("{}{}{}", pattern.substr(0, hole), layer, pattern.substr(hole + 2));
}

Result<const Architecture*> FindArchitecture(FileKind kind, const Metadata& m) {
  const char* key = kind == FileKind::kGguf ? "general.architecture" : "model_type";
  const std::string* given = m.String(key);
  if (given == nullptr)
    return Error::Corrupt("{} is missing or no string", key)
        .Hint("the supported ones are: " + KnownNames());
  if (kind == FileKind::kGguf && *given == "llama" &&
      m.Int("llama.attention.sliding_window").value_or(0) > 0)
    return ByName("mistral");
  for (const Architecture& a : kArchitectures) {
    if (*given == (kind == FileKind::kGguf ? a.gguf_name : a.hf_type)) return &a;
  }
  Error error =
      Error::Unsupported("architecture '{}'; supported: {}", Printable(*given), KnownNames());
  if (*given == "gemma3")  // only in folders: there, it is the model with images
    return std::move(error).Hint(
        "this is Gemma 3 with a vision part; use its text-only form (gemma3_text) or a GGUF file");
  return error;
}

}  // namespace baton
