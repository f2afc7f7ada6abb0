// How much of a prompt runs between two rounds of decoding. A chunk of a prompt takes many times as
// long as a round, so while others decode it runs in parts (PromptRun::Step), each about as long as
// a given share of the time allows. A part has the bits that it has in the whole pass.
#pragma once

#include <algorithm>
#include <cstdint>

namespace baton {

class PromptPace {
 public:
  void BeginRound() { round_seconds_ = 0; }
  void Decoded(double seconds) { round_seconds_ += seconds; }
  // A part of a prompt, in rows times layers.
  void Ran(int64_t row_layers, double seconds) {
    if (row_layers <= 0) return;
    const double each = seconds / static_cast<double>(row_layers);
    slowest_ = std::max(each, kForget * slowest_);
  }
  // Rows times layers that fit beside the round at hand, where prompts get `share` of the time; at
  // least 1.
  int64_t Part(double share) const {
    if (share >= 1) return INT64_MAX;
    const double seconds = round_seconds_ * share / (1 - share);
    // Nothing was seen: the least part there is will tell.
    return slowest_ > 0 ? std::max<int64_t>(1, static_cast<int64_t>(seconds / slowest_)) : 1;
  }

 private:
  static constexpr double kForget = 0.9;  // layers differ: the slowest of the latest ones counts
  double round_seconds_ = 0;
  double slowest_ = 0;  // seconds of a row in a layer
};

}  // namespace baton
