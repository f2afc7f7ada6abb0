// From a row of logits to a token, on the host: what Ops::Sample does on backends that compute
// there, and what picks where logits are on the host anyway.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/params.h"

namespace baton {

// The first of the largest; of what are not numbers only if there is nothing else.
int32_t Largest(std::span<const float> x);

// The sum over i of (bits of logits[i] + i * kHashKey mod 2^32)^2 mod 2^64, folded to 32 bits. A
// sum of integers has the same value in any order, so any number of threads can make it.
constexpr uint32_t kHashKey = 0x9e3779b9u;
constexpr uint64_t kHashFold = 0x9e3779b97f4a7c15u;  // ((sum ^ sum >> 32) * kHashFold) >> 32
uint32_t HashLogits(std::span<const float> logits);

// Holds what one thread needs between rows.
class HostSampler {
 public:
  SampledRow Sample(std::span<const float> logits, const SampleRow& row);

 private:
  // The logits with the row's entries and mask: `input` itself where there are none.
  std::span<const float> Adjusted(std::span<const float> input, const SampleRow& row);
  // Sets weights_ to e^((logit - largest) / temperature), sums_ to what each block of them comes
  // to, and returns the sum of all.
  double Weigh(std::span<const float> logits, float largest, float temperature);
  int32_t DrawInOrder(double x) const;  // by the weights, in the order of ids
  int32_t DrawCut(std::span<const float> logits, const SampleRow& row, double total, double least);

  std::vector<float> logits_;
  std::vector<float> weights_;
  std::vector<double> sums_;
  std::vector<int32_t> order_;
};

}  // namespace baton
