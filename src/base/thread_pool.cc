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

// Spins before a thread gives way. Far longer than an operation's tail, far shorter than a
// scheduler tick.
constexpr int kSpins = 4000;

// Numbers of jobs wrap, so no share may keep a very old one: after so many all are renewed.
constexpr uint32_t kRefresh = 1 << 10;

// Spins before a thread helps another with its share: some microseconds. What it would take over
// lies in the other one's caches; a short job ends sooner if everyone does his own, and the next
// one finds its data where it was.
constexpr int kPatience = 100;

// Of the time stamp counter, 2 to 5 in a nanosecond.
inline uint64_t Ticks() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#else
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count() * 3);
#endif
}

// A thread that another process's thread shares a processor with is stopped when its time slice
// ends, and holds an index that nobody else can finish until it runs again: all wait for it. So it
// gives way between two indices, a little before its slice ends. Where nobody waits for the
// processor that costs a system call every so often.
class GiveWay {
 public:
  // Between two indices: whether it is time.
  bool Due() {
    const uint64_t now = Ticks();
    if (now - start_ < slice_) return false;
    // Out of date: it was asleep, or spun, since then.
    const bool due = now - start_ < 8 * kMaxSlice;
    if (!due) start_ = now;
    return due;
  }

  // The slice shrinks while this thread is still stopped between two yields.
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
  static constexpr uint64_t kSwitched = 200'000;  // a longer yield means that someone else ran

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

// While the caller of jobs is stopped there is no next job, so it does not give way. If it is
// stopped time and again its processor is shared, and it changes places with a worker. `post` is
// what the two tell each other: two processors, + 1, of the caller (high half) and the worker.
class CallerPlace {
 public:
  // Between two indices.
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
  static constexpr int kOften = 120;  // of 1024: stopped in one of eight checks
  uint64_t checked_ = 0, moved_ = 0;
  long switches_ = 0;
  int often_ = 0;
};
thread_local CallerPlace caller_place;

// A worker, before a job.
void TakePlaceOfCaller(std::atomic<uint64_t>& post) {
  uint64_t word = post.load(std::memory_order_relaxed);
  if (word >> 32 == 0) return;
  const int there = static_cast<int>(word >> 32) - 1, here = sched_getcpu();
  if (here < 0 || here == there) return;
  if (post.compare_exchange_strong(word, static_cast<uint64_t>(here) + 1)) MoveTo(there);
}

// What threads started while it lives have for a stack. The usual 8 MB each are more addresses than
// a limited process has for hundreds of threads.
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
  // Stack, scratch and the allocator's reserve: where addresses are limited, what the threads leave
  // must do for the model.
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
  // A worker that reads the fields while they change sees another number before or after.
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

// The job of number job.epoch, or false if it is over. All its indices are then taken.
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
    // A later job's? Numbers wrap, so by difference.
    if (static_cast<int32_t>(of - job.epoch) > 0) return -1;
    const int64_t index = of == job.epoch ? static_cast<int64_t>(word & 0xffffffffu) : 0;
    if (index >= size) return -1;
    const uint64_t next = (uint64_t{job.epoch} << 32) | static_cast<uint64_t>(index + 1);
    if (taken.compare_exchange_weak(word, next, std::memory_order_acq_rel)) return begin + index;
  }
}

// Both return how many indices they did. An index taken is ours, so the job cannot end before it is
// counted: body and ctx are valid.
int64_t ThreadPool::DrainShare(const Job& job, int owner, int rank) {
  int64_t finished = 0;
  for (int64_t index; (index = Take(job, owner)) >= 0; ++finished) {
    job.body(job.ctx, index, rank);
    if (rank == 0) caller_place.AtBoundary(shares_[static_cast<size_t>(threads())].taken);
    if (rank == 0 || !give_way.Due()) continue;
    // Nobody shall wait for what is done already.
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
