// From logits to a token, seeded and repeatable.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "baton/engine.h"

namespace baton {

class Sampler {
 public:
  explicit Sampler(const Sampling& options) : options_(options), state_(options.seed) {}

  // Picks a token: biases, then penalties over the latest `history`, then those of `mask` (bit
  // t % 32 of mask[t / 32]; empty: all), then temperature, top-k, top-p, min-p. Temperature 0 takes
  // the largest logit, the lower id on ties. Logits that are not numbers, and tokens outside the
  // mask, are only picked if there is nothing else.
  int32_t Sample(std::span<const float> logits, std::span<const int32_t> history,
                 std::span<const uint32_t> mask = {});

 private:
  // The logits with biases, penalties and the mask: `input` itself where there are none.
  std::span<const float> Adjusted(std::span<const float> input, std::span<const int32_t> history,
                                  std::span<const uint32_t> mask);
  void Penalize(std::span<const int32_t> history);  // logits_
  double NextUniform();                             // [0, 1)
  // Sets weights_ to e^((logit - largest) / temperature), sums_ to what each block of them comes
  // to, and returns the sum of all.
  double Weigh(std::span<const float> logits, float largest);
  int32_t Draw(double total);  // by the weights, in the order of ids

  Sampling options_;
  uint64_t state_;
  std::vector<float> logits_;
  std::vector<float> weights_;
  std::vector<double> sums_;
  std::vector<int32_t> order_;
};

// Whether some logit is above -inf: there is a token to pick. Looks at one where all is well.
bool HoldNumber(std::span<const float> logits);

// Of one row of logits: `token`, and the `top` likeliest, the lower id first on ties.
Generation::Logprobs LogprobsOf(std::span<const float> logits, int32_t token, int top);

// `vocab`: biases name tokens below it.
Status CheckSampling(const Sampling& s, int64_t vocab = INT32_MAX);

}  // namespace baton
