#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "ops/argmax.h"

namespace baton {
namespace {

constexpr size_t kBlock = 256, kLanes = 16;  // what the loops below are written in for the compiler

// 2^x for x <= 0 within 3e-7; 0 from -127 on down and for what is not a number.
inline float Exp2(float x) {
  x = x > -127.0f ? x : -127.0f;
  const int n = static_cast<int>(x - 0.5f);
  const float f = x - static_cast<float>(n);
  float y = 0x1.5bba14p-10f;
  y = y * f + 0x1.3cea88p-7f;
  y = y * f + 0x1.c6b752p-5f;
  y = y * f + 0x1.ebf9bcp-3f;
  y = y * f + 0x1.62e42ap-1f;
  y = y * f + 1.0f;
  return y * std::bit_cast<float>((n + 127) << 23);
}

}  // namespace

bool HoldNumber(std::span<const float> logits) {
  return std::any_of(logits.begin(), logits.end(),
                     [](float l) { return l > -std::numeric_limits<float>::infinity(); });
}

Generation::Logprobs LogprobsOf(std::span<const float> logits, int32_t token, int top) {
  const auto value = [&](int32_t id) {
    const float l = logits[static_cast<size_t>(id)];
    return std::isnan(l) ? -std::numeric_limits<double>::infinity() : static_cast<double>(l);
  };
  const double largest = value(Largest(logits));
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i)
    sum += std::exp(value(static_cast<int32_t>(i)) - largest);
  const double normalizer = largest + std::log(sum);
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const size_t count = std::min(order.size(), static_cast<size_t>(std::max(top, 0)));
  std::partial_sort(
      order.begin(), order.begin() + static_cast<ptrdiff_t>(count), order.end(),
      [&](int32_t a, int32_t b) { return value(a) != value(b) ? value(a) > value(b) : a < b; });
  Generation::Logprobs result{.chosen = {token, value(token) - normalizer}, .top = {}};
  for (size_t i = 0; i < count; ++i) result.top.push_back({order[i], value(order[i]) - normalizer});
  return result;
}

Status CheckSampling(const Sampling& s, int64_t vocab) {
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
  for (const auto& [what, penalty] : {std::pair{"presence penalty", s.presence_penalty},
                                      {"frequency penalty", s.frequency_penalty}}) {
    if (!std::isfinite(penalty)) return bad(what, "a number", penalty);
  }
  if (s.penalty_window < 0) return bad("penalty window", "0 or more", s.penalty_window);
  for (const LogitBias& b : s.logit_bias) {
    if (b.token < 0 || b.token >= vocab)
      return Error::InvalidArgument("logit bias: token {} is outside the vocabulary of {}", b.token,
                                    vocab);
    if (!std::isfinite(b.bias)) return bad("a logit bias", "a number", b.bias);
  }
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

std::span<const float> Sampler::Adjusted(std::span<const float> input,
                                         std::span<const int32_t> history,
                                         std::span<const uint32_t> mask) {
  const bool unpenalized = options_.repetition_penalty == 1 && options_.presence_penalty == 0 &&
                           options_.frequency_penalty == 0;
  const bool penalized = !unpenalized && !history.empty();
  if (!penalized && options_.logit_bias.empty() && mask.empty()) return input;
  logits_.assign(input.begin(), input.end());
  for (const LogitBias& b : options_.logit_bias) logits_[static_cast<size_t>(b.token)] += b.bias;
  if (penalized) Penalize(history);
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; !mask.empty() && i < logits_.size(); ++i)
    logits_[i] = mask[i / 32] >> (i % 32) & 1 ? logits_[i] : kNever;
  return logits_;
}

void Sampler::Penalize(std::span<const int32_t> history) {
  const size_t window = std::min(history.size(), static_cast<size_t>(options_.penalty_window));
  std::vector<int32_t> seen(history.end() - static_cast<ptrdiff_t>(window), history.end());
  std::sort(seen.begin(), seen.end());
  for (size_t i = 0; i < seen.size();) {
    const size_t begin = i;
    while (i < seen.size() && seen[i] == seen[begin]) ++i;
    float& l = logits_[static_cast<size_t>(seen[begin])];
    l = l > 0 ? l / options_.repetition_penalty : l * options_.repetition_penalty;
    l -= options_.presence_penalty + options_.frequency_penalty * static_cast<float>(i - begin);
  }
}

int32_t Sampler::Sample(std::span<const float> input, std::span<const int32_t> history,
                        std::span<const uint32_t> mask) {
  const std::span<const float> logits = Adjusted(input, history, mask);
  const int32_t best = Largest(logits);
  const float largest = logits[static_cast<size_t>(best)];
  if (options_.temperature == 0 || std::isnan(largest)) return best;
  const double total = Weigh(logits, largest);
  // The likeliest k, or all that the other cuts may keep: those that weigh less than their even
  // share of what top-p drops weigh less than that together.
  const double dropped = (1 - static_cast<double>(options_.top_p)) * total;
  const double least =
      std::max<double>(options_.min_p, 0.5 * dropped / static_cast<double>(logits.size()));
  if (options_.top_k == 0 && least == 0) return Draw(total);
  order_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (weights_[i] > 0 && (options_.top_k > 0 || weights_[i] >= least))
      order_.push_back(static_cast<int32_t>(i));
  }
  size_t keep = options_.top_k > 0 ? std::min(order_.size(), static_cast<size_t>(options_.top_k))
                                   : order_.size();
  std::partial_sort(order_.begin(), order_.begin() + static_cast<ptrdiff_t>(keep), order_.end(),
                    [&](int32_t a, int32_t b) {
                      const float x = logits[static_cast<size_t>(a)],
                                  y = logits[static_cast<size_t>(b)];
                      if (std::isnan(x) || std::isnan(y)) return !std::isnan(x) && std::isnan(y);
                      return x > y || (x == y && a < b);
                    });
  order_.resize(keep);
  const auto weight = [&](size_t i) {
    return static_cast<double>(weights_[static_cast<size_t>(order_[i])]);
  };
  double kept = total;
  if (options_.top_k > 0) {
    kept = 0;
    for (size_t i = 0; i < keep; ++i) kept += weight(i);
  }
  double sum = 0;
  for (size_t i = 0; i < keep; ++i) {
    if (weight(i) < options_.min_p || (i > 0 && sum >= options_.top_p * kept)) {
      keep = i;
      break;
    }
    sum += weight(i);
  }
  double x = NextUniform() * sum;
  for (size_t i = 0; i < keep; ++i) {
    x -= weight(i);
    if (x < 0) return order_[i];
  }
  return order_[keep - 1];
}

double Sampler::Weigh(std::span<const float> logits, float largest) {
  weights_.resize(logits.size());
  sums_.clear();
  const float scale = std::numbers::log2e_v<float> / options_.temperature;
  double total = 0;
  for (size_t begin = 0; begin < logits.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, logits.size());
    // The largest may be infinite: its distance to itself is 0, not NaN.
    for (size_t i = begin; i < end; ++i)
      weights_[i] = logits[i] == largest ? 1.0f : Exp2((logits[i] - largest) * scale);
    float lanes[kLanes] = {};
    size_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (size_t l = 0; l < kLanes; ++l) lanes[l] += weights_[i + l];
    }
    for (; i < end; ++i) lanes[0] += weights_[i];
    sums_.push_back(std::accumulate(lanes, lanes + kLanes, 0.0));
    total += sums_.back();
  }
  return total;
}

int32_t Sampler::Draw(double total) {
  double x = NextUniform() * total;
  size_t block = 0;
  while (block + 1 < sums_.size() && x >= sums_[block]) x -= sums_[block++];
  // Sums in another order round otherwise: past the block's end, its last possible token.
  size_t last = 0;
  for (size_t i = block * kBlock; i < std::min((block + 1) * kBlock, weights_.size()); ++i) {
    if (weights_[i] == 0) continue;
    last = i;
    x -= weights_[i];
    if (x < 0) break;
  }
  return static_cast<int32_t>(last);
}

}  // namespace baton
