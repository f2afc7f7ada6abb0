#include "formats/bpe.h"

#include <bit>

#include "base/check.h"

namespace baton {
namespace {

uint64_t PairOf(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

void MergeTable::Reserve(size_t pairs) {
  slots_.assign(std::bit_ceil(std::max<size_t>(2 * pairs, 2)), Slot{});
}

size_t MergeTable::SlotOf(uint64_t pair) const {
  const size_t mask = slots_.size() - 1;
  // Fibonacci hashing: ids are dense and small, the high bits of the product are not.
  size_t i = (pair * 0x9E3779B97F4A7C15u) >> 32 & mask;
  while (slots_[i].pair != kFree && slots_[i].pair != pair) i = (i + 1) & mask;
  return i;
}

void MergeTable::Add(int32_t left, int32_t right, Merge merge) {
  BATON_CHECK(left >= 0 && right >= 0);
  Slot& slot = slots_[SlotOf(PairOf(left, right))];
  if (slot.pair == kFree) slot = {PairOf(left, right), merge};
}

Merge MergeTable::Find(int32_t left, int32_t right) const {
  if (left < 0 || right < 0 || slots_.empty()) return {};
  return slots_[SlotOf(PairOf(left, right))].merge;
}

}  // namespace baton
