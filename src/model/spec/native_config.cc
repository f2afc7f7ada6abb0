#include "model/spec/native_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <span>
#include <string_view>

#include "base/check.h"
#include "formats/printable.h"
#include "model/spec/limits.h"

namespace baton {
namespace {

constexpr std::string_view kCommonKeys[] = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sink_tokens",
    "attention.qk_norm",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.style",
    "embedding_scale",
    "plan.version",
    "plan.kind",
    "plan.kv_source",
    "plan.kv_input",
    "plan.index_source",
    "plan.publish",
    "plan.rope",
    "plan.gate",
    "plan.sink_logit",
    "prefill.exit_layer",
    "select.top_k",
    "select.block_size",
    "select.recent",
    "select.sink",
    "select.head_scope",
    "select.pool",
};

// Absent: false.
constexpr std::string_view kSmearKey = "embedding_smear";

// Blocks lie within pages of 64 tokens (kv/page.h).
constexpr int64_t kMaxBlock = 64;

struct Text {
  std::string operator()(int64_t v) const { return fmt::format("{}", v); }
  std::string operator()(double v) const { return fmt::format("{}", v); }
  std::string operator()(bool v) const { return v ? "true" : "false"; }
  std::string operator()(const std::string& v) const { return fmt::format("'{}'", Printable(v)); }
  std::string operator()(const std::vector<std::string>& v) const {
    return Printable(fmt::format("[{}]", fmt::join(v, ", ")));
  }
  template <typename T>
  std::string operator()(const std::vector<T>& v) const {
    return Printable(fmt::format("[{}]", fmt::join(v, ", ")));
  }
};

std::string ToText(const MetaValue& v) { return std::visit(Text{}, v); }

std::optional<double> Number(const MetaValue& v) {
  if (const auto* i = std::get_if<int64_t>(&v)) return static_cast<double>(*i);
  if (const auto* d = std::get_if<double>(&v)) return *d;
  return std::nullopt;
}

bool Same(const MetaValue& a, const MetaValue& b) {
  if (a == b) return true;
  const std::optional<double> x = Number(a), y = Number(b);
  return x && y && *x == *y;
}

// Reads keys and collects what is wrong with them.
class NativeReader {
 public:
  NativeReader(FileKind kind, const Architecture& a, const Metadata& m, Problems& problems)
      : architecture_(a), prefix_(std::string(a.name) + "."), m_(m), problems_(problems) {
    CheckKeys(kind);
  }

  std::optional<int64_t> Int(std::string_view key, int64_t low, int64_t high) {
    const MetaValue* v = Find(key);
    if (v == nullptr) return std::nullopt;
    const auto* i = std::get_if<int64_t>(v);
    if (i != nullptr && *i >= low && *i <= high) return *i;
    problems_.Add("{}{} is {}, expected an integer from {} to {}", prefix_, key, ToText(*v), low,
                  high);
    return std::nullopt;
  }

  // NaN is outside every range.
  std::optional<double> Float(std::string_view key, double low, double high) {
    const MetaValue* v = Find(key);
    if (v == nullptr) return std::nullopt;
    const std::optional<double> d = Number(*v);
    if (d && *d >= low && *d <= high) return *d;
    problems_.Add("{}{} is {}, expected a number from {} to {}", prefix_, key, ToText(*v), low,
                  high);
    return std::nullopt;
  }

  std::optional<bool> Bool(std::string_view key) {
    const MetaValue* v = Find(key);
    if (v == nullptr) return std::nullopt;
    if (const bool* b = std::get_if<bool>(v)) return *b;
    problems_.Add("{}{} is {}, expected true or false", prefix_, key, ToText(*v));
    return std::nullopt;
  }

  // The number of the given string among `names`.
  std::optional<size_t> Choice(std::string_view key, std::span<const std::string_view> names) {
    const MetaValue* v = Find(key);
    if (v == nullptr) return std::nullopt;
    if (const auto* s = std::get_if<std::string>(v)) {
      for (size_t i = 0; i < names.size(); ++i) {
        if (names[i] == *s) return i;
      }
    }
    problems_.Add("{}{} is {}, expected {}", prefix_, key, ToText(*v), fmt::join(names, " or "));
    return std::nullopt;
  }

  // One value per layer. `convert` returns whether it took the value.
  template <typename T, typename F>
  bool PerLayer(std::string_view key, std::string_view expected, F convert) {
    const MetaValue* v = Find(key);
    if (v == nullptr || !layers_) return false;
    const auto* list = std::get_if<std::vector<T>>(v);
    if (list == nullptr) {
      problems_.Add("{}{} is {}, expected an array of {}", prefix_, key, ToText(*v), expected);
      return false;
    }
    if (static_cast<int64_t>(list->size()) != *layers_) {
      problems_.Add("{}{} has {} entries, expected one for each of the {} layers", prefix_, key,
                    list->size(), *layers_);
      return false;
    }
    bool ok = true;
    for (size_t l = 0; l < list->size(); ++l) {
      if (convert((*list)[l])) continue;
      problems_.Add("{}{}[{}] is {}, expected {}", prefix_, key, l, ToText(MetaValue((*list)[l])),
                    expected);
      ok = false;
    }
    return ok;
  }

  bool Ints(std::string_view key, std::vector<int>& out) {
    const int64_t last = LastLayer();
    return PerLayer<int64_t>(key, fmt::format("an integer from -2 to {}", last), [&](int64_t v) {
      out.push_back(static_cast<int>(std::clamp<int64_t>(v, -3, kMaxLayers)));
      return v >= -2 && v <= last;
    });
  }

  // Booleans are read as 0 and 1 from both kinds of file.
  bool Bools(std::string_view key, std::vector<bool>& out) {
    return PerLayer<int64_t>(key, "true or false", [&](int64_t v) {
      out.push_back(v != 0);
      return v == 0 || v == 1;
    });
  }

  void SetLayers(std::optional<int64_t> layers) { layers_ = layers; }
  int64_t LastLayer() const { return layers_.value_or(kMaxLayers) - 1; }
  const std::string& prefix() const { return prefix_; }

 private:
  // A key that is missing has been reported.
  const MetaValue* Find(std::string_view key) const {
    const auto it = m_.values.find(prefix_ + std::string(key));
    return it == m_.values.end() ? nullptr : &it->second;
  }

  // GGUF files also hold keys of the tokenizer and of the file itself.
  void CheckKeys(FileKind kind) {
    std::set<std::string, std::less<>> known{"general.architecture"};
    for (std::string_view key : kCommonKeys) known.insert(prefix_ + std::string(key));
    for (std::string_view key : architecture_.own_keys) known.insert(prefix_ + std::string(key));
    for (const std::string& key : known) {
      if (!m_.values.contains(key)) problems_.Add("{}: missing", key);
    }
    known.insert(prefix_ + std::string(kSmearKey));
    for (const auto& [key, value] : m_.values) {
      const bool ours = kind == FileKind::kHuggingFace || key.starts_with("baton");
      if (ours && !known.contains(key)) problems_.Add("{}: unknown", Printable(key));
    }
  }

  const Architecture& architecture_;
  const std::string prefix_;
  const Metadata& m_;
  Problems& problems_;
  std::optional<int64_t> layers_;
};

void ReadSizes(NativeReader& r, Problems& problems, ModelConfig& c) {
  const std::optional<int64_t> layers = r.Int("block_count", 1, kMaxLayers);
  r.SetLayers(layers);
  c.layers = static_cast<int>(layers.value_or(0));
  c.context = r.Int("context_length", 1, kMaxContext).value_or(1);
  c.width = r.Int("embedding_length", 1, kMaxWidth).value_or(1);
  c.ffn_width = r.Int("feed_forward_length", 1, kMaxFfnWidth).value_or(1);
  const std::optional<int64_t> heads = r.Int("attention.head_count", 1, kMaxHeads),
                               kv_heads = r.Int("attention.head_count_kv", 1, kMaxHeads),
                               key = r.Int("attention.key_length", 2, kMaxHeadDim),
                               value = r.Int("attention.value_length", 2, kMaxHeadDim),
                               dims = r.Int("rope.dimension_count", 2, kMaxHeadDim);
  c.heads = static_cast<int>(heads.value_or(1));
  c.kv_heads = static_cast<int>(kv_heads.value_or(1));
  c.head_dim = key.value_or(2);
  c.rope_dims = dims.value_or(2);
  if (heads && kv_heads && *heads % *kv_heads != 0)
    problems.Add("{}attention.head_count_kv {} does not divide attention.head_count {}", r.prefix(),
                 *kv_heads, *heads);
  if (key && *key % 2 != 0)
    problems.AddUnsupported("{}attention.key_length is {}, expected an even number", r.prefix(),
                            *key);
  if (key && value && *key != *value)
    problems.AddUnsupported("{}attention.value_length is {}, expected attention.key_length {}",
                            r.prefix(), *value, *key);
  if (dims && key && (*dims % 2 != 0 || *dims > *key))
    problems.Add("{}rope.dimension_count is {}, expected an even number up to the head size {}",
                 r.prefix(), *dims, *key);
}

void ReadScalars(NativeReader& r, Problems& problems, ModelConfig& c, NativeKeys& k) {
  constexpr std::array<std::string_view, 2> kStyles{"half", "interleaved"}, kScopes{"all", "group"},
      kPools{"max", "sum"};
  if (const auto version = r.Int("plan.version", 0, kMaxContext); version && *version != 1)
    problems.AddUnsupported("{}plan.version is {}, expected 1", r.prefix(), *version);
  c.norm_eps =
      static_cast<float>(r.Float("attention.layer_norm_rms_epsilon", 1e-12, 1.0).value_or(1e-5));
  c.rope = {{.base = static_cast<float>(r.Float("rope.freq_base", 1.001, 1e12).value_or(1e4))}};
  c.rope_interleaved = r.Choice("rope.style", kStyles).value_or(0) == 1;
  c.embedding_scale = static_cast<float>(r.Float("embedding_scale", 1e-6, 1e6).value_or(1.0));
  c.smear = r.Bool(kSmearKey).value_or(false);
  c.attention_scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  c.qk_norm = k.qk_norm = r.Bool("attention.qk_norm").value_or(false);
  k.window = r.Int("attention.sliding_window", 0, kMaxContext);
  k.sink_tokens = r.Int("attention.sink_tokens", 0, kMaxContext);
  k.exit_layer = r.Int("prefill.exit_layer", -1, r.LastLayer());
  c.exit_layer = static_cast<int>(k.exit_layer.value_or(-1));
  k.top_k = r.Int("select.top_k", 0, kMaxContext);
  k.block = r.Int("select.block_size", 1, kMaxBlock);
  k.recent = r.Int("select.recent", 0, kMaxContext);
  k.sink = r.Int("select.sink", 0, kMaxContext);
  k.scope = r.Choice("select.head_scope", kScopes).value_or(0) == 1 ? Scope::kGroup : Scope::kAll;
  k.pool = r.Choice("select.pool", kPools).value_or(0) == 1 ? Pool::kSum : Pool::kMax;
}

void ReadOwnKeys(NativeReader& r, const Architecture& a, Problems& problems, ModelConfig& c,
                 NativeKeys& k) {
  const auto has = [&](std::string_view key) {
    return std::find(a.own_keys.begin(), a.own_keys.end(), key) != a.own_keys.end();
  };
  if (has("residual.streams")) {
    if (const auto streams = r.Int("residual.streams", 1, kMaxWidth); streams && *streams != 1)
      problems.AddUnsupported("{}residual.streams is {}, expected 1", r.prefix(), *streams);
  }
  if (has("bridge.norm")) {
    constexpr std::array<std::string_view, 2> kNorms{"own", "source"};
    c.bridge_norm_own = k.bridge_norm_own = r.Choice("bridge.norm", kNorms).value_or(1) == 0;
  }
  if (!has("memory.input_layer")) return;
  constexpr std::array<std::string_view, 2> kTypes{"f32", "bf16"};
  k.has_memory = true;
  k.memory_layer = r.Int("memory.input_layer", 0, r.LastLayer());
  c.memory_layer = static_cast<int>(k.memory_layer.value_or(0));
  c.memory_qk_norm = r.Bool("memory.qk_norm").value_or(false);
  k.indexers = r.Int("indexer.head_count", 0, 1);
  const std::optional<int64_t> length = r.Int("indexer.key_length", 0, kMaxHeadDim);
  const std::optional<double> scale = r.Float("indexer.scale", 0.0, 1e6);
  const bool bf16 = r.Choice("indexer.dtype", kTypes).value_or(0) == 1;
  if (!k.HasIndexer()) return;
  if (length && *length == 0)
    problems.Add("{}indexer.key_length is 0, expected 1 or more as indexer.head_count is 1",
                 r.prefix());
  if (scale && *scale == 0.0)
    problems.Add("{}indexer.scale is 0, expected more as indexer.head_count is 1", r.prefix());
  c.indexer = {.key_length = length.value_or(1),
               .scale = static_cast<float>(scale.value_or(1.0)),
               .bf16 = bf16};
}

std::string KindNames(const Architecture& a) {
  std::string names;
  for (const RoleRow& row : Roles()) {
    if (a.roles >> static_cast<int>(row.role) & 1)
      names += (names.empty() ? "" : " or ") + std::string(row.kind);
  }
  return names;
}

void ReadArrays(NativeReader& r, const Architecture& a, NativeKeys& k) {
  using Names = std::string;
  bool ok = r.PerLayer<Names>("plan.kind", KindNames(a), [&](const Names& name) {
    k.kind.push_back(RoleByKind(name));
    return k.kind.back() != nullptr && (a.roles >> static_cast<int>(k.kind.back()->role) & 1) != 0;
  });
  ok &= r.Ints("plan.kv_source", k.kv_source);
  ok &= r.Ints("plan.kv_input", k.kv_input);
  ok &= r.Ints("plan.index_source", k.index_source);
  ok &= r.PerLayer<Names>("plan.publish", "none, tokens or blocks", [&](const Names& name) {
    k.publish.push_back(name);
    return name == "none" || name == "tokens" || name == "blocks";
  });
  ok &= r.Bools("plan.rope", k.rope);
  ok &= r.PerLayer<Names>("plan.gate", "none, head or channel", [&](const Names& name) {
    k.gate.push_back(name == "head"      ? Gate::kHead
                     : name == "channel" ? Gate::kChannel
                                         : Gate::kNone);
    return name == "none" || name == "head" || name == "channel";
  });
  ok &= r.Bools("plan.sink_logit", k.sink_logit);
  k.arrays_are_valid = ok;
}

}  // namespace

Result<ModelConfig> ReadNativeConfig(FileKind kind, const Architecture& a, const Metadata& m) {
  BATON_CHECK(a.native);
  Problems problems;
  ModelConfig c{.architecture = std::string(a.name), .activation = a.activation};
  const std::string* name = m.String("general.name");
  c.name = name != nullptr && !name->empty() ? *name : c.architecture;
  NativeKeys keys;
  NativeReader r(kind, a, m, problems);
  ReadSizes(r, problems, c);
  ReadScalars(r, problems, c, keys);
  ReadOwnKeys(r, a, problems, c, keys);
  ReadArrays(r, a, keys);
  if (keys.arrays_are_valid) CheckNativePlan(keys, problems);
  if (!problems.empty())
    return problems.ToError(fmt::format("keys do not fit a {} model", a.name))
        .Hint("every key of the architecture must be there and agree with the others");
  BuildNativePlan(keys, c);
  return c;
}

Status CompareConfigs(const Metadata& config_json, const Metadata& stored) {
  Problems problems;
  for (const auto& [key, value] : config_json.values) {
    const auto it = stored.values.find(key);
    if (it == stored.values.end()) {
      problems.Add("{} is only in config.json", Printable(key));
    } else if (!Same(value, it->second)) {
      problems.Add("{} is {} in config.json, {} in baton.config", Printable(key), ToText(value),
                   ToText(it->second));
    }
  }
  for (const auto& [key, value] : stored.values) {
    if (!config_json.values.contains(key))
      problems.Add("{} is only in baton.config", Printable(key));
  }
  if (problems.empty()) return Status::Ok();
  return problems.ToError("keys differ between config.json and the weights' baton.config")
      .Hint("the two are one config; write both anew from the one that was trained");
}

}  // namespace baton
