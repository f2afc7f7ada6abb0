// A fixed team of threads. Work is split by index. Results must not depend on the number of
// threads, so callers split work by their data (fixed chunk sizes), never by the number of threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace baton {

class ThreadPool {
 public:
  // `threads` counts the caller; 0 means UsableProcessors(). If the system cannot start that many,
  // the pool keeps half of those that could start, because their stacks take memory that the work
  // needs.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(index, rank) once for every index in [0, count), rank in [0, threads()). Returns
  // when all are done. Each thread goes through its own contiguous share of the indices in order,
  // so that the data of neighbouring indices stays in one core's caches; then it waits some
  // microseconds for the others and helps them, one index at a time. Not re-entrant: a nested call
  // runs on the calling thread alone.
  template <typename F>
  void For(int64_t count, F&& body) {
    Dispatch(
        count,
        [](void* ctx, int64_t index, int rank) {
          (*static_cast<std::remove_reference_t<F>*>(ctx))(index, rank);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

  // The first index of a thread's share of [0, count); that of rank threads() is count.
  int64_t ShareBegin(int64_t count, int rank) const { return count * rank / threads(); }

  // While one lives, idle workers spin instead of sleeping: one wake-up for a whole forward pass.
  class Hot {
   public:
    explicit Hot(ThreadPool& pool) : pool_(pool) {
      pool_.sleep_.hot.fetch_add(1, std::memory_order_relaxed);
    }
    ~Hot() { pool_.sleep_.hot.fetch_sub(1, std::memory_order_relaxed); }
    Hot(const Hot&) = delete;

   private:
    ThreadPool& pool_;
  };

 private:
  using Body = void (*)(void*, int64_t, int);
  struct Job {
    uint32_t epoch = 0;
    Body body = nullptr;
    void* ctx = nullptr;
    int64_t count = 0;
  };
  bool StartWorkers(int count);
  void StopWorkers();
  void Dispatch(int64_t count, Body body, void* ctx);
  void Work(int rank);
  void Count(int64_t finished);
  bool Read(Job& job) const;
  int64_t Take(const Job& job, int owner);
  int64_t DrainShare(const Job& job, int owner, int rank);
  int64_t DrainOthers(const Job& job, int rank);

  // A cache line that one thread writes and another reads moves between cores; between cores on
  // different dies, that is most of the time of a short job. So a job is one cache line, which idle
  // workers poll: its number and its description arrive together, and starting it writes nothing
  // else.
  struct alignas(64) Signal {
    // Even: the number of the job below. Odd: it is being changed. Futex word.
    std::atomic<uint32_t> epoch{0};
    std::atomic<Body> body{nullptr};
    std::atomic<void*> ctx{nullptr};
    std::atomic<int64_t> count{0};
  };
  struct alignas(64) Sleep {
    std::atomic<int> sleepers{0};
    std::atomic<int> hot{0};
    std::atomic<bool> stop{false};
  };
  // Indices that workers have finished, of all jobs so far.
  struct alignas(64) Done {
    std::atomic<int64_t> indices{0};
  };
  // Progress of a thread's share: (epoch << 32) | indices taken. A word with an older epoch means
  // that none is taken; the epoch keeps a late worker from taking an index of another job.
  struct alignas(64) Share {
    std::atomic<uint64_t> taken{0};
  };
  Signal signal_;
  Sleep sleep_;
  Done done_;
  // [threads() + 1]: the shares, then the word through which caller and worker exchange processors.
  std::unique_ptr<Share[]> shares_;
  std::vector<std::thread> workers_;  // on one cache line with shares_, never written during jobs
  alignas(64) std::atomic<bool> busy_{false};
};

}  // namespace baton
