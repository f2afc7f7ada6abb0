#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "ops/sample.h"

namespace baton {
namespace {

// Where the token is, or belongs: entries have ascending tokens.
SampleEntry& EntryOf(std::vector<SampleEntry>& entries, int32_t token) {
  const auto at = std::lower_bound(entries.begin(), entries.end(), token,
                                   [](const SampleEntry& e, int32_t t) { return e.token < t; });
  if (at != entries.end() && at->token == token) return *at;
  return *entries.insert(at, {.token = token});
}

}  // namespace

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

Sampler::Sampler(const Sampling& options) : options_(options) { Begin({}); }

void Sampler::Begin(std::span<const int32_t> window) {
  entries_.clear();
  for (const LogitBias& b : options_.logit_bias) entries_.push_back({b.token, b.bias, 0});
  for (const int32_t token : window) entries_.push_back({token, 0, 1});
  std::stable_sort(entries_.begin(), entries_.end(),
                   [](const SampleEntry& a, const SampleEntry& b) { return a.token < b.token; });
  size_t merged = 0;
  for (const SampleEntry& e : entries_) {
    if (merged > 0 && entries_[merged - 1].token == e.token) {
      entries_[merged - 1].bias += e.bias;
      entries_[merged - 1].count += e.count;
    } else {
      entries_[merged++] = e;
    }
  }
  entries_.resize(merged);
}

bool Sampler::penalizes() const {
  return options_.repetition_penalty != 1 || options_.presence_penalty != 0 ||
         options_.frequency_penalty != 0;
}

template <typename TokenAt>
void Sampler::Count(std::vector<SampleEntry>& entries, int64_t length, TokenAt token) const {
  const int64_t window = options_.penalty_window;
  if (window == 0) return;
  EntryOf(entries, token(length)).count++;
  if (length >= window) EntryOf(entries, token(length - window)).count--;
}

void Sampler::Follow(std::span<const int32_t> history) {
  if (!penalizes()) return;
  if (followed_ == 0) {  // a prompt, which would be long to count token by token
    Begin(history.last(std::min(history.size(), static_cast<size_t>(options_.penalty_window))));
    followed_ = std::ssize(history);
  }
  const auto token = [&](int64_t i) { return history[static_cast<size_t>(i)]; };
  for (; followed_ < std::ssize(history); ++followed_) Count(entries_, followed_, token);
}

// SplitMix64: one multiply-xorshift chain per draw, the same on every machine.
double Sampler::Uniform(int64_t draw) const {
  uint64_t z = options_.seed + (static_cast<uint64_t>(draw) + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-53;
}

SampleRow Sampler::Row(std::span<const int32_t> history, std::span<const int32_t> drafts,
                       std::span<const uint32_t> mask, std::vector<SampleEntry>& entries) const {
  entries = entries_;
  const int64_t before = std::ssize(history);
  const auto token = [&](int64_t i) {
    return i < before ? history[static_cast<size_t>(i)] : drafts[static_cast<size_t>(i - before)];
  };
  for (int64_t i = 0; penalizes() && i < std::ssize(drafts); ++i) Count(entries, before + i, token);
  return {.temperature = options_.temperature,
          .top_k = options_.top_k,
          .top_p = options_.top_p,
          .min_p = options_.min_p,
          .uniform = Uniform(draws_ + std::ssize(drafts)),
          .repetition_penalty = options_.repetition_penalty,
          .presence_penalty = options_.presence_penalty,
          .frequency_penalty = options_.frequency_penalty,
          .entries = entries,
          .mask = mask};
}

}  // namespace baton
