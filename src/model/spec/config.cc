#include "model/spec/config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"

namespace baton {
namespace {

// Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, a linear blend between
// (Llama 3 model card code).
double Llama3(const RopeConfig& r, double frequency) {
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  const double original = static_cast<double>(r.original_context);
  if (wavelength < original / r.high_freq_factor) return frequency;
  if (wavelength > original / r.low_freq_factor) return frequency / r.factor;
  const double smooth =
      (original / wavelength - r.low_freq_factor) / (r.high_freq_factor - r.low_freq_factor);
  return (1.0 - smooth) * frequency / r.factor + smooth * frequency;
}

// YaRN (arXiv 2309.00071, section 3.2): pairs that turn more than beta_fast times over the original
// context keep their frequency, those below beta_slow turns are interpolated, a linear ramp over
// the pair number between.
struct YarnRamp {
  double low, high;

  YarnRamp(const RopeConfig& r, int64_t head_dim) {
    const auto pair_with_turns = [&](double turns) {
      return static_cast<double>(head_dim) *
             std::log(static_cast<double>(r.original_context) / (turns * 2.0 * std::numbers::pi)) /
             (2.0 * std::log(static_cast<double>(r.base)));
    };
    low = pair_with_turns(r.beta_fast);
    high = pair_with_turns(r.beta_slow);
    if (r.truncate) low = std::floor(low), high = std::ceil(high);
    low = std::max(0.0, low);
    high = std::min(static_cast<double>(head_dim - 1), high);
  }
  // 0: keep, 1: interpolate fully.
  double At(double pair) const {
    return std::clamp((pair - low) / std::max(0.001, high - low), 0.0, 1.0);
  }
};

}  // namespace

int ModelConfig::OwnCache(int l) const {
  if (plan.empty()) return l;
  for (size_t i = 0; i < caches.size(); ++i) {
    if (caches[i].owner == l) return static_cast<int>(i);
  }
  return -1;
}

ModelShape ShapeOf(const ModelConfig& c, std::string_view fingerprint) {
  ModelShape s{.architecture = c.architecture,
               .fingerprint = std::string(fingerprint),
               .layers = c.layers,
               .heads = c.heads,
               .kv_heads = c.kv_heads,
               .head_dim = c.head_dim,
               .plan = c.plan,
               .caches = c.caches,
               .exit_layer = c.exit_layer};
  for (const LayerConfig& l : c.layer) s.window.push_back(l.window);
  for (int l = 0; l < static_cast<int>(c.plan.size()); ++l) {
    const LayerPlan& layer = c.plan[static_cast<size_t>(l)];
    s.gated_or_borrowed |= layer.publish.has_value();
    for (const Branch& b : layer.branches) {
      const CacheSpec& cache = c.caches[static_cast<size_t>(b.cache)];
      s.gated_or_borrowed |= b.gate != Gate::kNone || b.sink_logit || cache.owner != l ||
                             cache.kv_input != l || b.set.kind == TokenSet::Kind::kIndex;
    }
  }
  return s.Completed();
}

std::vector<float> RopeFrequencies(const RopeConfig& rope, int64_t head_dim) {
  const int64_t pairs = head_dim / 2;
  BATON_CHECK(rope.divisors.empty() || static_cast<int64_t>(rope.divisors.size()) == pairs);
  std::vector<float> out(static_cast<size_t>(pairs));
  for (int64_t i = 0; i < pairs; ++i) {
    double f = std::pow(static_cast<double>(rope.base),
                        -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    if (!rope.divisors.empty()) f /= rope.divisors[static_cast<size_t>(i)];
    switch (rope.scaling) {
      case RopeConfig::Scaling::kNone:
        break;
      case RopeConfig::Scaling::kLinear:
        f /= rope.factor;
        break;
      case RopeConfig::Scaling::kLlama3:
        f = Llama3(rope, f);
        break;
      case RopeConfig::Scaling::kYarn: {
        const double t = YarnRamp(rope, head_dim).At(static_cast<double>(i));
        f = f * (1.0 - t) + f / rope.factor * t;
        break;
      }
    }
    out[static_cast<size_t>(i)] = static_cast<float>(f);
  }
  return out;
}

}  // namespace baton
