// Norm and Store: row-parallel, memory-bound and small compared with the matrix products, so plain
// loops that the compiler vectorises for the baseline are enough.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kv/low_bit.h"

namespace baton::cpu {
namespace {

// Rows per unit of work: a decode batch stays on the calling thread, a prompt is split.
constexpr int64_t kRowsPerUnit = 16;

float InverseRms(const float* x, int64_t n, float eps) {
  // Double precision as in the reference; eight lanes so that additions do not depend on each
  // other.
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int l = 0; l < 8; ++l) lanes[l] += static_cast<double>(x[i + l]) * x[i + l];
  }
  double sum = 0;
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  for (double l : lanes) sum += l;
  return 1.0f / std::sqrt(static_cast<float>(sum / static_cast<double>(n)) + eps);
}

void RmsNorm(float* x, const float* weight, float eps, int64_t n) {
  const float scale = InverseRms(x, n, eps);
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] * scale * weight[i];
}

// Rotates the first `dim` values of a head.
void Rotate(float* x, const float* cos, const float* sin, int64_t dim, bool interleaved) {
  const int64_t half = dim / 2;
  if (interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cos[i] - b * sin[i];
      x[2 * i + 1] = a * sin[i] + b * cos[i];
    }
    return;
  }
  float* y = x + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = y[i];
    x[i] = a * cos[i] - b * sin[i];
    y[i] = a * sin[i] + b * cos[i];
  }
}

int8_t Quantised(float x) {
  return std::isnan(x) ? int8_t{0} : static_cast<int8_t>(std::nearbyintf(x));
}

// Writes one head of a token's K or V. `stored`, [D] or null, receives the values the cache now
// holds.
void StoreHead(const KvView& kv, int64_t position, bool value, int head, const float* x,
               float* stored) {
  const KvLayout& l = kv.layout;
  const int64_t dim = l.head_dim;
  std::byte* to = kv.row(position) + (value ? l.value_offset() : 0) + head * l.head_bytes();
  if (l.dtype == DType::kF32) {
    std::copy_n(x, dim, reinterpret_cast<float*>(to));
    if (stored) std::copy_n(x, dim, stored);
  } else if (l.dtype == DType::kBF16) {
    auto* y = reinterpret_cast<bf16*>(to);
    for (int64_t d = 0; d < dim; ++d) y[d] = ToBf16(x[d]);
    if (stored) std::transform(y, y + dim, stored, [](bf16 v) { return ToFloat(v); });
  } else {
    float largest = 0;
    for (int64_t d = 0; d < dim; ++d) largest = std::max(largest, std::fabs(x[d]));
    const float scale = largest / 127.0f;
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    *kv.scale(position, value, head) = scale;
    auto* y = reinterpret_cast<int8_t*>(to);
    for (int64_t d = 0; d < dim; ++d) y[d] = Quantised(x[d] * inverse);
    if (stored)
      std::transform(y, y + dim, stored,
                     [scale](int8_t v) { return static_cast<float>(v) * scale; });
  }
}

// Norm, rotation and rounding of all heads of q or k in row t.
void PrepareHeads(const StoreParams& p, const View<float>& heads, const float* norm, int64_t t) {
  const int64_t dim = heads.dim(2);
  for (int64_t h = 0; h < heads.dim(1); ++h) {
    float* x = heads.row(t, h);
    if (norm) RmsNorm(x, norm, p.norm_eps, dim);
    if (!p.cos.empty()) Rotate(x, p.cos.row(t), p.sin.row(t), 2 * p.cos.dim(1), p.interleaved);
    if (p.round_bf16) std::transform(x, x + dim, x, [](float v) { return ToFloat(ToBf16(v)); });
  }
}

void StoreToken(const StoreParams& p, const KvView& kv, int64_t t, int64_t position) {
  const int64_t dim = p.k.dim(2);
  if (!p.q.empty()) PrepareHeads(p, p.q, p.q_norm, t);
  PrepareHeads(p, p.k, p.k_norm, t);
  // The largest head size whose low-bit copy is made from values on the stack; larger ones use the
  // heap.
  constexpr int64_t kStackHead = 512;
  float on_stack[kStackHead];
  std::vector<float> on_heap(static_cast<size_t>(kv.layout.low_bit && dim > kStackHead ? dim : 0));
  float* stored = !kv.layout.low_bit ? nullptr : dim > kStackHead ? on_heap.data() : on_stack;
  for (int64_t h = 0; h < p.k.dim(1); ++h) {
    const int head = static_cast<int>(h);
    StoreHead(kv, position, /*value=*/false, head, p.k.row(t, h), stored);
    if (kv.layout.values) StoreHead(kv, position, /*value=*/true, head, p.v.row(t, h), nullptr);
    if (stored) StoreLowBit(kv, position, head, stored);
  }
}

}  // namespace

void CpuOps::DoNorm(const NormParams& p) {
  const int64_t rows = p.x.dim(0);
  const int64_t n = p.x.dim(1);
  threads_.For((rows + kRowsPerUnit - 1) / kRowsPerUnit, [&](int64_t unit, int) {
    const int64_t end = std::min(rows, (unit + 1) * kRowsPerUnit);
    for (int64_t t = unit * kRowsPerUnit; t < end; ++t) {
      const float* x = p.x.row(t);
      float* y = p.y.row(t);
      const float scale = InverseRms(x, n, p.eps);
      if (p.accumulate) {
        for (int64_t i = 0; i < n; ++i) y[i] += x[i] * scale * p.weight[i];
      } else {
        for (int64_t i = 0; i < n; ++i) y[i] = x[i] * scale * p.weight[i];
      }
    }
  });
}

void CpuOps::DoStore(const StoreParams& p) {
  int64_t units = 0;
  if (p.k.empty()) {
    const int64_t rows = p.q.dim(0);
    threads_.For((rows + kRowsPerUnit - 1) / kRowsPerUnit, [&](int64_t unit, int) {
      const int64_t end = std::min(rows, (unit + 1) * kRowsPerUnit);
      for (int64_t t = unit * kRowsPerUnit; t < end; ++t) PrepareHeads(p, p.q, p.q_norm, t);
    });
    return;
  }
  for (const auto& s : p.segments) units += (s.rows.count + kRowsPerUnit - 1) / kRowsPerUnit;
  threads_.For(units, [&](int64_t unit, int) {
    // Units are numbered through the segments; finding one is cheap compared with its rows.
    for (const auto& s : p.segments) {
      const int64_t here = (s.rows.count + kRowsPerUnit - 1) / kRowsPerUnit;
      if (unit >= here) {
        unit -= here;
        continue;
      }
      const int64_t end = std::min(s.rows.count, (unit + 1) * kRowsPerUnit);
      for (int64_t i = unit * kRowsPerUnit; i < end; ++i) {
        StoreToken(p, s.kv, s.rows.first + i, s.rows.position + i);
      }
      return;
    }
  });
}

}  // namespace baton::cpu
