// Memory that other cores used last. A line that a far core holds takes a quarter of a microsecond,
// and a thread that meets such lines one by one waits for each.
#pragma once

#include <cstdint>

namespace baton::cpu {

// Asks for the lines of from[0, n) before they are read.
inline void FetchToRead(const float* from, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) __builtin_prefetch(from + i);
}

// Asks for the lines of to[0, n) before they are written.
inline void FetchToWrite(float* to, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
#if defined(__x86_64__)
    asm volatile("prefetchw %0" : : "m"(to[i]));  // a hint: no operation where it is not known
#else
    __builtin_prefetch(to + i, 1);
#endif
  }
}

}  // namespace baton::cpu
