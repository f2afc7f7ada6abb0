// Speed of attention alone, decode by role and a dense prompt: `micro_attend [threads] [keys]
// [shape] [row]`, where row is part of the name of the rows wanted. Each role's operations run over
// one layer ("hot", what the arithmetic takes) and over many in turn, between which other memory is
// read as a step reads weights ("cold": keys, values and code come from memory). Figures are
// medians per layer; GB/s is what the cold reads come to. "read k rows" is what reuse's bytes take
// in a plain loop: rows at random positions, asked for ahead and added up as they come.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "kernels/cpu/cpu_ops.h"
#include "kv/kv_store.h"

namespace {

using namespace baton;

struct Shape {
  const char* name;
  int heads, kv_heads;
  int64_t head_dim;
  int layers;
};

class Bench {
 public:
  Bench(ThreadPool& pool, Ops& ops, const Shape& shape, DType kv, int64_t keys, std::string only)
      : pool_(pool), ops_(ops), shape_(shape), kv_(kv), keys_(keys), only_(std::move(only)) {
    const KvLayout layout{
        .dtype = kv, .kv_heads = shape.kv_heads, .head_dim = shape.head_dim, .low_bit = true};
    auto store = KvStore::Create(
        std::vector<KvCacheSpec>(static_cast<size_t>(shape.layers), {.layout = layout}), keys + 64);
    if (!store.ok()) std::exit(1);
    store_ = std::move(store).value();
    sequence_ = store_->NewSequence();
    if (!FillSynthetic(*store_, sequence_, keys, 1, &pool).ok()) std::exit(1);
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    q_.resize(static_cast<size_t>(kPrompt * shape.heads * shape.head_dim));
    for (float& x : q_) x = normal(rng);
    o_.resize(q_.size());
    lse_.resize(static_cast<size_t>(kPrompt * shape.heads));
    sums_.resize(static_cast<size_t>(pool_.threads()) * 8);
    other_ = Buffer::AllocateOrDie(kOther);
    std::memset(other_.data(), 1, static_cast<size_t>(kOther));
    mass_.resize(static_cast<size_t>(keys + 64));
    scores_.resize(static_cast<size_t>(shape.heads * (keys + 64)));
  }

  void Attend(int layer, KeySet keys, bool scores = false) {
    const AttendParams::Segment segment{.rows = rows(),
                                        .kv = sequence_.View(layer),
                                        .keys = keys,
                                        .scores = scores ? scores_.data() : nullptr,
                                        .score_stride = keys_ + 64};
    ops_.Attend({.q = q(),
                 .scale = scale(),
                 .segments = {&segment, 1},
                 .o = View<float>(o_.data(), {1, shape_.heads, shape_.head_dim}),
                 .lse = View<float>(lse_.data(), {1, shape_.heads})});
  }

  void AttendPrompt(int layer) {
    const AttendParams::Segment segment{
        .rows = {.first = 0, .count = kPrompt, .position = keys_ - kPrompt},
        .kv = sequence_.View(layer)};
    const int heads = shape_.heads;
    ops_.Attend({.q = View<const float>(q_.data(), {kPrompt, heads, shape_.head_dim}),
                 .scale = scale(),
                 .segments = {&segment, 1},
                 .o = View<float>(o_.data(), {kPrompt, heads, shape_.head_dim}),
                 .lse = View<float>(lse_.data(), {kPrompt, heads})});
  }

  void Mass(int layer, MassParams::Source source) {
    const MassParams::Segment segment{.rows = rows(),
                                      .kv = sequence_.View(layer),
                                      .scores = scores_.data(),
                                      .score_stride = keys_ + 64,
                                      .mass = mass_.data(),
                                      .mass_stride = keys_ + 64};
    ops_.Mass({.source = source,
               .q = q(),
               .scale = scale(),
               .lse = View<const float>(lse_.data(), {1, shape_.heads}),
               .segments = {&segment, 1}});
  }

  void Select(int64_t k) {
    const int64_t visible = keys_, recent = 64;
    sets_.Reset(1, 1, k + 1);
    const SelectParams::Segment segment{.mass = mass_.data(),
                                        .mass_stride = keys_ + 64,
                                        .sets = 1,
                                        .visible = {&visible, 1},
                                        .k = {&k, 1},
                                        .recent = {&recent, 1},
                                        .out = &sets_};
    if (!ops_.Select({.sink = 4, .segments = {&segment, 1}}).ok()) std::exit(1);
  }

  KeySet Chosen() const { return {.kind = KeySet::Kind::kIndex, .index = &sets_}; }

  // A chosen row's lines added up, 16 rows asked for ahead; every thread has its share of rows.
  void ReadRows(int layer) {
    const KvView kv = sequence_.View(layer);
    const int64_t bytes = kv.layout.row_bytes(), count = sets_.count(0, 0);
    const int32_t* list = sets_.list(0, 0);
    pool_.For(pool_.threads(), [&](int64_t t, int) {
      const int64_t begin = count * t / pool_.threads(), end = count * (t + 1) / pool_.threads();
      uint64_t sum = 0;
      for (int64_t i = begin - 16; i < end; ++i) {
        if (i + 16 < end) {
          for (int64_t b = 0; b < bytes; b += 64)
            __builtin_prefetch(kv.row(list[i + 16]) + b, 0, 2);
        }
        for (int64_t b = 0; i >= begin && b < bytes; b += 64)
          sum += static_cast<uint64_t>(kv.row(list[i])[b]);
      }
      sums_[static_cast<size_t>(t) * 8] = sum;
    });
  }

  // What a layer's weights do to the caches.
  void ReadOther() {
    constexpr int64_t kLayer = 3 << 20;
    other_at_ = other_at_ + 2 * kLayer > other_.size() ? 0 : other_at_ + kLayer;
    pool_.For(pool_.threads(), [&](int64_t t, int) {
      const std::byte* from = other_.data() + other_at_ + t * kLayer / pool_.threads();
      uint64_t sum = 0;
      for (int64_t b = 0; b < kLayer / pool_.threads(); b += 64)
        sum += static_cast<uint64_t>(from[b]);
      sums_[static_cast<size_t>(t) * 8] = sum;
    });
  }

  // Microseconds of body(layer): median over rounds of `calls` calls that go through `layers`
  // layers, cold if these are several.
  double Time(int layers, int calls, const std::function<void(int)>& body) {
    ThreadPool::Hot hot(pool_);
    std::vector<double> us;
    for (int round = 0; round < 15; ++round) {
      double total = 0;
      for (int i = 0; i < calls; ++i) {
        if (layers > 1) ReadOther();
        const auto start = std::chrono::steady_clock::now();
        body(i % layers);
        total += std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
                     .count();
      }
      us.push_back(total / calls);
    }
    std::nth_element(us.begin(), us.begin() + 7, us.end());
    return us[7];
  }

  bool Wanted(std::string_view what) const { return what.find(only_) != what.npos; }

  void Row(const char* what, double bytes, const std::function<void(int)>& body) {
    if (!Wanted(what)) return;
    const double hot = Time(1, shape_.layers, body);
    const double cold = Time(shape_.layers, shape_.layers, body);
    fmt::print("{:10} {:5} {:28} {:8.1f} us hot  {:8.1f} us cold  {:6.1f} GB/s\n", shape_.name,
               Info(kv_).name, what, hot, cold, bytes / cold * 1e-3);
  }

  void Run() {
    const char* const kWhole = "prompt of 512, full";
    if (Wanted(kWhole)) {
      const double us = Time(1, 2, [&](int l) { AttendPrompt(l); });
      const double pairs = static_cast<double>(kPrompt) *
                           (static_cast<double>(keys_) - static_cast<double>(kPrompt) / 2);
      fmt::print("{:10} {:5} {:28} {:8.1f} us  {:6.1f} GFLOP/s\n", shape_.name, Info(kv_).name,
                 kWhole, us,
                 4e-3 * pairs * static_cast<double>(shape_.heads * shape_.head_dim) / us);
    }
    const double token = static_cast<double>(store_->layout(0).row_bytes());
    const double copy =
        static_cast<double>(shape_.kv_heads * (shape_.head_dim / 2 + shape_.head_dim / 32 * 2));
    const auto n = static_cast<double>(keys_);
    Row("full", n * token, [&](int l) { Attend(l, {}); });
    Row("full, 32 keys", 32 * token,
        [&](int l) { Attend(l, {.kind = KeySet::Kind::kWindow, .recent = 32}); });
    Row("window 1024", 1024 * token,
        [&](int l) { Attend(l, {.kind = KeySet::Kind::kWindow, .sink = 4, .recent = 1020}); });
    Row("select 512", n * token, [&](int l) {
      Attend(l, {}, true);
      Mass(l, MassParams::Source::kScores);
      Select(512);
    });
    Row("  rank scores", n * 4 * shape_.heads,
        [&](int l) { Mass(l, MassParams::Source::kScores); });
    Row("  choose 512", n * 4, [&](int) { Select(512); });
    Row("scan 1024", n * copy + 1024 * token, [&](int l) {
      Mass(l, MassParams::Source::kLowBit);
      Select(1024);
      Attend(l, Chosen());
    });
    Row("  rank 4-bit copy", n * copy, [&](int l) { Mass(l, MassParams::Source::kLowBit); });
    Mass(0, MassParams::Source::kLowBit);
    for (const int64_t k : {1024, 512}) {
      Select(k);
      Row(k == 512 ? "reuse 512" : "reuse 1024", static_cast<double>(k) * token,
          [&](int l) { Attend(l, Chosen()); });
      Row(k == 512 ? "  read 512 rows" : "  read 1024 rows", static_cast<double>(k) * token,
          [&](int l) { ReadRows(l); });
    }
  }

 private:
  static constexpr int64_t kPrompt = 512, kOther = 256 << 20;
  Rows rows() const { return {.first = 0, .count = 1, .position = keys_ - 1}; }
  View<const float> q() const {
    return View<const float>(q_.data(), {1, shape_.heads, shape_.head_dim});
  }
  float scale() const { return 1.0f / 8; }

  ThreadPool& pool_;
  Ops& ops_;
  Shape shape_;
  DType kv_;
  int64_t keys_;
  std::string only_;
  std::unique_ptr<KvStore> store_;
  KvSequence sequence_;
  std::vector<float> q_, o_, lse_, mass_, scores_;
  Buffer other_;
  int64_t other_at_ = 0;
  std::vector<uint64_t> sums_;  // eight a thread, so that none share a line
  IndexSets sets_;
};

}  // namespace

int main(int argc, char** argv) {
  ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : 0);
  const int64_t keys = std::max<int64_t>(1024, argc > 2 ? std::atoll(argv[2]) : 7168);
  const std::string only = argc > 3 ? argv[3] : "", row = argc > 4 ? argv[4] : "";
  auto ops = MakeCpuOps(pool, DetectCpuIsa());
  if (!ops.ok()) return 1;
  for (const Shape& shape : {Shape{"smollm2", 9, 3, 64, 30}, Shape{"llama-8b", 32, 8, 128, 8}}) {
    if (!only.empty() && only != shape.name) continue;
    for (const DType kv : {DType::kBF16, DType::kI8}) {
      Bench(pool, **ops, shape, kv, keys, row).Run();
    }
  }
}
