// Hands out page ids, lowest first: a fresh sequence gets consecutive pages, so its cache is one
// contiguous stretch of the arena (hardware prefetch crosses page borders), and the memory touched
// is at most the peak number of pages in use.
//
// A free page that was handed out before is idle: it still takes memory. The pool knows which pages
// are, so that its owner can return long stretches of them to the system.
#pragma once

#include <cstdint>
#include <vector>

namespace baton {

struct PageRange {
  int64_t begin = 0, end = 0;

  bool empty() const { return end <= begin; }
  int64_t size() const { return empty() ? 0 : end - begin; }
};

// Not thread-safe: pages are acquired and released between forward passes, by one thread.
class PagePool {
 public:
  // Idle pages from which on memory is returned to the system (2048 tokens): more than a sliding
  // window releases and takes again with every chunk of a prompt.
  static constexpr int64_t kIdlePages = 32;

  explicit PagePool(int64_t max_pages);

  // The lowest free id in [0, max_pages), or -1 when every page is taken. It has one holder.
  // O(log64 max_pages), as is Release.
  int32_t Acquire();
  // One holder more, and one less: with the last one the page is free. The id must be taken.
  void Share(int32_t id);
  void Release(int32_t id);
  int holders(int32_t id) const;

  // From the lowest free id to one past the last that the next `pages` calls of Acquire give; as
  // many must be free.
  PageRange Next(int64_t pages) const;

  int64_t max_pages() const { return max_pages_; }
  int64_t free_pages() const { return free_; }
  int64_t used_pages() const { return max_pages_ - free_; }
  int64_t idle_pages() const { return resident_pages_ - used_pages(); }

  // The longest stretches of free pages that contain idle ones, ascending. None while fewer than
  // kIdlePages are idle, or have become idle since the last call: the idle pages left by that call
  // lie between taken ones.
  std::vector<PageRange> CollectIdle();
  // Marks free pages whose memory was returned to the system: they are no longer idle.
  void MarkReturned(PageRange pages);

 private:
  int64_t max_pages_;
  int64_t free_;
  // Bit i of level 0: page i is free. Bit i of level n + 1: word i of level n is not zero. The last
  // level is one word.
  std::vector<std::vector<uint64_t>> levels_;
  std::vector<uint64_t> resident_;  // bit i: page i was acquired since its memory was last returned
  std::vector<int32_t> more_holders_;  // [ids ever shared] beside the first one
  int64_t resident_pages_ = 0;
  int64_t touched_end_ = 0;  // one past the highest id ever acquired
  int64_t idle_floor_ = 0;   // pages left idle by the last CollectIdle, or the fewest since
};

}  // namespace baton
