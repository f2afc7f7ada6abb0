// The attention kernels of the CUDA backend one by one at long contexts: time, bytes and the share
// of the bandwidth that a copy reaches in the same run. bench/torch_attention measures PyTorch's on
// the same shapes.
//   micro_gpu_attention [name part...]     only cases whose names hold one of these
#include <cuda_bf16.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/attend_kernels.h"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/library_attention.h"

namespace baton::cuda {
namespace {

constexpr int64_t kPage = KvLayout::kSlots;

__device__ uint32_t Hash(uint64_t x) {
  x ^= x >> 33, x *= 0xff51afd7ed558ccdull, x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53ull;
  return static_cast<uint32_t>(x ^ x >> 33);
}
__device__ float Normal(uint64_t i) {
  const float u = (Hash(2 * i) + 1.0f) * 2.3283064e-10f, v = Hash(2 * i + 1) * 2.3283064e-10f;
  return sqrtf(-2 * logf(fminf(u, 1))) * cospif(2 * v);
}
__global__ void FillFloats(float* x, int64_t n, float sigma, uint64_t seed) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    x[i] = sigma * Normal(i + seed * 1000003);
}
__global__ void FillBf16(__nv_bfloat16* x, int64_t n) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    x[i] = __float2bfloat16(Normal(i));
}
__global__ void FillBytes(uint32_t* x, int64_t n) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    x[i] = Hash(i);
}
__global__ void FillScales(LowBitBlock* x, int64_t blocks) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < blocks * 16;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    x[i / 16].scale[i % 16] = 0x2c00 + Hash(i) % 1024;  // 2^-4 to 2^-3
}
// Scales of an int8 cache, in place of whatever FillBytes left there.
__global__ void FillInt8Scales(std::byte* arena, KvLayout layout, int64_t pages, int64_t page_bytes,
                               int64_t offset, int64_t per_page) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < pages * per_page; i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    reinterpret_cast<float*>(arena + i / per_page * page_bytes + offset)[i % per_page] = 0.01f;
}

// Keeps the GPU busy while the host records, so that events time the kernels alone.
__global__ void Spin(int64_t clocks) {
  for (const int64_t begin = clock64(); clock64() - begin < clocks;) {
  }
}

template <typename T>
T* Allocate(int64_t n) {
  void* p = nullptr;
  BATON_CUDA(cudaMalloc(&p, static_cast<size_t>(n) * sizeof(T)));
  return static_cast<T*>(p);
}
template <typename T>
T* Upload(const std::vector<T>& x) {
  T* p = Allocate<T>(std::ssize(x));
  BATON_CUDA(cudaMemcpy(p, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}
template <typename T>
std::vector<T> Download(const T* p, int64_t n) {
  std::vector<T> x(static_cast<size_t>(n));
  BATON_CUDA(cudaMemcpy(x.data(), p, x.size() * sizeof(T), cudaMemcpyDeviceToHost));
  return x;
}
float* RandomFloats(int64_t n, float sigma, uint64_t seed) {
  float* x = Allocate<float>(n);
  FillFloats<<<1024, 256>>>(x, n, sigma, seed);
  BATON_CUDA(cudaGetLastError());
  return x;
}

struct Bench {
  cudaStream_t stream = nullptr;
  std::unique_ptr<Recorder> recorder;
  std::unique_ptr<Scratch> scratch;
  LibraryAttention library;
  double copy_bandwidth = 0;  // bytes read and written a second
  double host_seconds = 0;    // of the last pass: what the host did
  std::vector<std::string> only;

  bool Wants(const std::string& name) const {
    return only.empty() || std::any_of(only.begin(), only.end(), [&](const std::string& part) {
             return name.find(part) != std::string::npos;
           });
  }
  // Median seconds of one of `per_pass` calls of f(i) in a pass that is replayed as a graph.
  double Time(int per_pass, const std::function<void(int)>& f) {
    std::vector<float> times;
    cudaEvent_t begin, end;
    BATON_CUDA(cudaEventCreate(&begin));
    BATON_CUDA(cudaEventCreate(&end));
    for (int i = 0; i < 12; ++i) {
      Spin<<<1, 1, 0, stream>>>(2'000'000);
      BATON_CUDA(cudaEventRecord(begin, stream));
      const auto started = std::chrono::steady_clock::now();
      recorder->BeginPass();
      for (int j = 0; j < per_pass; ++j) {
        const Recorder::Operation operation(*recorder);
        f(j);
      }
      recorder->EndPass();
      BATON_CUDA(cudaEventRecord(end, stream));
      host_seconds =
          std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
      BATON_CUDA(cudaEventSynchronize(end));
      float ms = 0;
      BATON_CUDA(cudaEventElapsedTime(&ms, begin, end));
      if (i >= 3) times.push_back(ms);
    }
    BATON_CUDA(cudaEventDestroy(begin));
    BATON_CUDA(cudaEventDestroy(end));
    std::sort(times.begin(), times.end());
    return times[times.size() / 2] * 1e-3 / per_pass;
  }
  void Report(const std::string& name, double seconds, double bytes, double flops = 0,
              double host = 0) const {
    fmt::print("{:<52} {:>9.1f} us {:>9.1f} MB {:>6.0f} GB/s {:>5.2f} of copy", name, seconds * 1e6,
               bytes * 1e-6, bytes / seconds * 1e-9, bytes / seconds / copy_bandwidth);
    if (flops > 0) fmt::print(" {:>6.0f} TFLOP/s", flops / seconds * 1e-12);
    fmt::print("  (host {:.0f} us)\n", host * 1e6);
    std::fflush(stdout);
  }
  void Run(const std::string& name, int per_pass, double bytes, const std::function<void(int)>& f,
           double flops = 0) {
    const double seconds = Time(per_pass, f);
    Report(name, seconds, bytes, flops, host_seconds / per_pass);
  }
  // Once, outside any timing.
  void Once(const std::function<void()>& f) {
    recorder->BeginPass();
    {
      const Recorder::Operation operation(*recorder);
      f();
    }
    recorder->EndPass();
    BATON_CUDA(cudaStreamSynchronize(stream));
  }
};

// Sequences of equal length in one arena, their pages in order, as prompts take them, or shuffled.
struct Cache {
  KvLayout layout;
  int64_t length = 0, sequences = 0;
  std::byte* memory = nullptr;
  int32_t* pages = nullptr;

  Cache(KvLayout l, int64_t n, int64_t count, bool shuffled = false)
      : layout(l), length(n), sequences(count) {
    const int64_t per_sequence = (n + kPage - 1) / kPage, all = per_sequence * count;
    memory = Allocate<std::byte>(layout.arena_bytes(all));
    if (layout.dtype == DType::kBF16) {
      FillBf16<<<4096, 256>>>(reinterpret_cast<__nv_bfloat16*>(memory),
                              all * layout.page_bytes() / 2);
    } else {
      FillBytes<<<4096, 256>>>(reinterpret_cast<uint32_t*>(memory), all * layout.page_bytes() / 4);
    }
    if (layout.dtype == DType::kI8) {
      FillInt8Scales<<<1024, 256>>>(memory, layout, all, layout.page_bytes(),
                                    layout.scales_offset(), layout.scales_bytes() / 4);
    }
    if (layout.low_bit) {
      std::byte* low = memory + all * layout.page_bytes();
      FillBytes<<<4096, 256>>>(reinterpret_cast<uint32_t*>(low), all * layout.low_bit_bytes() / 4);
      FillScales<<<1024, 256>>>(reinterpret_cast<LowBitBlock*>(low),
                                all * layout.low_bit_bytes() / int64_t{sizeof(LowBitBlock)});
    }
    BATON_CUDA(cudaGetLastError());
    std::vector<int32_t> order(static_cast<size_t>(all));
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    if (shuffled) std::shuffle(order.begin(), order.end(), std::mt19937(1));
    pages = Upload(order);
  }
  ~Cache() {
    cudaFree(memory);
    cudaFree(pages);
  }
  KvView view(int64_t sequence) const {
    const int64_t per_sequence = (length + kPage - 1) / kPage;
    return {.arena = memory,
            .low_bits =
                layout.low_bit ? memory + per_sequence * sequences * layout.page_bytes() : nullptr,
            .pages = pages + sequence * per_sequence,
            .length = length,
            .layout = layout};
  }
};

// k random positions below n, ascending, for each set.
IndexSets RandomSets(Device& device, int64_t sets, int64_t n, int64_t k) {
  IndexSets x(device);
  x.Reset(sets, 1, k);
  std::mt19937 rng(2);
  std::vector<int32_t> positions, counts(static_cast<size_t>(sets), static_cast<int32_t>(k));
  for (int64_t s = 0; s < sets; ++s) {
    std::vector<char> taken(static_cast<size_t>(n));
    for (int64_t left = k; left > 0;) {
      char& at = taken[rng() % static_cast<uint64_t>(n)];
      left -= at == 0, at = 1;
    }
    for (int64_t i = 0; i < n; ++i) {
      if (taken[static_cast<size_t>(i)]) positions.push_back(static_cast<int32_t>(i));
    }
  }
  x.positions.Upload(positions);
  x.counts.Upload(counts);
  return x;
}

struct Shape {
  int64_t heads;
  int kv_heads;
  int64_t dim;
};

// A step of `batch` sequences, one row each.
struct Step {
  Shape shape;
  Cache cache;
  float *q, *o, *lse;
  std::vector<AttendParams::Segment> segments;

  Step(Shape s, DType dtype, int64_t n, int64_t batch, bool low_bit = false, bool shuffled = false)
      : shape(s),
        cache({.dtype = dtype, .kv_heads = s.kv_heads, .head_dim = s.dim, .low_bit = low_bit}, n,
              batch, shuffled) {
    q = RandomFloats(batch * s.heads * s.dim, 1, 7);
    o = Allocate<float>(batch * s.heads * s.dim);
    lse = Allocate<float>(batch * s.heads);
    for (int64_t i = 0; i < batch; ++i)
      segments.push_back(
          {.rows = {.first = i, .count = 1, .position = n - 1}, .kv = cache.view(i)});
  }
  ~Step() {
    for (float* p : {q, o, lse}) cudaFree(p);
  }
  int64_t batch() const { return std::ssize(segments); }
  AttendParams params() const {
    return {.q = View<const float>(q, {batch(), shape.heads, shape.dim}),
            .scale = 1 / std::sqrt(static_cast<float>(shape.dim)),
            .segments = segments,
            .o = View<float>(o, {batch(), shape.heads, shape.dim}),
            .lse = View<float>(lse, {batch(), shape.heads})};
  }
  double bytes(int64_t keys) const {
    return static_cast<double>(keys * batch()) *
           static_cast<double>(cache.layout.row_bytes() + cache.layout.scales_bytes() / kPage);
  }
};

void DenseDecode(Bench& bench) {
  struct Case {
    Shape shape;
    DType dtype;
    int64_t batch;
  };
  constexpr int64_t kKeys = 131072;
  for (const Case& c : {Case{{32, 8, 128}, DType::kBF16, 1}, Case{{32, 8, 128}, DType::kBF16, 8},
                        Case{{32, 8, 64}, DType::kBF16, 1}, Case{{8, 8, 128}, DType::kBF16, 1},
                        Case{{32, 2, 128}, DType::kBF16, 1}, Case{{16, 1, 64}, DType::kBF16, 1},
                        Case{{64, 1, 256}, DType::kBF16, 1}, Case{{8, 2, 256}, DType::kBF16, 1},
                        Case{{32, 8, 96}, DType::kBF16, 1}, Case{{32, 8, 128}, DType::kI8, 1},
                        Case{{32, 8, 128}, DType::kI8, 8}}) {
    const std::string name =
        fmt::format("dense decode 128K {} {}/{} D {} batch {}", Info(c.dtype).name, c.shape.heads,
                    c.shape.kv_heads, c.shape.dim, c.batch);
    if (!bench.Wants(name)) continue;
    for (const bool shuffled : {false, true}) {
      if (shuffled && c.batch == 1) continue;
      Step step(c.shape, c.dtype, kKeys, c.batch, false, shuffled);
      bench.Run(name + (shuffled ? " shuffled" : ""), 4, step.bytes(kKeys),
                [&](int) { Attend(*bench.recorder, *bench.scratch, nullptr, step.params()); });
    }
  }
}

// Against double precision, at a length that the op tests would take minutes for.
void CheckDecode(Bench& bench) {
  if (!bench.Wants("check")) return;
  constexpr int64_t kKeys = 100003;
  for (DType dtype : {DType::kBF16, DType::kI8}) {
    Step step({32, 8, 128}, dtype, kKeys, 2);
    const auto n = step.batch() * step.shape.heads * step.shape.dim;
    bench.Once([&] { Attend(*bench.recorder, *bench.scratch, nullptr, step.params()); });
    const std::vector<float> got = Download(step.o, n);
    double worst = 0, square = 0;
    const std::vector<float> q = Download(step.q, n);
    KvView kv = step.cache.view(1);
    const auto memory =
        Download(step.cache.memory, step.cache.layout.arena_bytes((kKeys + kPage - 1) / kPage * 2));
    const auto pages = Download(kv.pages, (kKeys + kPage - 1) / kPage);
    kv.arena = const_cast<std::byte*>(memory.data()), kv.pages = pages.data();
    for (int64_t h : {0, 13, 31}) {
      const auto load = [&](int64_t i, bool value, int64_t d) {
        const std::byte* p =
            kv.row(i) + (value ? kv.layout.value_offset() : 0) + h / 4 * kv.layout.head_bytes();
        return dtype == DType::kBF16 ? ToFloat(reinterpret_cast<const bf16*>(p)[d])
                                     : static_cast<float>(reinterpret_cast<const int8_t*>(p)[d]) *
                                           *kv.scale(i, value, static_cast<int>(h / 4));
      };
      const float* row = q.data() + (32 + h) * 128;
      std::vector<double> sum(128);
      double total = 0;
      for (int64_t i = 0; i < kKeys; ++i) {
        double x = 0;
        for (int64_t d = 0; d < 128; ++d) x += row[d] * load(i, false, d);
        const double e = std::exp(x / std::sqrt(128.0));
        total += e;
        for (int64_t d = 0; d < 128; ++d) sum[static_cast<size_t>(d)] += e * load(i, true, d);
      }
      for (int64_t d = 0; d < 128; ++d) {
        const double want = sum[static_cast<size_t>(d)] / total;
        worst = std::max(worst, std::fabs(want - got[static_cast<size_t>((32 + h) * 128 + d)]));
        square += want * want;
      }
    }
    fmt::print("check decode {} of {} keys: worst error {:.2e} of rms {:.2e}\n", Info(dtype).name,
               kKeys, worst, std::sqrt(square / 384));
  }
}

void SelectDecode(Bench& bench) {
  constexpr int64_t kKeys = 131072;
  for (int64_t batch : {1, 8}) {
    const std::string name = fmt::format("select decode 128K batch {}: ", batch);
    if (!bench.Wants(name)) continue;
    Step step({32, 8, 128}, DType::kBF16, kKeys, batch);
    float* scores = Allocate<float>(batch * 32 * kKeys);
    float* mass = Allocate<float>(batch * kKeys);
    std::vector<MassParams::Segment> mass_segments;
    for (int64_t i = 0; i < batch; ++i) {
      step.segments[static_cast<size_t>(i)].scores = scores + i * 32 * kKeys;
      step.segments[static_cast<size_t>(i)].score_stride = kKeys;
      mass_segments.push_back({.rows = step.segments[static_cast<size_t>(i)].rows,
                               .kv = step.cache.view(i),
                               .scores = scores + i * 32 * kKeys,
                               .score_stride = kKeys,
                               .mass = mass + i * kKeys,
                               .mass_stride = kKeys});
    }
    const MassParams params{.source = MassParams::Source::kScores,
                            .q = step.params().q,
                            .scale = step.params().scale,
                            .lse = View<const float>(step.lse, {batch, 32}),
                            .segments = mass_segments};
    const double score_bytes = static_cast<double>(batch * 32 * kKeys) * 4;
    bench.Run(name + "attend with scores", 4, step.bytes(kKeys) + score_bytes,
              [&](int) { Attend(*bench.recorder, *bench.scratch, nullptr, step.params()); });
    bench.Run(name + "mass of scores", 8, score_bytes,
              [&](int) { Mass(*bench.recorder, *bench.scratch, params); });
    cudaFree(scores);
    cudaFree(mass);
  }
}

void IndexDecode(Bench& bench, Device& device) {
  constexpr int64_t kKeys = 131072, kTop = 2048;
  for (int64_t batch : {1, 8}) {
    const std::string name = fmt::format("index decode k 2048 of 128K 32/8 D 128 batch {}", batch);
    if (!bench.Wants(name)) continue;
    Step step({32, 8, 128}, DType::kBF16, kKeys, batch);
    // Lists in rotation: with one, batch 1 would be read from the cache.
    constexpr int kLists = 8;
    std::vector<IndexSets> sets;
    for (int i = 0; i < kLists; ++i) sets.push_back(RandomSets(device, 1, kKeys, kTop));
    bench.Run(name, kLists, step.bytes(kTop), [&](int i) {
      for (int64_t b = 0; b < batch; ++b) {
        auto& keys = step.segments[static_cast<size_t>(b)].keys;
        keys = {.kind = KeySet::Kind::kIndex, .index = &sets[static_cast<size_t>(i)]};
      }
      Attend(*bench.recorder, *bench.scratch, nullptr, step.params());
    });
  }
}

void Ranking(Bench& bench) {
  constexpr int64_t kKeys = 131072;
  for (int64_t batch : {1, 8}) {
    const std::string name = fmt::format("ranking by 4-bit K 128K 32/8 D 128 batch {}", batch);
    if (!bench.Wants(name)) continue;
    Step step({32, 8, 128}, DType::kBF16, kKeys, batch, true);
    float* mass = Allocate<float>(batch * kKeys);
    std::vector<MassParams::Segment> segments;
    for (int64_t i = 0; i < batch; ++i) {
      segments.push_back({.rows = step.segments[static_cast<size_t>(i)].rows,
                          .kv = step.cache.view(i),
                          .mass = mass + i * kKeys,
                          .mass_stride = kKeys});
    }
    const MassParams params{.source = MassParams::Source::kLowBit,
                            .q = step.params().q,
                            .scale = 0.05f * step.params().scale,
                            .segments = segments};
    bench.Run(name, 4,
              static_cast<double>(batch * (kKeys / kPage) * step.cache.layout.low_bit_bytes()),
              [&](int) { Mass(*bench.recorder, *bench.scratch, params); });
    cudaFree(mass);
  }
}

void TopK(Bench& bench, Device& device) {
  constexpr int64_t kTop = 2048;
  struct Case {
    int64_t rows, keys;
  };
  for (const auto& [rows, keys] :
       {Case{1, 131072}, Case{8, 131072}, Case{64, 131072}, Case{1, int64_t{1} << 20}}) {
    const std::string name = fmt::format("top 2048 of {} x {}", rows, keys > 131072 ? "1M" : "128K");
    if (!bench.Wants(name)) continue;
    constexpr int kInputs = 4;  // more than the cache holds, with 64 rows
    float* mass = RandomFloats(kInputs * rows * keys, 1, 3);
    IndexSets out(device);
    out.Reset(rows, 1, kTop);
    const std::vector<int64_t> visible(static_cast<size_t>(rows), keys),
        k(static_cast<size_t>(rows), kTop), recent(static_cast<size_t>(rows), 64);
    const auto run = [&](int i) {
      const SelectParams::Segment segment{.mass = mass + i * rows * keys,
                                          .mass_stride = keys,
                                          .sets = rows,
                                          .visible = visible,
                                          .k = k,
                                          .recent = recent,
                                          .out = &out};
      Select(*bench.recorder, *bench.scratch, {.sink = 4, .segments = {&segment, 1}});
    };
    bench.Run(name, kInputs, static_cast<double>(rows * keys * 4), run);
    bench.Once([&] { run(0); });
    const auto list = Download(out.list(rows - 1, 0), kTop);
    auto masses = Download(mass + (rows - 1) * keys, keys);
    for (int64_t i = 0; i < keys; ++i) {
      if (i < 4 || i >= keys - 64) masses[static_cast<size_t>(i)] = INFINITY;
    }
    std::vector<int32_t> want(static_cast<size_t>(keys));
    for (size_t i = 0; i < want.size(); ++i) want[i] = static_cast<int32_t>(i);
    std::stable_sort(want.begin(), want.end(), [&](int32_t a, int32_t b) {
      return masses[static_cast<size_t>(a)] > masses[static_cast<size_t>(b)];
    });
    want.resize(kTop);
    std::sort(want.begin(), want.end());
    if (want != list) fmt::print("{}: WRONG\n", name);
    cudaFree(mass);
  }
}

void ReportDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0, square = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::fabs(double{a[i]} - b[i]);
    worst = d > worst || std::isnan(d) ? d : worst;  // a NaN stays
    square += double{a[i]} * a[i];
  }
  fmt::print("  largest difference {:.1e} of rms {:.1e}\n", worst,
             std::sqrt(square / static_cast<double>(a.size())));
}

void Prompt(Bench& bench, Device& device) {
  constexpr int64_t kRows = 32768, kTop = 2048, kTile = 64;
  const Shape shape{32, 8, 128};
  if (!bench.Wants("prompt 32K")) return;
  const Cache cache(
      {.dtype = DType::kBF16, .kv_heads = shape.kv_heads, .head_dim = shape.dim, .low_bit = true},
      kRows, 1);
  float* q = RandomFloats(kRows * shape.heads * shape.dim, 1, 5);
  float* o = Allocate<float>(kRows * shape.heads * shape.dim);
  float* lse = Allocate<float>(kRows * shape.heads);
  const double flops = 4.0 * kRows * kRows / 2 * static_cast<double>(shape.heads * shape.dim);
  AttendParams::Segment segment{.rows = {.count = kRows}, .kv = cache.view(0)};
  const auto run = [&](LibraryAttention* library) {
    Attend(*bench.recorder, *bench.scratch, library,
           {.q = View<const float>(q, {kRows, shape.heads, shape.dim}),
            .scale = 1 / std::sqrt(static_cast<float>(shape.dim)),
            .segments = {&segment, 1},
            .o = View<float>(o, {kRows, shape.heads, shape.dim}),
            .lse = View<float>(lse, {kRows, shape.heads})});
  };
  const double bytes =
      static_cast<double>(kRows) * static_cast<double>(shape.heads * shape.dim) * 8;
  const int64_t n = kRows * shape.heads * shape.dim;
  bench.Run("prompt 32K 32/8 D 128", 1, bytes, [&](int) { run(nullptr); }, flops);
  const std::vector<float> own = Download(o, n);
  bench.Run("prompt 32K 32/8 D 128, library", 1, bytes, [&](int) { run(&bench.library); }, flops);
  ReportDifference(own, Download(o, n));

  MassParams::Segment mass{.rows = {.first = kRows - 2048, .count = 2048, .position = kRows - 2048},
                           .kv = cache.view(0),
                           .rows_per_set = kTile,
                           .mass = Allocate<float>(2048 / kTile * kRows),
                           .mass_stride = kRows};
  for (const auto source : {MassParams::Source::kExact, MassParams::Source::kLowBit}) {
    const bool low_bit = source == MassParams::Source::kLowBit;
    bench.Run(
        fmt::format("mass of 2048 rows at 32K in tiles of 64{}", low_bit ? ", 4-bit K" : ""), 1, 0,
        [&](int) {
          Mass(*bench.recorder, *bench.scratch,
               {.source = source,
                .q = View<const float>(q, {kRows, shape.heads, shape.dim}),
                .scale = 0.01f,
                .lse = View<const float>(lse, {kRows, shape.heads}),
                .segments = {&mass, 1}});
        },
        2.0 * 2048 * (kRows - 1024) * static_cast<double>(shape.heads * shape.dim));
  }
  IndexSets sets = RandomSets(device, kRows / kTile, kRows, kTop);
  segment.keys = {.kind = KeySet::Kind::kIndex, .index = &sets, .rows_per_set = kTile};
  bench.Run("prompt 32K, tiles of 64 with k 2048", 1, bytes, [&](int) { run(nullptr); },
            4.0 * kRows * kTop * static_cast<double>(shape.heads * shape.dim));
  for (float* p : {q, o, lse, mass.mass}) cudaFree(p);
}

// The last rows of a long prompt, by the own kernel and by the library: their difference too.
void Chunks(Bench& bench) {
  constexpr int64_t kKeys = 131072;
  for (const Shape shape : {Shape{32, 8, 128}, Shape{32, 8, 64}, Shape{8, 2, 256}}) {
    for (const int64_t rows : {128, 256, 512, 2048, 8192}) {
      const std::string name = fmt::format("chunk of {} at 128K {}/{} D {}", rows, shape.heads,
                                           shape.kv_heads, shape.dim);
      if (!bench.Wants(name)) continue;
      const Cache cache(
          {.dtype = DType::kBF16, .kv_heads = shape.kv_heads, .head_dim = shape.dim}, kKeys, 1,
          /*shuffled=*/true);
      const int64_t n = rows * shape.heads * shape.dim;
      float* q = RandomFloats(n, 1, 5);
      float* o = Allocate<float>(n);
      float* lse = Allocate<float>(rows * shape.heads);
      const AttendParams::Segment segment{
          .rows = {.count = rows, .position = kKeys - rows}, .kv = cache.view(0)};
      const double flops = 4.0 * static_cast<double>(n) * (kKeys - rows / 2.0);
      std::vector<float> outputs[2];
      for (const bool by_library : {false, true}) {
        const auto run = [&](int) {
          Attend(*bench.recorder, *bench.scratch, by_library ? &bench.library : nullptr,
                 {.q = View<const float>(q, {rows, shape.heads, shape.dim}),
                  .scale = 1 / std::sqrt(static_cast<float>(shape.dim)),
                  .segments = {&segment, 1},
                  .o = View<float>(o, {rows, shape.heads, shape.dim}),
                  .lse = View<float>(lse, {rows, shape.heads})});
        };
        bench.Run(name + (by_library ? ", library" : ""), 1,
                  static_cast<double>(kKeys * cache.layout.row_bytes()), run, flops);
        outputs[by_library] = Download(o, n);
      }
      ReportDifference(outputs[0], outputs[1]);
      for (float* p : {q, o, lse}) cudaFree(p);
    }
  }
}

void Copy(Bench& bench) {
  constexpr int64_t kBytes = int64_t{2} << 30;
  auto* from = Allocate<std::byte>(kBytes);
  auto* to = Allocate<std::byte>(kBytes);
  FillBytes<<<4096, 256>>>(reinterpret_cast<uint32_t*>(from), kBytes / 4);
  const double seconds = bench.Time(4, [&](int) { bench.recorder->Copy(to, from, kBytes); });
  bench.copy_bandwidth = 2.0 * kBytes / seconds;
  bench.Report("copy", seconds, 2.0 * kBytes);
  cudaFree(from);
  cudaFree(to);
}

int Main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    fmt::print(stderr, "micro_gpu_attention: no GPU\n");
    return 1;
  }
  Bench bench;
  bench.only.assign(argv + 1, argv + argc);
  BATON_CUDA(cudaStreamCreate(&bench.stream));
  bench.recorder = std::make_unique<Recorder>(bench.stream, Recorder::Options{});
  bench.scratch = std::make_unique<Scratch>(*bench.recorder);
  CudaDevice device(*bench.recorder);
  Copy(bench);
  CheckDecode(bench);
  DenseDecode(bench);
  SelectDecode(bench);
  IndexDecode(bench, device);
  Ranking(bench);
  TopK(bench, device);
  Prompt(bench, device);
  Chunks(bench);
  return 0;
}

}  // namespace
}  // namespace baton::cuda

int main(int argc, char** argv) { return baton::cuda::Main(argc, argv); }
