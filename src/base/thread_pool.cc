#include "base/thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/processors.h"

namespace baton {
namespace {

// Spins before a thread yields. Far longer than an operation's tail, far shorter than a scheduler
// tick.
constexpr int kSpins = 4000;

// Job numbers wrap, so no share may keep a very old one: all are renewed after this many jobs.
constexpr uint32_t kRefresh = 1 << 10;

// Spins before a thread helps another with its share: some microseconds. The other thread's data is
// in that thread's caches. A short job ends sooner if every thread does only its own share, and the
// next job then finds its data in the same caches.
constexpr int kPatience = 100;

// The time stamp counter: 2 to 5 ticks per nanosecond.
inline uint64_t Ticks() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#else
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count() * 3);
#endif
}

// If a thread shares its processor with another process, it is preempted when its time slice ends.
// Nobody else can finish the index that it holds, so all threads wait until it runs again.
// Therefore it yields between two indices, shortly before its slice ends. If no other thread waits
// for the processor, this costs one system call now and then. Measured with a busy loop on one of
// two cores (SmolLM2, decode, two threads, November 2026): 0.67 of the speed without the busy loop;
// without GiveWay and CallerPlace, 0.53.
class GiveWay {
 public:
  // Called between two indices: whether to yield now.
  bool Due() {
    const uint64_t now = Ticks();
    if (now - start_ < slice_) return false;
    // The thread slept or spun since start_ was set: its slice began later.
    const bool due = now - start_ < 8 * kMaxSlice;
    if (!due) start_ = now;
    return due;
  }

  // The slice shrinks while this thread is still preempted between two yields.
  void Yield() {
    const uint64_t now = Ticks();
    const long switches = contended_ ? Switches() : 0;
    sched_yield();
    start_ = Ticks();
    if (start_ - now < kSwitched) {
      contended_ = false;
      return;
    }
    if (contended_) {
      slice_ = switches > switches_ ? std::max(kMinSlice, slice_ / 4 * 3)
                                    : std::min(kMaxSlice, slice_ / 8 * 9);
    }
    contended_ = true;
    switches_ = Switches();
  }

 private:
  // Time-stamp ticks, 2 to 5 in a nanosecond. Schedulers' slices are 1.4 to 4 ms.
  static constexpr uint64_t kMinSlice = 1'000'000, kMaxSlice = 8'000'000;
  static constexpr uint64_t kSwitched = 200'000;  // a longer yield means that another thread ran

  static long Switches() {
    struct rusage usage {};
    return ::getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nivcsw : 0;
  }

  uint64_t start_ = 0;
  uint64_t slice_ = 3'000'000;
  bool contended_ = false;
  long switches_ = 0;
};
thread_local GiveWay give_way;

void MoveTo(int processor) {
  cpu_set_t all, one;
  if (sched_getaffinity(0, sizeof(all), &all) != 0 || !CPU_ISSET(processor, &all)) return;
  CPU_ZERO(&one);
  CPU_SET(processor, &one);
  if (sched_setaffinity(0, sizeof(one), &one) == 0) sched_setaffinity(0, sizeof(all), &all);
}

// While the caller of jobs is preempted no job can start, so it does not yield. If it is preempted
// often, its processor is shared with another process, and it exchanges processors with a worker.
// They communicate through `post`: the caller's processor + 1 in the high half, the worker's in the
// low half.
class CallerPlace {
 public:
  // Called between two indices.
  void AtBoundary(std::atomic<uint64_t>& post) {
    const uint64_t now = Ticks();
    if (now - checked_ < kCheck) return;
    checked_ = now;
    const uint64_t word = post.load(std::memory_order_relaxed);
    if (word != 0 && word >> 32 == 0) {
      MoveTo(static_cast<int>(word) - 1);
      post.store(0, std::memory_order_relaxed);
      moved_ = now;
    }
    struct rusage usage {};
    if (::getrusage(RUSAGE_THREAD, &usage) != 0) return;
    const bool stopped = usage.ru_nivcsw != switches_;
    switches_ = usage.ru_nivcsw;
    often_ = often_ - often_ / 32 + (stopped ? 32 : 0);
    if (often_ < kOften || now - moved_ < kRest) return;
    often_ = 0;
    moved_ = now;
    post.store(uint64_t{static_cast<uint32_t>(sched_getcpu() + 1)} << 32,
               std::memory_order_relaxed);
  }

 private:
  static constexpr uint64_t kCheck = 2'000'000, kRest = 300'000'000;  // ticks
  static constexpr int kOften = 120;  // of 1024: preempted in one of eight checks
  uint64_t checked_ = 0, moved_ = 0;
  long switches_ = 0;
  int often_ = 0;
};
thread_local CallerPlace caller_place;

// Called by a worker before a job.
void TakePlaceOfCaller(std::atomic<uint64_t>& post) {
  uint64_t word = post.load(std::memory_order_relaxed);
  if (word >> 32 == 0) return;
  const int there = static_cast<int>(word >> 32) - 1, here = sched_getcpu();
  if (here < 0 || here == there) return;
  if (post.compare_exchange_strong(word, static_cast<uint64_t>(here) + 1)) MoveTo(there);
}

// The stack size of threads that are started while this object lives. With the usual 8 MB each,
// hundreds of threads exceed the address space of a limited process.
class SmallStacks {
 public:
  SmallStacks() {
    ::pthread_attr_init(&before_);
    if (::pthread_getattr_default_np(&before_) != 0) return;
    pthread_attr_t small;
    ::pthread_attr_init(&small);
    changed_ = ::pthread_attr_setstacksize(&small, kBytes) == 0 &&
               ::pthread_setattr_default_np(&small) == 0;
    ::pthread_attr_destroy(&small);
  }
  ~SmallStacks() {
    if (changed_) ::pthread_setattr_default_np(&before_);
    ::pthread_attr_destroy(&before_);
  }
  SmallStacks(const SmallStacks&) = delete;

 private:
  static constexpr size_t kBytes = size_t{2} << 20;
  pthread_attr_t before_;
  bool changed_ = false;
};

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

inline void Relax(int& spins) {
  if (++spins < kSpins) {
    Pause();
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

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads <= 0) threads = UsableProcessors();
  // Stack, scratch and the allocator's reserve. Where address space is limited, the model gets what
  // the threads leave.
  constexpr rlim_t kBytesPerThread = rlim_t{32} << 20;
  struct rlimit addresses {};
  if (::getrlimit(RLIMIT_AS, &addresses) == 0 && addresses.rlim_cur != RLIM_INFINITY)
    threads = static_cast<int>(
        std::clamp<rlim_t>(addresses.rlim_cur / kBytesPerThread, 1, static_cast<rlim_t>(threads)));
  shares_ = std::make_unique<Share[]>(static_cast<size_t>(threads) + 1);
  for (int workers = threads - 1; !StartWorkers(workers);) {
    workers = static_cast<int>(workers_.size()) / 2;
    StopWorkers();
  }
}

ThreadPool::~ThreadPool() { StopWorkers(); }

// False if the system gave fewer.
bool ThreadPool::StartWorkers(int count) {
  const SmallStacks small;
  workers_.reserve(static_cast<size_t>(count));
  try {
    for (int rank = 1; rank <= count; ++rank) workers_.emplace_back([this, rank] { Work(rank); });
  } catch (const std::system_error&) {
    return false;
  }
  return true;
}

void ThreadPool::StopWorkers() {
  sleep_.stop.store(true, std::memory_order_relaxed);
  signal_.epoch.fetch_add(2, std::memory_order_release);
  FutexWakeAll(signal_.epoch);
  for (std::thread& t : workers_) t.join();
  workers_.clear();
  sleep_.stop.store(false, std::memory_order_relaxed);
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
  const int64_t done_before = done_.indices.load(std::memory_order_relaxed);
  const uint32_t epoch = signal_.epoch.load(std::memory_order_relaxed) + 2;
  if (epoch % kRefresh == 0) {
    for (int r = 0; r < threads(); ++r) {
      shares_[static_cast<size_t>(r)].taken.store((uint64_t{epoch - 2} << 32) | 0xffffffffu,
                                                  std::memory_order_relaxed);
    }
  }
  // A worker that reads the fields while they change sees different numbers before and after.
  signal_.epoch.store(epoch - 1, std::memory_order_relaxed);
  signal_.body.store(body, std::memory_order_release);
  signal_.ctx.store(ctx, std::memory_order_release);
  signal_.count.store(count, std::memory_order_release);
  signal_.epoch.store(epoch, std::memory_order_seq_cst);
  if (sleep_.sleepers.load(std::memory_order_seq_cst) > 0) FutexWakeAll(signal_.epoch);
  const Job job{epoch, body, ctx, count};
  int64_t left = count - DrainShare(job, 0, 0);
  const auto theirs = [&] { return done_.indices.load(std::memory_order_acquire) - done_before; };
  for (int spins = 0, waited = 0; theirs() < left; Relax(spins))
    if (waited < kPatience && ++waited == kPatience) left -= DrainOthers(job, 0);
  busy_.store(false, std::memory_order_release);
}

// The job with the number job.epoch; false if that job is over, all its indices being taken.
bool ThreadPool::Read(Job& job) const {
  job.body = signal_.body.load(std::memory_order_acquire);
  job.ctx = signal_.ctx.load(std::memory_order_acquire);
  job.count = signal_.count.load(std::memory_order_acquire);
  return signal_.epoch.load(std::memory_order_relaxed) == job.epoch;
}

// The next index of a thread's share, or -1 if it is used up or the job is over.
int64_t ThreadPool::Take(const Job& job, int owner) {
  std::atomic<uint64_t>& taken = shares_[static_cast<size_t>(owner)].taken;
  const int64_t begin = ShareBegin(job.count, owner);
  const int64_t size = ShareBegin(job.count, owner + 1) - begin;
  uint64_t word = taken.load(std::memory_order_acquire);
  for (;;) {
    const auto of = static_cast<uint32_t>(word >> 32);
    // Whether the word belongs to a later job. Numbers wrap, so their difference is compared.
    if (static_cast<int32_t>(of - job.epoch) > 0) return -1;
    const int64_t index = of == job.epoch ? static_cast<int64_t>(word & 0xffffffffu) : 0;
    if (index >= size) return -1;
    const uint64_t next = (uint64_t{job.epoch} << 32) | static_cast<uint64_t>(index + 1);
    if (taken.compare_exchange_weak(word, next, std::memory_order_acq_rel)) return begin + index;
  }
}

// Both return how many indices they finished. A job cannot end before the indices that this thread
// took are counted, so body and ctx stay valid.
int64_t ThreadPool::DrainShare(const Job& job, int owner, int rank) {
  int64_t finished = 0;
  for (int64_t index; (index = Take(job, owner)) >= 0; ++finished) {
    job.body(job.ctx, index, rank);
    if (rank == 0) caller_place.AtBoundary(shares_[static_cast<size_t>(threads())].taken);
    if (rank == 0 || !give_way.Due()) continue;
    // Count finished indices before yielding, so that the caller does not wait for them.
    Count(std::exchange(finished, -1) + 1);
    give_way.Yield();
  }
  return finished;
}

int64_t ThreadPool::DrainOthers(const Job& job, int rank) {
  int64_t finished = 0;
  for (int i = 1; i < threads(); ++i) finished += DrainShare(job, (rank + i) % threads(), rank);
  return finished;
}

void ThreadPool::Count(int64_t finished) {
  if (finished > 0) done_.indices.fetch_add(finished, std::memory_order_release);
}

void ThreadPool::Work(int rank) {
  uint32_t seen = 0;
  int spins = 0;
  for (;;) {
    const uint32_t epoch = signal_.epoch.load(std::memory_order_acquire);
    if (epoch != seen && epoch % 2 == 0) {
      seen = epoch;
      spins = 0;
      if (sleep_.stop.load(std::memory_order_relaxed)) return;
      Job job{.epoch = epoch};
      if (!Read(job)) continue;
      TakePlaceOfCaller(shares_[static_cast<size_t>(threads())].taken);
      Count(DrainShare(job, rank, rank));
      int waited = 0;
      while (waited < kPatience && signal_.epoch.load(std::memory_order_relaxed) == epoch)
        ++waited, Pause();
      if (waited == kPatience) Count(DrainOthers(job, rank));
      continue;
    }
    if (sleep_.hot.load(std::memory_order_relaxed) > 0 || spins < kSpins / 4) {
      Relax(spins);
      continue;
    }
    sleep_.sleepers.fetch_add(1, std::memory_order_seq_cst);
    if (signal_.epoch.load(std::memory_order_seq_cst) == seen) FutexWait(signal_.epoch, seen);
    sleep_.sleepers.fetch_sub(1, std::memory_order_relaxed);
    spins = 0;
  }
}

}  // namespace baton
