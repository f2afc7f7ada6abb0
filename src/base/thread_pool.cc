#include "base/thread_pool.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>

#include "base/check.h"

namespace baton {
namespace {

// Spins before a thread gives way. Far longer than an operation's tail, far shorter than a
// scheduler tick.
constexpr int kSpins = 4000;

inline void Relax(int& spins) {
  if (++spins < kSpins) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  } else {
    spins = kSpins / 2;
    sched_yield();  // more threads than processors: let the one with work run
  }
}

void FutexWait(std::atomic<uint32_t>& word, uint32_t expected) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, expected, nullptr,
          nullptr, 0);
}
void FutexWakeAll(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr,
          nullptr, 0);
}

int UsableProcessors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads <= 0) threads = UsableProcessors();
  shares_ = std::make_unique<Share[]>(static_cast<size_t>(threads));
  workers_.reserve(static_cast<size_t>(threads - 1));
  for (int rank = 1; rank < threads; ++rank) workers_.emplace_back([this, rank] { Work(rank); });
}

ThreadPool::~ThreadPool() {
  signal_.stop.store(true, std::memory_order_relaxed);
  signal_.epoch.fetch_add(1, std::memory_order_release);
  FutexWakeAll(signal_.epoch);
  for (std::thread& t : workers_) t.join();
}

void ThreadPool::Dispatch(int64_t count, Body body, void* ctx) {
  if (count <= 0) return;
  BATON_CHECK_LT(count, int64_t{1} << 31);
  const bool nested = busy_.exchange(true, std::memory_order_acquire);
  if (nested || workers_.empty() || count == 1) {
    for (int64_t i = 0; i < count; ++i) body(ctx, i, 0);
    if (!nested) busy_.store(false, std::memory_order_release);
    return;
  }
  const uint32_t epoch = signal_.epoch.load(std::memory_order_relaxed) + 1;
  done_.indices.store(0, std::memory_order_relaxed);
  // The job's number travels in the same word as the indices taken, and the words are closed while
  // the job is being changed: a worker that wakes late for an older job fails its compare-and-swap
  // instead of running an index of this one.
  for (int r = 0; r < threads(); ++r) {
    shares_[static_cast<size_t>(r)].taken.store((uint64_t{epoch} << 32) | 0xffffffffu,
                                                std::memory_order_relaxed);
  }
  job_.count.store(count, std::memory_order_release);
  job_.body.store(body, std::memory_order_relaxed);
  job_.ctx.store(ctx, std::memory_order_relaxed);
  for (int r = 0; r < threads(); ++r) {
    shares_[static_cast<size_t>(r)].taken.store(uint64_t{epoch} << 32, std::memory_order_release);
  }
  signal_.epoch.store(epoch, std::memory_order_seq_cst);
  if (signal_.sleepers.load(std::memory_order_seq_cst) > 0) FutexWakeAll(signal_.epoch);
  Drain(epoch, 0);
  int spins = 0;
  while (done_.indices.load(std::memory_order_acquire) < count) Relax(spins);
  busy_.store(false, std::memory_order_release);
}

// The next index of a thread's share, or -1 if it is used up or the job is over.
int64_t ThreadPool::Take(uint32_t epoch, int owner) {
  std::atomic<uint64_t>& taken = shares_[static_cast<size_t>(owner)].taken;
  uint64_t word = taken.load(std::memory_order_acquire);
  while (static_cast<uint32_t>(word >> 32) == epoch) {
    const int64_t count = job_.count.load(std::memory_order_acquire);
    const int64_t index = ShareBegin(count, owner) + static_cast<int64_t>(word & 0xffffffffu);
    if (index >= ShareBegin(count, owner + 1)) return -1;
    if (taken.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel)) return index;
  }
  return -1;
}

void ThreadPool::Drain(uint32_t epoch, int rank) {
  int64_t finished = 0;
  for (int i = 0; i < threads(); ++i) {
    const int owner = (rank + i) % threads();
    for (int64_t index; (index = Take(epoch, owner)) >= 0; ++finished) {
      // This index is ours, so its job cannot end before `done_` below: body and ctx are those of
      // `epoch`.
      job_.body.load(std::memory_order_relaxed)(job_.ctx.load(std::memory_order_relaxed), index,
                                                rank);
    }
  }
  if (finished > 0) done_.indices.fetch_add(finished, std::memory_order_release);
}

void ThreadPool::Work(int rank) {
  uint32_t seen = 0;
  int spins = 0;
  for (;;) {
    const uint32_t epoch = signal_.epoch.load(std::memory_order_acquire);
    if (epoch != seen) {
      seen = epoch;
      spins = 0;
      if (signal_.stop.load(std::memory_order_relaxed)) return;
      Drain(epoch, rank);
      continue;
    }
    if (signal_.hot.load(std::memory_order_relaxed) > 0 || spins < kSpins / 4) {
      Relax(spins);
      continue;
    }
    signal_.sleepers.fetch_add(1, std::memory_order_seq_cst);
    if (signal_.epoch.load(std::memory_order_seq_cst) == seen) FutexWait(signal_.epoch, seen);
    signal_.sleepers.fetch_sub(1, std::memory_order_relaxed);
    spins = 0;
  }
}

}  // namespace baton
