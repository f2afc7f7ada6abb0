#include "profile/measure.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace baton {

double LogSumExp(const float* x, int64_t n) {
  const float largest = *std::max_element(x, x + n);
  // Partial sums of a few thousand floats stay exact to 1e-6; doubles join them.
  double sum = 0;
  for (int64_t first = 0; first < n; first += 4096) {
    float part = 0;
    for (int64_t i = first; i < std::min(n, first + 4096); ++i) part += std::exp(x[i] - largest);
    sum += part;
  }
  return largest + std::log(sum);
}

int32_t ArgMax(const float* x, int64_t n) {
  return static_cast<int32_t>(std::max_element(x, x + n) - x);
}

void RowLogits::Append(ThreadPool& pool, const View<const float>& rows) {
  vocab = rows.dim(1);
  const auto first = static_cast<int64_t>(lse.size());
  logits.resize(static_cast<size_t>((first + rows.dim(0)) * vocab));
  lse.resize(static_cast<size_t>(first + rows.dim(0)));
  pool.For(rows.dim(0), [&](int64_t i, int) {
    std::copy_n(rows.row(i), vocab, logits.data() + (first + i) * vocab);
    lse[static_cast<size_t>(first + i)] = LogSumExp(rows.row(i), vocab);
  });
}

int32_t RowLogits::Best(int64_t i) const { return ArgMax(row(i), vocab); }

std::vector<RowComparison> Compare(ThreadPool& pool, const RowLogits& reference, int64_t first,
                                   const View<const float>& other) {
  BATON_CHECK_EQ(reference.vocab, other.dim(1));
  BATON_CHECK_LE(first + other.dim(0), reference.rows());
  std::vector<RowComparison> result(static_cast<size_t>(other.dim(0)));
  pool.For(other.dim(0), [&](int64_t i, int) {
    const float* p = reference.row(first + i);
    const float* q = other.row(i);
    const double p_lse = reference.lse[static_cast<size_t>(first + i)];
    const double q_lse = LogSumExp(q, other.dim(1));
    double difference = 0;
    for (int64_t n = 0; n < other.dim(1); ++n) {
      const float log_p = p[n] - static_cast<float>(p_lse);
      // Below e^-25 a token adds less than 1e-9 however far apart the runs are.
      if (log_p > -25.0f) difference += std::exp(log_p) * (p[n] - q[n]);
    }
    RowComparison& r = result[static_cast<size_t>(i)];
    r.kl = std::max(0.0, difference - p_lse + q_lse);
    r.lse = q_lse;
    r.best = ArgMax(q, other.dim(1));
    r.same_best = r.best == ArgMax(p, other.dim(1));
  });
  return result;
}

MeanError MeanOf(std::span<const double> values) {
  MeanError m;
  if (values.empty()) return m;
  for (double v : values) m.mean += v;
  m.mean /= static_cast<double>(values.size());
  if (values.size() < 2) return m;
  double square = 0;
  for (double v : values) square += (v - m.mean) * (v - m.mean);
  m.standard_error = std::sqrt(square / static_cast<double>(values.size() - 1) /
                               static_cast<double>(values.size()));
  return m;
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace baton
