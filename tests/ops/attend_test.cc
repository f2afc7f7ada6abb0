// Attention against the reference on the same cache: every key set, cache type, head geometry and
// length at which a block, a chunk or a tile begins or ends.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "tests/ops/op_test_util.h"

namespace baton::test {
namespace {

struct Shape {
  int64_t heads;
  int kv_heads;
  int64_t dim;
};

// A cache of one sequence on shuffled pages.
struct Cache {
  KvLayout layout;
  std::vector<int32_t> pages;
  Buffer memory;
  int64_t length;

  Cache(Rng& rng, Shape s, DType dtype, int64_t n, float key_sigma = 1, float key_mean = 0)
      : layout{.dtype = dtype, .kv_heads = s.kv_heads, .head_dim = s.dim}, length(n) {
    const int64_t count = (n + KvLayout::kSlots - 1) / KvLayout::kSlots;
    pages.resize(static_cast<size_t>(count));
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), rng);
    memory = Buffer::AllocateOrDie(layout.arena_bytes(count), TestMemory());
    // Slots past the last token may hold anything.
    std::memset(memory.data(), 0xff, static_cast<size_t>(layout.arena_bytes(count)));
    ThreadPool one(1);
    const auto ops = MakeReferenceOps(one);
    std::vector<float> q(static_cast<size_t>(n * s.kv_heads * s.dim));
    std::vector<float> k = RandomNormal(rng, n * s.kv_heads * s.dim, key_sigma, key_mean);
    const std::vector<float> v = RandomNormal(rng, n * s.kv_heads * s.dim);
    const std::vector<float> cos(static_cast<size_t>(n * s.dim / 2), 1.0f), sin(cos.size(), 0.0f);
    const StoreParams::Segment segment{{.count = n}, view()};
    ops->Store({.q = View<float>(q.data(), {n, s.kv_heads, s.dim}),
                .k = View<float>(k.data(), {n, s.kv_heads, s.dim}),
                .v = View<const float>(v.data(), {n, s.kv_heads, s.dim}),
                .cos = View<const float>(cos.data(), {n, s.dim / 2}),
                .sin = View<const float>(sin.data(), {n, s.dim / 2}),
                .segments = {&segment, 1}});
  }
  KvView view() const {
    return {.arena = memory.data(), .pages = pages.data(), .length = length, .layout = layout};
  }
};

struct Output {
  std::vector<float> o, lse;
};

Output Attend(Ops& ops, const std::vector<float>& q, Shape s,
              std::span<const AttendParams::Segment> segments, float scale = 0) {
  const int64_t rows = static_cast<int64_t>(q.size()) / (s.heads * s.dim);
  Output r;
  r.o.assign(q.size(), -7.0f);
  r.lse.assign(static_cast<size_t>(rows * s.heads), -7.0f);
  ops.Attend({.q = View<const float>(q.data(), {rows, s.heads, s.dim}),
              .scale = scale > 0 ? scale : 1.0f / std::sqrt(static_cast<float>(s.dim)),
              .segments = segments,
              .o = View<float>(r.o.data(), {rows, s.heads, s.dim}),
              .lse = View<float>(r.lse.data(), {rows, s.heads})});
  return r;
}

// Ascending, no duplicates; group 1 has half as many.
IndexSets RandomSets(Rng& rng, int64_t sets, int64_t groups, int64_t visible, int64_t k) {
  IndexSets x(TestMemory());
  x.Reset(sets, groups, k);
  std::vector<int32_t> all(static_cast<size_t>(visible));
  std::iota(all.begin(), all.end(), 0);
  for (int64_t s = 0; s < sets; ++s) {
    for (int64_t g = 0; g < groups; ++g) {
      std::shuffle(all.begin(), all.end(), rng);
      const int64_t n = std::min(visible, g == 1 ? k / 2 : k);
      std::copy_n(all.begin(), n, x.list(s, g));
      std::sort(x.list(s, g), x.list(s, g) + n);
      x.count(s, g) = static_cast<int32_t>(n);
    }
  }
  return x;
}

// Beyond the reference, avx512 and amx round q and the weights to bf16, and avx2 everything in
// prompts to integers. cuda rounds both to bf16 in tiles of prompts, and to 16 bits of mantissa in
// rows that it takes one by one, which segments of up to 16 rows always are.
Tolerance ToleranceOf(const std::string& backend, DType dtype, int64_t rows) {
  if (backend == "cuda" && dtype != DType::kF32 && rows <= 16)
    return {.relative = 1e-4, .absolute = 1e-4, .cosine = 0.999999};
  if (backend == "avx2" && dtype != DType::kF32)
    return {.relative = 4e-3, .absolute = 8e-3, .cosine = 0.99999};
  if ((backend == "avx512" || backend == "amx" || backend == "cuda") && dtype != DType::kF32)
    return {.relative = 0.02, .absolute = 0.05, .cosine = 0.9998};
  return {.relative = 2e-5, .absolute = 2e-5, .cosine = 0.999999};
}

// Whether q and weights keep less than the cache's values with a bf16 or int8 cache.
bool RoundsItsOperands(const std::string& backend) {
  return backend == "avx2" || backend == "avx512" || backend == "amx" || backend == "cuda";
}

class AttendTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ops_ = MakeBackend(GetParam(), threads_);
    if (!ops_) GTEST_SKIP() << kNoBackend;
  }

  void Compare(const std::vector<float>& q, Shape s,
               std::span<const AttendParams::Segment> segments, const std::string& what) {
    const Output got = Attend(*ops_, q, s, segments);
    const Output want = Attend(*ref_, q, s, segments);
    int64_t rows = 0;
    for (const auto& segment : segments) rows = std::max(rows, segment.rows.count);
    const Tolerance tol = ToleranceOf(GetParam(), segments[0].kv.layout.dtype, rows);
    ExpectClose(got.o, want.o, tol, what + " o");
    ExpectClose(got.lse, want.lse, {.absolute = tol.relative, .cosine = 0, .scaled = false},
                what + " lse");
  }
  std::string Describe(Shape s, DType d, int64_t n, int64_t rows) {
    return std::string(Info(d).name) + " heads " + std::to_string(s.heads) + "/" +
           std::to_string(s.kv_heads) + " D " + std::to_string(s.dim) + " N " + std::to_string(n) +
           " T " + std::to_string(rows);
  }

  ThreadPool threads_{3};
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Ops> ref_ = MakeReferenceOps(threads_);
};

constexpr Shape kShapes[] = {{9, 3, 64},   {4, 1, 256}, {2, 2, 16}, {16, 1, 80},
                             {13, 1, 128}, {8, 1, 512}, {5, 5, 48}, {6, 3, 80}};
constexpr DType kCacheTypes[] = {DType::kF32, DType::kBF16, DType::kI8};

// With every access checked, the reference would take minutes for many rows of many keys.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

TEST_P(AttendTest, AllKeysAtEveryEdge) {
  Rng rng(1);
  for (DType dtype : kCacheTypes) {
    for (Shape s : kShapes) {
      const bool small = s.dim <= 128;
      for (int64_t n :
           {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 255, 256, 257, 300, 700}) {
        if (!small && n != 1 && n != 65 && n != 300) continue;
        const Cache cache(rng, s, dtype, n);
        for (int64_t rows : {int64_t{1}, int64_t{3}, int64_t{8}, int64_t{33}, int64_t{70}}) {
          if (rows > n || (kSanitized && rows > 8 && n > 129)) continue;
          const std::vector<float> q = RandomNormal(rng, rows * s.heads * s.dim, 1.5f);
          const AttendParams::Segment segment{.rows = {.count = rows, .position = n - rows},
                                              .kv = cache.view()};
          Compare(q, s, {&segment, 1}, Describe(s, dtype, n, rows));
        }
      }
    }
  }
}

// Few rows are computed without packing: one to four heads per KV head in decode, and the last
// tokens of a prompt.
TEST_P(AttendTest, FewRowsOfEveryHeadSize) {
  Rng rng(11);
  for (DType dtype : {DType::kBF16, DType::kI8}) {
    for (Shape s : {Shape{4, 1, 16}, Shape{3, 1, 32}, Shape{4, 1, 48}, Shape{2, 1, 80},
                    Shape{3, 1, 96}, Shape{2, 2, 16}}) {
      for (int64_t rows : {1, 97, 98, 100}) {
        const int64_t n = 137;
        const Cache cache(rng, s, dtype, n);
        const IndexSets sets = RandomSets(rng, (rows + 63) / 64, 1, n, 60);
        const std::vector<float> q = RandomNormal(rng, rows * s.heads * s.dim);
        AttendParams::Segment segment{.rows = {.count = rows, .position = n - rows},
                                      .kv = cache.view()};
        Compare(q, s, {&segment, 1}, "all: " + Describe(s, dtype, n, rows));
        segment.keys = {.kind = KeySet::Kind::kWindow, .sink = 3, .recent = 20};
        Compare(q, s, {&segment, 1}, "window: " + Describe(s, dtype, n, rows));
        segment.keys = {.kind = KeySet::Kind::kIndex, .index = &sets, .rows_per_set = 64};
        Compare(q, s, {&segment, 1}, "index: " + Describe(s, dtype, n, rows));
      }
    }
  }
}

TEST_P(AttendTest, PromptLongerThanAChunk) {
  Rng rng(2);
  const Shape s{6, 2, 32};
  for (DType dtype : kCacheTypes) {
    const int64_t n = 4096 + 300;
    const Cache cache(rng, s, dtype, n);
    const std::vector<float> q = RandomNormal(rng, 20 * s.heads * s.dim);
    for (int64_t position : {4090L, 4380L - 4}) {
      const AttendParams::Segment segment{.rows = {.count = 20, .position = position},
                                          .kv = cache.view()};
      Compare(q, s, {&segment, 1}, Describe(s, dtype, n, 20));
    }
  }
}

// Rows of which a GPU leaves dense attention to a library, where there is one: a whole prompt and a
// chunk at its end, alone and beside a decode row.
TEST_P(AttendTest, ChunksOfManyRows) {
  if (kSanitized) GTEST_SKIP() << "takes minutes with every access checked";
  Rng rng(17);
  for (const Shape s :
       {Shape{4, 1, 128}, Shape{6, 2, 64}, Shape{2, 2, 128}, Shape{2, 1, 256}, Shape{3, 1, 96}}) {
    const Cache cache(rng, s, DType::kBF16, 1000), other(rng, s, DType::kBF16, 129);
    for (const auto& [rows, n] : {std::pair{256, 256}, {257, 257}, {256, 960}, {400, 1000}}) {
      const std::vector<float> q = RandomNormal(rng, (rows + 1) * s.heads * s.dim, 1.5f);
      const AttendParams::Segment segments[] = {
          {.rows = {.first = 1, .count = rows, .position = n - rows}, .kv = cache.view()},
          {.rows = {.first = 0, .count = 1, .position = 128}, .kv = other.view()}};
      const std::string what = Describe(s, DType::kBF16, n, rows);
      Compare(q, s, segments, what);
      const Output together = Attend(*ops_, q, s, segments);
      const Output alone = Attend(*ops_, q, s, {segments, 1});
      const auto row = static_cast<size_t>(s.heads), d = static_cast<size_t>(s.dim);
      ExpectSameBits(std::span(alone.o).subspan(row * d), std::span(together.o).subspan(row * d),
                     what);
      ExpectSameBits(std::span(alone.lse).subspan(row), std::span(together.lse).subspan(row), what);
    }
  }
}

// A view may end before the cache does, within a page.
TEST_P(AttendTest, WhatTheCacheHoldsStays) {
  Rng rng(19);
  const Shape s{4, 2, 64};
  const Cache cache(rng, s, DType::kBF16, 1000);
  const auto bytes = static_cast<size_t>(cache.memory.size());
  const std::vector<std::byte> before(cache.memory.data(), cache.memory.data() + bytes);
  KvView view = cache.view();
  view.stored = std::exchange(view.length, 800);
  const std::vector<float> q = RandomNormal(rng, 256 * s.heads * s.dim);
  const AttendParams::Segment segment{.rows = {.count = 256, .position = 800 - 256}, .kv = view};
  Compare(q, s, {&segment, 1}, "a view of 800 of 1,000 tokens");
  for (int64_t p = 0; p < cache.length; ++p) {
    const auto at = static_cast<size_t>(cache.view().row(p) - cache.memory.data());
    ASSERT_EQ(std::memcmp(cache.memory.data() + at, before.data() + at,
                          static_cast<size_t>(cache.layout.row_bytes())),
              0)
        << p;
  }
}

// Passes of one prompt differ in positions alone, so a GPU replays them.
TEST_P(AttendTest, ChunksInPassesEqualChunksAlone) {
  if (kSanitized) GTEST_SKIP() << "takes minutes with every access checked";
  Rng rng(18);
  const Shape s{4, 2, 64};
  constexpr int64_t kRows = 256, kLayers = 4, kChunks = 4;
  const Cache cache(rng, s, DType::kBF16, kRows * kChunks);
  const std::vector<float> q = RandomNormal(rng, kRows * s.heads * s.dim);
  std::vector<std::vector<float>> o(kLayers, std::vector<float>(q.size()));
  for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
    const AttendParams::Segment segment{.rows = {.count = kRows, .position = chunk * kRows},
                                        .kv = cache.view()};
    {
      const Ops::Pass pass(*ops_);
      for (auto& layer : o) {
        ops_->Attend({.q = View<const float>(q.data(), {kRows, s.heads, s.dim}),
                      .scale = 0.125f,
                      .segments = {&segment, 1},
                      .o = View<float>(layer.data(), {kRows, s.heads, s.dim})});
      }
    }
    const Output want = Attend(*ops_, q, s, {&segment, 1}, 0.125f);
    for (const auto& layer : o) ExpectSameBits(layer, want.o, "chunk " + std::to_string(chunk));
  }
}

TEST_P(AttendTest, Windows) {
  Rng rng(3);
  const Shape s{6, 2, 64};
  struct Window {
    int64_t sink, recent;
  };
  for (DType dtype : kCacheTypes) {
    for (int64_t n : {1, 40, 130, 700}) {
      const Cache cache(rng, s, dtype, n);
      for (Window w : {Window{0, 0},
                       {0, 1},
                       {4, 0},
                       {4, 16},
                       {1, 300},
                       {300, 20},
                       {0, 1000},
                       {1000, 0},
                       {33, 129}}) {
        for (int64_t rows : {1, 5, 9, 40}) {
          if (rows > n) continue;
          const std::vector<float> q = RandomNormal(rng, rows * s.heads * s.dim);
          const AttendParams::Segment segment{
              .rows = {.count = rows, .position = n - rows},
              .kv = cache.view(),
              .keys = {.kind = KeySet::Kind::kWindow, .sink = w.sink, .recent = w.recent}};
          Compare(q, s, {&segment, 1},
                  Describe(s, dtype, n, rows) + " sink " + std::to_string(w.sink) + " recent " +
                      std::to_string(w.recent));
        }
      }
    }
  }
}

TEST_P(AttendTest, IndexSets) {
  Rng rng(4);
  const int head_map[] = {1, 0, 1};
  for (DType dtype : kCacheTypes) {
    for (Shape s : {Shape{9, 3, 64}, Shape{3, 3, 32}}) {
      for (int64_t n : {70, 600}) {
        const Cache cache(rng, s, dtype, n);
        for (int64_t rows : {1, 4, 70}) {
          const std::vector<float> q = RandomNormal(rng, rows * s.heads * s.dim);
          for (int64_t rows_per_set : {1, 3, 16, 64}) {
            for (int64_t groups : {1, 2, 3}) {
              for (int64_t k : {1, 17, 150, 512}) {
                // Lists also contain keys after some rows: those are masked.
                const IndexSets sets =
                    RandomSets(rng, (rows + rows_per_set - 1) / rows_per_set, groups, n, k);
                const AttendParams::Segment segment{
                    .rows = {.count = rows, .position = n - rows},
                    .kv = cache.view(),
                    .keys = {.kind = KeySet::Kind::kIndex,
                             .index = &sets,
                             .rows_per_set = rows_per_set,
                             .head_map = groups == 2 ? head_map : nullptr}};
                Compare(q, s, {&segment, 1},
                        Describe(s, dtype, n, rows) + " sets of " + std::to_string(rows_per_set) +
                            " groups " + std::to_string(groups) + " k " + std::to_string(k));
              }
            }
          }
        }
      }
    }
  }
}

TEST_P(AttendTest, IndexOfEverythingEqualsAll) {
  Rng rng(5);
  const Shape s{9, 3, 64};
  for (DType dtype : kCacheTypes) {
    for (int64_t rows : {1, 40}) {
      const Cache cache(rng, s, dtype, 333);
      const std::vector<float> q = RandomNormal(rng, rows * s.heads * s.dim);
      IndexSets sets(TestMemory());
      sets.Reset(1, 1, 400);
      std::iota(sets.positions.data(), sets.positions.data() + 333, 0);
      sets.count(0, 0) = 333;
      AttendParams::Segment segment{.rows = {.count = rows, .position = 333 - rows},
                                    .kv = cache.view()};
      const Output all = Attend(*ops_, q, s, {&segment, 1});
      segment.keys = {.kind = KeySet::Kind::kIndex, .index = &sets, .rows_per_set = rows};
      const Output index = Attend(*ops_, q, s, {&segment, 1});
      // The chunks differ, so weights may round differently, to bf16 at worst.
      const double step = RoundsItsOperands(GetParam()) && dtype != DType::kF32 ? 4e-3 : 1e-6;
      ExpectClose(index.o, all.o, {.relative = step, .absolute = step, .cosine = 0.9999});
      ExpectClose(index.lse, all.lse, {.absolute = 1e-5, .cosine = 0.999999});
    }
  }
}

TEST_P(AttendTest, MixedSegmentsEqualEachAlone) {
  Rng rng(6);
  const Shape s{9, 3, 64};
  for (DType dtype : kCacheTypes) {
    const Cache a(rng, s, dtype, 700), b(rng, s, dtype, 90), c(rng, s, dtype, 300);
    const IndexSets sets = RandomSets(rng, 1, 1, 300, 140);
    const std::vector<float> q = RandomNormal(rng, 44 * s.heads * s.dim);
    const std::vector<AttendParams::Segment> segments = {
        {.rows = {.first = 0, .count = 1, .position = 699}, .kv = a.view()},
        {.rows = {.first = 1, .count = 40, .position = 50}, .kv = b.view()},
        {.rows = {.first = 41, .count = 1, .position = 299},
         .kv = c.view(),
         .keys = {.kind = KeySet::Kind::kIndex, .index = &sets}},
        {.rows = {.first = 42, .count = 2, .position = 600},
         .kv = a.view(),
         .keys = {.kind = KeySet::Kind::kWindow, .sink = 4, .recent = 100}}};
    const Output together = Attend(*ops_, q, s, segments);
    Compare(q, s, segments, "mixed");
    for (const AttendParams::Segment& segment : segments) {
      const Output alone = Attend(*ops_, q, s, {&segment, 1});
      const auto at = static_cast<size_t>(segment.rows.first * s.heads),
                 n = static_cast<size_t>(segment.rows.count * s.heads);
      const auto d = static_cast<size_t>(s.dim);
      ExpectSameBits({alone.o.data() + at * d, n * d}, {together.o.data() + at * d, n * d});
      ExpectSameBits({alone.lse.data() + at, n}, {together.lse.data() + at, n});
    }
  }
}

// The rows of a verification share each read of K and V, and their bits must not depend on it.
TEST_P(AttendTest, RowsAloneHaveTheBitsOfSingleRows) {
  Rng rng(16);
  for (const Shape s : {Shape{9, 3, 64}, Shape{4, 1, 256}, Shape{8, 8, 32}}) {
    if (kSanitized && s.dim != 32) continue;
    for (DType dtype : kCacheTypes) {
      const Cache cache(rng, s, dtype, 1100);
      const std::vector<float> q = RandomNormal(rng, 16 * s.heads * s.dim);
      // Lengths at which chunks grow, at which their number does, and in the first block.
      for (int64_t position : {0, 27, 120, 250, 505, 1020, 1084}) {
        for (const KeySet& keys :
             {KeySet{}, KeySet{.kind = KeySet::Kind::kWindow, .sink = 3, .recent = 90}}) {
          for (int64_t rows : {2, 3, 7, 16}) {
            const AttendParams::Segment together{
                .rows = {0, rows, position}, .kv = cache.view(), .keys = keys, .rows_alone = true};
            const Output got = Attend(*ops_, q, s, {&together, 1});
            for (int64_t row = 0; row < rows; ++row) {
              const AttendParams::Segment alone{
                  .rows = {row, 1, position + row}, .kv = cache.view(), .keys = keys};
              const Output want = Attend(*ops_, q, s, {&alone, 1});
              const auto at = static_cast<size_t>(row * s.heads), n = static_cast<size_t>(s.heads),
                         d = static_cast<size_t>(s.dim);
              ExpectSameBits({got.o.data() + at * d, n * d}, {want.o.data() + at * d, n * d},
                             Describe(s, dtype, position, rows));
              ExpectSameBits({got.lse.data() + at, n}, {want.lse.data() + at, n});
            }
          }
        }
      }
    }
  }
}

TEST_P(AttendTest, ThreadsDoNotChangeBits) {
  Rng rng(7);
  const Shape s{9, 3, 64};
  ThreadPool one(1), two(2), five(5);
  for (DType dtype : kCacheTypes) {
    const Cache cache(rng, s, dtype, 2100);
    for (int64_t rows : {1, 5, 100}) {
      const std::vector<float> q = RandomNormal(rng, rows * s.heads * s.dim);
      const AttendParams::Segment segment{.rows = {.count = rows, .position = 2100 - rows},
                                          .kv = cache.view()};
      const Output want = Attend(*MakeBackend(GetParam(), one), q, s, {&segment, 1});
      for (ThreadPool* pool : {&two, &five}) {
        const Output got = Attend(*MakeBackend(GetParam(), *pool), q, s, {&segment, 1});
        ExpectSameBits(got.o, want.o);
        ExpectSameBits(got.lse, want.lse);
      }
      // A decode row's result does not depend on the number of rows in a call.
      if (rows != 5) continue;
      for (int64_t r = 0; r < rows; ++r) {
        const AttendParams::Segment row{.rows = {.count = 1, .position = 2100 - rows + r},
                                        .kv = cache.view()};
        const auto n = static_cast<size_t>(s.heads * s.dim);
        const std::vector<float> qr(q.begin() + static_cast<int64_t>(n) * r,
                                    q.begin() + static_cast<int64_t>(n) * (r + 1));
        ExpectSameBits(Attend(*ops_, qr, s, {&row, 1}).o,
                       {want.o.data() + n * static_cast<size_t>(r), n});
      }
    }
  }
}

TEST_P(AttendTest, ScoresAreWritten) {
  Rng rng(8);
  for (DType dtype : kCacheTypes) {
    for (Shape s : {Shape{9, 3, 64}, Shape{4, 1, 256}, Shape{3, 3, 48}}) {
      const int64_t n = 333, stride = 340;
      const Cache cache(rng, s, dtype, n);
      for (int64_t rows : {1, 30}) {
        const std::vector<float> q = RandomNormal(rng, rows * s.heads * s.dim);
        const auto run = [&](Ops& ops) {
          std::vector<float> scores(static_cast<size_t>(rows * s.heads * stride), 3.0f);
          const AttendParams::Segment segment{.rows = {.count = rows, .position = n - rows},
                                              .kv = cache.view(),
                                              .scores = scores.data(),
                                              .score_stride = stride};
          Attend(ops, q, s, {&segment, 1});
          std::vector<float> seen;
          for (int64_t t = 0; t < rows; ++t) {
            for (int64_t h = 0; h < s.heads; ++h) {
              const float* row = scores.data() + (t * s.heads + h) * stride;
              seen.insert(seen.end(), row, row + n - rows + t + 1);
              for (int64_t i = n; i < stride; ++i)
                EXPECT_EQ(row[i], 3.0f) << "written past the last key";
            }
          }
          return seen;
        };
        ExpectClose(run(*ops_), run(*ref_), ToleranceOf(GetParam(), dtype, rows),
                    Describe(s, dtype, n, rows));
      }
    }
  }
}

// Equal signs in every channel give the largest possible products.
TEST_P(AttendTest, ConstantChannels) {
  for (DType dtype : kCacheTypes) {
    for (const int64_t dim : {16, 32, 48, 64, 128, 256}) {
      const Shape s{4, 1, dim};
      const int64_t n = 150, rows = 20;
      Rng rng(12);
      const Cache cache(rng, s, dtype, n, /*key_sigma=*/0, /*key_mean=*/1);
      const std::vector<float> q(static_cast<size_t>(rows * s.heads * dim), 1.0f);
      const AttendParams::Segment segment{.rows = {.count = rows, .position = n - rows},
                                          .kv = cache.view()};
      Compare(q, s, {&segment, 1}, Describe(s, dtype, n, rows));
    }
  }
}

TEST_P(AttendTest, RowWithoutKeys) {
  Rng rng(9);
  const Shape s{4, 2, 32};
  for (DType dtype : kCacheTypes) {
    const Cache cache(rng, s, dtype, 64);
    IndexSets sets(TestMemory());
    sets.Reset(1, 1, 4);
    const int32_t listed[] = {30, 40, 50, 60};  // rows before 30 see none
    std::copy_n(listed, 4, sets.list(0, 0));
    sets.count(0, 0) = 4;
    for (int64_t rows : {2, 40}) {
      const std::vector<float> q = RandomNormal(rng, rows * s.heads * s.dim);
      const AttendParams::Segment segment{
          .rows = {.count = rows, .position = 10},
          .kv = cache.view(),
          .keys = {.kind = KeySet::Kind::kIndex, .index = &sets, .rows_per_set = 64}};
      const Output r = Attend(*ops_, q, s, {&segment, 1});
      for (int i = 0; i < 2 * 32; ++i) EXPECT_EQ(r.o[static_cast<size_t>(i)], 0.0f);
      EXPECT_EQ(r.lse[0], -INFINITY);
      Compare(q, s, {&segment, 1}, "no keys");
    }
  }
}

TEST_P(AttendTest, ExtremeScores) {
  Rng rng(10);
  const Shape s{2, 1, 64};
  for (DType dtype : kCacheTypes) {
    const Cache cache(rng, s, dtype, 300, /*key_sigma=*/60);
    for (int64_t rows : {1, 20}) {
      // Scores of the order of 1e4: the softmax selects one key, however q is rounded.
      const std::vector<float> q = RandomNormal(rng, rows * s.heads * s.dim, 160);
      const AttendParams::Segment segment{.rows = {.count = rows, .position = 300 - rows},
                                          .kv = cache.view()};
      const Output got = Attend(*ops_, q, s, {&segment, 1});
      const Output want = Attend(*ref_, q, s, {&segment, 1});
      for (float x : got.o) ASSERT_TRUE(std::isfinite(x));
      ExpectClose(got.lse, want.lse, {.relative = 0.01, .cosine = 0.999});
      const bool rounded = RoundsItsOperands(GetParam()) && dtype != DType::kF32;
      if (!rounded) ExpectClose(got.o, want.o, {.absolute = 0.02, .cosine = 0.999});
    }
  }
}

TEST_P(AttendTest, NanStaysInItsRow) {
  Rng rng(11);
  const Shape s{4, 2, 64};
  for (DType dtype : kCacheTypes) {
    const Cache cache(rng, s, dtype, 600);
    for (int64_t rows : {3, 20, 300}) {
      std::vector<float> q = RandomNormal(rng, rows * s.heads * s.dim);
      const auto at = static_cast<size_t>(s.heads * s.dim + 64 + 9);  // row 1, head 1
      q[at] = std::nanf("");
      const AttendParams::Segment segment{.rows = {.count = rows, .position = 600 - rows},
                                          .kv = cache.view()};
      const Output r = Attend(*ops_, q, s, {&segment, 1});
      for (size_t i = 0; i < r.lse.size(); ++i) {
        EXPECT_EQ(std::isnan(r.lse[i]), i == 5) << i;
        for (size_t d = 0; d < 64; ++d) EXPECT_EQ(std::isnan(r.o[i * 64 + d]), i == 5) << i;
      }
      q[at] = 0;
      const Output after = Attend(*ops_, q, s, {&segment, 1});
      for (float x : after.o) ASSERT_TRUE(std::isfinite(x)) << "a NaN stayed behind";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AttendTest, ::testing::ValuesIn(BackendNames()),
                         [](const auto& i) { return i.param; });

}  // namespace
}  // namespace baton::test
