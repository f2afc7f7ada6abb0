// Speed of matrix products alone: `micro_linear [threads]`. Decode rows report bandwidth (weights
// exceed the caches), prompt rows arithmetic; every figure is the best of several runs.
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <random>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cpu/cpu_ops.h"

namespace {

using namespace baton;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<std::byte> Weights(DType t, int64_t elements) {
  std::vector<std::byte> w(static_cast<size_t>(BytesOf(t, elements)));
  std::minstd_rand rng(1);
  // Exponents of half and bf16 stay finite: speed must not depend on NaN.
  for (std::byte& b : w) b = static_cast<std::byte>(rng() >> 8 & 0x3b);
  return w;
}

struct Case {
  DType dtype;
  int64_t rows, cols;
  int copies;  // matrices used in turn: more than the caches hold for decode
  int64_t tokens;
};

void Run(Ops& ops, const Case& c) {
  const auto raw = Weights(c.dtype, c.rows * c.cols);
  std::vector<std::unique_ptr<Matrix>> m;
  for (int i = 0; i < c.copies; ++i) {
    auto packed = ops.Pack({.dtype = c.dtype, .data = raw.data(), .rows = c.rows, .cols = c.cols});
    if (!packed.ok()) return;
    m.push_back(std::move(packed).value());
  }
  std::vector<float> x(static_cast<size_t>(c.tokens * c.cols), 1.0f),
      norm(static_cast<size_t>(c.cols), 1.0f);
  std::vector<float> y(static_cast<size_t>(c.tokens * c.rows));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 17) - 8;
  double best = 1e9;
  ThreadPool::Hot hot(ops.threads());
  for (int repeat = 0; repeat < 12; ++repeat) {
    const double start = Seconds();
    for (const auto& w : m) {
      const LinearParams::Out out{.w = w.get(), .y = View<float>(y.data(), {c.tokens, c.rows})};
      ops.Linear({.x = View<const float>(x.data(), {c.tokens, c.cols}),
                  .norm_weight = norm.data(),
                  .norm_eps = 1e-5f,
                  .outs = {&out, 1},
                  .fine = c.tokens <= 16});
    }
    best = std::min(best, (Seconds() - start) / c.copies);
  }
  fmt::print("{:15} {:5} {:6} x {:<5} T {:<4} {:8.1f} us  {:6.1f} GB/s  {:7.1f} GOP/s\n",
             ops.name(), Info(c.dtype).name, c.rows, c.cols, c.tokens, best * 1e6,
             static_cast<double>(m[0]->bytes) / best * 1e-9,
             2e-9 * static_cast<double>(c.rows * c.cols * c.tokens) / best);
}

}  // namespace

int main(int argc, char** argv) {
  ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : 0);
  for (const CpuIsa isa : {CpuIsa::kAmx, CpuIsa::kAvx512, CpuIsa::kAvx2, CpuIsa::kPortable}) {
    if (isa > DetectCpuIsa()) continue;
    auto ops = MakeCpuOps(pool, isa);
    if (!ops.ok()) return 1;
    for (const DType t : {DType::kQ4_0, DType::kQ4_1, DType::kQ8_0, DType::kQ6_K, DType::kBF16}) {
      const int64_t k = t == DType::kQ6_K ? 512 : 576;
      if (isa != CpuIsa::kAmx) {  // which decodes as AVX-512 does
        for (const int64_t tokens : {1, 2, 4, 8, 16}) Run(**ops, {t, 49152, k, 2, tokens});
        Run(**ops, {t, 576, k, 400, 1});
      }
      Run(**ops, {t, 1536, k, 4, 512});
      Run(**ops, {t, 576, 1536, 4, 512});
    }
  }
}
