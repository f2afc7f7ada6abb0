#include "kv/page_pool.h"

#include <algorithm>
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
  // Grows with the pages used: an arena is often far larger than its used part.
  if (id / 64 >= resident_.size()) resident_.resize(id / 64 + 1);
  const uint64_t bit = uint64_t{1} << (id % 64);
  resident_pages_ += (resident_[id / 64] & bit) == 0;
  resident_[id / 64] |= bit;
  touched_end_ = std::max(touched_end_, static_cast<int64_t>(id) + 1);
  idle_floor_ = std::min(idle_floor_, idle_pages());
  return static_cast<int32_t>(id);
}

PageRange PagePool::Next(int64_t pages) const {
  BATON_CHECK(pages >= 0 && pages <= free_);
  PageRange range;
  for (int64_t i = 0; pages > 0;) {
    const uint64_t rest = levels_[0][static_cast<size_t>(i / 64)] >> (i % 64);
    if (rest == 0) {
      i = (i / 64 + 1) * 64;
      continue;
    }
    i += std::countr_zero(rest);
    if (range.empty()) range.begin = i;
    const int64_t run = std::min<int64_t>(
        std::countr_one(levels_[0][static_cast<size_t>(i / 64)] >> (i % 64)), pages);
    i += run;
    pages -= run;
    range.end = i;
  }
  return range;
}

void PagePool::Share(int32_t id) {
  BATON_CHECK_GT(holders(id), 0);
  const auto at = static_cast<size_t>(id);
  if (at >= more_holders_.size()) more_holders_.resize(at + 1);
  ++more_holders_[at];
}

int PagePool::holders(int32_t id) const {
  BATON_CHECK(id >= 0 && id < max_pages_);
  const auto at = static_cast<size_t>(id);
  if (levels_[0][at / 64] >> (at % 64) & 1) return 0;
  return 1 + (at < more_holders_.size() ? more_holders_[at] : 0);
}

void PagePool::Release(int32_t id) {
  const int held = holders(id);
  BATON_CHECK_GT(held, 0);
  auto at = static_cast<size_t>(id);
  if (held > 1) {
    --more_holders_[at];
    return;
  }
  for (std::vector<uint64_t>& level : levels_) {
    level[at / 64] |= uint64_t{1} << (at % 64);
    at /= 64;
  }
  ++free_;
}

std::vector<PageRange> PagePool::CollectIdle() {
  std::vector<PageRange> stretches;
  if (idle_pages() < idle_floor_ + kIdlePages) return stretches;
  const std::vector<uint64_t>& free = levels_[0];
  PageRange stretch;
  bool idle = false;
  const auto close = [&] {
    if (idle) stretches.push_back(stretch);
    idle = false;
  };
  for (int64_t i = 0; i < touched_end_;) {
    const auto word = static_cast<size_t>(i / 64);
    const uint64_t rest = free[word] >> (i % 64);
    const bool is_free = rest & 1;
    const int64_t run = std::min<int64_t>(is_free ? std::countr_one(rest) : std::countr_zero(rest),
                                          std::min(64 - i % 64, touched_end_ - i));
    if (is_free) {
      if (stretch.end != i || stretch.empty()) stretch = {i, i};
      stretch.end = i + run;
      const uint64_t mask = (run == 64 ? ~uint64_t{0} : (uint64_t{1} << run) - 1) << (i % 64);
      idle |= (resident_[word] & mask) != 0;
    } else {
      close();
    }
    i += run;
  }
  // The pages above were never touched, but are included so that the last 2 MiB is whole.
  if (idle && stretch.end == touched_end_) stretch.end = max_pages_;
  close();
  idle_floor_ = idle_pages();
  return stretches;
}

void PagePool::MarkReturned(PageRange pages) {
  const int64_t end = std::min(pages.end, touched_end_);
  for (int64_t i = pages.begin; i < end; ++i) {
    const auto word = static_cast<size_t>(i / 64);
    const uint64_t bit = uint64_t{1} << (i % 64);
    BATON_CHECK((levels_[0][word] & bit) != 0);
    resident_pages_ -= (resident_[word] & bit) != 0;
    resident_[word] &= ~bit;
  }
  if (end == touched_end_) touched_end_ = std::min(touched_end_, pages.begin);
  idle_floor_ = std::min(idle_floor_, idle_pages());
}

}  // namespace baton
