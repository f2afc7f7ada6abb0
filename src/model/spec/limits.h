// Ranges of a model's sizes: no number from a file is trusted before it is checked against them.
#pragma once

#include <cstdint>

namespace baton {

constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadDim = 512;
constexpr int64_t kMaxWidth = 1 << 18;
constexpr int64_t kMaxFfnWidth = 1 << 20;
constexpr int64_t kMaxVocab = 1 << 22;
constexpr int64_t kMaxContext = 1 << 26;

}  // namespace baton
