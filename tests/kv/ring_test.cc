// Lifetimes of caches: what rings hold, what they drop, and what they must never lose.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <set>
#include <vector>

#include "kv/kv_store.h"
#include "kv/low_bit.h"
#include "tests/kv/kv_test_util.h"

namespace baton {
namespace {

using test::MakeStore;

constexpr int64_t kSlots = KvLayout::kSlots;
constexpr KvLayout kSmall{.dtype = DType::kI8, .kv_heads = 2, .head_dim = 32, .low_bit = true};

int64_t PagesOf(int64_t tokens) { return (tokens + kSlots - 1) / kSlots; }

bool Holds(const KvView& kv, int64_t position) { return kv.pages[position / kSlots] >= 0; }

int64_t HeldPages(const KvSequence& s, int cache) {
  const KvView kv = s.View(cache);
  return PagesOf(kv.length) - std::count(kv.pages, kv.pages + PagesOf(kv.length), int32_t{-1});
}

// Writes a token that differs from all others: rows, scales and low-bit copies.
void Write(const KvView& kv, int64_t position, int stamp) {
  const KvLayout& l = kv.layout;
  std::memset(kv.row(position), stamp % 251, static_cast<size_t>(l.row_bytes()));
  for (int head = 0; head < l.kv_heads; ++head) {
    for (bool value : {false, true}) *kv.scale(position, value, head) = static_cast<float>(stamp);
    kv.low_bit(position, head, 0)->scale[position % 16] = static_cast<uint16_t>(stamp);
  }
}

bool Reads(const KvView& kv, int64_t position, int stamp) {
  const KvLayout& l = kv.layout;
  const auto* row = reinterpret_cast<const uint8_t*>(kv.row(position));
  bool same = std::all_of(row, row + l.row_bytes(), [&](uint8_t b) { return b == stamp % 251; });
  for (int head = 0; head < l.kv_heads; ++head) {
    for (bool value : {false, true})
      same &= *kv.scale(position, value, head) == static_cast<float>(stamp);
    same &= kv.low_bit(position, head, 0)->scale[position % 16] == static_cast<uint16_t>(stamp);
  }
  return same;
}

// The earlier positions that the row at `position` reads.
std::vector<int64_t> Window(int64_t position, int64_t sink, int64_t recent) {
  std::vector<int64_t> read;
  for (int64_t n = 0; n < position; ++n) {
    if (recent == 0 || n < sink || n > position - recent) read.push_back(n);
  }
  return read;
}

// A sequence, and the content that it should have by the definitions alone.
struct Model {
  KvSequence sequence;
  std::vector<KvCacheSpec> caches;  // present lifetimes
  std::vector<int> stamps;          // by position

  void CheckRow(int64_t position) const {
    for (size_t c = 0; c < caches.size(); ++c) {
      const KvView kv = sequence.View(static_cast<int>(c));
      for (int64_t n : Window(position, caches[c].sink, caches[c].recent)) {
        RC_ASSERT(Holds(kv, n));
        RC_ASSERT(Reads(kv, n, stamps[static_cast<size_t>(n)]));
      }
    }
  }
  int64_t length() const { return std::ssize(stamps); }

  void CheckHeld(bool evicted) const {
    RC_ASSERT(sequence.length() == length());
    int64_t held_bytes = 0, allocated_bytes = 0;
    for (size_t i = 0; i < caches.size(); ++i) {
      const auto c = static_cast<int>(i);
      const KvCacheSpec& spec = caches[i];
      const int64_t tokens =
          spec.recent == 0 ? length() : std::min(length(), spec.sink + spec.recent);
      RC_ASSERT(sequence.length(c) == length());
      RC_ASSERT(sequence.held_tokens(c) == tokens);
      const int64_t pages = HeldPages(sequence, c);
      RC_ASSERT(pages * kSlots >= tokens);
      if (evicted) RC_ASSERT(pages <= PagesOf(tokens) + (spec.recent == 0 ? 0 : 2));
      held_bytes += tokens * KvTokenBytes(spec.layout);
      allocated_bytes += spec.layout.arena_bytes(pages);
    }
    RC_ASSERT(sequence.held_bytes() == held_bytes);
    RC_ASSERT(sequence.allocated_bytes() == allocated_bytes);
  }
  // The definition: the row at the cut finds its window, and the token before the cut is held.
  bool CanTruncate(int64_t tokens) const {
    bool can = true;
    for (size_t c = 0; c < caches.size() && tokens > 0; ++c) {
      const KvView kv = sequence.View(static_cast<int>(c));
      for (int64_t n : Window(tokens, caches[c].sink, caches[c].recent)) can &= Holds(kv, n);
      can &= Holds(kv, tokens - 1);
    }
    return can;
  }
};

RC_GTEST_PROP(Ring, RandomUseHoldsWhatRowsReadAndLittleElse, ()) {
  std::vector<KvCacheSpec> specs{{.layout = kSmall}};
  for (int i = 0; i < 2; ++i) {
    specs.push_back({.layout = kSmall,
                     .sink = *rc::gen::element<int64_t>(0, 1, 4, 63, 64, 65, 150),
                     .recent = *rc::gen::oneOf(rc::gen::inRange<int64_t>(1, 4),
                                               rc::gen::inRange<int64_t>(1, 400))});
  }
  auto store = MakeStore(specs, 6000);
  std::vector<Model> models;
  for (int i = 0; i < 2; ++i) models.push_back({store->NewSequence(), specs, {}});
  int stamp = 0;
  const int steps = *rc::gen::inRange(1, 40);
  for (int step = 0; step < steps; ++step) {
    Model& m = models[static_cast<size_t>(*rc::gen::inRange(0, 2))];
    const int action = *rc::gen::inRange(0, 10);
    bool evicted = false;
    if (action < 7) {  // a pass
      const int64_t begin = m.length();
      const int64_t count = *rc::gen::element<int64_t>(1, 1, 2, 64, 100, 300);
      if (!m.sequence.Reserve(begin + count).ok()) continue;
      for (int64_t p = begin; p < begin + count; ++p) {
        m.stamps.push_back(++stamp);
        for (size_t c = 0; c < specs.size(); ++c)
          Write(m.sequence.View(static_cast<int>(c)), p, stamp);
      }
      for (int64_t p : {begin, begin + count / 2, begin + count - 1}) m.CheckRow(p);
      m.sequence.Evict();
      evicted = true;
    } else if (action < 9) {
      const int64_t n = std::max<int64_t>(0, m.length() - *rc::gen::inRange<int64_t>(0, 200));
      RC_ASSERT(m.sequence.CanTruncate(n) == (n == m.length() || m.CanTruncate(n)));
      if (!m.sequence.CanTruncate(n)) continue;
      m.sequence.Truncate(n);
      m.stamps.resize(static_cast<size_t>(n));
      if (n == 0) m.caches = specs;
    } else {
      const auto c = static_cast<size_t>(*rc::gen::inRange(0, 3));
      KvCacheSpec& spec = m.caches[c];
      spec.sink = spec.recent == 0 ? *rc::gen::inRange<int64_t>(0, 200)
                                   : *rc::gen::inRange<int64_t>(0, spec.sink + 1);
      spec.recent = *rc::gen::inRange<int64_t>(1, spec.recent == 0 ? 500 : spec.recent + 1);
      m.sequence.Keep(static_cast<int>(c), spec.sink, spec.recent);
      m.sequence.Evict();
      evicted = true;
    }
    m.CheckHeld(evicted);
    int64_t in_use = 0;
    for (const Model& each : models) {
      each.CheckRow(each.length());
      in_use += each.sequence.allocated_bytes();
    }
    RC_ASSERT(store->bytes_in_use() == in_use);
  }
  models.clear();
  RC_ASSERT(store->bytes_in_use() == 0);
}

TEST(Ring, DecodeReusesAFewPages) {
  auto store = MakeStore({{.layout = kSmall, .sink = 4, .recent = 128}}, 1 << 20);
  KvSequence s = store->NewSequence();
  std::set<int32_t> used;
  for (int64_t n = 1; n <= 5000; ++n) {
    ASSERT_TRUE(s.Reserve(n).ok());
    used.insert(s.View(0).pages[(n - 1) / kSlots]);
    s.Evict();
    EXPECT_EQ(s.held_tokens(0), std::min<int64_t>(n, 132));
    EXPECT_LE(HeldPages(s, 0), 4);
  }
  EXPECT_LE(*used.rbegin(), 4);
}

TEST(Ring, AnUnevictedPassKeepsEveryRowsWindow) {
  auto store = MakeStore({{.layout = kSmall, .sink = 0, .recent = 100}}, 4096);
  KvSequence s = store->NewSequence();
  ASSERT_TRUE(s.Reserve(1000).ok());
  s.Evict();
  ASSERT_TRUE(s.Reserve(2000).ok());
  for (int64_t p = 901; p < 2000; ++p) EXPECT_TRUE(Holds(s.View(0), p));
  EXPECT_FALSE(Holds(s.View(0), 800));
}

TEST(Ring, FullCacheLeavesTheOthersAlone) {
  const KvCacheSpec ring{.layout = kSmall, .sink = 1, .recent = 64}, all{.layout = kSmall};
  auto store = MakeStore({ring, all, ring}, 640);
  KvSequence a = store->NewSequence(), b = store->NewSequence();
  ASSERT_TRUE(a.Reserve(500).ok());
  a.Evict();
  ASSERT_TRUE(b.Reserve(70).ok());
  const int64_t before = store->bytes_in_use();
  const Status s = b.Reserve(129);
  ASSERT_FALSE(s.ok());
  EXPECT_EQ(s.error().code(), Error::Code::kResource);
  EXPECT_EQ(store->bytes_in_use(), before);
  EXPECT_EQ(b.length(), 70);
  for (int c = 0; c < 3; ++c) EXPECT_EQ(b.length(c), 70);
  // In one cache only: a ring has room where the full cache has none.
  EXPECT_TRUE(b.Reserve(0, 70, 300).ok());
  EXPECT_EQ(b.length(0), 300);
  EXPECT_EQ(b.length(), 70);
  EXPECT_EQ(b.Reserve(1, 70, 129).error().code(), Error::Code::kResource);
  EXPECT_EQ(b.length(1), 70);
  EXPECT_EQ(store->free_tokens(), 0);
  a.Truncate(0);
  EXPECT_TRUE(b.Reserve(300).ok());
  EXPECT_EQ(b.length(0), 300);
}

TEST(Ring, CachesRunAheadOfTheSequence) {
  auto store = MakeStore({{.layout = kSmall}, {.layout = kSmall, .sink = 0, .recent = 50}}, 2000);
  KvSequence s = store->NewSequence();
  for (int64_t p = 0; p < 1000; p += 100) {
    ASSERT_TRUE(s.Reserve(1, p, p + 100).ok());
    s.Evict(1);
  }
  EXPECT_EQ(s.length(), 0);
  EXPECT_EQ(s.length(0), 0);
  EXPECT_EQ(s.length(1), 1000);
  const int64_t ring = store->bytes_in_use();
  ASSERT_TRUE(s.Reserve(1000).ok());
  EXPECT_EQ(store->bytes_in_use(), ring + kSmall.arena_bytes(16));
  EXPECT_EQ(s.View(0).length, 1000);
  ASSERT_TRUE(s.Reserve(0, 1000, 1100).ok());
  EXPECT_EQ(s.length(), 1000);
  s.Truncate(1000);
  EXPECT_EQ(s.length(0), 1000);
}

// A ring that starts inside the sequence, in a pool whose free pages are full of NaN.
RC_GTEST_PROP(Ring, StartInsideReadsZerosBelow, ()) {
  const KvCacheSpec spec{.layout = kSmall,
                         .sink = *rc::gen::element<int64_t>(0, 0, 3, 64, 100),
                         .recent = *rc::gen::inRange<int64_t>(1, 300)};
  auto store = MakeStore({spec}, 4096);
  {
    KvSequence dirty = store->NewSequence();
    RC_ASSERT(dirty.Reserve(4096).ok());
    const KvView kv = dirty.View(0);
    std::memset(kv.page(0), 0xff, static_cast<size_t>(64 * kSmall.page_bytes()));
    std::memset(kv.low_bits, 0xff, static_cast<size_t>(64 * kSmall.low_bit_bytes()));
  }
  const int64_t written = *rc::gen::inRange<int64_t>(0, 400);
  const int64_t begin = written + *rc::gen::inRange<int64_t>(1, 900);
  const int64_t end = begin + *rc::gen::inRange<int64_t>(1, 200);
  KvSequence s = store->NewSequence();
  RC_ASSERT(s.Reserve(written).ok());
  for (int64_t p = 0; p < written; ++p) Write(s.View(0), p, static_cast<int>(p + 1));
  if (*rc::gen::arbitrary<bool>()) s.Evict();
  RC_ASSERT(s.Reserve(0, begin, end).ok());
  RC_ASSERT(s.length(0) == end);
  const KvView kv = s.View(0);
  for (int64_t n : Window(begin, spec.sink, spec.recent)) {
    RC_ASSERT(Holds(kv, n));
    RC_ASSERT(Reads(kv, n, n < written ? static_cast<int>(n + 1) : 0));
    float low[32];
    LoadLowBit(kv, n, 1, low);
    if (n >= written) RC_ASSERT(std::all_of(low, low + 32, [](float x) { return x == 0; }));
  }
  // Blocks that cross the window's edge are zero too.
  for (int64_t n = written; n < begin; ++n) {
    if (Holds(kv, n)) RC_ASSERT(Reads(kv, n, 0));
  }
  const int64_t rows = PagesOf(end) - begin / kSlots;
  RC_ASSERT(HeldPages(s, 0) <= PagesOf(spec.sink) + PagesOf(spec.recent) + 1 + rows);
  RC_ASSERT(s.allocated_bytes() == kSmall.arena_bytes(HeldPages(s, 0)));
  RC_ASSERT(store->bytes_in_use() == s.allocated_bytes());
  // Zeros are not tokens: no cut may make later rows read them.
  RC_ASSERT(!s.CanTruncate(begin));
  for (int64_t n = begin + 1; n < end; ++n) {
    const std::vector<int64_t> window = Window(n, spec.sink, spec.recent);
    RC_ASSERT(s.CanTruncate(n) == std::all_of(window.begin(), window.end(), [&](int64_t p) {
                return p < written || p >= begin;
              }));
  }
  for (int64_t n = end; n < end + 500; n += 50) {
    RC_ASSERT(s.Reserve(n).ok());
    s.Evict();
  }
  RC_ASSERT(HeldPages(s, 0) <= PagesOf(spec.sink + spec.recent) + 2);
  s.Truncate(0);
  RC_ASSERT(store->bytes_in_use() == 0);
}

TEST(Ring, CutBelowItsStartIsAnOrdinaryRing) {
  auto store = MakeStore({{.layout = kSmall, .sink = 0, .recent = 100}}, 4096);
  KvSequence s = store->NewSequence();
  ASSERT_TRUE(s.Reserve(300).ok());
  ASSERT_TRUE(s.Reserve(0, 330, 400).ok());
  EXPECT_FALSE(s.CanTruncate(320));
  s.Truncate(295);
  ASSERT_TRUE(s.Reserve(400).ok());
  EXPECT_TRUE(s.CanTruncate(320));
}

// A ring that holds `rollback` tokens more than it needs reports only what it needs, and can be cut
// back by that many, whatever page the cut is in.
TEST(Ring, RollbackIsHeldBesideTheLifetime) {
  auto store = MakeStore({{.layout = kSmall, .sink = 0, .recent = 20, .rollback = 9}}, 4096);
  KvSequence s = store->NewSequence();
  for (int64_t n = 1; n < 400; ++n) {
    ASSERT_TRUE(s.Reserve(n + 9).ok());
    s.Evict();
    EXPECT_EQ(s.held_tokens(0), std::min<int64_t>(n + 9, 20));
    EXPECT_TRUE(s.CanTruncate(n)) << n;
    s.Truncate(n);
    for (const int64_t p : Window(n, 0, 20)) EXPECT_TRUE(Holds(s.View(0), p));
  }
  EXPECT_LE(HeldPages(s, 0), 2);
}

// The first rows of a suffix hold tokens, but not those that a pass over all rows would have
// written.
TEST(Ring, NoCutReadsInexactTokens) {
  auto store = MakeStore({{.layout = kSmall, .sink = 0, .recent = 4}}, 4096);
  KvSequence s = store->NewSequence();
  ASSERT_TRUE(s.Reserve(0, 14, 21).ok());
  EXPECT_TRUE(s.CanTruncate(17));
  s.MarkInexact(0, 17);
  EXPECT_FALSE(s.CanTruncate(19));
  EXPECT_TRUE(s.CanTruncate(20));
  EXPECT_TRUE(s.CanTruncate(0));
}

TEST(Ring, StartInsideIsAllOrNothing) {
  auto store = MakeStore({{.layout = kSmall, .sink = 0, .recent = 128}}, 640);
  KvSequence other = store->NewSequence(), s = store->NewSequence();
  ASSERT_TRUE(other.Reserve(64 * 6).ok());
  ASSERT_TRUE(s.Reserve(64 * 3).ok());
  Write(s.View(0), 64 * 3 - 1, 7);
  // Needed: 2 pages of window and 3 of rows; 1 page is free, 3 become free.
  EXPECT_EQ(s.Reserve(0, 6400, 6400 + 64 * 3).error().code(), Error::Code::kResource);
  EXPECT_EQ(s.length(0), 64 * 3);
  EXPECT_TRUE(Reads(s.View(0), 64 * 3 - 1, 7));
  EXPECT_TRUE(s.Reserve(0, 6400, 6400 + 64 * 2).ok());
  EXPECT_EQ(store->free_tokens(), 0);
}

TEST(Ring, TruncateToNothingForgetsNarrowing) {
  auto store = MakeStore({{.layout = kSmall}}, 4096);
  KvSequence s = store->NewSequence();
  ASSERT_TRUE(s.Reserve(1000).ok());
  s.Keep(0, 4, 64);
  EXPECT_EQ(s.held_tokens(0), 68);
  s.Evict();
  EXPECT_FALSE(s.CanTruncate(500));
  EXPECT_TRUE(s.CanTruncate(999));
  EXPECT_TRUE(s.CanTruncate(3));
  s.Truncate(0);
  EXPECT_EQ(s.recent(0), 0);
  ASSERT_TRUE(s.Reserve(1000).ok());
  s.Evict();
  EXPECT_EQ(s.held_tokens(0), 1000);
  // Nothing is dropped before Evict, so until then a lifetime may be widened again.
  s.Keep(0, 4, 64);
  s.Keep(0, 8, 128);
  s.Evict();
  EXPECT_EQ(s.held_tokens(0), 136);
}

TEST(RingDeathTest, TokensThatAreGoneStayGone) {
  auto store = MakeStore({{.layout = kSmall, .sink = 4, .recent = 64}}, 4096);
  KvSequence s = store->NewSequence();
  ASSERT_TRUE(s.Reserve(1000).ok());
  s.Evict();
  EXPECT_DEATH(s.Keep(0, 4, 65), "");
  EXPECT_DEATH(s.Keep(0, 5, 64), "");
  EXPECT_DEATH(s.Keep(0, 4, 0), "");
  EXPECT_DEATH(s.Truncate(500), "");
}

TEST(Ring, MixOfRingsAndFullCachesHoldsTheirSum) {
  // As in Gemma: five layers of sliding windows to one that reads everything.
  std::vector<KvCacheSpec> specs;
  for (int l = 0; l < 18; ++l)
    specs.push_back({.layout = kSmall, .sink = 0, .recent = l % 6 == 5 ? 0 : 512});
  auto store = MakeStore(specs, 8192);
  KvSequence s = store->NewSequence();
  for (int64_t n = 512; n <= 4096; n += 512) {
    ASSERT_TRUE(s.Reserve(n).ok());
    s.Evict();
  }
  for (int64_t n = 4097; n <= 4300; ++n) {
    ASSERT_TRUE(s.Reserve(n).ok());
    s.Evict();
  }
  const int64_t token = KvTokenBytes(kSmall);
  EXPECT_EQ(s.held_bytes(), (3 * 4300 + 15 * 512) * token);
  EXPECT_GE(s.allocated_bytes(), s.held_bytes());
  EXPECT_LE(s.allocated_bytes(), 3 * kSmall.arena_bytes(68) + 15 * kSmall.arena_bytes(8 + 2));
  EXPECT_EQ(store->bytes_in_use(), s.allocated_bytes());
  // Rings must not refuse tokens for which the full caches have room.
  EXPECT_EQ(store->free_tokens(), (128 - 68) * kSlots);
}

TEST(Ring, SyntheticContentIsThatOfAFullCache) {
  const KvCacheSpec all{.layout = kSmall}, ring{.layout = kSmall, .sink = 70, .recent = 200};
  auto full = MakeStore({all, all}, 4096), mixed = MakeStore({all, ring}, 4096);
  KvSequence a = full->NewSequence(), b = mixed->NewSequence();
  ASSERT_TRUE(FillSynthetic(*full, a, 3000, 4).ok());
  ASSERT_TRUE(FillSynthetic(*mixed, b, 3000, 4).ok());
  EXPECT_EQ(b.length(), 3000);
  EXPECT_EQ(HeldPages(b, 1), 2 + 4);
  const int64_t allocated = b.allocated_bytes();
  b.Evict();
  EXPECT_EQ(b.allocated_bytes(), allocated);
  for (int64_t n : Window(3000, 70, 200)) {
    ASSERT_TRUE(Holds(b.View(1), n));
    EXPECT_EQ(
        std::memcmp(a.View(1).row(n), b.View(1).row(n), static_cast<size_t>(kSmall.row_bytes())),
        0);
    EXPECT_EQ(*a.View(1).scale(n, true, 1), *b.View(1).scale(n, true, 1));
    EXPECT_EQ(a.View(1).low_bit(n, 1, 0)->scale[n % 16], b.View(1).low_bit(n, 1, 0)->scale[n % 16]);
  }
  // Under a narrowed lifetime too.
  b.Truncate(0);
  b.Keep(0, 0, 64);
  ASSERT_TRUE(FillSynthetic(*mixed, b, 3000, 4).ok());
  EXPECT_EQ(b.recent(0), 64);
  EXPECT_LE(HeldPages(b, 0), 2);
}

int64_t ResidentBytes() {
  long long total = 0, resident = 0;
  if (FILE* f = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(f, "%lld %lld", &total, &resident) != 2) resident = 0;
    std::fclose(f);
  }
  return resident * 4096;
}

TEST(Memory, NarrowedCacheReturnsIt) {
  if (ResidentBytes() == 0) GTEST_SKIP() << "no /proc/self/statm";
  const KvLayout wide{.dtype = DType::kBF16, .kv_heads = 4, .head_dim = 128, .low_bit = true};
  auto store = MakeStore({{.layout = wide}}, 64 * 1024);
  KvSequence s = store->NewSequence();
  const int64_t start = ResidentBytes();
  ASSERT_TRUE(FillSynthetic(*store, s, 32 * 1024, 1).ok());
  const int64_t all = s.allocated_bytes();
  EXPECT_GT(ResidentBytes() - start, all * 9 / 10);
  std::vector<std::byte> sink(static_cast<size_t>(wide.row_bytes()));
  std::memcpy(sink.data(), s.View(0).row(127), sink.size());
  s.Keep(0, 128, 2048);
  s.Evict();
  EXPECT_LT(ResidentBytes() - start, all / 4);
  EXPECT_EQ(std::memcmp(s.View(0).row(127), sink.data(), sink.size()), 0);
  // Returned pages can be used again.
  KvSequence other = store->NewSequence();
  ASSERT_TRUE(FillSynthetic(*store, other, 32 * 1024, 1).ok());
  EXPECT_GT(ResidentBytes() - start, all * 9 / 10);
  EXPECT_EQ(std::memcmp(other.View(0).row(127), sink.data(), sink.size()), 0);
  other = {};
  EXPECT_LT(ResidentBytes() - start, all / 4);
  s = {};
  EXPECT_LT(ResidentBytes() - start, all / 8);
}

TEST(Memory, DiscardReturnsWhole2MiB) {
  constexpr int64_t kMiB = 1 << 20;
  Buffer b = Buffer::AllocateOrDie(7 * kMiB);
  std::memset(b.data(), 1, static_cast<size_t>(b.size()));
  EXPECT_EQ(b.Discard(kMiB, 2 * kMiB), 0);
  EXPECT_EQ(b.Discard(kMiB, 4 * kMiB), 2 * kMiB);
  const auto at = [&](int64_t i) { return std::to_integer<int>(b.data()[i]); };
  EXPECT_EQ(at(2 * kMiB - 1), 1);
  EXPECT_EQ(at(2 * kMiB), 0);
  EXPECT_EQ(at(4 * kMiB - 1), 0);
  EXPECT_EQ(at(4 * kMiB), 1);
  EXPECT_EQ(b.Discard(6 * kMiB, kMiB), 2 * kMiB);  // the end counts as whole
  EXPECT_EQ(at(6 * kMiB), 0);
}

TEST(PagePool, IdlePagesAreThoseThatWereUsed) {
  PagePool pool(1000);
  for (int i = 0; i < 300; ++i) pool.Acquire();
  EXPECT_EQ(pool.idle_pages(), 0);
  for (int i = 0; i < 300; i += 2) pool.Release(i);
  EXPECT_EQ(pool.idle_pages(), 150);
  EXPECT_EQ(pool.CollectIdle().size(), 150u);
  EXPECT_TRUE(pool.CollectIdle().empty());  // nothing new
  for (int i = 101; i < 100 + 2 * PagePool::kIdlePages; i += 2) pool.Release(i);
  const std::vector<PageRange> idle = pool.CollectIdle();
  const auto longest = std::max_element(
      idle.begin(), idle.end(), [](PageRange a, PageRange b) { return a.size() < b.size(); });
  EXPECT_EQ(longest->begin, 100);
  EXPECT_EQ(longest->end, 101 + 2 * PagePool::kIdlePages);
  pool.MarkReturned(*longest);
  EXPECT_EQ(pool.idle_pages(), 150 + PagePool::kIdlePages - longest->size());
  for (int i = 0; i < 300; ++i) {
    if (i % 2 == 1 && (i < 100 || i > 100 + 2 * PagePool::kIdlePages)) pool.Release(i);
  }
  EXPECT_EQ(pool.used_pages(), 0);
  const std::vector<PageRange> all = pool.CollectIdle();
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].begin, 0);
  EXPECT_EQ(all[0].end, 1000);
  pool.MarkReturned(all[0]);
  EXPECT_EQ(pool.idle_pages(), 0);
}

TEST(PagePool, RingOfAPromptIsNeverWorthReturning) {
  PagePool pool(1000);
  std::vector<int32_t> held;
  for (int step = 0; step < 200; ++step) {
    for (int i = 0; i < 8; ++i) held.push_back(pool.Acquire());  // a chunk of 512
    while (held.size() > 9) {
      pool.Release(held.front());
      held.erase(held.begin());
    }
    EXPECT_TRUE(pool.CollectIdle().empty());
    EXPECT_LE(pool.idle_pages(), 8);
  }
}

}  // namespace
}  // namespace baton
