// Spectral entropy of what each layer's attention reads: the ranking by which arXiv 2604.07394
// picks layers for windows where there is no router.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/view.h"
#include "baton/engine.h"

namespace baton {

// - sum l log l in nats over the K largest eigenvalues l of X X^T / tr(X X^T), x: [T, C] and K =
// min(64, T, C). The paper leaves K open; beyond 64 directions little is left of a layer's input.
// 0 where X is zero.
double SpectralEntropy(View<const float> x);

// Of every layer's normalised attention input over a dense prompt of `tokens`: [layers]. Keeps one
// residual stream [T, C] and takes about T C^2 + C^3 operations a layer beside the prompt itself.
// `on_layer` is called before each layer. For models whose layers all have a cache of their own.
Result<std::vector<double>> InputEntropy(Engine& engine, std::span<const int32_t> tokens,
                                         const std::function<void(int layer)>& on_layer);

}  // namespace baton
