#include "model/spec/router.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <optional>
#include <set>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/dtype.h"
#include "base/mapped_file.h"
#include "base/sha256.h"
#include "formats/dequantize.h"
#include "formats/hf_config.h"
#include "formats/printable.h"
#include "formats/safetensors.h"
#include "model/spec/limits.h"

namespace baton {
namespace {

struct LinearRow {
  std::string_view name;
  int outputs, inputs;  // in multiples of the head size; 0: two logits
  double gain;          // of synthetic weights
};
constexpr LinearRow kLinears[] = {{"cls_feat_extractor.0", 8, 1, 2.0},
                                  {"cls_feat_extractor.2", 2, 8, 2.0},
                                  {"cls_router_head_agnostic.0", 4, 2, 2.0},
                                  {"cls_router_head_agnostic.2", 1, 4, 2.0},
                                  {"cls_router_head_agnostic.4", 0, 1, 4.0}};
static_assert(std::size(kLinears) == std::tuple_size_v<decltype(LayerRouter::linear)>);

int64_t Outputs(const LinearRow& row, int64_t d) { return row.outputs == 0 ? 2 : row.outputs * d; }

std::string Name(int layer, const LinearRow& row, std::string_view part) {
  return fmt::format("model.layers.{}.self_attn.mask_allocator.{}.{}", layer, row.name, part);
}

// Used only in training: temperature, penalties, masks of an earlier method.
bool IsSkipped(std::string_view name) {
  return name.ends_with(".mask_allocator.log_temp") ||
         name.ends_with(".self_attn.attn_mask_log_alphas") ||
         name == "model.sparsity_lambda1_task" || name == "model.sparsity_lambda2_task";
}

// A config value, or its default; another type or a value out of range is a problem.
int64_t Size(const Metadata& m, std::string_view key, std::optional<int64_t> absent, int64_t low,
             int64_t high, Problems& problems) {
  const auto it = m.values.find(key);
  if (it == m.values.end() && absent) return *absent;
  const int64_t* v = it == m.values.end() ? nullptr : std::get_if<int64_t>(&it->second);
  if (v == nullptr) {
    problems.Add("{} is {}, expected an integer", key,
                 it == m.values.end() ? "missing" : "no integer");
    return low;
  }
  if (*v < low || *v > high) problems.Add("{} is {}, expected {} to {}", key, *v, low, high);
  return std::clamp(*v, low, high);
}

void Expect(const Metadata& m, std::string_view key, std::string_view expected,
            Problems& problems) {
  const std::string* v = m.String(key);
  if (v == nullptr)
    problems.Add("{} is missing or no string, expected '{}'", key, expected);
  else if (*v != expected)
    problems.AddUnsupported("{} is '{}', expected '{}'", key, Printable(*v), expected);
}

RouterSettings ReadSettings(const Metadata& m, bool sizes_required, Problems& problems) {
  const RouterSettings otherwise;
  const auto absent = [&](int64_t v) {
    return sizes_required ? std::nullopt : std::optional<int64_t>(v);
  };
  const RouterSettings s{
      .pool = Size(m, "pool_size", absent(otherwise.pool), 1, kMaxContext, problems),
      .sink = Size(m, "sink_size", absent(otherwise.sink), 0, kMaxContext, problems),
      .window = Size(m, "local_window_size", absent(otherwise.window), 1, kMaxContext, problems)};
  const std::optional<bool> softmax = m.Bool("use_softmax");
  if (!softmax)
    problems.Add("use_softmax is missing, expected true");
  else if (!*softmax)
    problems.AddUnsupported("use_softmax is false, expected true: such routers decide at random");
  return s;
}

// All routers of a list of tensors; `strict`: it holds nothing else.
class Reader {
 public:
  Reader(const std::vector<TensorInfo>& tensors, const ModelConfig& model, Problems& problems)
      : model_(model), problems_(problems) {
    for (const TensorInfo& t : tensors) by_name_.emplace(t.name, &t);
  }

  std::vector<LayerRouter> Read(bool strict) {
    std::vector<LayerRouter> layers(static_cast<size_t>(model_.layers));
    for (int l = 0; l < model_.layers; ++l) {
      for (size_t i = 0; i < std::size(kLinears); ++i) {
        RouterLinear& linear = layers[static_cast<size_t>(l)].linear[i];
        linear.outputs = Outputs(kLinears[i], model_.head_dim);
        linear.inputs = kLinears[i].inputs * model_.head_dim;
        linear.weight = Take(Name(l, kLinears[i], "weight"), {linear.outputs, linear.inputs});
        linear.bias = Take(Name(l, kLinears[i], "bias"), {linear.outputs});
      }
    }
    for (const auto& [name, tensor] : by_name_) {
      const bool ours = strict || name.find(".mask_allocator.") != std::string::npos;
      if (ours && !taken_.contains(name) && !IsSkipped(name))
        problems_.Add("{}: not part of the routers of {} layers", Printable(name), model_.layers);
    }
    return layers;
  }

 private:
  std::vector<float> Take(const std::string& name, const std::vector<int64_t>& shape) {
    const auto it = by_name_.find(name);
    if (it == by_name_.end()) {
      problems_.Add("{} [{}]: missing", name, fmt::join(shape, ", "));
      return {};
    }
    taken_.insert(name);
    const TensorInfo& t = *it->second;
    if (t.shape != shape) {
      problems_.Add("{}: shape [{}], expected [{}] from the head size {}", name,
                    fmt::join(t.shape, ", "), fmt::join(shape, ", "), model_.head_dim);
      return {};
    }
    std::vector<float> values(static_cast<size_t>(t.elements()));
    Dequantize(t.dtype, t.data, 0, t.elements(), values.data());
    if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }))
      problems_.Add("{}: holds values that are not finite", name);
    return values;
  }

  const ModelConfig& model_;
  Problems& problems_;
  std::map<std::string, const TensorInfo*, std::less<>> by_name_;
  std::set<std::string, std::less<>> taken_;
};

std::string HashOf(const RouterFile& r) {
  Sha256 hash;
  hash.Update(fmt::format("baton-router 1;{};{};{};{};{};", r.settings.pool, r.settings.sink,
                          r.settings.window, r.head_dim, r.layers.size()));
  for (const LayerRouter& layer : r.layers) {
    for (const RouterLinear& linear : layer.linear) {
      hash.Update(std::as_bytes(std::span(linear.weight)));
      hash.Update(std::as_bytes(std::span(linear.bias)));
    }
  }
  return "sha256:" + hash.Hex();
}

// Row 2i + s of a permuted query is row s * d/2 + i in Hugging Face order; so are the columns that
// multiply them. `back`: from the first to the second.
void PermuteInputs(RouterLinear& first, bool back = false) {
  const int64_t d = first.inputs;
  std::vector<float> row(static_cast<size_t>(d));
  for (int64_t r = 0; r < first.outputs; ++r) {
    float* w = first.weight.data() + r * d;
    std::copy_n(w, d, row.data());
    for (int64_t i = 0; i < d / 2; ++i) {
      const auto of = [&](int64_t at) { return row[static_cast<size_t>(at)]; };
      if (back) {
        w[i] = of(2 * i), w[d / 2 + i] = of(2 * i + 1);
      } else {
        w[2 * i] = of(i), w[2 * i + 1] = of(d / 2 + i);
      }
    }
  }
}

Result<RouterFile> Finish(RouterFile router, const ModelConfig& model, const Problems& problems) {
  if (!problems.empty())
    return problems
        .ToError(fmt::format("parts of the routers do not fit the {} model", model.architecture))
        .Hint("routers belong to the model they were trained on");
  router.hash = HashOf(router);
  if (model.rope_interleaved) {
    for (LayerRouter& layer : router.layers) PermuteInputs(layer.linear[0]);
  }
  return router;
}

// Uniform in [-1, 1), the `index`-th of a seed.
double Uniform(uint64_t seed, int64_t index) {
  uint64_t x =
      (static_cast<uint64_t>(index) + 1) * 0x9E3779B97F4A7C15u + seed * 0xD1342543DE82EF95u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return static_cast<double>((x ^ (x >> 31)) >> 40) / 8388608.0 - 1.0;
}

SafetensorsEntry Entry(std::string name, std::vector<int64_t> shape,
                       const std::vector<float>& values, bool rounded) {
  SafetensorsEntry e{.name = std::move(name),
                     .dtype = rounded ? DType::kBF16 : DType::kF32,
                     .shape = std::move(shape)};
  std::vector<bf16> small;
  if (rounded) std::transform(values.begin(), values.end(), std::back_inserter(small), ToBf16);
  const auto bytes = rounded ? std::as_bytes(std::span(small)) : std::as_bytes(std::span(values));
  e.data.assign(bytes.begin(), bytes.end());
  return e;
}

}  // namespace

Result<RouterFile> LoadRouter(const std::string& path, const ModelConfig& model) {
  BATON_ASSIGN(const MappedFile file, MappedFile::Open(path));
  SafetensorsMetadata metadata;
  Result<std::vector<TensorInfo>> tensors = ParseSafetensors(file.bytes(), &metadata);
  if (!tensors.ok()) return std::move(tensors).error().At(path);
  const auto it = metadata.find("baton.router");
  if (it == metadata.end())
    return Error::Corrupt("{}: no metadata baton.router", path)
        .Hint("expected a router file; a model folder that holds routers is given as the model");
  Result<Metadata> m = ParseHfConfig(it->second);
  if (!m.ok()) return std::move(m).error().At(path + ": baton.router");
  Problems problems;
  RouterFile router{.settings = ReadSettings(*m, true, problems), .head_dim = model.head_dim};
  Expect(*m, "flavour", "flux", problems);
  const int64_t d = Size(*m, "head_dim", {}, 1, kMaxHeadDim, problems),
                layers = Size(*m, "layers", {}, 1, kMaxLayers, problems);
  if (d != model.head_dim)
    problems.Add("head_dim is {}, expected the model's {}", d, model.head_dim);
  if (layers != model.layers)
    problems.Add("layers is {}, expected the model's {}", layers, model.layers);
  router.layers = Reader(*tensors, model, problems).Read(true);
  Result<RouterFile> done = Finish(std::move(router), model, problems);
  if (!done.ok()) return std::move(done).error().At(path);
  return done;
}

RouterFile InFileOrder(RouterFile router, const ModelConfig& model) {
  if (!model.rope_interleaved) return router;
  for (LayerRouter& layer : router.layers) PermuteInputs(layer.linear[0], /*back=*/true);
  return router;
}

Status WriteRouter(const std::string& path, const RouterFile& router, bool bf16) {
  Metadata m;
  m.values["flavour"] = std::string("flux");
  m.values["pool_size"] = router.settings.pool;
  m.values["sink_size"] = router.settings.sink;
  m.values["local_window_size"] = router.settings.window;
  m.values["use_softmax"] = true;
  m.values["head_dim"] = router.head_dim;
  m.values["layers"] = static_cast<int64_t>(router.layers.size());
  std::vector<SafetensorsEntry> entries;
  for (size_t l = 0; l < router.layers.size(); ++l) {
    for (size_t i = 0; i < std::size(kLinears); ++i) {
      const RouterLinear& linear = router.layers[l].linear[i];
      entries.push_back(Entry(Name(static_cast<int>(l), kLinears[i], "weight"),
                              {linear.outputs, linear.inputs}, linear.weight, bf16));
      entries.push_back(Entry(Name(static_cast<int>(l), kLinears[i], "bias"), {linear.outputs},
                              linear.bias, /*rounded=*/false));
    }
  }
  return WriteSafetensors(path, entries, {{"baton.router", ToFlatConfig(m)}});
}

RouterFile SyntheticRouter(const RouterSettings& settings, int layers, int64_t head_dim,
                           uint64_t seed, const std::vector<std::array<float, 2>>& final_biases) {
  BATON_CHECK(final_biases.empty() || static_cast<int>(final_biases.size()) == layers);
  RouterFile router{.settings = settings, .head_dim = head_dim};
  for (int l = 0; l < layers; ++l) {
    LayerRouter& layer = router.layers.emplace_back();
    for (size_t i = 0; i < std::size(kLinears); ++i) {
      RouterLinear& linear = layer.linear[i];
      linear.outputs = Outputs(kLinears[i], head_dim);
      linear.inputs = kLinears[i].inputs * head_dim;
      const uint64_t stream = seed * 100000 + static_cast<uint64_t>(l) * 10 + i;
      const double spread = std::sqrt(3.0 / static_cast<double>(linear.inputs));
      const int64_t n = linear.outputs * linear.inputs;
      for (int64_t k = 0; k < n; ++k)
        linear.weight.push_back(static_cast<float>(Uniform(stream, k) * kLinears[i].gain * spread));
      for (int64_t k = 0; k < linear.outputs; ++k)
        linear.bias.push_back(static_cast<float>(Uniform(stream, n + k) * 0.1));
    }
    if (final_biases.empty()) continue;
    const std::array<float, 2>& b = final_biases[static_cast<size_t>(l)];
    layer.linear.back().bias = {b[0], b[1]};
  }
  router.hash = HashOf(router);
  return router;
}

std::string_view RoutedBackbone(const Metadata& m) {
  const std::vector<std::string>* names = m.Strings("architectures");
  if (names == nullptr || names->empty()) return {};
  if (names->front() == "PawQwen3ForCausalLM") return "qwen3";
  if (names->front() == "PawLlamaForCausalLM") return "llama";
  return {};
}

bool IsRouterTensor(std::string_view name) {
  return name.find(".self_attn.mask_allocator.") != std::string_view::npos || IsSkipped(name);
}

Result<RouterFile> PublishedRouter(const Metadata& m, const std::vector<TensorInfo>& tensors,
                                   const ModelConfig& model, std::string_view flavour) {
  if (flavour.empty())
    return Error::InvalidArgument(
               "a model with layer routers, of which two methods with the same names exist")
        .Hint("if it is a Flux Attention checkpoint, say so: --router-flavour flux");
  if (flavour != "flux")
    return Error::Unsupported("router flavour '{}', expected 'flux'", Printable(flavour));
  Problems problems;
  RouterFile router{.settings = ReadSettings(m, false, problems), .head_dim = model.head_dim};
  Expect(m, "toggle_type", "streaming", problems);
  Expect(m, "retrieval_mode", "full", problems);
  Expect(m, "pooling_mode", "ctx_q", problems);
  router.layers = Reader(tensors, model, problems).Read(false);
  return Finish(std::move(router), model, problems);
}

}  // namespace baton
