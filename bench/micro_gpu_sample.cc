// Speed of Ops::Sample on a GPU: microseconds of a call, by vocabulary, rows and options. Twenty
// calls make a pass, which is replayed as a graph. "copy" is what bringing the logits to the host
// takes.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <random>
#include <vector>

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "ops/ops.h"
#if BATON_WITH_CUDA
#include "kernels/cuda/cuda_ops.h"
#endif

namespace {

using namespace baton;

constexpr int kCalls = 20, kRepeats = 9;

// The median of what `work` takes.
double Microseconds(const std::function<void()>& work) {
  std::vector<double> times;
  for (int i = 0; i < kRepeats + 3; ++i) {  // the first until the pass is a graph
    const auto start = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (i >= 3) times.push_back(took.count() * 1e6);
  }
  std::nth_element(times.begin(), times.begin() + kRepeats / 2, times.end());
  return times[kRepeats / 2];
}

void Run(Ops& ops) {
  struct Kind {
    const char* name;
    SampleRow row;
  };
  const Kind kKinds[] = {
      {"greedy", {}},
      {"draw", {.temperature = 0.8f}},
      {"top-k 20", {.temperature = 0.8f, .top_k = 20}},
      {"top-p 0.95", {.temperature = 0.8f, .top_p = 0.95f}},
      {"top-k 20, top-p, min-p",
       {.temperature = 0.8f, .top_k = 20, .top_p = 0.95f, .min_p = 0.01f}},
  };
  std::mt19937 rng(1);
  std::normal_distribution<float> normal(-2, 3);
  for (const int64_t vocab : {49152, 151936, 262144}) {
    for (const int64_t n : {1, 16, 64}) {
      std::vector<float> host(static_cast<size_t>(n * vocab));
      for (float& x : host) x = normal(rng);
      const Array<float> logits = UploadArray<float>(host, ops.device());
      Array<SampledRow> sampled(ops.device());
      sampled.Reserve(n);
      std::vector<SampledRow> got(static_cast<size_t>(n));
      fmt::print("vocabulary {:7}  rows {:3}  copy {:8.1f} us", vocab, n,
                 Microseconds([&] { logits.Download(host); }));
      for (const Kind& kind : kKinds) {
        std::vector<SampleRow> rows(static_cast<size_t>(n), kind.row);
        for (SampleRow& r : rows) r.uniform = static_cast<double>(rng() % 1000) / 1000;
        const double us = Microseconds([&] {
          {
            const Ops::Pass pass(ops);
            for (int i = 0; i < kCalls; ++i)
              ops.Sample({.logits = View<const float>(logits.data(), {n, vocab}),
                          .rows = rows,
                          .sampled = sampled.data()});
          }
          sampled.Download(got);
        });
        fmt::print("  {} {:.1f}", kind.name, us / kCalls);
      }
      fmt::print("\n");
    }
  }
}

}  // namespace

int main() {
#if BATON_WITH_CUDA
  ThreadPool threads(4);
  auto ops = MakeCudaOps(threads, {});
  if (!ops.ok()) {
    fmt::print(stderr, "{}\n", ops.error().ToString());
    return 1;
  }
  Run(**ops);
#else
  fmt::print(stderr, "this build has no cuda backend: configure with --preset cuda\n");
  return 1;
#endif
}
