// Models of random weights, of any supported architecture and size: the whole engine runs on them
// without a download.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/dtype.h"
#include "baton/error.h"
#include "formats/gguf_writer.h"
#include "model/spec/config.h"

namespace baton {

struct SyntheticSpec {
  std::string architecture = "llama";  // a row of the architecture table
  int layers = 2;
  int64_t width = 64;
  int heads = 4;
  int kv_heads = 2;
  int64_t head_dim = 16;
  int64_t ffn_width = 128;
  int64_t vocab = 320;  // at least 258: bytes, BOS, EOS
  int64_t context = 4096;
  int64_t window = 64;  // of window layers (mistral, gemma3)
  DType weights =
      DType::kF32;  // F32, F16, BF16, Q8_0 or Q4_0; norms and biases are F32 in GGUF files
  bool tied_output = true;
  uint64_t seed = 1;

  // For the trained-sparse architectures (native_config.h). One letter per layer: F full, W window,
  // S sparse, C cross_full (fed as layer `bridge` is), R sparse_shared, D cross_dense,
  // I cross_index, L cross_index_local. Readers use the publisher or the memory before them.
  std::string layout;
  int bridge = -1;                 // -1: the first F
  std::string rope, gated, sinks;  // letters of the layers that rotate, have gates, sink logits
  Gate gate = Gate::kChannel;      // of those with gates
  int64_t rope_dims = 0;           // 0: the whole head
  int64_t sink_tokens = 0;         // of windows
  bool qk_norm = false, memory_qk_norm = false, smear = false;
  int exit_layer = -1;
  int64_t top_k = 0, block = 1, recent = 0, sink = 0;  // select.*
  Scope scope = Scope::kAll;
  Pool pool = Pool::kMax;
  int64_t index_dim = 0;  // of an indexer; 0: none

  // For named shapes: what had to be chosen because nothing is published, and what was substituted.
  std::string note;
};

// Matrices have mean 0 and standard deviation 1 / sqrt(inputs), so that activations keep their size
// through any number of layers. The same spec gives the same bytes. A byte-level tokenizer
// (formats/byte_tokenizer.h) comes with the model.
Status WriteSyntheticGguf(const std::string& path, const SyntheticSpec& spec,
                          const GgufWriteOptions& options = {});

// The same weights as a Hugging Face folder (config.json, model.safetensors, tokenizer.json),
// created if missing. Only F32 and BF16; the whole model is held in memory.
Status WriteSyntheticFolder(const std::string& path, const SyntheticSpec& spec);

// The keys of a trained-sparse spec. Whether they agree is left to the reader.
struct Architecture;
Result<Metadata> NativeMetadata(const SyntheticSpec& spec, const Architecture& architecture);
// The letters of a model's layers; empty for ordinary models.
std::string LayoutOf(const ModelConfig& config);

// The shape of a well-known model, 4-bit, with a context of 2^20 + 4096 tokens, for timing: only
// the values of its weights differ. An unknown name is an error that lists the known ones.
Result<SyntheticSpec> NamedShape(std::string_view name);
std::string ShapeNames();  // "llama-1b, llama-8b, ..."
// An error that says in which sizes a model is not of a shape. Weight types and context may differ.
Status CheckShape(const ModelConfig& model, const SyntheticSpec& shape);

}  // namespace baton
