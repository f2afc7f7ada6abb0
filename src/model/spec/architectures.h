// The table of supported architectures. Adding one is a row here, and a synthetic model in its
// golden test.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "baton/error.h"
#include "formats/gguf.h"
#include "model/spec/config.h"
#include "model/spec/tensors.h"

namespace baton {

// Which layers have a sliding window where the file does not list them.
enum class WindowRule : uint8_t {
  kNone,
  kEveryLayer,   // if the file gives a window (Mistral)
  kUpperLayers,  // layers from max_window_layers on, if use_sliding_window (Qwen)
  kFiveToOne,    // every sixth layer is global (Gemma 3)
};

struct Architecture {
  std::string_view name;
  std::string_view gguf_name;  // general.architecture
  std::string_view hf_type;    // model_type
  WindowRule window = WindowRule::kNone;
  Activation activation = Activation::kSilu;
  bool interleaved_in_gguf =
      false;  // rotary pairs (2i, 2i+1): llama files are permuted when converted
  bool attention_bias = false;
  bool qk_norm = false;
  bool post_norms = false;
  bool scaled_embedding = false;       // by sqrt(C)
  bool norm_plus_one_in_hf = false;    // GGUF files carry it already
  bool tied_by_default_in_hf = false;  // where config.json leaves out tie_word_embeddings
  double default_rope_base = 10000.0;
  double local_rope_base = 0.0;  // of the window layers; 0: the same as the others
  // Trained sparse models: files state each layer's role (native_config.h), and folders use GGUF's
  // keys and tensor names.
  bool native = false;
  std::span<const std::string_view> own_keys = {};  // beside the common ones, without the prefix
  uint32_t roles = 0;                               // 1 << Role, for each that a layer may have
};

std::span<const Architecture> Architectures();

// The row for a file's metadata (for a folder: its config.json). An unknown architecture lists the
// known ones.
Result<const Architecture*> FindArchitecture(FileKind kind, const Metadata& metadata);

// Which of the two sets of tensor names a file has.
inline FileKind TensorNames(FileKind kind, const Architecture& a) {
  return a.native ? FileKind::kGguf : kind;
}

// The whole config except what only the tensors tell: tied_output in GGUF files, rope divisors, and
// vocab where the metadata lack it (then 0). For trained sparse models, one error lists all
// problems. Checks the range of every number.
Result<ModelConfig> ReadConfig(FileKind kind, const Architecture& architecture,
                               const Metadata& metadata);

}  // namespace baton
