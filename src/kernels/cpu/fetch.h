// Prefetches of lines that other cores used last, each of which takes a quarter of a microsecond
// from a core on another die, and of weights, which come from memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace baton::cpu {

// Prefetches the lines of from[0, n) for reading.
[[gnu::always_inline]] inline void FetchToRead(const float* from, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) __builtin_prefetch(from + i);
}

// Prefetches the lines of to[0, n) for writing.
[[gnu::always_inline]] inline void FetchToWrite(float* to, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
#if defined(__x86_64__)
    asm volatile("prefetchw %0" : : "m"(to[i]));  // a hint: does nothing on CPUs that lack it
#else
    __builtin_prefetch(to + i, 1);
#endif
  }
}

// Whether data that is read once is better prefetched into the first-level cache. It is on Zen 5,
// where decode at short contexts gains 2 to 5 %, ranking by a low-bit copy 12 to 20 %. On a Zen 4
// this made ranking of 131,072 keys slower (550 instead of 470 us); on an Emerald Rapids it makes
// no difference.
extern const bool kFetchesNear;

// Decode streams the weights once. The hardware prefetcher stops at every 4 KiB, so lines are
// prefetched in software: those of the next rows, which mostly follow in memory, or of long rows
// some distance ahead. They go to the second-level cache, which supports more outstanding lines
// than the first: 20 GB/s against 12 on one thread of a Zen 4. Distances of 2 to 8 KiB lose up to
// half of that.
//
// The distance from `rows`, which take `bytes`, if `next` is read after them; 0: no prefetch.
[[gnu::always_inline]] inline int64_t PrefetchDistance(const std::byte* rows, int64_t bytes,
                                                       const std::byte* next) {
  constexpr int64_t kFarthest = 65536;
  if (bytes >= kFarthest) return kFarthest;
  return next ? next - rows : 0;
}

template <bool kNear = false>
[[gnu::always_inline]] inline void PrefetchWeights(const std::byte* p, int bytes) {
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, kNear ? 3 : 2);
}

}  // namespace baton::cpu
