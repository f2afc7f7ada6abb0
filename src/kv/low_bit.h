// The 4-bit copy of K, one token and head at a time: what scan layers rank by. Layout in page.h.
#pragma once

#include "kv/page.h"

namespace baton {

// Writes the copy of one token's K. Symmetric, one f16 scale per 32 channels: scale = amax / 7
// rounded to f16, nibble = round(k / scale) + 8.
void StoreLowBit(const KvView& kv, int64_t position, int head, const float* k);  // k: [D]

// k = (nibble - 8) * scale.
void LoadLowBit(const KvView& kv, int64_t position, int head, float* k);  // k: [D]

}  // namespace baton
