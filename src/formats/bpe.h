// Byte-pair merging over one word: a linked list of symbols and a heap of the pairs that may merge.
// O(n log n) in the length of the word, so that a megabyte without a space stays fast.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

namespace baton {

// Rank (0 merges first) and result of merging two neighbouring tokens.
struct Merge {
  static constexpr uint32_t kNone = UINT32_MAX;
  uint32_t rank = kNone;
  int32_t id = -1;
};

// Pair of token ids -> Merge, open addressing at half load.
class MergeTable {
 public:
  void Reserve(size_t pairs);
  // The first entry of a pair wins. Ids must not be negative.
  void Add(int32_t left, int32_t right, Merge merge);
  Merge Find(int32_t left, int32_t right) const;
  bool empty() const { return slots_.empty(); }

 private:
  struct Slot {
    uint64_t pair = kFree;
    Merge merge;
  };
  static constexpr uint64_t kFree = UINT64_MAX;
  size_t SlotOf(uint64_t pair) const;
  std::vector<Slot> slots_;  // a power of two
};

struct BpeSymbol {
  int32_t id = -1;  // -1: no token (yet)
  std::string_view text;
  int32_t previous = -1;
  int32_t next = -1;
  Merge merge;  // of this symbol with the next
};

// Keeps its heap between words: use one merger per thread, not one per word.
class BpeMerger {
 public:
  // Links the symbols in order, then merges the pair of lowest rank (leftmost among equals) until
  // none is left; `find(a, b)` gives the Merge of two neighbouring symbols. The remaining symbols
  // are read from symbols[0] along `next`. Fewer than 2^31 symbols, with contiguous texts.
  template <typename F>
  void Run(std::span<BpeSymbol> symbols, const F& find);

 private:
  std::vector<uint64_t> heap_;  // rank << 32 | index of the left symbol
};

template <typename F>
void BpeMerger::Run(std::span<BpeSymbol> symbols, const F& find) {
  const auto n = static_cast<int32_t>(symbols.size());
  heap_.clear();
  const auto offer = [&](int32_t left) {
    BpeSymbol& s = symbols[left];
    s.merge = s.next < 0 ? Merge{} : find(s, symbols[s.next]);
    if (s.merge.rank == Merge::kNone) return false;
    heap_.push_back(uint64_t{s.merge.rank} << 32 | static_cast<uint32_t>(left));
    return true;
  };
  for (int32_t i = 0; i < n; ++i) {
    symbols[i].previous = i - 1;
    symbols[i].next = i + 1 < n ? i + 1 : -1;
  }
  for (int32_t i = 0; i < n; ++i) offer(i);
  std::make_heap(heap_.begin(), heap_.end(), std::greater<>());
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
    const auto rank = static_cast<uint32_t>(heap_.back() >> 32);
    const auto left = static_cast<int32_t>(heap_.back() & UINT32_MAX);
    heap_.pop_back();
    BpeSymbol& a = symbols[left];
    // Entries are not removed when a neighbour changes; a stale one no longer has the pair's rank.
    if (a.merge.rank != rank) continue;
    BpeSymbol& b = symbols[a.next];
    a.id = a.merge.id;
    a.text = {a.text.data(), a.text.size() + b.text.size()};
    a.next = b.next;
    if (b.next >= 0) symbols[b.next].previous = left;
    b.merge = Merge{};
    if (offer(left)) std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
    if (a.previous >= 0 && offer(a.previous)) {
      std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
    }
  }
}

}  // namespace baton
