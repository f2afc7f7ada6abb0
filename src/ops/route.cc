// The layer router: 592,002 parameters for heads of 128, read once per layer and prompt. The rows
// of a matrix are divided among threads; every sum has eight double accumulators, so that additions
// do not depend on each other.
#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/ops.h"

namespace baton {
namespace {

constexpr int64_t kRowsOfQ = 16;  // added up per unit of work
constexpr int64_t kOutputs = 32;  // outputs of a product per unit of work
constexpr int64_t kLanes = 8;

double Dot(const float* a, const float* b, int64_t n) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += static_cast<double>(a[i + l]) * b[i + l];
  }
  double sum = 0;
  for (; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  for (double l : lanes) sum += l;
  return sum;
}

// u[d] = mean of q[., ., d].
std::vector<float> MeanQuery(const View<const float>& q, ThreadPool& threads) {
  const int64_t rows = q.dim(0), heads = q.dim(1), dim = q.dim(2);
  const int64_t units = (rows + kRowsOfQ - 1) / kRowsOfQ;
  std::vector<double> sums(static_cast<size_t>(units * dim));
  threads.For(units, [&](int64_t unit, int) {
    double* sum = sums.data() + unit * dim;
    for (int64_t t = unit * kRowsOfQ; t < std::min(rows, (unit + 1) * kRowsOfQ); ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const float* x = q.row(t, h);
        for (int64_t d = 0; d < dim; ++d) sum[d] += x[d];
      }
    }
  });
  std::vector<float> mean(static_cast<size_t>(dim));
  for (int64_t d = 0; d < dim; ++d) {
    double sum = 0;
    for (int64_t unit = 0; unit < units; ++unit) sum += sums[static_cast<size_t>(unit * dim + d)];
    mean[static_cast<size_t>(d)] = static_cast<float>(sum / static_cast<double>(rows * heads));
  }
  return mean;
}

std::vector<float> Apply(const RouterWeights::Layer& layer, const std::vector<float>& x, bool silu,
                         ThreadPool& threads) {
  const int64_t out = layer.weight.dim(0), in = layer.weight.dim(1);
  std::vector<float> y(static_cast<size_t>(out));
  threads.For((out + kOutputs - 1) / kOutputs, [&](int64_t unit, int) {
    for (int64_t r = unit * kOutputs; r < std::min(out, (unit + 1) * kOutputs); ++r) {
      const double sum = Dot(x.data(), layer.weight.row(r), in) + layer.bias[r];
      const double v = static_cast<float>(sum);
      y[static_cast<size_t>(r)] = static_cast<float>(silu ? v / (1 + std::exp(-v)) : v);
    }
  });
  return y;
}

}  // namespace

void Ops::DoRoute(const RouteParams& p) {
  const RouterWeights& w = *p.weights;
  std::vector<float> x = MeanQuery(p.q, threads_);
  x = Apply(w.encoder[0], x, true, threads_);
  x = Apply(w.encoder[1], x, false, threads_);
  x = Apply(w.head[0], x, true, threads_);
  x = Apply(w.head[1], x, true, threads_);
  x = Apply(w.head[2], x, false, threads_);
  std::copy(x.begin(), x.end(), p.logits);
}

}  // namespace baton
