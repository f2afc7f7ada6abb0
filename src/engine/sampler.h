// How a request picks its tokens: its options and its seeded generator. Ops::Sample does the
// picking.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "baton/engine.h"
#include "ops/params.h"

namespace baton {

class Sampler {
 public:
  explicit Sampler(const Sampling& options) : options_(options) {}

  // How the token after `history` is picked, of those in `mask`, by the draw that is `ahead` draws
  // after the next one. `entries` holds what changes single logits: biases, and penalties of the
  // latest tokens. Both last as long as the row.
  SampleRow Row(std::span<const int32_t> history, std::span<const uint32_t> mask, int64_t ahead,
                std::vector<SampleEntry>& entries) const;
  // A token was picked: the next draw follows.
  void Advance() { ++draws_; }

 private:
  double Uniform(int64_t draw) const;  // [0, 1)

  const Sampling options_;
  int64_t draws_ = 0;
};

// Of one row of logits: `token`, and the `top` likeliest, the lower id first on ties.
Generation::Logprobs LogprobsOf(std::span<const float> logits, int32_t token, int top);

// `vocab`: biases name tokens below it.
Status CheckSampling(const Sampling& s, int64_t vocab = INT32_MAX);

}  // namespace baton
