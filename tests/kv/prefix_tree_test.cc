// Shared pages: nobody sees another's writes, no page is freed or held by mistake, and the tree
// finds what was put into it as long as it is there.
#include "kv/prefix_tree.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "tests/kv/kv_test_util.h"

namespace baton {
namespace {

using test::MakeStore;

constexpr int64_t kSlots = KvLayout::kSlots;
constexpr KvLayout kSmall{.dtype = DType::kI8, .kv_heads = 1, .head_dim = 32, .low_bit = true};

void Write(const KvSequence& s, int cache, int64_t position, int stamp) {
  const KvView kv = s.View(cache);
  std::memset(kv.row(position), stamp, static_cast<size_t>(kv.layout.row_bytes()));
  kv.low_bit(position, 0, 0)->scale[position % 16] = static_cast<uint16_t>(stamp);
}

bool Reads(const KvSequence& s, int cache, int64_t position, int stamp) {
  const KvView kv = s.View(cache);
  const auto* row = reinterpret_cast<const uint8_t*>(kv.row(position));
  return std::all_of(row, row + kv.layout.row_bytes(), [&](uint8_t b) { return b == stamp; }) &&
         kv.low_bit(position, 0, 0)->scale[position % 16] == stamp;
}

std::vector<int32_t> PagesOf(const KvSequence& s, int cache, int64_t tokens) {
  const int32_t* pages = s.View(cache).pages;
  return {pages, pages + tokens / kSlots};
}

// Sequences adopt each other's beginnings, append, are cut back and end, in random order: each
// reads what a sequence of its own would, and in the end every page is free.
RC_GTEST_PROP(SharedPages, AreCopiedBeforeTheyAreWritten, ()) {
  auto store = MakeStore({{.layout = kSmall}, {.layout = kSmall}}, 64 * 40);
  struct Live {
    KvSequence kv;
    std::vector<int> stamps;
  };
  std::vector<Live> live;
  int stamp = 0;
  const int steps = *rc::gen::inRange(5, 60);
  for (int i = 0; i < steps; ++i) {
    const int action = live.empty() ? 0 : *rc::gen::inRange(0, 6);
    if (action <= 1) {
      Live fresh{.kv = store->NewSequence(), .stamps = {}};
      if (action == 1) {
        const Live& from = live[*rc::gen::inRange<size_t>(0, live.size())];
        const int64_t tokens =
            *rc::gen::inRange<int64_t>(0, from.kv.length() / kSlots + 1) * kSlots;
        const std::vector<std::vector<int32_t>> pages = {PagesOf(from.kv, 0, tokens),
                                                         PagesOf(from.kv, 1, tokens)};
        fresh.kv.Adopt(tokens, pages);
        fresh.stamps.assign(from.stamps.begin(), from.stamps.begin() + tokens);
      }
      live.push_back(std::move(fresh));
      continue;
    }
    const size_t which = *rc::gen::inRange<size_t>(0, live.size());
    Live& s = live[which];
    if (action <= 3) {
      const int64_t begin = s.kv.length(), end = begin + *rc::gen::inRange<int64_t>(1, 150);
      if (!s.kv.Reserve(end).ok()) continue;
      for (int64_t p = begin; p < end; ++p) {
        s.stamps.push_back(++stamp % 251);
        for (const int c : {0, 1}) Write(s.kv, c, p, s.stamps.back());
      }
    } else if (action == 4) {
      const int64_t tokens = *rc::gen::inRange<int64_t>(0, s.kv.length() + 1);
      s.kv.Truncate(tokens);
      s.stamps.resize(static_cast<size_t>(tokens));
    } else {
      live.erase(live.begin() + static_cast<int64_t>(which));
    }
    for (const Live& l : live) {
      for (int64_t p = 0; p < l.kv.length(); ++p)
        for (const int c : {0, 1}) RC_ASSERT(Reads(l.kv, c, p, l.stamps[static_cast<size_t>(p)]));
    }
  }
  live.clear();
  RC_ASSERT(store->bytes_in_use() == 0);
}

// Also where rings drop pages that others still hold.
TEST(SharedPages, ARingLetsGoOfItsShareAlone) {
  auto store = MakeStore({{.layout = kSmall, .sink = 4, .recent = 100}}, 64 * 20);
  KvSequence a = store->NewSequence();
  ASSERT_TRUE(a.Reserve(640).ok());
  for (int64_t p = 0; p < 640; ++p) Write(a, 0, p, static_cast<int>(p % 251));
  a.Evict();
  KvSequence b = store->NewSequence();
  const std::vector<std::vector<int32_t>> pages = {PagesOf(a, 0, 640)};
  b.Adopt(640, pages);
  ASSERT_TRUE(b.Reserve(900).ok());
  b.Evict();
  a = store->NewSequence();
  for (const int64_t p : {0, 3, 63, 800, 899}) EXPECT_GE(b.View(0).pages[p / kSlots], 0) << p;
  EXPECT_TRUE(Reads(b, 0, 3, 3));
  EXPECT_EQ(b.View(0).pages[600 / kSlots], -1);
  b = {};
  EXPECT_EQ(store->bytes_in_use(), 0);
}

std::vector<int32_t> Tokens(const std::vector<int>& blocks) {
  std::vector<int32_t> tokens;
  for (const int b : blocks) tokens.insert(tokens.end(), kSlots, b);
  return tokens;
}

// Against a model: a set of paths, of which the leaf used least recently is dropped first.
RC_GTEST_PROP(PrefixTree, HoldsWhatItWasGivenUntilItIsDropped, ()) {
  auto store = MakeStore({{.layout = kSmall}}, 64 * 200);
  auto tree = std::make_unique<PrefixTree>();
  std::map<std::vector<int>, int32_t> model;  // a path's page
  std::vector<PrefixPath> pinned;
  const int steps = *rc::gen::inRange(1, 60);
  for (int i = 0; i < steps; ++i) {
    const auto blocks = *rc::gen::container<std::vector<int>>(*rc::gen::inRange<size_t>(1, 5),
                                                              rc::gen::inRange(0, 3));
    const int action = *rc::gen::inRange(0, 5);
    if (action <= 1) {
      PrefixPath path = tree->Open("key", store);
      for (size_t b = 0; b < blocks.size(); ++b) {
        tree->Extend(path, Tokens({blocks[b]}));
        const std::vector<int> prefix(blocks.begin(), blocks.begin() + static_cast<int64_t>(b) + 1);
        PrefixBlock& block = path[static_cast<int64_t>(b)];
        RC_ASSERT((block.pages[0] >= 0) == model.contains(prefix));
        if (block.pages[0] < 0) tree->Own(block, 0, model[prefix] = store->Take(0));
      }
      if (action == 1) pinned.push_back(std::move(path));
    } else if (action == 2 && !pinned.empty()) {
      pinned.erase(pinned.begin() + *rc::gen::inRange<int64_t>(0, std::ssize(pinned)));
    } else if (action == 3) {
      const int64_t before = tree->blocks(), unpinned = tree->unpinned();
      RC_ASSERT(tree->DropOldest() == (unpinned > 0));
      RC_ASSERT(tree->blocks() == before - (unpinned > 0));
      std::erase_if(model, [&](const auto& entry) {
        const PrefixPath path = tree->Find("key", Tokens(entry.first), nullptr);
        return path.size() < std::ssize(entry.first);
      });
    }
    RC_ASSERT(std::ssize(model) == tree->blocks());
    int64_t common = 0;
    const PrefixPath path = tree->Find("key", Tokens(blocks), &common);
    RC_ASSERT(common == path.size() * kSlots);
    for (int64_t b = 0; b < path.size(); ++b)
      RC_ASSERT(path[b].pages[0] == model.at({blocks.begin(), blocks.begin() + b + 1}));
    RC_ASSERT(store->bytes_in_use() == std::ssize(model) * kSmall.arena_bytes(1));
  }
  pinned.clear();
  tree.reset();
  RC_ASSERT(store->bytes_in_use() == 0);
}

// Who walks a path without adopting its pages fills as many of its own.
TEST(PrefixTree, PinnedPagesGiveWayUnlessThePathHoldsThem) {
  auto store = MakeStore({{.layout = kSmall}, {.layout = kSmall}}, 64 * 4);
  PrefixTree tree;
  PrefixPath path = tree.Open("a", store);
  for (const int b : {1, 2, 3}) {
    tree.Extend(path, Tokens({b}));
    for (const int c : {0, 1}) tree.Own(path[b - 1], c, store->Take(c));
  }
  KvSequence adopts = store->NewSequence();
  adopts.Adopt(64, std::vector<std::vector<int32_t>>{{path[0].pages[0]}, {path[0].pages[1]}});
  PrefixPath copy = path.Copy();
  tree.HoldPages(copy, true);
  tree.DropPages(*store, 0, 4);
  EXPECT_EQ(store->free_pages(0), 1);
  PrefixPath other = copy.Copy();
  tree.HoldPages(copy, false);
  tree.DropPages(*store, 0, 4);
  EXPECT_EQ(store->free_pages(0), 1);  // a copy of a path that held them
  copy = {};
  EXPECT_EQ(tree.unpinned(), 0);
  path = {};
  path = tree.Find("a", Tokens({1, 2, 3}), nullptr);
  EXPECT_EQ(path.size(), 3);
  tree.HoldPages(path, true);
  tree.HoldPages(path, false);
  EXPECT_EQ(store->free_pages(0), 1);
  other = {};
  tree.DropPages(*store, 0, 2);
  EXPECT_EQ(store->free_pages(0), 2);  // no more than asked for
  tree.DropPages(*store, 0, 4);
  EXPECT_EQ(store->free_pages(0), 3);  // the sequence's own stays
  EXPECT_EQ(store->free_pages(1), 1);
  EXPECT_EQ(path[0].pages[0], adopts.HostView(0).pages[0]);
  EXPECT_EQ(path[1].pages[0], -1);
  EXPECT_GE(path[1].pages[1], 0);
  adopts = {};
}

TEST(PrefixTree, TellsWhereTokensDiffer) {
  auto store = MakeStore({{.layout = kSmall}}, 64 * 20);
  PrefixTree tree;
  {
    PrefixPath path = tree.Open("a", store);
    for (const int b : {1, 2}) tree.Extend(path, Tokens({b}));
  }
  std::vector<int32_t> tokens = Tokens({1, 2, 3});
  tokens[100] = 7;
  int64_t common = 0;
  EXPECT_EQ(tree.Find("a", tokens, &common).size(), 1);
  EXPECT_EQ(common, 100);
  EXPECT_FALSE(tree.Find("b", tokens, &common));
  EXPECT_EQ(common, 0);
  EXPECT_EQ(tree.MostCommon(tokens), 100);
  EXPECT_EQ(tree.Nearest("a", tokens), "a");
  EXPECT_EQ(tree.Nearest("b", tokens), "");
  EXPECT_EQ(tree.StoreOf("a"), store);
  // A prompt that ends within a block.
  EXPECT_EQ(tree.Find("a", std::span(tokens).first(90), &common).size(), 1);
  EXPECT_EQ(common, 90);
}

}  // namespace
}  // namespace baton
