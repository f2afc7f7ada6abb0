#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <optional>
#include <random>

namespace baton {
namespace {

// Plain bytes on purpose: if two threads run the same index, ThreadSanitizer reports a race.
void ExpectEachOnce(ThreadPool& pool, int64_t count) {
  std::vector<uint8_t> times(static_cast<size_t>(count), 0);
  std::atomic<bool> ranks{true};
  pool.For(count, [&](int64_t i, int rank) {
    times[static_cast<size_t>(i)]++;
    if (rank < 0 || rank >= pool.threads()) ranks = false;
  });
  EXPECT_TRUE(ranks);
  for (uint8_t t : times) ASSERT_EQ(t, 1);
}

TEST(ThreadPool, EveryIndexExactlyOnce) {
  std::mt19937 random(1);
  for (int threads : {1, 2, 3, 4, 7, 16}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int64_t count : {0, 1, 2, 3, 64, 1000}) ExpectEachOnce(pool, count);
    for (int i = 0; i < 150; ++i) ExpectEachOnce(pool, random() % 300);
  }
}

TEST(ThreadPool, SharesCoverTheIndicesInOrder) {
  for (int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    for (int64_t count : {0, 1, 5, 7, 1000}) {
      EXPECT_EQ(pool.ShareBegin(count, 0), 0);
      EXPECT_EQ(pool.ShareBegin(count, threads), count);
      for (int r = 0; r < threads; ++r) {
        const int64_t size = pool.ShareBegin(count, r + 1) - pool.ShareBegin(count, r);
        EXPECT_GE(size, count / threads);
        EXPECT_LE(size, count / threads + 1);
      }
    }
  }
}

// A thread takes its own share from the front, and other threads' indices in ascending order too.
TEST(ThreadPool, IndicesOfAShareStartInOrder) {
  constexpr int64_t kCount = 400;
  ThreadPool pool(4);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::vector<int64_t>> taken(4);  // by rank
    pool.For(kCount, [&](int64_t i, int rank) { taken[static_cast<size_t>(rank)].push_back(i); });
    for (int rank = 0; rank < 4; ++rank) {
      for (int owner = 0; owner < 4; ++owner) {
        int64_t last = -1;
        for (int64_t i : taken[static_cast<size_t>(rank)]) {
          if (i < pool.ShareBegin(kCount, owner) || i >= pool.ShareBegin(kCount, owner + 1))
            continue;
          EXPECT_GT(i, last);
          last = i;
        }
      }
    }
  }
}

TEST(ThreadPool, NegativeCountIsNothing) {
  ThreadPool pool(2);
  pool.For(-5, [](int64_t, int) { FAIL(); });
}

TEST(ThreadPool, NestedCallsRunToTheEnd) {
  ThreadPool pool(3);
  std::vector<std::vector<int>> grid(20, std::vector<int>(30, 0));
  pool.For(20, [&](int64_t i, int) {
    pool.For(30, [&](int64_t j, int rank) {
      EXPECT_EQ(rank, 0);
      grid[static_cast<size_t>(i)][static_cast<size_t>(j)]++;
    });
  });
  for (const auto& row : grid) {
    for (int n : row) EXPECT_EQ(n, 1);
  }
  ExpectEachOnce(pool, 100);  // the team still works
}

// A job reads what the previous one wrote, on any thread: For returns only when all is done.
TEST(ThreadPool, JobsAreOrdered) {
  for (int threads : {2, 4, 9}) {  // nine: more than this machine is likely to have
    ThreadPool pool(threads);
    for (bool hot : {false, true}) {
      std::optional<ThreadPool::Hot> scope;
      if (hot) scope.emplace(pool);
      std::vector<int64_t> a(64, 0), b(64, 0);
      for (int round = 0; round < 500; ++round) {
        pool.For(64, [&](int64_t i, int) {
          b[static_cast<size_t>(i)] = a[static_cast<size_t>(63 - i)] + 1;
        });
        std::swap(a, b);
      }
      for (int64_t x : a) EXPECT_EQ(x, 500);
    }
  }
}

TEST(ThreadPool, BodiesMayBeTemporariesOfChangingKinds) {
  ThreadPool pool(4);
  int64_t total = 0;
  for (int round = 0; round < 3000; ++round) {  // shares are renewed several times meanwhile
    std::atomic<int64_t> sum{0};
    const auto own = std::make_unique<int64_t>(round);
    if (round % 2) {
      pool.For(1 + round % 7, [&sum, p = own.get()](int64_t, int) { sum += *p; });
    } else {
      pool.For(1 + round % 7, [&](int64_t i, int) { sum += i - i + round; });
    }
    EXPECT_EQ(sum, round * (1 + round % 7));
    total += sum;
  }
  EXPECT_GT(total, 0);
}

TEST(ThreadPool, ComesAndGoesWithoutWork) {
  for (int i = 0; i < 100; ++i) {
    ThreadPool pool(1 + i % 5);
    if (i % 3 == 0) ExpectEachOnce(pool, 10);
    if (i % 7 == 0) ThreadPool::Hot hot(pool);
  }
  EXPECT_GE(ThreadPool().threads(), 1);
}

TEST(ThreadPool, TwoTeamsDoNotMix) {
  ThreadPool a(3), b(3);
  std::vector<int> sums(40, 0);
  a.For(40, [&](int64_t i, int) {
    if (i % 20 != 0) return;
    // Elsewhere one thread uses a pool at a time. Here two do, and each index must still run once.
    std::atomic<int> n{0};
    b.For(50, [&](int64_t, int) { n++; });
    sums[static_cast<size_t>(i)] = n;
  });
  EXPECT_EQ(sums[0], 50);
  EXPECT_EQ(sums[20], 50);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Sanitizers' shadow memory needs the whole address space.
void ExitWithAWorkingTeam() {
  struct rlimit limit {};
  limit.rlim_cur = limit.rlim_max = rlim_t{1} << 30;
  setrlimit(RLIMIT_AS, &limit);
  ThreadPool pool(900);
  std::atomic<int> done{0};
  pool.For(1000, [&](int64_t, int) { ++done; });
  _exit(done == 1000 && pool.threads() < 900 ? 0 : 1);
}

TEST(ThreadPool, WhereThreadsAreRefusedTheTeamIsSmaller) {
  EXPECT_EXIT(ExitWithAWorkingTeam(), testing::ExitedWithCode(0), "");
}
#endif

}  // namespace
}  // namespace baton
