// A model's tensors as trainable values, by role: named, shaped and stored as the engine reads
// them.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "baton/error.h"
#include "model/spec/checkpoint.h"
#include "model/spec/config.h"
#include "model/spec/tensors.h"
#include "train/torch.h"

namespace baton::train {

struct Parameter {
  std::string name;
  TensorSlot slot;
  Tensor value;  // a leaf with gradients
};

class Parameters {
 public:
  // Matrices of deviation 0.02 (those that end a branch: less with depth), norms 1, sinks 0,
  // smear 0.5. The same seed gives the same values on every device.
  Parameters(const ModelConfig& config, uint64_t seed, const torch::TensorOptions& options);
  // A checkpoint's values.
  Parameters(const Checkpoint& checkpoint, const torch::TensorOptions& options);

  // Undefined where the model has none.
  const Tensor& model(TensorRole role) const { return model_[static_cast<size_t>(role)]; }
  const Tensor& layer(int l, TensorRole role) const {
    return layers_[static_cast<size_t>(l)][static_cast<size_t>(role)];
  }
  const std::vector<Parameter>& all() const { return all_; }
  int64_t count() const;
  void ZeroGradients();
  // No value learns any more.
  void Freeze();

 private:
  using Set = std::array<Tensor, kTensorRoles>;
  void Add(const TensorSlot& slot, const Tensor& value, const torch::TensorOptions& options);

  std::vector<Parameter> all_;
  Set model_;
  std::vector<Set> layers_;
};

// A model's config as the engine reads it: config.json of a folder, with the size of its
// vocabulary.
struct ModelFile {
  std::string json;  // as it stands in the file
  ModelConfig config;

  // `path`: the file, or its folder.
  static Result<ModelFile> Read(const std::string& path, int64_t vocab);
};

// A folder that the engine runs: config.json, model.safetensors of F32 or BF16, and copies of the
// tokenizer's files, which may be missing.
Status SaveFolder(const std::string& path, const ModelFile& model, const Parameters& parameters,
                  torch::ScalarType type, const std::string& tokenizer);

}  // namespace baton::train
