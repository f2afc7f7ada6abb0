// The tensors of a model: what each is for, what it is called in files, its shape, and which layers
// have it. A new tensor is a TensorRole, a row of the table in tensors.cc, and its use.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/gguf.h"
#include "model/spec/config.h"

namespace baton {

enum class FileKind { kGguf, kHuggingFace };

// What a tensor is for. Those from kAttnNorm on exist once per layer. A gate and sinks belong to a
// branch of the layer's attention: the first, or the second ("local").
enum class TensorRole : uint8_t {
  kEmbedding,
  kSmear,
  kOutputNorm,
  kOutput,
  kRopeDivisors,
  kMemoryNorm,
  kMemoryK,
  kMemoryV,
  kMemoryKNorm,
  kIndexerQ,
  kIndexerK,
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
  kAttnGate,
  kAttnGateLocal,
  kAttnSinks,
  kAttnSinksLocal,
  kBridgeNorm,
  kPostAttnNorm,
  kFfnNorm,
  kFfnGate,
  kFfnUp,
  kFfnDown,
  kPostFfnNorm,
  kCount,
};
constexpr size_t kTensorRoles = static_cast<size_t>(TensorRole::kCount);
constexpr bool IsPerLayer(TensorRole r) { return r >= TensorRole::kAttnNorm; }

// Pointers into a checkpoint's tensors; null where there is none. Matrices are [out, in].
struct TensorSet {
  std::array<const TensorInfo*, kTensorRoles> by_role{};

  const TensorInfo* operator[](TensorRole r) const { return by_role[static_cast<size_t>(r)]; }
  const TensorInfo*& operator[](TensorRole r) { return by_role[static_cast<size_t>(r)]; }
};

// Named sizes of a model, from which a tensor's shape follows.
enum class Dim : uint8_t {
  kNone,
  kVocab,
  kWidth,
  kQueries,
  kKeys,
  kHeadDim,
  kHeads,
  kRotaryPairs,
  kFfn,
  kIndexerKeys,
};
int64_t SizeOf(Dim d, const ModelConfig& config);

// What a layer (or, for tensors that exist once, the model) has, as bits.
enum Feature : uint32_t {
  kAlways = 0,
  kOwnKv = 1u << 0,  // K and V projections of its own
  kQkvBias = 1u << 1,
  kNormedQ = 1u << 2,  // RMS norm per head
  kNormedK = 1u << 3,
  kTwoNorms = 1u << 4,   // before attention and before the FFN
  kFourNorms = 1u << 5,  // and after each (Gemma 3)
  kOneBranch = 1u << 6,
  kTwoBranches = 1u << 7,
  kChannelGate = 1u << 8,
  kHeadGate = 1u << 9,
  kSinkLogits = 1u << 10,
  kBridgeNormed = 1u << 11,
  kSharedMemory = 1u << 12,  // of the model, like the rest
  kNormedMemory = 1u << 13,
  kIndexed = 1u << 14,
  kDividedRope = 1u << 15,  // a file may divide the rotary frequencies
  kSmeared = 1u << 16,
};
using Features = uint32_t;
Features LayerFeatures(const ModelConfig& config, int layer);
Features ModelFeatures(const ModelConfig& config);

enum class Need : uint8_t {
  kRequired,
  kOptional,
  kUnlessTied,  // the output layer: if tied, the embedding is used instead
};

// Names hold "{}" where the layer number goes; an empty name: not in that kind of file.
struct TensorRule {
  TensorRole role;
  std::string_view gguf;
  std::string_view hf;
  std::array<Dim, 2> shape;  // [out, in]; vectors have kNone second
  Features when = kAlways;   // a layer with all of these has the tensor
  Need need = Need::kRequired;

  std::string Name(FileKind kind, int layer) const;
  std::vector<int64_t> Shape(const ModelConfig& config) const;
};

std::span<const TensorRule> TensorRules();

// One tensor that a model of this config has, or may have.
struct TensorSlot {
  const TensorRule* rule = nullptr;
  int layer = 0;  // 0 where the tensor exists once
};
// In the order of the table, layers ascending.
std::vector<TensorSlot> TensorSlots(const ModelConfig& config);

}  // namespace baton
