// A model on disk, GGUF file or Hugging Face folder, checked: config, every tensor by its role, and
// the tokenizer.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "baton/error.h"
#include "formats/gguf.h"
#include "formats/tokenizer.h"
#include "model/config.h"

namespace baton {

// Pointers into Checkpoint's tensors; null where the architecture has none. Matrices are [out, in].
struct LayerTensors {
  const TensorInfo* attn_norm = nullptr;
  const TensorInfo *q = nullptr, *k = nullptr, *v = nullptr, *o = nullptr;
  const TensorInfo *q_bias = nullptr, *k_bias = nullptr, *v_bias = nullptr;
  const TensorInfo *q_norm = nullptr, *k_norm = nullptr;
  const TensorInfo* post_attn_norm = nullptr;
  const TensorInfo* ffn_norm = nullptr;
  const TensorInfo *gate = nullptr, *up = nullptr, *down = nullptr;
  const TensorInfo* post_ffn_norm = nullptr;
};

struct Checkpoint {
  ModelConfig config;
  const TensorInfo* embedding = nullptr;    // [vocab, C]
  const TensorInfo* output_norm = nullptr;  // [C]
  const TensorInfo* output = nullptr;       // [vocab, C]; the embedding when tied
  std::vector<LayerTensors> layers;
  std::string fingerprint;  // "sha256:<hex>" over config, tensor names, types, shapes and a sample
                            // of each tensor's bytes
  std::string path;

  // Opens `path` (a .gguf file or a folder with config.json), checks names, types and shapes of all
  // tensors and reports every mismatch in one error. The tokenizer is loaded separately, because
  // tests and converters need only the tensors.
  static Result<Checkpoint> Open(const std::string& path);
  Result<Tokenizer> LoadTokenizer() const;
  // Of a tensor that is not read again soon: its pages leave the process's memory.
  void Release(const TensorInfo& tensor) const;

  // Keeps the mapped files and the tensor table alive.
  struct Storage;
  std::shared_ptr<const Storage> storage;
};

}  // namespace baton
