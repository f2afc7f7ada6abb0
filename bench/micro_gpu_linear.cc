// Speed of products on a GPU: `micro_gpu_linear [type out in]`, by default the matrices of an 8B
// model. Decode: matrices enough that none is in the cache when its turn comes, multiplied in one
// pass, as a step does; GB/s is what reading the weights comes to, beside what a copy of the same
// size moves (read and written). Prompts: TFLOP/s of 512 to 8,192 rows.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>
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

constexpr int64_t kWeightBytes = int64_t{1} << 30;
constexpr int kRepeats = 9;

class Bench {
 public:
  Bench(Ops& ops, DType type, int64_t out, int64_t in)
      : ops_(ops), type_(type), out_(out), in_(in), device_(ops.device()) {
    // Finite numbers in every type.
    std::vector<std::byte> values(static_cast<size_t>(BytesOf(type, out * in)));
    std::mt19937 rng(1);
    for (std::byte& v : values) v = static_cast<std::byte>(rng() & 0x3f);
    const RawMatrix raw{type, values.data(), out, in};
    const int64_t count = std::max<int64_t>(2, kWeightBytes / BytesOf(type, out * in) / 2 * 2);
    for (int64_t i = 0; i < count; ++i) {
      auto m = ops.Pack(raw);
      if (!m.ok()) {
        fmt::print(stderr, "{}\n", m.error().ToString());
        std::exit(1);
      }
      matrices_.push_back(std::move(m).value());
    }
  }

  // Seconds of a pass, the median.
  double Time(const std::function<void()>& pass) {
    std::vector<double> seconds;
    float sink;
    for (int i = 0; i < kRepeats + 3; ++i) {
      const auto start = std::chrono::steady_clock::now();
      {
        Ops::Pass scope(ops_);
        pass();
      }
      device_.Download(&sink, reinterpret_cast<const std::byte*>(y_.data()), 4);
      if (i < 3) continue;  // until the pass is a graph
      seconds.push_back(
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::nth_element(seconds.begin(), seconds.begin() + kRepeats / 2, seconds.end());
    return seconds[kRepeats / 2];
  }

  void Linear(int64_t tokens, bool fine) {
    Room(tokens);
    const double seconds = Time([&] {
      for (const auto& m : matrices_) {
        const LinearParams::Out o{m.get(), nullptr, View<float>(y_.data(), {tokens, out_})};
        ops_.Linear(
            {.x = View<const float>(x_.data(), {tokens, in_}), .outs = {&o, 1}, .fine = fine});
      }
    });
    Report(fine ? "decode linear" : "prompt linear", tokens, seconds,
           static_cast<double>(matrices_.size()));
  }

  void Glu(int64_t tokens, bool fine) {
    Room(tokens);
    const double seconds = Time([&] {
      for (size_t i = 0; i + 1 < matrices_.size(); i += 2) {
        ops_.Glu({.x = View<const float>(x_.data(), {tokens, in_}),
                  .norm_weight = x_.data(),
                  .norm_eps = 1e-5f,
                  .gate = matrices_[i].get(),
                  .up = matrices_[i + 1].get(),
                  .y = View<float>(y_.data(), {tokens, out_}),
                  .fine = fine});
      }
    });
    Report(fine ? "decode glu" : "prompt glu", tokens, seconds,
           static_cast<double>(matrices_.size()));
  }

  void Copy() {
    constexpr int64_t kBytes = int64_t{1} << 30;
    Buffer from = Buffer::AllocateOrDie(kBytes, device_),
           to = Buffer::AllocateOrDie(kBytes, device_);
    Room(1);
    const double seconds = Time([&] {
      for (int i = 0; i < 4; ++i) device_.Copy(to.data(), from.data(), kBytes);
    });
    fmt::print("copy {:.0f} GB/s read and written\n", 8.0 * kBytes / seconds / 1e9);
  }

 private:
  void Room(int64_t tokens) {
    x_.Reserve(tokens * in_);
    y_.Reserve(tokens * out_);
  }
  void Report(const char* what, int64_t tokens, double seconds, double matrices) const {
    const auto weights = static_cast<double>(out_ * in_);
    const auto bytes = static_cast<double>(matrices_[0]->bytes);
    fmt::print("{} {} {} x {}, {} rows: {:.2f} us a matrix, {:.0f} GB/s, {:.1f} TFLOP/s\n", what,
               Info(type_).name, out_, in_, tokens, seconds / matrices * 1e6,
               bytes * matrices / seconds / 1e9,
               2 * weights * static_cast<double>(tokens) * matrices / seconds / 1e12);
    std::fflush(stdout);
  }

  Ops& ops_;
  DType type_;
  int64_t out_, in_;
  Device& device_;
  std::vector<std::unique_ptr<Matrix>> matrices_;
  Array<float> x_{device_}, y_{device_};
};

}  // namespace

int main(int argc, char** argv) {
#if BATON_WITH_CUDA
  ThreadPool threads(8);
  auto ops = MakeCudaOps(threads);
  if (!ops.ok()) {
    fmt::print(stderr, "{}\n", ops.error().ToString());
    return 1;
  }
  struct Shape {
    DType type;
    int64_t out, in;
  };
  std::vector<Shape> shapes = {
      {DType::kBF16, 14336, 4096}, {DType::kBF16, 4096, 14336}, {DType::kBF16, 4096, 4096},
      {DType::kBF16, 1024, 4096},  {DType::kBF16, 576, 576},    {DType::kBF16, 128256, 4096},
      {DType::kQ4_K, 14336, 4096}, {DType::kQ4_K, 4096, 4096},  {DType::kQ8_0, 14336, 4096},
      {DType::kQ6_K, 14336, 4096}, {DType::kQ4_0, 14336, 4096}};
  if (argc == 4) {
    std::erase_if(shapes, [&](const Shape& s) { return Info(s.type).name != argv[1]; });
    if (shapes.empty()) {
      fmt::print(stderr, "micro_gpu_linear: expected BF16, Q4_0, Q4_K, Q8_0 or Q6_K, got {}\n",
                 argv[1]);
      return 2;
    }
    shapes = {{shapes[0].type, std::atoll(argv[2]), std::atoll(argv[3])}};
  }
  fmt::print("{}\n", (*ops)->name());
  for (const Shape& s : shapes) {
    Bench bench(**ops, s.type, s.out, s.in);
    if (&s == shapes.data()) bench.Copy();
    for (const int64_t tokens : {1, 2, 4, 8, 16, 32, 64}) bench.Linear(tokens, true);
    if (s.out == 14336) {
      for (const int64_t tokens : {1, 8, 16, 32, 64}) bench.Glu(tokens, true);
    }
    for (const int64_t tokens : {512, 2048, 8192}) {
      if (s.out <= 14336) bench.Linear(tokens, false);
    }
    if (s.out == 14336) bench.Glu(2048, false);
  }
#else
  (void)argc, (void)argv;
  fmt::print(stderr, "this build has no cuda backend: configure with --preset cuda\n");
  return 1;
#endif
}
