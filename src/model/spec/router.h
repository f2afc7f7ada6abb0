// Layer routers (arXiv 2604.07394, section 3): a small network per layer that decides, once per
// request, whether the layer attends to the whole context or to a window. Its input is the layer's
// query after the per-head norm and before RoPE, averaged over all heads and over the first `pool`
// and the last `pool` rows of the prompt (rows in both count twice; a prompt of up to `pool` rows
// counts once).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "baton/error.h"
#include "formats/gguf.h"
#include "model/spec/config.h"
#include "model/spec/problems.h"

namespace baton {

struct RouterSettings {
  int64_t pool = 100;
  int64_t sink = 128, window = 2048;  // what a layer keeps that is not full: RouteWindow
  bool operator==(const RouterSettings&) const = default;
};

struct RouterLinear {
  int64_t outputs = 0, inputs = 0;
  std::vector<float> weight;  // [outputs, inputs]
  std::vector<float> bias;    // [outputs]
};

// d -> 8d, SiLU, 2d | 4d, SiLU, d, SiLU, 2: no activation after the second. The logits are
// {window, full}; full where the second is larger, a tie is a window.
struct LayerRouter {
  std::array<RouterLinear, 5> linear;
};

struct RouterFile {
  RouterSettings settings;
  int64_t head_dim = 0;  // d
  // One per layer. Inputs are in the order of the model's own query dims: columns of the first
  // matrix are permuted at load where the model's rotary pairs are interleaved.
  std::vector<LayerRouter> layers;
  std::string hash;  // "sha256:<hex>" over settings and weights as the file has them
};

// Baton's router file: safetensors with the tensors' published names and the metadata key
// "baton.router", a JSON object {flavour, pool_size, sink_size, local_window_size, use_softmax,
// head_dim, layers}. What does not fit the model or the form is one error.
Result<RouterFile> LoadRouter(const std::string& path, const ModelConfig& model);
// Columns of the first matrices must be in Hugging Face order: the router was loaded for a model
// without interleaved pairs, or made without a model.
// `bf16`: weights are rounded, half the size; biases stay F32.
Status WriteRouter(const std::string& path, const RouterFile& router, bool bf16 = false);
// A router in the order of the model's own query dims, in that of files.
RouterFile InFileOrder(RouterFile router, const ModelConfig& model);

// Random weights from a seed, the same everywhere: splitmix64 of (seed, layer, matrix, index).
// `final_biases`, if not empty: {window, full} of each layer, which set how often each is chosen.
RouterFile SyntheticRouter(const RouterSettings& settings, int layers, int64_t head_dim,
                           uint64_t seed,
                           const std::vector<std::array<float, 2>>& final_biases = {});

// ---- published checkpoints: a backbone and its routers in one folder ----

// The backbone's architecture if config.json names such a checkpoint, else empty.
std::string_view RoutedBackbone(const Metadata& config_json);
// Settings of its config.json that PublishedRouter reads.
inline constexpr std::string_view kPublishedRouterKeys[] = {
    "local_window_size", "pool_size",   "pooling_mode", "retrieval_mode",
    "sink_size",         "toggle_type", "use_softmax"};
// A tensor of such a folder that is no part of the backbone.
bool IsRouterTensor(std::string_view name);
// `flavour` must be "flux": checkpoints of another method (arXiv 2601.17367) share architecture
// names, tensor names and shapes, but pool other values and decide per head.
Result<RouterFile> PublishedRouter(const Metadata& config_json,
                                   const std::vector<TensorInfo>& tensors, const ModelConfig& model,
                                   std::string_view flavour);

}  // namespace baton
