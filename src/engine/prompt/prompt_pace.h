// How much of a prompt runs between two rounds of decoding. A chunk of a prompt takes many times as
// long as a round, so while others decode it runs in parts (PromptRun::Step), each about as long as
// a given share of the time allows. A part has the bits that it has in the whole pass.
#pragma once

#include <algorithm>
#include <cstdint>

namespace baton {

// Part of a forward pass of a prompt; no rows: nothing.
struct PromptPart {
  int64_t rows = 0, layers = 0;
};
// As a number of rows times layers: all of a pass.
inline constexpr int64_t kWholePass = INT64_MAX;

class PromptPace {
 public:
  void BeginRound() { round_seconds_ = 0; }
  void Decoded(double seconds) { round_seconds_ += seconds; }
  // A part that ran beside others, to its end.
  void Ran(PromptPart part, double seconds) {
    if (part.rows == 0) return;
    // A few rows take nearly as long as some more: what they wait for is the weights.
    const int64_t rows = std::max(part.rows, kFewRows);
    slowest_ = std::max(seconds / static_cast<double>(rows * part.layers), kForget * slowest_);
  }
  // Rows times layers that fit beside the round at hand, where prompts get `share` of the time; at
  // least 1. A round that is shorter than anybody notices counts as kLeastRound: on a GPU it takes
  // 2 ms, and parts as short as that lose most of their time to their beginnings and ends.
  int64_t Budget(double share) const {
    if (share >= 1) return kWholePass;
    const double seconds = std::max(round_seconds_, kLeastRound) * share / (1 - share);
    // Nothing was seen: the least part there is will tell.
    return slowest_ > 0 ? std::max<int64_t>(1, static_cast<int64_t>(seconds / slowest_)) : 1;
  }

 private:
  static constexpr double kLeastRound = 0.005;  // seconds
  static constexpr int64_t kFewRows = 64;
  static constexpr double kForget = 0.9;  // layers differ: the slowest of the latest ones counts
  double round_seconds_ = 0;
  double slowest_ = 0;  // seconds of a row in a layer
};

}  // namespace baton
