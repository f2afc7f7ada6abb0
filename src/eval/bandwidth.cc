// What the machine can read from memory, measured the way decode reads: all threads streaming
// through huge pages. Virtual machines of one kind differ by more than two, so a speed is only
// worth something beside the limit of the same run. Of a GPU: what a large copy reads and writes.
#include <algorithm>
#include <chrono>
#include <vector>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/thread_pool.h"
#include "baton/eval.h"
#include "engine/engine_impl.h"

namespace baton {
namespace {

constexpr int64_t kBytes = int64_t{512} << 20;  // well past any shared cache of a small machine
constexpr int64_t kChunk = int64_t{1} << 20;
constexpr int kPasses = 5;

uint64_t Sum(const uint64_t* x, int64_t n) {
  // Eight chains: one addition a cycle would be slower than the memory.
  uint64_t s[8] = {};
  for (int64_t i = 0; i < n; i += 8) {
    for (int j = 0; j < 8; ++j) s[j] += x[i + j];
  }
  return s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
}

constexpr int64_t kCopyBytes = int64_t{1} << 30;
constexpr int kCopies = 8;

double MeasureCopyBandwidth(Device& device) {
  Result<Buffer> from = Buffer::Allocate(kCopyBytes, device);
  Result<Buffer> to = Buffer::Allocate(kCopyBytes, device);
  if (!from.ok() || !to.ok()) return 0;
  std::byte end;
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    device.Download(&end, to->data(), 1);  // waits for what was started
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kCopies; ++i) device.Copy(to->data(), from->data(), kCopyBytes);
    device.Download(&end, to->data(), 1);
    const double seconds = SecondsSince(start);
    best = std::max(best, 2.0 * kCopies * static_cast<double>(kCopyBytes) / seconds);
  }
  return best;
}

double MeasureHostBandwidth(int threads) {
  ThreadPool pool(threads);
  Result<Buffer> buffer = Buffer::Allocate(kBytes);
  if (!buffer.ok()) return 0;
  auto* words = buffer->as<uint64_t>();
  constexpr int64_t kWords = kChunk / 8;
  const int64_t chunks = kBytes / kChunk;
  pool.For(chunks, [&](int64_t c, int) { std::fill_n(words + c * kWords, kWords, c); });
  std::vector<uint64_t> sums(static_cast<size_t>(chunks));
  double best = 0;
  ThreadPool::Hot hot(pool);
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    pool.For(chunks, [&](int64_t c, int) {
      sums[static_cast<size_t>(c)] = Sum(words + c * kWords, kWords);
    });
    const double seconds = SecondsSince(start);
    best = std::max(best, static_cast<double>(kBytes) / seconds);
  }
  // Kept alive: sums that nobody reads would be removed, and the reads with them.
  volatile uint64_t sink = sums[0] + sums.back();
  (void)sink;
  return best;
}

}  // namespace

double MeasureReadBandwidth(Engine& engine) {
  Device& device = engine.impl().ops->device();
  return device.host() ? MeasureHostBandwidth(engine.info().threads) : MeasureCopyBandwidth(device);
}

}  // namespace baton
