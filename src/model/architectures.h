// The table of supported architectures. Adding one is a row here, and a synthetic model in its
// golden test.
#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>

#include "baton/error.h"
#include "formats/gguf.h"
#include "model/config.h"

namespace baton {

enum class FileKind { kGguf, kHuggingFace };

// What a tensor is for. Those from kAttnNorm on exist once per layer.
enum class Role : uint8_t {
  kEmbedding,
  kOutputNorm,
  kOutput,
  kRopeDivisors,
  kAttnNorm,
  kQ,
  kK,
  kV,
  kO,
  kQBias,
  kKBias,
  kVBias,
  kQNorm,
  kKNorm,
  kPostAttnNorm,
  kFfnNorm,
  kGate,
  kUp,
  kDown,
  kPostFfnNorm,
};
constexpr bool IsPerLayer(Role r) { return r >= Role::kAttnNorm; }

// Named sizes of a model, from which a tensor's shape follows.
enum class Dim : uint8_t { kNone, kVocab, kWidth, kQueries, kKeys, kHeadDim, kRotaryPairs, kFfn };
int64_t SizeOf(Dim d, const ModelConfig& config);

enum class Need : uint8_t {
  kRequired,
  kOptional,
  kUnlessTied,  // the output layer: the embedding stands in for it
};

// Names hold "{}" where the layer number goes; an empty name: not in that kind of file.
struct TensorRule {
  Role role;
  std::string_view gguf;
  std::string_view hf;
  std::array<Dim, 2> shape;  // [out, in]; vectors have kNone second
  Need need = Need::kRequired;

  std::string Name(FileKind kind, int layer) const;
};

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
  std::array<std::span<const TensorRule>, 3> tensors;
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
};

std::span<const Architecture> Architectures();

// The row for a file's metadata (for a folder: its config.json). An unknown architecture lists the
// known ones.
Result<const Architecture*> FindArchitecture(FileKind kind, const Metadata& metadata);

// Everything but what only the tensors tell: tied_output in GGUF files, rope divisors, and vocab
// where the metadata lack it (then 0). Checks the range of every number.
Result<ModelConfig> ReadConfig(FileKind kind, const Architecture& architecture,
                               const Metadata& metadata);

}  // namespace baton
