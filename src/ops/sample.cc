#include "ops/sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "ops/ops.h"

namespace baton {
namespace {

constexpr size_t kBlock = 256, kLanes = 16;  // what the loops below are written in for the compiler
constexpr float kNever = -std::numeric_limits<float>::infinity();

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

int32_t Largest(std::span<const float> x) {
  float largest = kNever;
  size_t block = 0;
  for (size_t begin = 0; begin < x.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, x.size());
    float lanes[kLanes];
    std::fill_n(lanes, kLanes, kNever);
    size_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (size_t l = 0; l < kLanes; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
    }
    for (; i < end; ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
    const float here = *std::max_element(lanes, lanes + kLanes);
    if (here > largest) largest = here, block = begin;
  }
  for (size_t i = block; i < x.size(); ++i) {
    if (x[i] == largest) return static_cast<int32_t>(i);
  }
  return 0;
}

uint32_t HashLogits(std::span<const float> logits) {
  uint64_t sum = 0;
  uint32_t key = 0;
  for (size_t i = 0; i < logits.size(); ++i, key += kHashKey) {
    const uint64_t word = std::bit_cast<uint32_t>(logits[i]) + key;
    sum += word * word;
  }
  return static_cast<uint32_t>((sum ^ sum >> 32) * kHashFold >> 32);
}

std::span<const float> HostSampler::Adjusted(std::span<const float> input, const SampleRow& row) {
  if (row.entries.empty() && row.mask.empty()) return input;
  logits_.assign(input.begin(), input.end());
  for (const SampleEntry& e : row.entries) {
    float& l = logits_[static_cast<size_t>(e.token)];
    l += e.bias;
    if (e.count == 0) continue;
    l = l > 0 ? l / row.repetition_penalty : l * row.repetition_penalty;
    l -= row.presence_penalty + row.frequency_penalty * static_cast<float>(e.count);
  }
  for (size_t i = 0; !row.mask.empty() && i < logits_.size(); ++i)
    logits_[i] = row.mask[i / 32] >> (i % 32) & 1 ? logits_[i] : kNever;
  return logits_;
}

SampledRow HostSampler::Sample(std::span<const float> input, const SampleRow& row) {
  SampledRow sampled{.token = SampledRow::kNoNumber, .hash = HashLogits(input)};
  // Looks at one where all is well.
  if (std::none_of(input.begin(), input.end(), [](float l) { return l > kNever; })) return sampled;
  const std::span<const float> logits = Adjusted(input, row);
  const int32_t best = Largest(logits);
  const float largest = logits[static_cast<size_t>(best)];
  sampled.token = largest > kNever ? best : SampledRow::kNoneAllowed;
  if (row.temperature == 0 || sampled.token < 0) return sampled;
  const double total = Weigh(logits, largest, row.temperature);
  // The likeliest k, or all that the other cuts may keep: those that weigh less than their even
  // share of what top-p drops weigh less than that together.
  const double dropped = (1 - static_cast<double>(row.top_p)) * total;
  const double least =
      std::max<double>(row.min_p, 0.5 * dropped / static_cast<double>(logits.size()));
  const bool cut = row.top_k > 0 || least > 0;
  sampled.token = cut ? DrawCut(logits, row, total, least) : DrawInOrder(row.uniform * total);
  return sampled;
}

int32_t HostSampler::DrawCut(std::span<const float> logits, const SampleRow& row, double total,
                             double least) {
  order_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (weights_[i] > 0 && (row.top_k > 0 || weights_[i] >= least))
      order_.push_back(static_cast<int32_t>(i));
  }
  size_t keep =
      row.top_k > 0 ? std::min(order_.size(), static_cast<size_t>(row.top_k)) : order_.size();
  std::partial_sort(order_.begin(), order_.begin() + static_cast<ptrdiff_t>(keep), order_.end(),
                    [&](int32_t a, int32_t b) {
                      const float x = logits[static_cast<size_t>(a)],
                                  y = logits[static_cast<size_t>(b)];
                      return x > y || (x == y && a < b);
                    });
  order_.resize(keep);
  const auto weight = [&](size_t i) {
    return static_cast<double>(weights_[static_cast<size_t>(order_[i])]);
  };
  double kept = total;
  if (row.top_k > 0) {
    kept = 0;
    for (size_t i = 0; i < keep; ++i) kept += weight(i);
  }
  double sum = 0;
  for (size_t i = 0; i < keep; ++i) {
    if (weight(i) < row.min_p || (i > 0 && sum >= row.top_p * kept)) {
      keep = i;
      break;
    }
    sum += weight(i);
  }
  double x = row.uniform * sum;
  for (size_t i = 0; i < keep; ++i) {
    x -= weight(i);
    if (x < 0) return order_[i];
  }
  return order_[keep - 1];
}

double HostSampler::Weigh(std::span<const float> logits, float largest, float temperature) {
  weights_.resize(logits.size());
  sums_.clear();
  const float scale = std::numbers::log2e_v<float> / temperature;
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

int32_t HostSampler::DrawInOrder(double x) const {
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

void Ops::DoSample(const SampleParams& p) {
  samplers_.resize(static_cast<size_t>(threads_.threads()));
  threads_.For(p.logits.dim(0), [&](int64_t i, int rank) {
    const std::span row(p.logits.row(i), static_cast<size_t>(p.logits.dim(1)));
    p.sampled[i] = samplers_[static_cast<size_t>(rank)].Sample(row, p.rows[static_cast<size_t>(i)]);
  });
}

}  // namespace baton
