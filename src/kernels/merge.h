// The algebra of partial attention results. A part (o, lse) stands for the softmax-weighted mean o
// of the values of some keys and the log-sum-exp of their scores. Merging the parts of two disjoint
// key sets gives the part of their union:
//
//   lse = log(e^lse_a + e^lse_b),   o = (e^lse_a o_a + e^lse_b o_b) / e^lse
//
// Merge is associative and commutative up to rounding; its identity is (0, -inf), the part of no
// keys. Splits over the context and several branches of a layer are compositions of it. A NaN on
// either side makes the result NaN.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace baton {

inline constexpr float kEmptyLse = -std::numeric_limits<float>::infinity();

// Merges `parts` parts in their order, in one pass: part i is o + i * o_stride, [d], and lse[i *
// lse_stride]. Writes the merged o to `out`, [d] (not one of the inputs), and returns its lse.
inline float MergeAll(const float* o, int64_t o_stride, const float* lse, int64_t lse_stride,
                      int64_t parts, int64_t d, float* out) {
  float largest = kEmptyLse;
  for (int64_t i = 0; i < parts; ++i) {
    if (lse[i * lse_stride] > largest) largest = lse[i * lse_stride];
  }
  // No keys at all: any finite reference gives every part the weight 0.
  if (largest == kEmptyLse) largest = 0;
  float sum = 0;
  for (int64_t k = 0; k < d; ++k) out[k] = 0;
  for (int64_t i = 0; i < parts; ++i) {
    const float weight = std::exp(lse[i * lse_stride] - largest);
    if (weight == 0) continue;
    sum += weight;
    const float* part = o + i * o_stride;
    for (int64_t k = 0; k < d; ++k) out[k] += weight * part[k];
  }
  if (sum == 0) return kEmptyLse;
  const float inverse = 1.0f / sum;
  for (int64_t k = 0; k < d; ++k) out[k] *= inverse;
  return largest + std::log(sum);
}

// Merges the part (o_b, lse_b) into (o_a, lse_a).
inline void MergeInto(float* o_a, float& lse_a, const float* o_b, float lse_b, int64_t d) {
  float largest = lse_b > lse_a ? lse_b : lse_a;
  if (largest == kEmptyLse) largest = 0;
  const float weight_a = std::exp(lse_a - largest);
  const float weight_b = std::exp(lse_b - largest);
  const float sum = weight_a + weight_b;
  if (sum == 0) return;
  const float share_a = weight_a / sum;
  const float share_b = weight_b / sum;
  for (int64_t k = 0; k < d; ++k) o_a[k] = share_a * o_a[k] + share_b * o_b[k];
  lse_a = largest + std::log(sum);
}

}  // namespace baton
