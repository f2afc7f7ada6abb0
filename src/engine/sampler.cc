#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace baton {

Status CheckSampling(const Sampling& s) {
  const auto bad = [](const char* what, const char* expected, double got) {
    return Error::InvalidArgument("sampling: {} must be {}, got {}", what, expected, got);
  };
  if (!(s.temperature >= 0) || std::isinf(s.temperature))
    return bad("temperature", "0 or more", s.temperature);
  if (s.top_k < 0) return bad("top-k", "0 (off) or more", s.top_k);
  if (!(s.top_p > 0 && s.top_p <= 1)) return bad("top-p", "in (0, 1]", s.top_p);
  if (!(s.min_p >= 0 && s.min_p < 1)) return bad("min-p", "in [0, 1)", s.min_p);
  if (!(s.repetition_penalty > 0) || std::isinf(s.repetition_penalty)) {
    return bad("repetition penalty", "above 0", s.repetition_penalty);
  }
  if (s.penalty_window < 0) return bad("penalty window", "0 or more", s.penalty_window);
  return Status::Ok();
}

// SplitMix64: one multiply-xorshift chain per draw, the same on every machine.
double Sampler::NextUniform() {
  state_ += 0x9e3779b97f4a7c15u;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-53;
}

int32_t Sampler::Sample(std::span<const float> input, std::span<const int32_t> history) {
  std::span<const float> logits = input;
  if (options_.repetition_penalty != 1 && !history.empty()) {
    logits_.assign(input.begin(), input.end());
    const size_t window = std::min(history.size(), static_cast<size_t>(options_.penalty_window));
    std::vector<int32_t> seen(history.end() - static_cast<ptrdiff_t>(window), history.end());
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    for (int32_t id : seen) {
      float& l = logits_[static_cast<size_t>(id)];
      l = l > 0 ? l / options_.repetition_penalty : l * options_.repetition_penalty;
    }
    logits = logits_;
  }
  const auto before = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    if (std::isnan(x) || std::isnan(y)) return !std::isnan(x) && std::isnan(y);
    return x > y || (x == y && a < b);
  };
  if (options_.temperature == 0) {
    int32_t best = 0;
    for (int32_t i = 1; i < static_cast<int32_t>(logits.size()); ++i) {
      if (before(i, best)) best = i;
    }
    return best;
  }
  order_.resize(logits.size());
  std::iota(order_.begin(), order_.end(), 0);
  size_t keep = options_.top_k > 0 ? std::min(order_.size(), static_cast<size_t>(options_.top_k))
                                   : order_.size();
  std::partial_sort(order_.begin(), order_.begin() + static_cast<ptrdiff_t>(keep), order_.end(),
                    before);
  order_.resize(keep);
  std::vector<double> p(keep);
  const double largest = logits[static_cast<size_t>(order_[0])];
  for (size_t i = 0; i < keep; ++i) {
    const double x = logits[static_cast<size_t>(order_[i])];
    // The largest may be infinite: its distance to itself is 0, not NaN.
    p[i] = std::isnan(x)  ? 0.0
           : x == largest ? 1.0
                          : std::exp((x - largest) / options_.temperature);
  }
  double total = std::accumulate(p.begin(), p.end(), 0.0);
  double sum = 0;
  for (size_t i = 0; i < keep; ++i) {
    if (p[i] < options_.min_p * p[0] || (i > 0 && sum >= options_.top_p * total)) {
      keep = i;
      break;
    }
    sum += p[i];
  }
  double x = NextUniform() * sum;
  for (size_t i = 0; i < keep; ++i) {
    x -= p[i];
    if (x < 0) return order_[i];
  }
  return order_[keep - 1];
}

}  // namespace baton
