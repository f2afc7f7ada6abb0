#include "kv/page_pool.h"

#include <bit>
#include <limits>

#include "base/check.h"

namespace baton {

PagePool::PagePool(int64_t max_pages) : max_pages_(max_pages), free_(max_pages) {
  BATON_CHECK(max_pages >= 0 && max_pages <= std::numeric_limits<int32_t>::max());
  int64_t bits = max_pages;
  do {
    const int64_t words = bits == 0 ? 1 : (bits + 63) / 64;
    std::vector<uint64_t> level(static_cast<size_t>(words), ~uint64_t{0});
    if (bits % 64 != 0 || bits == 0) level.back() = (uint64_t{1} << (bits % 64)) - 1;
    levels_.push_back(std::move(level));
    bits = words;
  } while (bits > 1);
}

int32_t PagePool::Acquire() {
  if (free_ == 0) return -1;
  size_t at = 0;
  for (size_t l = levels_.size(); l-- > 0;) {
    at = at * 64 + static_cast<size_t>(std::countr_zero(levels_[l][at]));
  }
  const size_t id = at;
  for (std::vector<uint64_t>& level : levels_) {
    uint64_t& word = level[at / 64];
    word &= ~(uint64_t{1} << (at % 64));
    if (word != 0) break;
    at /= 64;
  }
  --free_;
  return static_cast<int32_t>(id);
}

void PagePool::Release(int32_t id) {
  BATON_CHECK(id >= 0 && id < max_pages_);
  auto at = static_cast<size_t>(id);
  BATON_CHECK((levels_[0][at / 64] >> (at % 64) & 1) == 0);
  for (std::vector<uint64_t>& level : levels_) {
    level[at / 64] |= uint64_t{1} << (at % 64);
    at /= 64;
  }
  ++free_;
}

}  // namespace baton
