// Bytes of KV cache, read and held: the one place that counts them.
#pragma once

#include <cstdint>

#include "plan/resolved.h"

namespace baton {

// How a cache stores its elements.
struct KvElement {
  int64_t bytes = 2;        // of an element
  int64_t scale_bytes = 0;  // per token and head, of K and again of V
};
constexpr KvElement kBf16Cache{2, 0}, kFloatCache{4, 0}, kInt8Cache{1, 4};

// Bytes per token and KV head of the 4-bit copy of K: head_dim / 2 plus one f16 scale per 32
// channels.
constexpr int64_t LowBitBytes(int64_t head_dim) { return head_dim / 2 + head_dim / 32 * 2; }

// K and V (or K) of one token, without low-bit copies.
int64_t RowBytes(const CacheSpec& cache, KvElement element = kBf16Cache);

// What one layer of a decode step reads at `visible` keys: its branches and, where it ranks by
// them, the low-bit copies or an indexer's keys. The index of `layers` is the layer.
int64_t LayerKvBytes(const ResolvedPlan& plan, int layer, int64_t visible,
                     KvElement element = kBf16Cache);
// What one decode step reads: under a plan, and as the model defines its layers.
int64_t KvBytesPerToken(const ResolvedPlan& plan, const ModelShape& model, int64_t visible,
                        KvElement element = kBf16Cache);
int64_t DenseKvBytesPerToken(const ModelShape& model, int64_t visible,
                             KvElement element = kBf16Cache);

// What a sequence of `tokens` tokens holds, low-bit copies and an indexer's keys included.
int64_t KvBytesHeld(const std::vector<CacheSpec>& caches, int64_t tokens,
                    KvElement element = kBf16Cache);
// The same model shape with a full cache in every layer and nothing shared: what the architectures
// are compared with.
int64_t FullKvBytes(const ModelShape& model, int64_t tokens, KvElement element = kBf16Cache);

}  // namespace baton
