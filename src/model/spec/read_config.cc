// From a file's metadata to a ModelConfig. The numbers are hostile until they have passed a range
// here.
#include <cmath>
#include <optional>

#include "formats/printable.h"
#include "model/spec/architectures.h"
#include "model/spec/limits.h"
#include "model/spec/native_config.h"

namespace baton {
namespace {

// The same fact under its two names; GGUF names follow the architecture's prefix.
struct Key {
  std::string_view gguf;
  std::string_view hf;
};

class Reader {
 public:
  Reader(FileKind kind, const Architecture& a, const Metadata& m)
      : kind_(kind), prefix_(std::string(a.gguf_name) + "."), m_(m) {}

  bool gguf() const { return kind_ == FileKind::kGguf; }
  const Metadata& metadata() const { return m_; }

  // The full key, or empty where this kind of file has no such fact.
  std::string Name(const Key& k) const {
    if (gguf()) return k.gguf.empty() ? "" : prefix_ + std::string(k.gguf);
    return std::string(k.hf);
  }

  std::optional<double> Float(const Key& k) const { return m_.Float(Name(k)); }
  std::optional<bool> Bool(const Key& k) const { return m_.Bool(Name(k)); }
  const std::string* String(const Key& k) const { return m_.String(Name(k)); }

  // Absent: nullopt. One value per layer is accepted if all are the same.
  Result<std::optional<int64_t>> Int(const Key& k, int64_t low, int64_t high) const {
    const std::string name = Name(k);
    std::optional<int64_t> v = m_.Int(name);
    if (const std::vector<int64_t>* per_layer = m_.Ints(name);
        per_layer != nullptr && !per_layer->empty()) {
      v = per_layer->front();
      for (int64_t x : *per_layer) {
        if (x != *v) return Error::Unsupported("{} differs between layers ({}, {})", name, *v, x);
      }
    }
    if (!v && m_.values.contains(name)) return Error::Corrupt("{} is not an integer", name);
    if (v && (*v < low || *v > high))
      return Error::Corrupt("{} is {}, expected {} to {}", name, *v, low, high);
    return v;
  }

  Result<int64_t> Required(const Key& k, int64_t low, int64_t high) const {
    BATON_ASSIGN(const std::optional<int64_t> v, Int(k, low, high));
    if (!v) return Error::Corrupt("{} is missing", Name(k));
    return *v;
  }

  Result<double> FloatOr(const Key& k, double otherwise, double low, double high) const {
    return InRange(Name(k), Float(k).value_or(otherwise), low, high);
  }

  // NaN is outside every range.
  static Result<double> InRange(const std::string& name, double v, double low, double high) {
    if (!(v >= low && v <= high))
      return Error::Corrupt("{} is {}, expected {} to {}", name, v, low, high);
    return v;
  }

 private:
  FileKind kind_;
  std::string prefix_;
  const Metadata& m_;
};

Status ReadSizes(const Reader& r, const Architecture& a, ModelConfig& c) {
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
  for (std::string_view same : {"attention.value_length", "rope.dimension_count"}) {
    BATON_ASSIGN(const std::optional<int64_t> v, r.Int({same, ""}, 0, 1 << 20));
    if (v && *v != c.head_dim)
      return Error::Unsupported("{} is {}, expected the head size {}", r.Name({same, ""}), *v,
                                c.head_dim);
  }
  if (r.Float({"", "partial_rotary_factor"}).value_or(1.0) != 1.0)
    return Error::Unsupported("partial_rotary_factor other than 1 in a {} model", a.name);

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

// What would change the results and is not done here must not pass silently.
Status RefuseWhatIsNotDone(const Reader& r, const Architecture& a) {
  for (const Key& k :
       {Key{"final_logit_softcapping", "final_logit_softcapping"},
        Key{"attn_logit_softcapping", "attn_logit_softcapping"},
        Key{"expert_count", "num_local_experts"}, Key{"logit_scale", "logit_scale"}}) {
    if (const double v = r.Float(k).value_or(0.0); v != 0.0)
      return Error::Unsupported("{} is {} in a {} model, expected none", r.Name(k), v, a.name);
  }
  if (!r.Bool({"attention.causal", "is_causal"}).value_or(true) ||
      r.Bool({"", "use_bidirectional_attention"}).value_or(false))
    return Error::Unsupported("a model with bidirectional attention")
        .Hint("Baton generates text with causal models");
  if (r.gguf()) return Status::Ok();
  const std::string* act = r.String({"", "hidden_act"});
  if (act == nullptr) act = r.String({"", "hidden_activation"});
  const std::string_view expected =
      a.activation == Activation::kSilu ? "silu" : "gelu_pytorch_tanh";
  if (act != nullptr && *act != expected)
    return Error::Unsupported("activation '{}' in a {} model, expected {}", Printable(*act), a.name,
                              expected);
  return Status::Ok();
}

// Where config.json keeps the rotary parameters: old files beside the base, newer ones together
// with it.
std::string HfRopePrefix(const Metadata& m) {
  for (const char* prefix : {"rope_parameters.full_attention.", "rope_parameters."}) {
    const auto it = m.values.lower_bound(std::string_view(prefix));
    if (it != m.values.end() && it->first.starts_with(prefix)) return prefix;
  }
  return "rope_scaling.";
}

double YarnMagnitude(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// cos and sin grow with the factor, as the YaRN paper's temperature asks (equation 22 there).
Result<double> YarnAttentionFactor(const Reader& r, const std::string& p, double factor) {
  if (r.gguf()) {
    const double given = r.Float({"rope.scaling.attn_factor", ""}).value_or(1.0);
    if (const double ext = r.Float({"rope.scaling.yarn_ext_factor", ""}).value_or(1.0);
        ext != 1.0 && ext != -1.0)
      return Error::Unsupported("rope.scaling.yarn_ext_factor is {}, expected 1", ext);
    return given * YarnMagnitude(factor, 1.0);
  }
  if (const auto given = r.Float({"", p + "attention_factor"})) return *given;
  const auto mscale = r.Float({"", p + "mscale"}), all_dim = r.Float({"", p + "mscale_all_dim"});
  if (mscale && all_dim && *mscale != 0.0 && *all_dim != 0.0)
    return YarnMagnitude(factor, *mscale) / YarnMagnitude(factor, *all_dim);
  return YarnMagnitude(factor, 1.0);
}

Status ReadYarn(const Reader& r, const std::string& p, RopeConfig& rope) {
  const std::string fast = p + "beta_fast", slow = p + "beta_slow";
  BATON_ASSIGN(const double attention, YarnAttentionFactor(r, p, rope.factor));
  BATON_ASSIGN(const double checked,
               Reader::InRange("YaRN attention factor", attention, 1e-3, 1e3));
  BATON_ASSIGN(const double beta_fast,
               r.FloatOr({"rope.scaling.yarn_beta_fast", fast}, 32.0, 1e-3, 1e6));
  BATON_ASSIGN(const double beta_slow,
               r.FloatOr({"rope.scaling.yarn_beta_slow", slow}, 1.0, 1e-3, 1e6));
  if (beta_fast < beta_slow)
    return Error::Corrupt("YaRN beta_fast {} is below beta_slow {}", beta_fast, beta_slow);
  rope.attention_factor = static_cast<float>(checked);
  rope.beta_fast = static_cast<float>(beta_fast);
  rope.beta_slow = static_cast<float>(beta_slow);
  return Status::Ok();
}

Status ReadScaling(const Reader& r, int64_t context, RopeConfig& rope) {
  const std::string p = r.gguf() ? "" : HfRopePrefix(r.metadata());
  const std::string type_key = p + "rope_type", old_type_key = p + "type",
                    factor_key = p + "factor";
  const std::string context_key = p + "original_max_position_embeddings";
  const Key factor{"rope.scaling.factor", factor_key};
  const std::string* type = r.String({"rope.scaling.type", type_key});
  if (type == nullptr) type = r.String({"", old_type_key});
  // Files from before rope.scaling.type say only by how much, and mean linear.
  std::string kind = type != nullptr ? *type : r.gguf() && r.Float(factor) ? "linear" : "none";
  if (kind == "none" || kind == "default") return Status::Ok();
  if (kind != "linear" && kind != "yarn" && (kind != "llama3" || r.gguf()))
    return Error::Unsupported("RoPE scaling '{}'; supported: none, linear, llama3, yarn",
                              Printable(kind));

  const double given = r.Float(factor).value_or(1.0);
  BATON_ASSIGN(const double f,
               Reader::InRange(r.Name(factor), given == 0.0 ? 1.0 : given, 1e-3, 1e6));
  rope.factor = static_cast<float>(f);
  BATON_ASSIGN(const std::optional<int64_t> original,
               r.Int({"rope.scaling.original_context_length", context_key}, 1, kMaxContext));
  rope.original_context = original.value_or(context);
  if (kind == "linear") {
    rope.scaling = RopeConfig::Scaling::kLinear;
  } else if (kind == "yarn") {
    rope.scaling = RopeConfig::Scaling::kYarn;
    BATON_TRY(ReadYarn(r, p, rope));
  } else {
    rope.scaling = RopeConfig::Scaling::kLlama3;
    const std::string low_key = p + "low_freq_factor", high_key = p + "high_freq_factor";
    BATON_ASSIGN(const double low, r.FloatOr({"", low_key}, 1.0, 1e-3, 1e6));
    BATON_ASSIGN(const double high, r.FloatOr({"", high_key}, 4.0, 1e-3, 1e6));
    if (!(low < high))
      return Error::Corrupt("{} {} is not below {} {}", low_key, low, high_key, high);
    rope.low_freq_factor = static_cast<float>(low);
    rope.high_freq_factor = static_cast<float>(high);
  }
  return Status::Ok();
}

Status ReadRope(const Reader& r, const Architecture& a, ModelConfig& c) {
  const std::string p = r.gguf() ? "" : HfRopePrefix(r.metadata());
  const std::string new_key = p + "rope_theta";
  const double otherwise = r.Float({"", new_key}).value_or(a.default_rope_base);
  BATON_ASSIGN(const double base,
               r.FloatOr({"rope.freq_base", "rope_theta"}, otherwise, 1.001, 1e12));
  RopeConfig global{.base = static_cast<float>(base)};
  BATON_TRY(ReadScaling(r, c.context, global));
  if (global.scaling == RopeConfig::Scaling::kYarn) {
    const double stretched = static_cast<double>(global.original_context) * global.factor;
    c.context = std::max(c.context, static_cast<int64_t>(std::min<double>(stretched, kMaxContext)));
  }
  c.rope.push_back(global);
  c.rope_dims = c.head_dim;
  if (a.local_rope_base == 0.0) return Status::Ok();
  const double local_otherwise =
      r.Float({"", "rope_parameters.sliding_attention.rope_theta"}).value_or(a.local_rope_base);
  BATON_ASSIGN(const double local, r.FloatOr({"rope.freq_base_swa", "rope_local_base_freq"},
                                             local_otherwise, 1.001, 1e12));
  c.rope.push_back({.base = static_cast<float>(local)});
  return Status::Ok();
}

// Which layers slide, from the file's own list or period where it has one.
Result<std::vector<bool>> ReadWindowLayers(const Reader& r, const Architecture& a,
                                           const ModelConfig& c, bool has_window) {
  std::vector<bool> slides(static_cast<size_t>(c.layers));
  const auto check_length = [&](size_t n, std::string_view key) -> Status {
    if (n == slides.size()) return Status::Ok();
    return Error::Corrupt("{} names {} layers, the model has {}", key, n, slides.size());
  };
  const Metadata& m = r.metadata();
  if (const auto* types = m.Strings("layer_types"); types != nullptr && !r.gguf()) {
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
  const auto* flags = m.Ints(r.Name(pattern));
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
      if (!r.Bool({"", "use_sliding_window"}).value_or(false) || !has_window) break;
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
  BATON_ASSIGN(const std::vector<bool> slides, ReadWindowLayers(r, a, c, has_window));
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
  c.name = name != nullptr && !name->empty() ? *name : c.architecture;
  BATON_TRY(ReadSizes(r, a, c));
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
  c.attention_bias = a.attention_bias;
  c.norm_plus_one = a.norm_plus_one_in_hf && !r.gguf();
  c.tied_output =
      !r.gguf() && r.Bool({"", "tie_word_embeddings"}).value_or(a.tied_by_default_in_hf);
  c.rope_interleaved = a.interleaved_in_gguf && r.gguf();
  BATON_TRY(ReadRope(r, a, c));
  BATON_TRY(ReadWindows(r, a, c));
  return c;
}

}  // namespace baton
