#include "train/parameters.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/mapped_file.h"
#include "formats/dequantize.h"
#include "formats/hf_config.h"
#include "formats/safetensors.h"
#include "model/spec/architectures.h"

namespace baton::train {
namespace {

namespace fs = std::filesystem;
using enum TensorRole;

constexpr double kDeviation = 0.02;

Tensor Initial(const TensorSlot& slot, const ModelConfig& c, const torch::Generator& generator) {
  const std::vector<int64_t> shape = slot.rule->Shape(c);
  switch (slot.rule->role) {
    case kSmear:
      return torch::full(shape, 0.5);
    case kAttnSinks:
    case kAttnSinksLocal:
      return torch::zeros(shape);
    case kO:
    case kFfnDown:
      return torch::randn(shape, generator) * (kDeviation / std::sqrt(2.0 * c.layers));
    default:
      return shape.size() == 1 ? torch::ones(shape) : torch::randn(shape, generator) * kDeviation;
  }
}

Tensor Values(const TensorInfo& t) {
  Tensor values = torch::empty(t.shape, torch::kFloat32);
  Dequantize(t.dtype, t.data, 0, t.elements(), values.data_ptr<float>());
  return values;
}

SafetensorsEntry Entry(const Parameter& p, torch::ScalarType type) {
  const bool small = type == torch::kBFloat16;
  const Tensor t =
      p.value.detach().to(torch::kCPU, small ? torch::kBFloat16 : torch::kFloat32).contiguous();
  SafetensorsEntry entry{
      .name = p.name, .dtype = small ? DType::kBF16 : DType::kF32, .shape = t.sizes().vec()};
  const auto* data = static_cast<const std::byte*>(t.data_ptr());
  entry.data.assign(data, data + t.nbytes());
  return entry;
}

}  // namespace

Parameters::Parameters(const ModelConfig& c, uint64_t seed, const torch::TensorOptions& options)
    : layers_(static_cast<size_t>(c.layers)) {
  BATON_CHECK_GT(c.vocab, 0);
  auto generator = at::detail::createCPUGenerator(seed);
  for (const TensorSlot& slot : TensorSlots(c)) {
    if (slot.rule->need == Need::kUnlessTied) continue;  // the embedding is the output layer
    Add(slot, Initial(slot, c, generator), options);
  }
}

Parameters::Parameters(const Checkpoint& checkpoint, const torch::TensorOptions& options)
    : layers_(static_cast<size_t>(checkpoint.config.layers)) {
  for (const TensorSlot& slot : TensorSlots(checkpoint.config)) {
    if (slot.rule->need == Need::kUnlessTied && checkpoint.config.tied_output) continue;
    const TensorSet& set = IsPerLayer(slot.rule->role)
                               ? checkpoint.layers[static_cast<size_t>(slot.layer)]
                               : checkpoint.model;
    if (const TensorInfo* info = set[slot.rule->role]) Add(slot, Values(*info), options);
  }
}

void Parameters::Add(const TensorSlot& slot, const Tensor& value,
                     const torch::TensorOptions& options) {
  const Tensor leaf = value.to(options).clone().set_requires_grad(true);
  all_.push_back({slot.rule->Name(FileKind::kGguf, slot.layer), slot, leaf});
  const auto role = static_cast<size_t>(slot.rule->role);
  (IsPerLayer(slot.rule->role) ? layers_[static_cast<size_t>(slot.layer)] : model_)[role] = leaf;
}

int64_t Parameters::count() const {
  int64_t n = 0;
  for (const Parameter& p : all_) n += p.value.numel();
  return n;
}

void Parameters::ZeroGradients() {
  for (Parameter& p : all_) p.value.mutable_grad() = Tensor();
}

void Parameters::Freeze() {
  for (Parameter& p : all_) p.value.set_requires_grad(false);
}

Result<ModelFile> ModelFile::Read(const std::string& path, int64_t vocab) {
  ModelFile model;
  const std::string file = fs::is_directory(path) ? path + "/config.json" : path;
  BATON_ASSIGN(const MappedFile text, MappedFile::Open(file));
  model.json.assign(reinterpret_cast<const char*>(text.bytes().data()), text.bytes().size());
  Result<Metadata> metadata = ParseHfConfig(model.json);
  if (!metadata.ok()) return std::move(metadata).error().At(file);
  BATON_ASSIGN(const Architecture* architecture,
               FindArchitecture(FileKind::kHuggingFace, *metadata));
  if (!architecture->native)
    return Error::Unsupported("{}: a {} model; the trainer trains {}", file, architecture->name,
                              "baton-dense, baton-clsa, baton-hysparse and baton-hysparse2");
  Result<ModelConfig> config = ReadConfig(FileKind::kHuggingFace, *architecture, *metadata);
  if (!config.ok()) return std::move(config).error().At(file);
  model.config = std::move(config).value();
  model.config.vocab = vocab;
  return model;
}

Status SaveFolder(const std::string& path, const ModelFile& model, const Parameters& parameters,
                  torch::ScalarType type, const std::string& tokenizer) {
  std::error_code ec;
  fs::create_directories(path, ec);
  if (ec) return Error::Io("{}: {}", path, ec.message());
  std::vector<SafetensorsEntry> entries;
  for (const Parameter& p : parameters.all()) entries.push_back(Entry(p, type));
  BATON_TRY(WriteSafetensors(path + "/model.safetensors", entries,
                             {{"baton.config", model.json}, {"format", "pt"}}));
  BATON_TRY(WriteFileAtomically(path + "/config.json", model.json));
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
    const fs::path from = fs::path(tokenizer) / name, to = fs::path(path) / name;
    if (!fs::exists(from, ec) || fs::equivalent(from, to, ec)) continue;
    fs::copy_file(from, to, fs::copy_options::overwrite_existing, ec);
    if (ec) return Error::Io("{}: {}", to.string(), ec.message());
  }
  return Status::Ok();
}

}  // namespace baton::train
