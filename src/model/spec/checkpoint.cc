#include "model/spec/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/mapped_file.h"
#include "base/sha256.h"
#include "formats/dequantize.h"
#include "formats/gguf_parts.h"
#include "formats/hf_config.h"
#include "formats/printable.h"
#include "formats/safetensors.h"
#include "model/spec/architectures.h"
#include "model/spec/checkpoint_storage.h"
#include "model/spec/limits.h"
#include "model/spec/native_config.h"
#include "model/spec/problems.h"

namespace baton {
namespace {

namespace fs = std::filesystem;

std::string ShapeText(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// Tensors that older converters leave behind and that follow from the config.
bool IsRedundant(std::string_view name) {
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with("attn_rot_embd.weight");
}

// Biases of the output projection: models with attention_bias have one, and in many it is zero.
bool IsOutputBias(std::string_view name) {
  return name.ends_with("self_attn.o_proj.bias") || name.ends_with(".attn_output.bias");
}

bool IsZero(const TensorInfo& t) {
  return std::all_of(t.data, t.data + t.bytes, [](std::byte b) { return b == std::byte{0}; });
}

// GGUF files have the biases of attention without a key that says so.
bool HasAttentionBias(const std::vector<TensorInfo>& tensors) {
  return std::ranges::any_of(tensors,
                             [](const TensorInfo& t) { return t.name == "blk.0.attn_q.bias"; });
}

// Gives every tensor its role and collects everything that does not fit.
class Binder {
 public:
  Binder(FileKind kind, const Architecture& a, const CheckpointStorage& storage, Checkpoint& c)
      : kind_(TensorNames(kind, a)), architecture_(a), c_(c) {
    for (const TensorInfo& t : storage.tensors) by_name_.emplace(t.name, &t);
  }

  Status Bind() {
    c_.layers.resize(static_cast<size_t>(c_.config.layers));
    for (const TensorSlot& slot : TensorSlots(c_.config)) BindOne(*slot.rule, slot.layer);
    for (const auto& [name, tensor] : by_name_) {
      const bool known = claimed_.contains(name) || IsRedundant(name) ||
                         (c_.router != nullptr && IsRouterTensor(name));
      if (known) continue;
      if (IsOutputBias(name) && c_.config.attention_bias) {
        if (!IsZero(*tensor))
          problems_.AddUnsupported(
              "{}: attention_bias with a bias of the output projection, which is not done", name);
        continue;
      }
      problems_.Add("{} {}: not part of a {} model", Printable(name), ShapeText(tensor->shape),
                    architecture_.name);
    }
    return Report();
  }

 private:
  void BindOne(const TensorRule& rule, int layer) {
    const std::string name = rule.Name(kind_, layer);
    if (name.empty()) return;
    const auto it = by_name_.find(name);
    if (it == by_name_.end()) {
      if (rule.need == Need::kUnlessTied && (kind_ == FileKind::kGguf || c_.config.tied_output)) {
        c_.config.tied_output = true;
        c_.model[TensorRole::kOutput] = c_.model[TensorRole::kEmbedding];
      } else if (rule.need != Need::kOptional) {
        problems_.Add("{} {}: missing", name, ShapeText(rule.Shape(c_.config)));
      }
      return;
    }
    claimed_.insert(name);
    const TensorInfo* tensor = it->second;
    if (Fits(rule, *tensor)) Store(rule.role, layer, tensor);
  }

  bool Fits(const TensorRule& rule, const TensorInfo& t) {
    if (const std::vector<int64_t> expected = rule.Shape(c_.config); t.shape != expected) {
      problems_.Add("{}: shape {}, expected {}", t.name, ShapeText(t.shape), ShapeText(expected));
      return false;
    }
    const bool vector = rule.shape[1] == Dim::kNone;
    if (vector && Info(t.dtype).block_elements != 1) {
      problems_.Add("{}: type {}, expected F32, F16 or BF16", t.name, Info(t.dtype).name);
      return false;
    }
    return true;
  }

  void Store(TensorRole role, int layer, const TensorInfo* tensor) {
    if (role == TensorRole::kRopeDivisors) StoreDivisors(*tensor);
    // A tied config wins over a stored copy, as in the library that writes such folders.
    if (role == TensorRole::kOutput && c_.config.tied_output)
      tensor = c_.model[TensorRole::kEmbedding];
    (IsPerLayer(role) ? c_.layers[static_cast<size_t>(layer)] : c_.model)[role] = tensor;
  }

  void StoreDivisors(const TensorInfo& t) {
    std::vector<float> divisors(static_cast<size_t>(t.elements()));
    Dequantize(t.dtype, t.data, 0, t.elements(), divisors.data());
    for (float d : divisors) {
      if (!(d >= 1e-3f && d <= 1e6f)) {
        problems_.Add("{}: holds {}, expected 0.001 to 1000000", t.name, d);
        return;
      }
    }
    c_.config.rope[0].divisors = std::move(divisors);
  }

  Status Report() const {
    if (problems_.empty()) return Status::Ok();
    return problems_.ToError(fmt::format("tensors do not fit a {} model", architecture_.name))
        .Hint("the file is damaged, or a variant of this architecture that Baton does not run");
  }

  FileKind kind_;
  const Architecture& architecture_;
  Checkpoint& c_;
  std::map<std::string, const TensorInfo*, std::less<>> by_name_;
  std::set<std::string, std::less<>> claimed_;
  Problems problems_;
};

std::string ConfigText(const ModelConfig& c) {
  std::string s = fmt::format(
      "{} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {}", c.architecture, c.layers, c.width,
      c.heads, c.kv_heads, c.head_dim, c.ffn_width, c.vocab, c.context, c.norm_eps,
      c.attention_scale, c.embedding_scale, static_cast<int>(c.activation), c.qk_norm, c.post_norms,
      c.attention_bias, c.norm_plus_one, c.tied_output, c.rope_interleaved);
  for (const LayerConfig& l : c.layer) s += fmt::format(" {}/{}", l.window, l.rope);
  for (const RopeConfig& r : c.rope) {
    s += fmt::format(" {} {} {} {} {} {} {} {} {} {}", r.base, static_cast<int>(r.scaling),
                     r.factor, r.low_freq_factor, r.high_freq_factor, r.original_context,
                     r.attention_factor, r.beta_fast, r.beta_slow, fmt::join(r.divisors, ","));
    if (!r.truncate) s += " untruncated";
  }
  return s;
}

// The part of a trained-sparse model's config that ConfigText leaves out.
std::string NativeText(const ModelConfig& c) {
  std::string s = fmt::format("|{} {} {} {} {} {} {} {}", c.rope_dims, c.exit_layer,
                              c.bridge_norm_own, c.memory_layer, c.memory_qk_norm,
                              c.indexer.key_length, c.indexer.scale, c.indexer.bf16);
  for (const LayerPlan& l : c.plan) {
    s += fmt::format("|{} {}", static_cast<int>(l.role), static_cast<int>(l.merge));
    for (const Branch& b : l.branches)
      s += fmt::format(" {},{},{},{},{},{},{},{}", b.cache, static_cast<int>(b.set.kind),
                       b.set.sink, b.set.recent, b.set.publisher, b.set.k.tokens,
                       static_cast<int>(b.gate), b.sink_logit);
    if (l.publish)
      s += fmt::format(" P{},{},{},{},{},{}", static_cast<int>(l.publish->ranking),
                       static_cast<int>(l.publish->scope), static_cast<int>(l.publish->pool),
                       l.publish->block, l.publish->sink, l.publish->recent);
  }
  for (const CacheSpec& cache : c.caches) s += fmt::format("|{},{}", cache.owner, cache.kv_input);
  for (const LayerConfig& l : c.layer) s += l.qk_norm ? '1' : '0';
  if (c.smear) s += "|smear";
  return s;
}

// A plan is refused for another model, so this must distinguish models of one shape. It runs at
// every start, so it takes four samples of each tensor and not all of it.
std::string Fingerprint(const ModelConfig& config, const std::vector<TensorInfo>& tensors) {
  constexpr int64_t kSample = 1024;
  constexpr int kSamples = 4;
  std::vector<const TensorInfo*> order;
  for (const TensorInfo& t : tensors) order.push_back(&t);
  std::sort(order.begin(), order.end(),
            [](const TensorInfo* a, const TensorInfo* b) { return a->name < b->name; });
  Sha256 hash;
  hash.Update(ConfigText(config));
  if (!config.plan.empty()) hash.Update(NativeText(config));
  for (const TensorInfo* t : order) {
    hash.Update(fmt::format("\n{} {} {}\n", t->name, Info(t->dtype).name, ShapeText(t->shape)));
    const std::span<const std::byte> data(t->data, static_cast<size_t>(t->bytes));
    if (t->bytes <= kSample * kSamples) {
      hash.Update(data);
      continue;
    }
    for (int i = 0; i < kSamples; ++i) {
      const int64_t begin = (t->bytes - kSample) / (kSamples - 1) * i;
      hash.Update(data.subspan(static_cast<size_t>(begin), kSample));
    }
  }
  return "sha256:" + hash.Hex();
}

// The weights' file of a trained-sparse folder carries the config that they were trained with.
Status CompareWithWeights(const Metadata& config_json, const SafetensorsMetadata& weights) {
  const auto it = weights.find("baton.config");
  if (it == weights.end())
    return Error::Corrupt("the safetensors metadata lack baton.config, a copy of config.json");
  Result<Metadata> stored = ParseHfConfig(it->second);
  if (!stored.ok()) return std::move(stored).error().At("baton.config");
  return CompareConfigs(config_json, *stored);
}

// `weights_metadata`: of safetensors files.
Result<Checkpoint> Assemble(FileKind kind, std::shared_ptr<CheckpointStorage> storage,
                            const SafetensorsMetadata& weights_metadata, const std::string& path,
                            std::string_view flavour) {
  Checkpoint c;
  c.path = path;
  BATON_ASSIGN(const Architecture* architecture, FindArchitecture(kind, storage->metadata));
  if (architecture->native && kind == FileKind::kHuggingFace)
    BATON_TRY(CompareWithWeights(storage->metadata, weights_metadata));
  BATON_ASSIGN(c.config, ReadConfig(kind, *architecture, storage->metadata));
  if (kind == FileKind::kGguf && !architecture->native && HasAttentionBias(storage->tensors))
    c.config.attention_bias = true;
  if (c.config.vocab == 0) {
    for (const TensorInfo& t : storage->tensors) {
      if (t.name == "token_embd.weight" && !t.shape.empty()) c.config.vocab = t.shape.front();
    }
  }
  if (c.config.vocab > kMaxVocab)
    return Error::Corrupt("token_embd.weight has {} rows, expected at most {}", c.config.vocab,
                          kMaxVocab);
  if (kind == FileKind::kHuggingFace && !RoutedBackbone(storage->metadata).empty()) {
    BATON_ASSIGN(RouterFile router,
                 PublishedRouter(storage->metadata, storage->tensors, c.config, flavour));
    c.router = std::make_shared<const RouterFile>(std::move(router));
  } else if (!flavour.empty()) {
    return Error::InvalidArgument("router flavour '{}' of a model without layer routers",
                                  Printable(flavour))
        .Hint("a router file of its own needs no flavour");
  }
  BATON_TRY(Binder(kind, *architecture, *storage, c).Bind());
  c.fingerprint = Fingerprint(c.config, storage->tensors);
  c.storage = std::move(storage);
  return c;
}

Result<Checkpoint> OpenGguf(const std::string& path, std::string_view flavour) {
  auto storage = std::make_shared<CheckpointStorage>();
  BATON_ASSIGN(GgufModel model, OpenGgufModel(path));
  storage->files = std::move(model.files);
  storage->tensors = std::move(model.tensors);
  storage->metadata = std::move(model.metadata);
  Result<Checkpoint> c = Assemble(FileKind::kGguf, std::move(storage), {}, path, flavour);
  if (!c.ok()) return std::move(c).error().At(path);
  return c;
}

Result<Checkpoint> OpenFolder(const std::string& path, std::string_view flavour) {
  const std::string config = path + "/config.json";
  std::error_code ignored;
  if (!fs::exists(config, ignored)) {
    Error error = Error::NotFound("{}: a folder without config.json", path);
    for (auto it = fs::directory_iterator(path, ignored); it != fs::directory_iterator();
         it.increment(ignored)) {
      if (it->path().extension() == ".gguf")
        return std::move(error).Hint("it holds a GGUF file; give that one: " + it->path().string());
    }
    return std::move(error).Hint(
        "expected a .gguf file, or a folder with config.json and .safetensors files");
  }
  auto storage = std::make_shared<CheckpointStorage>();
  storage->folder = true;
  BATON_ASSIGN(storage->metadata, ReadHfConfig(config));
  BATON_ASSIGN(SafetensorsFolder weights, OpenSafetensorsFolder(path));
  storage->files = std::move(weights.files);
  storage->tensors = std::move(weights.tensors);
  Result<Checkpoint> c =
      Assemble(FileKind::kHuggingFace, std::move(storage), weights.metadata, path, flavour);
  if (!c.ok()) return std::move(c).error().At(path);
  return c;
}

}  // namespace

Result<Checkpoint> Checkpoint::Open(const std::string& path, std::string_view router_flavour) {
  std::error_code ec;
  const fs::file_status status = fs::status(path, ec);
  if (!fs::exists(status))
    return Error::NotFound("{}: no such file or folder", path)
        .Hint("give a .gguf file, or a folder with config.json and .safetensors files");
  if (fs::is_directory(status)) return OpenFolder(path, router_flavour);
  if (path.ends_with(".safetensors") || path.ends_with(".json"))
    return Error::InvalidArgument("{}: one file of a model folder", path)
        .Hint("give the folder itself");
  return OpenGguf(path, router_flavour);
}

void Checkpoint::Release(const TensorInfo& tensor) const {
  for (const MappedFile& file : storage->files)
    file.Release({tensor.data, static_cast<size_t>(tensor.bytes)});
}

}  // namespace baton
