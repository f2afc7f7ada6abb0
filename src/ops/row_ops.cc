// Operations on rows of the batch that are bound by memory: every backend on the host shares them.
#include <algorithm>
#include <cmath>

#include "formats/dequantize.h"
#include "ops/ops.h"

namespace baton {
namespace {

// Values that a unit of work writes: a decode batch stays on the calling thread.
constexpr int64_t kValuesPerUnit = 1 << 14;

// Calls body(first, end) for parts of `rows` rows of `values` values each.
template <typename F>
void ForRows(ThreadPool& threads, int64_t rows, int64_t values, F&& body) {
  const int64_t per_unit = std::max<int64_t>(1, kValuesPerUnit / std::max<int64_t>(1, values));
  threads.For((rows + per_unit - 1) / per_unit, [&](int64_t unit, int) {
    body(unit * per_unit, std::min(rows, (unit + 1) * per_unit));
  });
}

}  // namespace

void Ops::DoGather(const GatherParams& p) {
  constexpr int64_t kRowsPerUnit = KvLayout::kSlots;
  constexpr int64_t kAhead = 8;  // prefetch distance: hardware prefetch cannot predict the next row
  const KvLayout& l = p.from.layout;
  const int64_t count = std::ssize(p.positions), bytes = l.row_bytes();
  const int64_t scales = l.dtype == DType::kI8 ? l.planes() * l.kv_heads : 0;
  threads_.For((count + kRowsPerUnit - 1) / kRowsPerUnit, [&](int64_t unit, int) {
    const int64_t end = std::min(count, (unit + 1) * kRowsPerUnit);
    for (int64_t i = unit * kRowsPerUnit; i < end; ++i) {
      if (i + kAhead < count) {
        const std::byte* next = p.from.row(p.positions[static_cast<size_t>(i + kAhead)]);
        for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(next + b, 0, 2);
      }
      const int64_t position = p.positions[static_cast<size_t>(i)];
      std::copy_n(p.from.row(position), bytes, p.to.row(i));
      if (scales > 0)
        std::copy_n(p.from.scale(position, false, 0), scales, p.to.scale(i, false, 0));
    }
  });
}

void EmbedRow(const EmbedParams& p, int64_t t, float* row) {
  const RawMatrix& e = *p.table;
  const auto at = static_cast<size_t>(t);
  Dequantize(e.dtype, e.data, p.tokens[at] * e.cols, e.cols, row);
  if (!p.smear.empty() && p.previous[at] >= 0) {
    thread_local std::vector<float> before;
    before.resize(p.smear.size());
    Dequantize(e.dtype, e.data, p.previous[at] * e.cols, e.cols, before.data());
    for (size_t i = 0; i < before.size(); ++i) row[i] += p.smear[i] * before[i];
  }
  if (p.scale == 1.0f) return;
  for (int64_t i = 0; i < e.cols; ++i) row[i] *= p.scale;
}

void Ops::DoEmbed(const EmbedParams& p) {
  ForRows(threads_, p.x.dim(0), p.table->cols, [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; ++t) EmbedRow(p, t, p.x.row(t));
  });
}

void Ops::DoCopyRows(const CopyRowsParams& p) {
  const int64_t values = p.to.dim(1);
  ForRows(threads_, p.to.dim(0), values, [&](int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i)
      std::copy_n(p.from.row(p.rows[static_cast<size_t>(i)]), values, p.to.row(i));
  });
}

void Ops::DoAdd(const AddParams& p) {
  float* x = p.x.data();
  const float* y = p.y.data();
  ForRows(threads_, p.x.size(), 1, [&](int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i) x[i] += y[i];
  });
}

void Ops::DoRotaryTable(const RotaryTableParams& p) {
  constexpr int64_t kRowsPerUnit = 32;
  const int64_t half = std::ssize(p.frequencies);
  for (const Rows& r : p.segments) {
    threads_.For((r.count + kRowsPerUnit - 1) / kRowsPerUnit, [&](int64_t unit, int) {
      const int64_t end = std::min(r.count, (unit + 1) * kRowsPerUnit);
      for (int64_t i = unit * kRowsPerUnit; i < end; ++i) {
        float* cos = p.cos.row(r.first + i);
        float* sin = p.sin.row(r.first + i);
        for (int64_t d = 0; d < half; ++d) {
          const double angle =
              static_cast<double>(r.position + i) * p.frequencies[static_cast<size_t>(d)];
          cos[d] = static_cast<float>(std::cos(angle)) * p.gain;
          sin[d] = static_cast<float>(std::sin(angle)) * p.gain;
        }
      }
    });
  }
}

}  // namespace baton
