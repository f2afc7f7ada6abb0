// From a file's metadata to a ModelConfig. Every number is checked against a range here.
#include <cmath>
#include <optional>

#include "formats/printable.h"
#include "model/spec/architectures.h"
#include "model/spec/config_reader.h"
#include "model/spec/limits.h"
#include "model/spec/native_config.h"
#include "model/spec/read_rope.h"
#include "model/spec/router.h"

namespace baton {
namespace {

using Reader = ConfigReader;
using Key = ConfigKey;

Status ReadSizes(const Reader& r, ModelConfig& c) {
  BATON_ASSIGN(const int64_t layers,
               r.Required({"block_count", "num_hidden_layers"}, 1, kMaxLayers));
  BATON_ASSIGN(c.width, r.Required({"embedding_length", "hidden_size"}, 1, kMaxWidth));
  BATON_ASSIGN(const int64_t heads,
               r.Required({"attention.head_count", "num_attention_heads"}, 1, kMaxHeads));
  const Key kv_key{"attention.head_count_kv", "num_key_value_heads"};
  BATON_ASSIGN(const std::optional<int64_t> kv_heads, r.Int(kv_key, 1, kMaxHeads));
  BATON_ASSIGN(c.ffn_width,
               r.Required({"feed_forward_length", "intermediate_size"}, 1, kMaxFfnWidth));
  BATON_ASSIGN(c.context,
               r.Required({"context_length", "max_position_embeddings"}, 1, kMaxContext));
  c.layers = static_cast<int>(layers);
  c.heads = static_cast<int>(heads);
  c.kv_heads = static_cast<int>(kv_heads.value_or(heads));
  if (c.heads % c.kv_heads != 0)
    return Error::Corrupt("{} KV heads do not divide {} query heads", c.kv_heads, c.heads);

  const Key dim_key{"attention.key_length", "head_dim"};
  BATON_ASSIGN(const std::optional<int64_t> head_dim, r.Int(dim_key, 2, kMaxHeadDim));
  if (!head_dim && c.width % c.heads != 0)
    return Error::Corrupt("width {} is no multiple of {} heads and {} is missing", c.width, c.heads,
                          r.Name(dim_key));
  c.head_dim = head_dim.value_or(c.width / c.heads);
  if (c.head_dim < 2 || c.head_dim > kMaxHeadDim || c.head_dim % 2 != 0)
    return Error::Unsupported("head size {}, expected an even number from 2 to {}", c.head_dim,
                              kMaxHeadDim);
  for (const char* same : {"attention.value_length", "rope.dimension_count"}) {
    BATON_ASSIGN(const std::optional<int64_t> v, r.Int({same, ""}, 0, 1 << 20));
    if (v && *v != c.head_dim)
      return Error::Unsupported("{} is {}, expected the head size {}", r.Name({same, ""}), *v,
                                c.head_dim);
  }
  const std::vector<std::string>* tokens = r.metadata().Strings("tokenizer.ggml.tokens");
  BATON_ASSIGN(const std::optional<int64_t> vocab,
               r.Int({"vocab_size", "vocab_size"}, 1, kMaxVocab));
  c.vocab =
      r.gguf() && tokens != nullptr ? static_cast<int64_t>(tokens->size()) : vocab.value_or(0);
  if (c.vocab > kMaxVocab)
    return Error::Corrupt("{} tokens, expected at most {}", c.vocab, kMaxVocab);
  if (!r.gguf() && c.vocab == 0) return Error::Corrupt("vocab_size is missing");
  return Status::Ok();
}

// Refuses what would change the results and is not supported.
Status RefuseWhatIsNotDone(const Reader& r, const Architecture& a) {
  for (const Key& k :
       {Key{"final_logit_softcapping", "final_logit_softcapping"},
        Key{"attn_logit_softcapping", "attn_logit_softcapping"},
        Key{"expert_count", "num_local_experts"}, Key{"logit_scale", "logit_scale"}}) {
    BATON_ASSIGN(const std::optional<double> given, r.Float(k));
    if (const double v = given.value_or(0.0); v != 0.0)
      return Error::Unsupported("{} is {} in a {} model, expected none", r.Name(k), v, a.name);
  }
  BATON_ASSIGN(const bool causal, r.BoolOr({"attention.causal", "is_causal"}, true));
  BATON_ASSIGN(const bool both_ways, r.BoolOr({"", "use_bidirectional_attention"}, false));
  if (!causal || both_ways)
    return Error::Unsupported("a model with bidirectional attention")
        .Hint("Baton generates text with causal models");
  if (r.gguf()) return Status::Ok();
  BATON_ASSIGN(const std::string* act, r.String({"", "hidden_act"}));
  BATON_ASSIGN(const std::string* newer, r.String({"", "hidden_activation"}));
  if (act == nullptr) act = newer;
  const std::string_view expected =
      a.activation == Activation::kSilu ? "silu" : "gelu_pytorch_tanh";
  if (act != nullptr && *act != expected)
    return Error::Unsupported("activation '{}' in a {} model, expected {}", Printable(*act), a.name,
                              expected);
  return Status::Ok();
}

// Which layers have a sliding window, from the file's own list or period where it has one.
Result<std::vector<bool>> ReadWindowLayers(const Reader& r, const Architecture& a,
                                           const ModelConfig& c, bool has_window) {
  std::vector<bool> slides(static_cast<size_t>(c.layers));
  const auto check_length = [&](size_t n, std::string_view key) -> Status {
    if (n == slides.size()) return Status::Ok();
    return Error::Corrupt("{} names {} layers, the model has {}", key, n, slides.size());
  };
  BATON_ASSIGN(const auto* types, r.Strings({"", "layer_types"}));
  if (types != nullptr) {
    BATON_TRY(check_length(types->size(), "layer_types"));
    for (size_t i = 0; i < slides.size(); ++i) {
      slides[i] = (*types)[i] == "sliding_attention";
      if (!slides[i] && (*types)[i] != "full_attention")
        return Error::Unsupported(
            "layer_types[{}] is '{}', expected full_attention or sliding_attention", i,
            Printable((*types)[i]));
    }
    return slides;
  }
  const Key pattern{"attention.sliding_window_pattern", "sliding_window_pattern"};
  const auto* flags = r.Ints(pattern);
  if (flags != nullptr && r.gguf()) {
    BATON_TRY(check_length(flags->size(), r.Name(pattern)));
    for (size_t i = 0; i < slides.size(); ++i) slides[i] = (*flags)[i] != 0;
    return slides;
  }
  switch (a.window) {
    case WindowRule::kNone:
      break;
    case WindowRule::kEveryLayer:
      slides.assign(slides.size(), has_window);
      break;
    case WindowRule::kUpperLayers: {
      BATON_ASSIGN(const bool uses, r.BoolOr({"", "use_sliding_window"}, false));
      if (!uses || !has_window) break;
      BATON_ASSIGN(const int64_t first, r.Required({"", "max_window_layers"}, 0, kMaxLayers));
      for (size_t i = 0; i < slides.size(); ++i) slides[i] = static_cast<int64_t>(i) >= first;
      break;
    }
    case WindowRule::kFiveToOne: {
      BATON_ASSIGN(std::optional<int64_t> period, r.Int(pattern, 1, kMaxLayers));
      if (!period) {
        BATON_ASSIGN(period, r.Int({"", "_sliding_window_pattern"}, 1, kMaxLayers));
      }
      for (size_t i = 0; i < slides.size(); ++i)
        slides[i] = (static_cast<int64_t>(i) + 1) % period.value_or(6) != 0;
      break;
    }
  }
  return slides;
}

Status ReadWindows(const Reader& r, const Architecture& a, ModelConfig& c) {
  const Key key{"attention.sliding_window", "sliding_window"};
  BATON_ASSIGN(const std::optional<int64_t> window, r.Int(key, 0, kMaxContext));
  const bool has_window = window.value_or(0) > 0;
  BATON_ASSIGN(std::vector<bool> slides, ReadWindowLayers(r, a, c, has_window));
  BATON_ASSIGN(const bool uses, r.BoolOr({"", "use_sliding_window"}, true));
  if (!uses && a.window == WindowRule::kFiveToOne)
    return Error::Unsupported("use_sliding_window is false in a {} model, expected windows",
                              a.name);
  if (!uses) slides.assign(slides.size(), false);
  for (bool s : slides) {
    if (s && !has_window)
      return Error::Corrupt("some layers have a sliding window, but {} is missing", r.Name(key));
    c.layer.push_back(
        {.window = s ? *window : 0, .rope = s && c.rope.size() > 1 ? 1 : 0, .qk_norm = a.qk_norm});
  }
  return Status::Ok();
}

Result<double> AttentionScale(const Reader& r, const Architecture& a, const ModelConfig& c) {
  double head_dim = static_cast<double>(c.head_dim);
  // Gemma 3 27B alone scales by width / heads instead, and its GGUF files do not say so; 62 layers
  // tell it apart.
  if (r.gguf() && a.name == "gemma3" && c.layers == 62)
    head_dim = static_cast<double>(c.width) / c.heads;
  BATON_ASSIGN(const double scalar, r.FloatOr({"", "query_pre_attn_scalar"}, head_dim, 1e-3, 1e6));
  return r.FloatOr({"attention.scale", ""}, 1.0 / std::sqrt(scalar), 1e-6, 1e3);
}

}  // namespace

Result<ModelConfig> ReadConfig(FileKind kind, const Architecture& a, const Metadata& metadata) {
  if (a.native) return ReadNativeConfig(kind, a, metadata);
  const Reader r(kind, a, metadata);
  ModelConfig c{.architecture = std::string(a.name)};
  const std::string* name = metadata.String(r.gguf() ? "general.name" : "_name_or_path");
  c.name = name != nullptr && !name->empty() ? Displayable(*name) : c.architecture;
  BATON_TRY(ReadSizes(r, c));
  BATON_TRY(RefuseWhatIsNotDone(r, a));
  BATON_ASSIGN(const double eps,
               r.FloatOr({"attention.layer_norm_rms_epsilon", "rms_norm_eps"}, 1e-6, 1e-12, 1.0));
  BATON_ASSIGN(const double scale, AttentionScale(r, a, c));
  c.norm_eps = static_cast<float>(eps);
  c.attention_scale = static_cast<float>(scale);
  c.embedding_scale = a.scaled_embedding ? std::sqrt(static_cast<float>(c.width)) : 1.0f;
  c.activation = a.activation;
  c.qk_norm = a.qk_norm;
  c.post_norms = a.post_norms;
  BATON_ASSIGN(const bool bias, r.BoolOr({"", "attention_bias"}, false));
  c.attention_bias = a.attention_bias || bias;
  c.norm_plus_one = a.norm_plus_one_in_hf && !r.gguf();
  BATON_ASSIGN(const bool tied,
               r.BoolOr({"", "tie_word_embeddings"}, !r.gguf() && a.tied_by_default_in_hf));
  c.tied_output = tied;
  c.rope_interleaved = a.interleaved_in_gguf && r.gguf();
  BATON_TRY(ReadRope(r, a, c));
  BATON_TRY(ReadWindows(r, a, c));
  if (!r.gguf() && !RoutedBackbone(r.metadata()).empty()) {
    for (const std::string_view key : kPublishedRouterKeys) r.Pass(std::string(key));
  }
  BATON_ASSIGN(c.ignored_keys, r.Unread());
  return c;
}

}  // namespace baton
