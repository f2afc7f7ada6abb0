// Joins the branches of a layer: row by row, head by head, each value read once. A row and head
// needs only a few exponentials of sinks, log-sum-exps and gates per head. Most of the work is
// gates per channel, which are vectorised (portable/merge.cc).
#include "kernels/merge.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/merge_kernels.h"

namespace baton::cpu {
namespace {

// Values that a unit of work writes: a microsecond or two. A decode row of few heads stays on the
// calling thread.
constexpr int64_t kValuesPerUnit = 4096;

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// e^lse / (e^lse + e^sink)
float KeptOfSink(float lse, const float* sink, int64_t head) {
  if (lse == kEmptyLse) return 0;
  return sink ? 1.0f / (1.0f + std::exp(sink[head] - lse)) : std::isnan(lse) ? lse : 1.0f;
}

// The parts' shares of one softmax over all of them and the first one's sink.
void ShareOneSoftmax(const MergeParams& p, int64_t t, int64_t h, float* weights) {
  const float* sink = p.parts[0].sink_logit;
  float largest = sink ? sink[h] : kEmptyLse;
  for (const auto& part : p.parts) largest = std::max(largest, part.lse.row(t)[h]);
  if (largest == kEmptyLse) largest = 0;  // no keys at all: every weight is 0
  float sum = sink ? std::exp(sink[h] - largest) : 0.0f;
  for (size_t b = 0; b < p.parts.size(); ++b) {
    weights[b] = std::exp(p.parts[b].lse.row(t)[h] - largest);
    sum += weights[b];
  }
  if (sum == 0) return;
  for (size_t b = 0; b < p.parts.size(); ++b) weights[b] /= sum;
}

// Multiplies a gate per head into `weight`; returns the logits of one per channel, or null.
const float* ApplyGate(const MergeParams& p, const View<const float>& gate, int64_t t, int64_t h,
                       float& weight) {
  const int64_t heads = p.out.dim(1), dim = p.out.dim(2);
  if (gate.empty()) return nullptr;
  if (gate.dim(1) == heads * dim) return gate.row(t) + h * dim;
  weight *= Sigmoid(gate.row(t)[h]);
  return nullptr;
}

void MergeOne(const MergeParams& p, int64_t t, int64_t h) {
  float weights[MergeParams::kMaxParts];
  if (p.gated_sum) {
    for (size_t b = 0; b < p.parts.size(); ++b)
      weights[b] = KeptOfSink(p.parts[b].lse.row(t)[h], p.parts[b].sink_logit, h);
  } else {
    ShareOneSoftmax(p, t, h, weights);
  }
  HeadPart heads[MergeParams::kMaxParts];
  int64_t count = 0;
  const float* gate = nullptr;
  for (size_t b = 0; b < p.parts.size(); ++b) {
    if (weights[b] == 0) continue;  // its o is ignored, even if it is NaN
    HeadPart& part = heads[count++];
    part = {.o = p.parts[b].o.row(t, h), .weight = weights[b]};
    if (p.gated_sum) {
      part.gate = ApplyGate(p, p.parts[b].gate, t, h, part.weight);
    } else {
      gate = ApplyGate(p, p.parts[0].gate, t, h, part.weight);
    }
  }
  portable::MergeHead(heads, count, gate, p.out.dim(2), p.out.row(t, h));
}

}  // namespace

void CpuOps::DoMerge(const MergeParams& p) {
  const int64_t heads = p.out.dim(1), dim = p.out.dim(2);
  const int64_t heads_per_unit = std::max<int64_t>(1, kValuesPerUnit / dim);
  const int64_t units_per_row = (heads + heads_per_unit - 1) / heads_per_unit;
  threads_.For(p.out.dim(0) * units_per_row, [&](int64_t unit, int) {
    const int64_t first = unit % units_per_row * heads_per_unit;
    const int64_t end = std::min(heads, first + heads_per_unit);
    for (int64_t h = first; h < end; ++h) MergeOne(p, unit / units_per_row, h);
  });
}

}  // namespace baton::cpu
