// Norm and Store against the reference: the content of the cache afterwards, byte for byte where
// the arithmetic allows.
#include <cmath>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "base/buffer.h"
#include "kv/low_bit.h"
#include "tests/ops/op_test_util.h"

namespace baton::test {
namespace {

class StoreTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ops_ = MakeBackend(GetParam(), threads_);
    if (!ops_) GTEST_SKIP() << kNoBackend;
  }
  ThreadPool threads_{2};
  ThreadPool one_{1};
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Ops> ref_ = MakeReferenceOps(one_);
};

struct Cache {
  KvLayout layout;
  std::vector<int32_t> pages;
  Buffer memory;
  int64_t length;

  Cache(KvLayout l, int64_t n) : layout(l), length(n) {
    const int64_t count = (n + KvLayout::kSlots - 1) / KvLayout::kSlots;
    pages.resize(static_cast<size_t>(count));
    std::iota(pages.rbegin(), pages.rend(), 0);  // last page first: nothing may assume an order
    memory = Buffer::AllocateOrDie(l.arena_bytes(count), TestMemory());
  }
  KvView view() const {
    return {.arena = memory.data(),
            .low_bits = memory.data() + std::ssize(pages) * layout.page_bytes(),
            .pages = pages.data(),
            .length = length,
            .layout = layout};
  }
  std::vector<float> Element(bool value) const {
    std::vector<float> out;
    const KvView kv = view();
    for (int64_t n = 0; n < length; ++n) {
      for (int h = 0; h < layout.kv_heads; ++h) {
        const std::byte* p =
            kv.row(n) + (value ? layout.value_offset() : 0) + h * layout.head_bytes();
        for (int64_t d = 0; d < layout.head_dim; ++d) {
          out.push_back(layout.dtype == DType::kF32 ? reinterpret_cast<const float*>(p)[d]
                        : layout.dtype == DType::kBF16
                            ? ToFloat(reinterpret_cast<const bf16*>(p)[d])
                            : reinterpret_cast<const int8_t*>(p)[d] * *kv.scale(n, value, h));
        }
      }
    }
    return out;
  }
  std::vector<float> LowBit() const {
    std::vector<float> out;
    for (int64_t n = 0; n < length; ++n) {
      for (int h = 0; h < layout.kv_heads; ++h) {
        std::vector<float> k(static_cast<size_t>(layout.head_dim));
        LoadLowBit(view(), n, h, k.data());
        out.insert(out.end(), k.begin(), k.end());
      }
    }
    return out;
  }
};

struct Inputs {
  int64_t rows, heads, kv_heads, dim;
  std::vector<float> q, k, v, q_norm, k_norm, cos, sin;

  Inputs(Rng& rng, int64_t t, int64_t hq, int64_t hkv, int64_t d)
      : rows(t), heads(hq), kv_heads(hkv), dim(d) {
    q = RandomNormal(rng, t * hq * d);
    k = RandomNormal(rng, t * hkv * d, 3);
    v = RandomNormal(rng, t * hkv * d);
    q_norm = RandomNormal(rng, d, 0.2f, 1);
    k_norm = RandomNormal(rng, d, 0.2f, 1);
    for (float a : RandomNormal(rng, t * d / 2, 2)) {
      cos.push_back(std::cos(a));
      sin.push_back(std::sin(a));
    }
  }
  void Store(Ops& ops, std::span<const StoreParams::Segment> segments, bool norm,
             bool interleaved) {
    ops.Store({.q = View<float>(q.data(), {rows, heads, dim}),
               .k = View<float>(k.data(), {rows, kv_heads, dim}),
               .v = View<const float>(v.data(), {rows, kv_heads, dim}),
               .q_norm = norm ? q_norm.data() : nullptr,
               .k_norm = norm ? k_norm.data() : nullptr,
               .norm_eps = 1e-6f,
               .cos = View<const float>(cos.data(), {rows, dim / 2}),
               .sin = View<const float>(sin.data(), {rows, dim / 2}),
               .interleaved = interleaved,
               .segments = segments});
  }
};

void ExpectSameCache(const Cache& got, const Cache& want, const std::string& what) {
  // The norm's sum may round differently, and then an element near a rounding boundary is rounded
  // to the other side.
  const double step = got.layout.dtype == DType::kI8     ? 0.03
                      : got.layout.dtype == DType::kBF16 ? 0.008
                                                         : 1e-6;
  const Tolerance tol{.relative = step, .absolute = step, .cosine = 0.99999};
  ExpectClose(got.Element(false), want.Element(false), tol, what + " K");
  ExpectClose(got.Element(true), want.Element(true), {}, what + " V");
  if (got.layout.low_bit)
    ExpectClose(got.LowBit(), want.LowBit(), {.absolute = 0.6, .cosine = 0.9999},
                what + " low bit");
}

TEST_P(StoreTest, MatchesReference) {
  Rng rng(1);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    for (int64_t dim : {16, 64, 96, 256}) {
      for (int64_t rows : {1, 2, 40}) {
        for (int variant = 0; variant < 4; ++variant) {
          const bool norm = variant & 1, interleaved = variant & 2;
          const KvLayout layout{
              .dtype = dtype, .kv_heads = 2, .head_dim = dim, .low_bit = dim % 32 == 0};
          Inputs a(rng, rows, 6, 2, dim);
          Inputs b = a;
          // Two segments that start in the middle of a page and, for the long one, cross into the
          // next.
          Cache got(layout, 130), got2(layout, 10), want(layout, 130), want2(layout, 10);
          const int64_t first = rows > 1 ? rows - 1 : 1;
          const auto segments = [&](const Cache& x, const Cache& y) {
            std::vector<StoreParams::Segment> s = {
                {{.first = 0, .count = first, .position = 50}, x.view()}};
            if (rows > first) s.push_back({{.first = first, .count = 1, .position = 3}, y.view()});
            return s;
          };
          a.Store(*ops_, segments(got, got2), norm, interleaved);
          b.Store(*ref_, segments(want, want2), norm, interleaved);
          const std::string what = std::string(Info(dtype).name) + " D " + std::to_string(dim) +
                                   " rows " + std::to_string(rows) + " variant " +
                                   std::to_string(variant);
          ExpectClose(a.q, b.q, {.absolute = 1e-6, .cosine = 0.999999}, what + " q");
          ExpectClose(a.k, b.k, {.absolute = 1e-6, .cosine = 0.999999}, what + " k");
          ExpectSameCache(got, want, what);
          ExpectSameCache(got2, want2, what);
        }
      }
    }
  }
}

TEST_P(StoreTest, WithoutNormCacheBytesEqualTheReference) {
  Rng rng(2);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    const KvLayout layout{.dtype = dtype, .kv_heads = 3, .head_dim = 64, .low_bit = true};
    Inputs a(rng, 20, 3, 3, 64);
    std::fill(a.cos.begin(), a.cos.end(), 1.0f);
    std::fill(a.sin.begin(), a.sin.end(), 0.0f);
    std::fill_n(a.k.begin() + 64, 64, 0.0f);  // an all-zero head has scale 0
    Inputs b = a;
    Cache got(layout, 64), want(layout, 64);
    const StoreParams::Segment x{{.count = 20, .position = 7}, got.view()},
        y{{.count = 20, .position = 7}, want.view()};
    a.Store(*ops_, {&x, 1}, false, false);
    b.Store(*ref_, {&y, 1}, false, false);
    EXPECT_EQ(std::memcmp(got.memory.data(), want.memory.data(),
                          static_cast<size_t>(layout.arena_bytes(1))),
              0)
        << Info(dtype).name;
  }
}

TEST_P(StoreTest, AppendingTouchesOnlyItsSlot) {
  Rng rng(3);
  const KvLayout layout{.dtype = DType::kBF16, .kv_heads = 2, .head_dim = 64, .low_bit = true};
  Cache cache(layout, 64);
  Inputs all(rng, 32, 4, 2, 64);
  const StoreParams::Segment s{{.count = 32, .position = 0}, cache.view()};
  all.Store(*ops_, {&s, 1}, false, false);
  const std::vector<float> k = cache.Element(false), low = cache.LowBit();
  Inputs one(rng, 1, 4, 2, 64);
  const StoreParams::Segment t{{.count = 1, .position = 20}, cache.view()};
  one.Store(*ops_, {&t, 1}, false, false);
  const std::vector<float> k2 = cache.Element(false), low2 = cache.LowBit();
  for (size_t i = 0; i < k.size(); ++i) {
    if (i / 128 == 20) continue;
    ASSERT_EQ(k[i], k2[i]) << i;
    ASSERT_EQ(low[i], low2[i]) << i;
  }
  EXPECT_NE(k[20 * 128], k2[20 * 128]);
}

TEST_P(StoreTest, NanInKIsNoCrash) {
  Rng rng(4);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    const KvLayout layout{.dtype = dtype, .kv_heads = 2, .head_dim = 32, .low_bit = true};
    Cache cache(layout, 1);
    Inputs x(rng, 1, 2, 2, 32);
    x.k[5] = std::nanf("");
    const StoreParams::Segment s{{.count = 1, .position = 0}, cache.view()};
    x.Store(*ops_, {&s, 1}, false, false);
    if (dtype != DType::kI8) EXPECT_TRUE(std::isnan(cache.Element(false)[5]));
  }
}

// A cache without values, written from k alone: partial rotation, rounding and the absent parts.
TEST_P(StoreTest, OptionalPartsMatchReference) {
  Rng rng(6);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    for (int64_t rotated : {0, 16, 48, 64}) {
      for (int variant = 0; variant < 8; ++variant) {
        const bool queries = variant & 1, round = variant & 2, interleaved = variant & 4;
        const KvLayout layout{
            .dtype = dtype, .kv_heads = 3, .head_dim = 64, .low_bit = true, .values = false};
        Inputs a(rng, 20, 5, 3, 64);
        Inputs b = a;
        Cache got(layout, 70), want(layout, 70);
        const auto store = [&](Ops& ops, Inputs& x, const Cache& cache) {
          const StoreParams::Segment segment{{.count = 20, .position = 50}, cache.view()};
          StoreParams p{.k = View<float>(x.k.data(), {20, 3, 64}),
                        .k_norm = x.k_norm.data(),
                        .norm_eps = 1e-6f,
                        .interleaved = interleaved,
                        .round_bf16 = round,
                        .segments = {&segment, 1}};
          if (queries) p.q = View<float>(x.q.data(), {20, 5, 64});
          if (rotated > 0) {
            p.cos = View<const float>(x.cos.data(), {20, rotated / 2});
            p.sin = View<const float>(x.sin.data(), {20, rotated / 2});
          }
          ops.Store(p);
        };
        const std::vector<float> q_before = a.q;
        store(*ops_, a, got);
        store(*ref_, b, want);
        const std::string what = std::string(Info(dtype).name) + " rotated " +
                                 std::to_string(rotated) + " variant " + std::to_string(variant);
        // A value near a rounding boundary may be rounded to the other side.
        const double step = round ? 0.008 : 1e-6;
        const Tolerance tol{.relative = step, .absolute = 1e-6, .cosine = 0.99999};
        ExpectClose(a.q, b.q, tol, what + " q");
        ExpectClose(a.k, b.k, tol, what + " k");
        ExpectClose(got.Element(false), want.Element(false),
                    {.relative = dtype == DType::kF32 ? step : 0.03,
                     .absolute = dtype == DType::kF32 ? 1e-6 : 0.03,
                     .cosine = 0.9999},
                    what + " K");
        ExpectClose(got.LowBit(), want.LowBit(), {.absolute = 0.6, .cosine = 0.9999}, what);
        if (!queries) {
          EXPECT_EQ(a.q, q_before) << what;
        }
        for (float x : a.k) EXPECT_TRUE(!round || ToFloat(ToBf16(x)) == x) << what;
      }
    }
  }
}

TEST_P(StoreTest, PartialRotationLeavesTheRestAlone) {
  Rng rng(7);
  for (bool interleaved : {false, true}) {
    Inputs x(rng, 3, 2, 1, 64), whole(rng, 3, 2, 1, 16);
    for (int64_t r = 0; r < 6; ++r) std::copy_n(x.q.data() + r * 64, 16, whole.q.data() + r * 16);
    const std::vector<float> before = x.q;
    const auto rotate = [&](Inputs& i, int64_t dim) {
      ops_->Store({.q = View<float>(i.q.data(), {3, 2, dim}),
                   .cos = View<const float>(x.cos.data(), {3, 8}),
                   .sin = View<const float>(x.sin.data(), {3, 8}),
                   .interleaved = interleaved});
    };
    rotate(x, 64);
    rotate(whole, 16);
    for (size_t i = 0; i < x.q.size(); ++i) {
      const size_t head = i / 64, d = i % 64;
      EXPECT_EQ(x.q[i], d < 16 ? whole.q[head * 16 + d] : before[i]) << i;
    }
    EXPECT_NE(x.q[0], before[0]);
  }
}

TEST(KvLayoutTest, RowsOfKAloneTakeHalfTheBytes) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    KvLayout both{.dtype = dtype, .kv_heads = 2, .head_dim = 64};
    KvLayout keys = both;
    keys.values = false;
    EXPECT_EQ(keys.row_bytes() * 2, both.row_bytes());
    EXPECT_EQ(keys.page_bytes() * 2, both.page_bytes());
    EXPECT_EQ(keys.scales_bytes() * 2, both.scales_bytes());
  }
}

TEST_P(StoreTest, NormMatchesReference) {
  Rng rng(5);
  for (int64_t n : {1, 7, 64, 576, 640}) {
    for (int64_t rows : {1, 3, 50}) {
      for (bool accumulate : {false, true}) {
        const std::vector<float> x = RandomNormal(rng, rows * n), w = RandomNormal(rng, n, 0.3f, 1);
        const std::vector<float> start = RandomNormal(rng, rows * n);
        std::vector<float> got = start, want = start;
        const auto run = [&](Ops& ops, std::vector<float>& y) {
          ops.Norm({.x = View<const float>(x.data(), {rows, n}),
                    .weight = w.data(),
                    .eps = 1e-5f,
                    .y = View<float>(y.data(), {rows, n}),
                    .accumulate = accumulate});
        };
        run(*ops_, got);
        run(*ref_, want);
        ExpectClose(got, want, {.relative = 1e-6, .absolute = 1e-6, .cosine = 0.999999});
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, StoreTest, ::testing::ValuesIn(BackendNames()),
                         [](const auto& i) { return i.param; });

}  // namespace
}  // namespace baton::test
