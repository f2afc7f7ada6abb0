#include "model/spec/config_reader.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/parse.h"
#include "formats/printable.h"
#include "model/spec/problems.h"

namespace baton {
namespace {

std::optional<double> NumberOf(const MetaValue& v) {
  if (const auto* d = std::get_if<double>(&v)) return *d;
  if (const auto* i = std::get_if<int64_t>(&v)) return static_cast<double>(*i);
  if (const auto* s = std::get_if<std::string>(&v)) return ParseWhole<double>(*s);
  return std::nullopt;
}

std::optional<int64_t> IntegerOf(const MetaValue& v) {
  if (const auto* b = std::get_if<bool>(&v)) return *b ? 1 : 0;
  if (const auto* i = std::get_if<int64_t>(&v)) return *i;
  if (const auto* s = std::get_if<std::string>(&v)) return ParseWhole<int64_t>(*s);
  if (const auto* d = std::get_if<double>(&v); d && std::fabs(*d) < 0x1p53 && *d == std::floor(*d))
    return static_cast<int64_t>(*d);
  return std::nullopt;
}

std::string TextOf(const MetaValue& v) {
  if (const auto* s = std::get_if<std::string>(&v)) return fmt::format("'{}'", Printable(*s));
  if (const auto* b = std::get_if<bool>(&v)) return *b ? "true" : "false";
  if (const auto n = NumberOf(v)) return fmt::format("{}", *n);
  return "a list";
}

// Whether a value says "none of this", whatever the key is.
bool IsNeutral(std::string_view key, const MetaValue& v) {
  const auto holds = [&](std::string_view part) { return key.find(part) != key.npos; };
  if (const auto* b = std::get_if<bool>(&v)) return !*b;
  if (const auto* s = std::get_if<std::string>(&v))
    return s->empty() || *s == "none" || *s == "default" ||
           (holds("position_embedding") && (*s == "rope" || *s == "rotary"));
  // In lists of layers without rotation, a layer that rotates is a 1.
  if (const auto* l = std::get_if<std::vector<int64_t>>(&v))
    return std::ranges::all_of(*l, [&](int64_t x) { return x == (holds("no_rope") ? 1 : 0); });
  const auto n = NumberOf(v);
  if (!n) return false;
  const bool factor = holds("scal") || holds("factor") || holds("multiplier") || holds("pct");
  return *n == 0.0 || (factor && *n == 1.0);
}

// All keys under the architecture's own prefix affect its forward pass, except these.
constexpr std::string_view kHarmlessGguf[] = {"vocab_size",         "rope.scaling.finetuned",
                                              "tensor_data_layout", "pooling_type",
                                              "expert_used_count",  "attention.layer_norm_epsilon"};
// Keys of an image encoder beside the model.
constexpr std::string_view kOtherPartsGguf[] = {"mm.", "vision."};
constexpr std::string_view kKnownGgufPrefixes[] = {"general.", "split.", "quantize.", "tokenizer."};

// config.json has many keys that do not affect the forward pass; those with one of these parts do.
constexpr std::string_view kMeaningfulHf[] = {"rope",
                                              "rotary",
                                              "softcap",
                                              "logit_s",
                                              "logits_s",
                                              "multiplier",
                                              "alibi",
                                              "clip_qkv",
                                              "attn_temperature",
                                              "logn",
                                              "_ntk",
                                              "position_embedding_",
                                              "attention_chunk",
                                              "window_size",
                                              "unit_offset",
                                              "expert",
                                              "moe_",
                                              "sink",
                                              "residual",
                                              "scale",
                                              "scaling",
                                              "parallel",
                                              "nope",
                                              "mup",
                                              "mlp_bias",
                                              "qk_",
                                              "qk_norm",
                                              "norm_type",
                                              "activation",
                                              "partial",
                                              "quantization_config."};
constexpr std::string_view kHarmlessHf[] = {"use_parallel_residual", "initializer_scale",
                                            "tensor_parallel_size", "tensor_parallel_degree"};
// Not listed as ignored either: they are in every config and of no interest to a user.
constexpr std::string_view kUsualHf[] = {"_attn_implementation",
                                         "_attn_implementation_autoset",
                                         "_name_or_path",
                                         "architectures",
                                         "attention_dropout",
                                         "attn_implementation",
                                         "auto_map",
                                         "bos_token_id",
                                         "cache_implementation",
                                         "dtype",
                                         "eos_token_id",
                                         "hidden_dropout",
                                         "initializer_range",
                                         "max_window_layers",
                                         "model_type",
                                         "pad_token_id",
                                         "pretraining_tp",
                                         "torch_dtype",
                                         "transformers_version",
                                         "transformers.js_config",
                                         "unk_token_id",
                                         "unsloth_fixed",
                                         "unsloth_version",
                                         "use_cache",
                                         "use_sliding_window",
                                         "vocab_size"};

template <size_t N>
bool Holds(const std::string_view (&list)[N], std::string_view key) {
  return std::ranges::find(list, key) != std::end(list);
}

bool ChangesResultsGguf(std::string_view key) {
  return !Holds(kHarmlessGguf, key) &&
         std::ranges::none_of(kOtherPartsGguf,
                              [&](std::string_view part) { return key.starts_with(part); });
}

bool ChangesResultsHf(std::string_view key) {
  if (Holds(kHarmlessHf, key) || key.find("drop") != key.npos) return false;
  return std::ranges::any_of(kMeaningfulHf,
                             [&](std::string_view part) { return key.find(part) != key.npos; });
}

}  // namespace

std::string ConfigReader::Name(const ConfigKey& k) const {
  if (gguf()) return k.gguf.empty() ? "" : prefix_ + k.gguf;
  return k.hf;
}

const MetaValue* ConfigReader::Find(const ConfigKey& k) const {
  const std::string name = Name(k);
  if (name.empty()) return nullptr;
  read_.insert(name);
  const auto it = m_.values.find(name);
  return it == m_.values.end() ? nullptr : &it->second;
}

Result<std::optional<double>> ConfigReader::Float(const ConfigKey& k) const {
  const MetaValue* v = Find(k);
  if (v == nullptr) return std::optional<double>();
  const std::optional<double> number = NumberOf(*v);
  if (!number) return Error::Corrupt("{} is {}, expected a number", Name(k), TextOf(*v));
  return number;
}

Result<std::optional<bool>> ConfigReader::Bool(const ConfigKey& k) const {
  const MetaValue* v = Find(k);
  if (v == nullptr) return std::optional<bool>();
  if (const auto* b = std::get_if<bool>(v)) return std::optional<bool>(*b);
  const auto* i = std::get_if<int64_t>(v);
  const auto* s = std::get_if<std::string>(v);
  if ((i && *i == 1) || (s && (*s == "true" || *s == "True" || *s == "1")))
    return std::optional<bool>(true);
  if ((i && *i == 0) || (s && (*s == "false" || *s == "False" || *s == "0")))
    return std::optional<bool>(false);
  return Error::Corrupt("{} is {}, expected true or false", Name(k), TextOf(*v));
}

Result<std::optional<int64_t>> ConfigReader::Int(const ConfigKey& k, int64_t low,
                                                 int64_t high) const {
  const MetaValue* found = Find(k);
  if (found == nullptr) return std::optional<int64_t>();
  const std::string name = Name(k);
  std::optional<int64_t> v = IntegerOf(*found);
  if (const auto* per_layer = std::get_if<std::vector<int64_t>>(found);
      per_layer != nullptr && !per_layer->empty()) {
    v = per_layer->front();
    for (int64_t x : *per_layer) {
      if (x != *v) return Error::Unsupported("{} differs between layers ({}, {})", name, *v, x);
    }
  }
  if (!v) return Error::Corrupt("{} is {}, expected an integer", name, TextOf(*found));
  if (*v < low || *v > high)
    return Error::Corrupt("{} is {}, expected {} to {}", name, *v, low, high);
  return v;
}

Result<int64_t> ConfigReader::Required(const ConfigKey& k, int64_t low, int64_t high) const {
  BATON_ASSIGN(const std::optional<int64_t> v, Int(k, low, high));
  if (!v) return Error::Corrupt("{} is missing", Name(k));
  return *v;
}

Result<double> ConfigReader::FloatOr(const ConfigKey& k, double otherwise, double low,
                                     double high) const {
  BATON_ASSIGN(const std::optional<double> v, Float(k));
  return InRange(Name(k), v.value_or(otherwise), low, high);
}

Result<bool> ConfigReader::BoolOr(const ConfigKey& k, bool otherwise) const {
  BATON_ASSIGN(const std::optional<bool> v, Bool(k));
  return v.value_or(otherwise);
}

Result<const std::string*> ConfigReader::String(const ConfigKey& k) const {
  const MetaValue* v = Find(k);
  const std::string* text = v == nullptr ? nullptr : std::get_if<std::string>(v);
  if (v != nullptr && text == nullptr)
    return Error::Corrupt("{} is {}, expected a text", Name(k), TextOf(*v));
  return text;
}
Result<const std::vector<std::string>*> ConfigReader::Strings(const ConfigKey& k) const {
  const MetaValue* v = Find(k);
  const auto* texts = v == nullptr ? nullptr : std::get_if<std::vector<std::string>>(v);
  if (v != nullptr && texts == nullptr)
    return Error::Corrupt("{} is {}, expected a list of texts", Name(k), TextOf(*v));
  return texts;
}
const std::vector<int64_t>* ConfigReader::Ints(const ConfigKey& k) const {
  const MetaValue* v = Find(k);
  return v == nullptr ? nullptr : std::get_if<std::vector<int64_t>>(v);
}

Result<double> ConfigReader::InRange(const std::string& name, double v, double low, double high) {
  if (!(v >= low && v <= high))
    return Error::Corrupt("{} is {}, expected {} to {}", name, v, low, high);
  return v;
}

void ConfigReader::Pass(const std::string& beginning) const {
  for (auto it = m_.values.lower_bound(beginning);
       it != m_.values.end() && it->first.starts_with(beginning); ++it)
    read_.insert(it->first);
}

Result<std::vector<std::string>> ConfigReader::Unread() const {
  Problems problems;
  std::vector<std::string> ignored;
  for (const auto& [key, value] : m_.values) {
    if (read_.contains(key)) continue;
    const bool own = gguf() && key.starts_with(prefix_);
    const std::string_view name = own ? std::string_view(key).substr(prefix_.size()) : key;
    const bool meaningful = gguf() ? own && ChangesResultsGguf(name) : ChangesResultsHf(name);
    if (meaningful && !IsNeutral(name, value)) {
      problems.AddUnsupported("{} ({})", Printable(key), TextOf(value));
      continue;
    }
    const bool usual =
        gguf() ? std::ranges::any_of(kKnownGgufPrefixes,
                                     [&k = key](std::string_view p) { return k.starts_with(p); })
               : Holds(kUsualHf, name);
    if (!usual) ignored.push_back(key);
  }
  if (problems.empty()) return ignored;
  return problems.ToError("settings may change what the model computes, and are not known")
      .Hint("this may be a variant of the architecture that Baton does not run");
}

}  // namespace baton
