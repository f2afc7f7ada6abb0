// Comparing next-token distributions: what every quality figure is made of.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "base/view.h"

namespace baton {

// Logits of some rows and their log-sum-exp, kept to compare other runs with.
struct RowLogits {
  int64_t vocab = 0;
  std::vector<float> logits;  // [rows, vocab]
  std::vector<double> lse;    // [rows]
  int64_t rows() const { return static_cast<int64_t>(lse.size()); }
  const float* row(int64_t i) const { return logits.data() + i * vocab; }

  void Append(ThreadPool& pool, const View<const float>& rows);  // [n, vocab]
  double LogProbability(int64_t row, int32_t token) const {
    return row_value(row, token) - lse[static_cast<size_t>(row)];
  }
  int32_t Best(int64_t row) const;  // largest logit, lower id on ties

 private:
  double row_value(int64_t row, int32_t token) const {
    return logits[static_cast<size_t>(row * vocab + token)];
  }
};

double LogSumExp(const float* x, int64_t n);
int32_t ArgMax(const float* x, int64_t n);

// KL(reference || other) in nats of row `first + i` of `reference` and row i of `other`, and
// whether both prefer the same token.
struct RowComparison {
  double kl = 0;
  bool same_best = false;
  double lse = 0;    // of the other row
  int32_t best = 0;  // of the other row
};
std::vector<RowComparison> Compare(ThreadPool& pool, const RowLogits& reference, int64_t first,
                                   const View<const float>& other);

// Mean and standard error of the mean.
struct MeanError {
  double mean = 0, standard_error = 0;
};
MeanError MeanOf(std::span<const double> values);
// The mean of the middle two of an even number; 0 of none.
double Median(std::vector<double> values);

}  // namespace baton
