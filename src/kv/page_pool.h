// Hands out page ids, lowest first: a fresh sequence gets consecutive pages, so its cache is one
// contiguous stretch of the arena (hardware prefetch crosses page borders) and the memory touched
// is no more than the most pages ever in use.
#pragma once

#include <cstdint>
#include <vector>

namespace baton {

// Not thread-safe: pages are acquired and released between forward passes, by one thread.
class PagePool {
 public:
  explicit PagePool(int64_t max_pages);

  // The lowest free id in [0, max_pages), or -1 when every page is taken. O(log64 max_pages), as is
  // Release.
  int32_t Acquire();
  // The id must be taken.
  void Release(int32_t id);

  int64_t max_pages() const { return max_pages_; }
  int64_t free_pages() const { return free_; }
  int64_t used_pages() const { return max_pages_ - free_; }

 private:
  int64_t max_pages_;
  int64_t free_;
  // Bit i of level 0: page i is free. Bit i of level n + 1: word i of level n is not zero. The last
  // level is one word.
  std::vector<std::vector<uint64_t>> levels_;
};

}  // namespace baton
