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
  explicit Sampler(const Sampling& options);

  // All tokens so far, which only grow. Before Row.
  void Follow(std::span<const int32_t> history);
  // How the token after `history` and `drafts` is picked, of those in `mask`: by the draw that
  // would be its own if the drafts were right. `entries` holds what changes single logits: biases,
  // and penalties of the latest tokens. Both last as long as the row.
  SampleRow Row(std::span<const int32_t> history, std::span<const int32_t> drafts,
                std::span<const uint32_t> mask, std::vector<SampleEntry>& entries) const;
  // A token was picked: the next draw follows.
  void Advance() { ++draws_; }

 private:
  double Uniform(int64_t draw) const;  // [0, 1)
  bool penalizes() const;
  void Begin(std::span<const int32_t> window);  // entries_
  // Counts the token behind the first `length` of those that `token` gives, and no longer the one
  // which leaves the window.
  template <typename TokenAt>
  void Count(std::vector<SampleEntry>& entries, int64_t length, TokenAt token) const;

  const Sampling options_;
  int64_t draws_ = 0;
  std::vector<SampleEntry> entries_;  // biases, and counts of the latest of `followed_` tokens
  int64_t followed_ = 0;
};

// Of one row of logits: `token`, and the `top` likeliest, the lower id first on ties.
Generation::Logprobs LogprobsOf(std::span<const float> logits, int32_t token, int top);

// `vocab`: biases name tokens below it.
Status CheckSampling(const Sampling& s, int64_t vocab = INT32_MAX);

}  // namespace baton
