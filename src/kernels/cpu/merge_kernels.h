// Joins the branches of a layer, one head at a time. One implementation (portable/, Highway) serves
// all instruction sets: it reads each value once.
#pragma once

#include <cstdint>

#include "ops/attention_params.h"

namespace baton::cpu {

struct HeadPart {
  const float* o = nullptr;     // [D]
  const float* gate = nullptr;  // [D] logits, or null
  float weight = 0;
};

namespace portable {

// out[d] = sigmoid(gate[d]) * sum_b weight_b sigmoid(gate_b[d]) o_b[d], in the order of the parts;
// gate: [D] logits or null. out may be one of the inputs.
void MergeHead(const HeadPart* parts, int64_t count, const float* gate, int64_t dim, float* out);

}  // namespace portable
}  // namespace baton::cpu
