#include "model/spec/read_rope.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "formats/printable.h"
#include "model/spec/limits.h"

namespace baton {
namespace {

constexpr const char* kOfFullLayers = "rope_parameters.full_attention.";
constexpr const char* kOfWindowLayers = "rope_parameters.sliding_attention.";

bool HasPrefix(const Metadata& m, std::string_view prefix) {
  const auto it = m.values.lower_bound(prefix);
  return it != m.values.end() && it->first.starts_with(prefix);
}

// The prefix of the rotary parameters in config.json: in old files they are beside the base, in
// newer ones the base is among them.
std::string HfPrefix(const Metadata& m) {
  for (const char* prefix : {kOfFullLayers, "rope_parameters."}) {
    if (HasPrefix(m, prefix)) return prefix;
  }
  return "rope_scaling.";
}

double YarnMagnitude(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// cos and sin grow with the factor, as the YaRN paper's temperature asks (equation 22 there).
Result<double> YarnAttentionFactor(const ConfigReader& r, const std::string& p, double factor) {
  if (r.gguf()) {
    BATON_ASSIGN(const auto given, r.Float({"rope.scaling.attn_factor", ""}));
    BATON_ASSIGN(const auto extrapolation, r.Float({"rope.scaling.yarn_ext_factor", ""}));
    if (const double ext = extrapolation.value_or(1.0); ext != 1.0 && ext != -1.0)
      return Error::Unsupported("rope.scaling.yarn_ext_factor is {}, expected 1", ext);
    return given.value_or(1.0) * YarnMagnitude(factor, 1.0);
  }
  BATON_ASSIGN(const auto given, r.Float({"", p + "attention_factor"}));
  BATON_ASSIGN(const auto mscale, r.Float({"", p + "mscale"}));
  BATON_ASSIGN(const auto all_dim, r.Float({"", p + "mscale_all_dim"}));
  if (given) return *given;
  if (mscale && all_dim && *mscale != 0.0 && *all_dim != 0.0)
    return YarnMagnitude(factor, *mscale) / YarnMagnitude(factor, *all_dim);
  return YarnMagnitude(factor, 1.0);
}

Status ReadYarn(const ConfigReader& r, const std::string& p, RopeConfig& rope) {
  BATON_ASSIGN(const double attention, YarnAttentionFactor(r, p, rope.factor));
  BATON_ASSIGN(const double checked,
               ConfigReader::InRange("YaRN attention factor", attention, 1e-3, 1e3));
  BATON_ASSIGN(const double beta_fast,
               r.FloatOr({"rope.scaling.yarn_beta_fast", p + "beta_fast"}, 32.0, 1e-3, 1e6));
  BATON_ASSIGN(const double beta_slow,
               r.FloatOr({"rope.scaling.yarn_beta_slow", p + "beta_slow"}, 1.0, 1e-3, 1e6));
  if (beta_fast < beta_slow)
    return Error::Corrupt("YaRN beta_fast {} is below beta_slow {}", beta_fast, beta_slow);
  BATON_ASSIGN(rope.truncate, r.BoolOr({"", p + "truncate"}, true));
  if (!r.gguf()) r.Pass(p + "finetuned");  // a fact about the training
  rope.attention_factor = static_cast<float>(checked);
  rope.beta_fast = static_cast<float>(beta_fast);
  rope.beta_slow = static_cast<float>(beta_slow);
  return Status::Ok();
}

Status ReadLlama3(const ConfigReader& r, const std::string& p, RopeConfig& rope) {
  const std::string low_key = p + "low_freq_factor", high_key = p + "high_freq_factor";
  BATON_ASSIGN(const double low, r.FloatOr({"", low_key}, 1.0, 1e-3, 1e6));
  BATON_ASSIGN(const double high, r.FloatOr({"", high_key}, 4.0, 1e-3, 1e6));
  if (!(low < high))
    return Error::Corrupt("{} {} is not below {} {}", low_key, low, high_key, high);
  rope.low_freq_factor = static_cast<float>(low);
  rope.high_freq_factor = static_cast<float>(high);
  return Status::Ok();
}

// Files older than rope.scaling.type have only the factor, under one of two names, and mean linear
// scaling.
Result<std::optional<double>> ReadFactor(const ConfigReader& r, const std::string& p) {
  BATON_ASSIGN(const auto factor, r.Float({"rope.scaling.factor", p + "factor"}));
  BATON_ASSIGN(const auto old, r.Float({"rope.scale_linear", ""}));
  if (factor && old && *factor != *old)
    return Error::Corrupt("{} is {}, {} is {}", r.Name({"rope.scaling.factor", ""}), *factor,
                          r.Name({"rope.scale_linear", ""}), *old);
  return factor ? factor : old;
}

// Marks as read what only the other kinds of scaling use.
void PassOthers(const ConfigReader& r, const std::string& p) {
  if (r.gguf()) return r.Pass(r.Name({"rope.scaling.", ""}));
  for (const char* name :
       {"original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
        "attention_factor", "beta_fast", "beta_slow", "mscale", "truncate"})
    r.Pass(p + name);
}

// `p`: where a folder's config has this rope's parameters.
Status ReadScaling(const ConfigReader& r, const std::string& p, int64_t context, RopeConfig& rope) {
  BATON_ASSIGN(const std::string* type, r.String({"rope.scaling.type", p + "rope_type"}));
  BATON_ASSIGN(const std::string* old_type, r.String({"", p + "type"}));
  if (type == nullptr) type = old_type;
  BATON_ASSIGN(const std::optional<double> factor, ReadFactor(r, p));
  const std::string kind = type != nullptr ? *type : r.gguf() && factor ? "linear" : "none";
  if (type == nullptr && !r.gguf() && factor && *factor != 1.0)
    return Error::Corrupt("{}factor is {}, but neither {}rope_type nor {}type says of what", p,
                          *factor, p, p);
  if (kind == "none" || kind == "default" || kind == "linear") PassOthers(r, p);
  if (kind == "none" || kind == "default") return Status::Ok();
  if (kind != "linear" && kind != "yarn" && (kind != "llama3" || r.gguf()))
    return Error::Unsupported("RoPE scaling '{}'; supported: none, linear, llama3, yarn",
                              Printable(kind));

  if (!factor && !r.gguf())
    return Error::Corrupt("{}factor is missing, expected one for RoPE scaling '{}'", p, kind);
  // GGUF files may leave it out or write 0 for a factor of 1.
  const double given = factor.value_or(1.0);
  BATON_ASSIGN(const double f,
               ConfigReader::InRange(r.Name({"rope.scaling.factor", p + "factor"}),
                                     r.gguf() && given == 0.0 ? 1.0 : given, 1e-3, 1e6));
  rope.factor = static_cast<float>(f);
  const ConfigKey original_key{"rope.scaling.original_context_length",
                               p + "original_max_position_embeddings"};
  BATON_ASSIGN(const std::optional<int64_t> original, r.Int(original_key, 1, kMaxContext));
  rope.original_context = original.value_or(context);
  if (kind == "linear") {
    rope.scaling = RopeConfig::Scaling::kLinear;
    return Status::Ok();
  }
  rope.scaling = kind == "yarn" ? RopeConfig::Scaling::kYarn : RopeConfig::Scaling::kLlama3;
  return kind == "yarn" ? ReadYarn(r, p, rope) : ReadLlama3(r, p, rope);
}

// All dims of a head rotate in the models of the table.
Status CheckPartial(const ConfigReader& r, const Architecture& a, const std::string& p) {
  for (const std::string& key : {std::string("partial_rotary_factor"), p + "partial_rotary_factor",
                                 std::string("rotary_pct")}) {
    BATON_ASSIGN(const auto part, r.Float({"", key}));
    if (part.value_or(1.0) != 1.0)
      return Error::Unsupported("{} is {} in a {} model, expected 1", key, *part, a.name);
  }
  return Status::Ok();
}

// The base stands beside the parameters or among them; if both, they must agree.
Result<double> ReadBase(const ConfigReader& r, const ConfigKey& key, const std::string& with,
                        double otherwise) {
  BATON_ASSIGN(const auto beside, r.Float(key));
  BATON_ASSIGN(const auto inside, r.Float({"", with}));
  if (beside && inside && *beside != *inside)
    return Error::Corrupt("{} is {}, {} is {}", r.Name(key), *beside, with, *inside);
  return ConfigReader::InRange(r.Name(key), beside ? *beside : inside.value_or(otherwise), 1.001,
                               1e12);
}

}  // namespace

Status ReadRope(const ConfigReader& r, const Architecture& a, ModelConfig& c) {
  const std::string p = r.gguf() ? "" : HfPrefix(r.metadata());
  BATON_TRY(CheckPartial(r, a, p));
  BATON_ASSIGN(const double base, ReadBase(r, {"rope.freq_base", "rope_theta"}, p + "rope_theta",
                                           a.default_rope_base));
  RopeConfig global{.base = static_cast<float>(base)};
  BATON_TRY(ReadScaling(r, p, c.context, global));
  if (global.scaling == RopeConfig::Scaling::kYarn) {
    const double stretched = static_cast<double>(global.original_context) * global.factor;
    c.context = std::max(c.context, static_cast<int64_t>(std::min<double>(stretched, kMaxContext)));
  }
  c.rope.push_back(global);
  c.rope_dims = c.head_dim;
  const bool of_its_own = !r.gguf() && HasPrefix(r.metadata(), kOfWindowLayers);
  if (a.local_rope_base == 0.0 && !of_its_own) return Status::Ok();
  BATON_ASSIGN(const double local, ReadBase(r, {"rope.freq_base_swa", "rope_local_base_freq"},
                                            std::string(kOfWindowLayers) + "rope_theta",
                                            a.local_rope_base == 0.0 ? base : a.local_rope_base));
  RopeConfig window{.base = static_cast<float>(local)};
  if (of_its_own) {
    BATON_TRY(CheckPartial(r, a, kOfWindowLayers));
    BATON_TRY(ReadScaling(r, kOfWindowLayers, c.context, window));
  }
  c.rope.push_back(std::move(window));
  return Status::Ok();
}

}  // namespace baton
