#include "kv/kv_store.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "base/thread_pool.h"
#include "kv/low_bit.h"

namespace baton {
namespace {

constexpr KvLayout kSmall{.dtype = DType::kBF16, .kv_heads = 2, .head_dim = 32, .low_bit = true};

std::unique_ptr<KvStore> MakeStore(int caches, int64_t max_tokens, KvLayout layout = kSmall) {
  auto store = KvStore::Create(
      std::vector<KvCacheSpec>(static_cast<size_t>(caches), {.layout = layout}), max_tokens);
  EXPECT_TRUE(store.ok());
  return std::move(store).value();
}

RC_GTEST_PROP(PagePool, HandsOutTheLowestFreeId, ()) {
  const int pages = *rc::gen::inRange(0, 5000);
  PagePool pool(pages);
  std::set<int32_t> free, taken;
  for (int i = 0; i < pages; ++i) free.insert(free.end(), i);
  const int steps = *rc::gen::inRange(1, 400);
  for (int i = 0; i < steps; ++i) {
    if (*rc::gen::inRange(0, 3) > 0 || taken.empty()) {
      const int burst = *rc::gen::inRange(1, 200);
      for (int j = 0; j < burst; ++j) {
        const int32_t id = pool.Acquire();
        RC_ASSERT(id == (free.empty() ? -1 : *free.begin()));
        if (id < 0) break;
        free.erase(id);
        taken.insert(id);
      }
    } else {
      auto it = std::next(taken.begin(), *rc::gen::inRange<int64_t>(0, std::ssize(taken)));
      pool.Release(*it);
      free.insert(*it);
      taken.erase(it);
    }
    RC_ASSERT(pool.free_pages() == std::ssize(free));
    RC_ASSERT(pool.used_pages() == std::ssize(taken));
  }
}

TEST(PagePool, EmptyPoolHasNothing) {
  PagePool pool(0);
  EXPECT_EQ(pool.Acquire(), -1);
}

TEST(KvStore, FreshSequenceIsContiguous) {
  auto store = MakeStore(2, 64 * 100);
  KvSequence s = store->NewSequence();
  ASSERT_TRUE(s.Reserve(64 * 70 + 1).ok());
  for (int i = 0; i <= 70; ++i) EXPECT_EQ(s.View(0).pages[i], i);
}

TEST(KvStore, LengthsAroundPageEdges) {
  auto store = MakeStore(1, 64 * 8);
  for (int64_t n : {0, 1, 63, 64, 65, 127, 128, 129, 511, 512}) {
    KvSequence s = store->NewSequence();
    ASSERT_TRUE(s.Reserve(n).ok());
    EXPECT_EQ(s.length(), n);
    EXPECT_EQ(store->bytes_in_use(), (n + 63) / 64 * kSmall.arena_bytes(1));
    EXPECT_EQ(s.View(0).length, n);
    EXPECT_EQ(s.View(0, n / 2).length, n / 2);
  }
  EXPECT_EQ(store->bytes_in_use(), 0);
}

TEST(KvStore, ReserveNeverShortens) {
  auto store = MakeStore(1, 640);
  KvSequence s = store->NewSequence();
  ASSERT_TRUE(s.Reserve(300).ok());
  ASSERT_TRUE(s.Reserve(100).ok());
  EXPECT_EQ(s.length(), 300);
}

TEST(KvStore, TruncateKeepsWhatItKeeps) {
  auto store = MakeStore(2, 640);
  KvSequence s = store->NewSequence();
  ASSERT_TRUE(s.Reserve(640).ok());
  for (int64_t p = 0; p < 640; ++p) {
    std::memset(s.View(1).row(p), static_cast<int>(p % 251),
                static_cast<size_t>(kSmall.row_bytes()));
  }
  s.Truncate(130);
  KvSequence other = store->NewSequence();
  ASSERT_TRUE(other.Reserve(64 * 7).ok());
  std::memset(other.View(1).page(0), 0xff, static_cast<size_t>(7 * kSmall.page_bytes()));
  EXPECT_FALSE(s.Reserve(193).ok());
  other.Truncate(0);
  ASSERT_TRUE(s.Reserve(640).ok());
  for (int64_t p = 0; p < 130; ++p) {
    EXPECT_EQ(std::to_integer<int>(*s.View(1).row(p)), p % 251);
  }
}

TEST(KvStore, FullStoreIsAnErrorAndChangesNothing) {
  auto store = MakeStore(1, 256);
  KvSequence a = store->NewSequence(), b = store->NewSequence();
  ASSERT_TRUE(a.Reserve(129).ok());
  ASSERT_TRUE(b.Reserve(10).ok());
  for (int64_t n : {int64_t{65}, int64_t{1} << 40, std::numeric_limits<int64_t>::max()}) {
    Status s = b.Reserve(n);
    ASSERT_FALSE(s.ok());
    EXPECT_EQ(s.error().code(), Error::Code::kResource);
    EXPECT_FALSE(s.error().hint().empty());
    EXPECT_EQ(b.length(), 10);
  }
  EXPECT_TRUE(b.Reserve(64).ok());
}

TEST(KvStore, MovingKeepsPagesOnce) {
  auto store = MakeStore(1, 640);
  {
    KvSequence a = store->NewSequence();
    ASSERT_TRUE(a.Reserve(100).ok());
    KvSequence b = std::move(a);
    KvSequence c = store->NewSequence();
    ASSERT_TRUE(c.Reserve(300).ok());
    c = std::move(b);
    EXPECT_EQ(c.length(), 100);
    EXPECT_EQ(store->bytes_in_use(), kSmall.arena_bytes(2));
  }
  EXPECT_EQ(store->bytes_in_use(), 0);
}

RC_GTEST_PROP(KvStore, RandomUseNeitherLeaksNorOverlaps, ()) {
  constexpr int64_t kPages = 40;
  auto store = MakeStore(1, kPages * 64);
  std::vector<KvSequence> sequences;
  std::vector<int64_t> lengths;
  const int steps = *rc::gen::inRange(1, 100);
  for (int i = 0; i < steps; ++i) {
    const int action = *rc::gen::inRange(0, 4);
    if (action == 0 || sequences.empty()) {
      sequences.push_back(store->NewSequence());
      lengths.push_back(0);
      continue;
    }
    const auto at = static_cast<size_t>(*rc::gen::inRange<int64_t>(0, std::ssize(sequences)));
    int64_t used = 0;
    for (int64_t n : lengths) used += (n + 63) / 64;
    if (action == 1) {
      std::swap(sequences[at], sequences.back());
      sequences.pop_back();
      std::swap(lengths[at], lengths.back());
      lengths.pop_back();
    } else if (action == 2) {
      const int64_t n = *rc::gen::inRange<int64_t>(0, 1200);
      const int64_t more = std::max<int64_t>(0, (n + 63) / 64 - (lengths[at] + 63) / 64);
      const bool ok = sequences[at].Reserve(n).ok();
      RC_ASSERT(ok == (used + more <= kPages));
      if (ok) lengths[at] = std::max(lengths[at], n);
    } else {
      const int64_t n = *rc::gen::inRange<int64_t>(0, 1200);
      sequences[at].Truncate(n);
      lengths[at] = std::min(lengths[at], n);
    }
    std::set<int32_t> pages;
    int64_t expected = 0;
    for (size_t s = 0; s < sequences.size(); ++s) {
      RC_ASSERT(sequences[s].length() == lengths[s]);
      const int64_t count = (lengths[s] + 63) / 64;
      expected += count;
      for (int64_t p = 0; p < count; ++p) {
        const int32_t page = sequences[s].View(0).pages[p];
        RC_ASSERT(page >= 0 && page < kPages);
        RC_ASSERT(pages.insert(page).second);
      }
    }
    RC_ASSERT(store->bytes_in_use() == expected * kSmall.arena_bytes(1));
  }
  sequences.clear();
  RC_ASSERT(store->bytes_in_use() == 0);
}

TEST(KvStore, BadInputIsAnError) {
  EXPECT_FALSE(KvStore::Create({}, 64).ok());
  EXPECT_FALSE(KvStore::Create({{kSmall}}, 0).ok());
  EXPECT_FALSE(KvStore::Create({{kSmall}}, -5).ok());
  EXPECT_FALSE(KvStore::Create({{kSmall}}, std::numeric_limits<int64_t>::max()).ok());
  KvLayout l = kSmall;
  l.dtype = DType::kQ4_0;
  EXPECT_FALSE(KvStore::Create({{l}}, 64).ok());
  l = kSmall;
  l.head_dim = 40;
  EXPECT_FALSE(KvStore::Create({{l}}, 64).ok());
  l.low_bit = false;
  EXPECT_FALSE(KvStore::Create({{l}}, 64).ok());
  l.head_dim = 48;
  EXPECT_TRUE(KvStore::Create({{l}}, 64).ok());
  EXPECT_FALSE(KvStore::Create({{kSmall}, {l}}, 64, {.alias_bytes = 1}).ok());
  l.kv_heads = 0;
  EXPECT_FALSE(KvStore::Create({{l}}, 64).ok());
}

TEST(KvStore, AliasedLayersShareMemory) {
  auto store = KvStore::Create({{kSmall}, {kSmall}, {kSmall}}, 128, {.alias_bytes = 1});
  ASSERT_TRUE(store.ok());
  EXPECT_TRUE((*store)->aliased());
  KvSequence s = (*store)->NewSequence();
  ASSERT_TRUE(s.Reserve(100).ok());
  EXPECT_EQ(s.View(0).row(99), s.View(2).row(99));
  EXPECT_EQ((*store)->bytes_in_use(), kSmall.arena_bytes(2));
}

TEST(KvStore, AliasingKeepsAsManyArenasAsHoldTheBytes) {
  const int64_t arena = kSmall.arena_bytes(2);
  for (const auto& [bytes, arenas] : {std::pair{int64_t{0}, 5},
                                      {int64_t{1}, 1},
                                      {arena, 1},
                                      {arena + 1, 2},
                                      {3 * arena, 3},
                                      {100 * arena, 5}}) {
    auto store = KvStore::Create(std::vector<KvCacheSpec>(5, {.layout = kSmall}), 128,
                                 {.alias_bytes = bytes});
    ASSERT_TRUE(store.ok());
    EXPECT_EQ((*store)->arenas(), arenas);
    EXPECT_EQ((*store)->aliased(), arenas < 5);
    KvSequence s = (*store)->NewSequence();
    ASSERT_TRUE(FillSynthetic(**store, s, 128, 3).ok());
    EXPECT_EQ((*store)->bytes_in_use(), arenas * arena);
    for (int a = 0; a < 5; ++a) {
      for (int b = 0; b < 5; ++b) {
        EXPECT_EQ(s.View(a).arena == s.View(b).arena, a % arenas == b % arenas);
        EXPECT_EQ(std::memcmp(s.View(a).page(64), s.View(b).page(64),
                              static_cast<size_t>(kSmall.page_bytes())) == 0,
                  a % arenas == b % arenas);
      }
    }
  }
}

TEST(KvStore, LayersOfDifferentLayoutDoNotOverlap) {
  KvLayout wide{.dtype = DType::kI8, .kv_heads = 1, .head_dim = 256, .low_bit = false};
  auto store = KvStore::Create({{kSmall}, {wide}}, 256);
  ASSERT_TRUE(store.ok());
  KvSequence s = (*store)->NewSequence();
  ASSERT_TRUE(s.Reserve(256).ok());
  std::memset(s.View(0).page(0), 1, static_cast<size_t>(4 * kSmall.page_bytes()));
  std::memset(s.View(0).low_bit(0, 0, 0), 3, static_cast<size_t>(4 * kSmall.low_bit_bytes()));
  std::memset(s.View(1).page(0), 2, static_cast<size_t>(4 * wide.page_bytes()));
  EXPECT_EQ(std::to_integer<int>(s.View(0).page(255)[kSmall.page_bytes() - 1]), 1);
  EXPECT_EQ(std::to_integer<int>(s.View(1).page(0)[0]), 2);
  EXPECT_EQ(s.View(0).low_bit(255, 1, 0)->scale[15], 0x0303);
  EXPECT_EQ(s.View(1).low_bits, nullptr);
}

float KeyOf(const KvView& kv, int64_t position, int head, int c) {
  const std::byte* k = kv.row(position) + head * kv.layout.head_bytes();
  switch (kv.layout.dtype) {
    case DType::kF32:
      return reinterpret_cast<const float*>(k)[c];
    case DType::kBF16:
      return ToFloat(reinterpret_cast<const bf16*>(k)[c]);
    default:
      return reinterpret_cast<const int8_t*>(k)[c] * *kv.scale(position, false, head);
  }
}

class SyntheticTest : public testing::TestWithParam<DType> {};

TEST_P(SyntheticTest, IsRoughlyNormalAndLowBitFollowsK) {
  const KvLayout layout{.dtype = GetParam(), .kv_heads = 2, .head_dim = 64, .low_bit = true};
  auto store = KvStore::Create({{layout}, {layout}}, 1000);
  ASSERT_TRUE(store.ok());
  KvSequence s = (*store)->NewSequence();
  ASSERT_TRUE(FillSynthetic(**store, s, 777, 5).ok());
  EXPECT_EQ(s.length(), 777);
  double sum = 0, squares = 0, low_error = 0;
  int64_t n = 0;
  for (int layer = 0; layer < 2; ++layer) {
    const KvView kv = s.View(layer);
    for (int64_t p = 0; p < 777; ++p) {
      for (int h = 0; h < 2; ++h) {
        float low[64];
        LoadLowBit(kv, p, h, low);
        for (int c = 0; c < 64; ++c, ++n) {
          const float k = KeyOf(kv, p, h, c);
          sum += k;
          squares += k * k;
          low_error += (low[c] - k) * (low[c] - k);
        }
      }
    }
  }
  EXPECT_NEAR(sum / n, 0, 0.02);
  EXPECT_NEAR(squares / n, 1, 0.1);
  EXPECT_LT(low_error / squares, 0.02);
}
INSTANTIATE_TEST_SUITE_P(DTypes, SyntheticTest,
                         testing::Values(DType::kF32, DType::kBF16, DType::kI8));

TEST(Synthetic, DoesNotDependOnThreadsOrPages) {
  auto store = MakeStore(2, 1000);
  ThreadPool threads(2);
  KvSequence gap = store->NewSequence(), a = store->NewSequence();
  ASSERT_TRUE(gap.Reserve(100).ok());
  ASSERT_TRUE(FillSynthetic(*store, a, 200, 9, &threads).ok());
  auto fresh = MakeStore(2, 1000);
  KvSequence b = fresh->NewSequence();
  ASSERT_TRUE(FillSynthetic(*fresh, b, 300, 9).ok());
  for (int64_t p = 0; p < 200; p += 64) {
    EXPECT_EQ(
        std::memcmp(a.View(1).page(p), b.View(1).page(p), static_cast<size_t>(kSmall.page_bytes())),
        0);
    EXPECT_EQ(std::memcmp(a.View(1).low_bit(p, 0, 0), b.View(1).low_bit(p, 0, 0),
                          static_cast<size_t>(kSmall.low_bit_bytes())),
              0);
  }
  EXPECT_NE(
      std::memcmp(a.View(1).page(0), a.View(0).page(0), static_cast<size_t>(kSmall.row_bytes())),
      0);
  EXPECT_EQ(FillSynthetic(*store, a, 5000, 9).error().code(), Error::Code::kResource);
}

}  // namespace
}  // namespace baton
