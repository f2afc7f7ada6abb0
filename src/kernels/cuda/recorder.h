// Kernel launches of a forward pass, recorded on the host and started together.
//
// Within a pass an operation records actions (a kernel and its arguments) and tables (segments,
// positions, lengths: whatever describes the step). When the pass ends, something is downloaded, or
// enough is recorded to keep the device busy, the tables go to the device in one copy and the
// actions run in order. Tables of equal sizes in equal order get equal addresses, so a decode step
// repeats the actions of the previous step byte for byte and differs only in the tables. Such a run
// of actions is captured as a CUDA graph the second time it occurs, and replayed from then on.
// Outside a pass, an operation's work starts when the operation ends.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/check.h"

namespace baton::cuda {

// Aborts with the call's name and CUDA's message: after a failed launch the results are unusable.
void Check(cudaError_t error, const char* what);
#define BATON_CUDA(call) ::baton::cuda::Check((call), #call)

class Recorder {
 public:
  struct Options {
    bool graphs = true;
    // If true, an operation outside a pass, and a pass, has completed when it ends: tests read
    // results without a download.
    bool synchronous = false;
  };
  explicit Recorder(cudaStream_t stream, Options options);
  ~Recorder();
  Recorder(const Recorder&) = delete;

  cudaStream_t stream() const { return stream_; }
  // Whether the GPU runs the blocks of a kernel in clusters, and kernels overlapped (Shape).
  bool clusters() const { return clusters_; }

  // Passes do not nest.
  void BeginPass();
  void EndPass();
  bool in_pass() const { return in_pass_; }

  // Spans the recording of one operation. Outside a pass, all recorded work starts when the
  // outermost one ends.
  class Operation {
   public:
    explicit Operation(Recorder& recorder) : recorder_(recorder) { recorder_.Enter(); }
    ~Operation() { recorder_.Leave(); }
    Operation(const Operation&) = delete;

   private:
    Recorder& recorder_;
  };

  // Starts everything recorded so far; returns before it has run. Tables stay valid.
  void Flush();
  // Flush, and waits until everything has run.
  void Wait();

  // The device address of a copy of `values`, valid for the actions recorded from now until the
  // pass, or the operation outside a pass, ends.
  template <typename T>
  const T* Table(std::span<const T> values) {
    auto [host, device] = TableSpace<T>(static_cast<int64_t>(values.size()));
    if (!values.empty()) std::memcpy(host, values.data(), values.size_bytes());
    return device;
  }
  // The same for n values that the caller writes to `host` before it returns from its operation.
  template <typename T>
  struct Space {
    T* host;
    T* device;
  };
  template <typename T>
  Space<T> TableSpace(int64_t n) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= kTableAlignment);
    const auto [host, device] = Put(static_cast<size_t>(n) * sizeof(T));
    return {reinterpret_cast<T*>(host), reinterpret_cast<T*>(device)};
  }

  // How a kernel is launched. `overlapped`: it may begin before the preceding kernel has ended
  // (programmatic dependent launch, from compute capability 9.0 on), and must wait, with
  // cudaGridDependencySynchronize, before it accesses what that kernel reads or writes.
  struct Shape {
    dim3 grid = 1, block = 1;
    size_t shared_bytes = 0;
    unsigned cluster = 1;
    bool overlapped = false;
  };
  // Launches a kernel with arguments that are copied now. Everything that changes from step to step
  // belongs into tables, so that the launch repeats. Arguments must have no padding, whose bytes
  // may differ.
  template <typename... P, typename... A>
  void Launch(void (*kernel)(P...), const Shape& shape, A&&... a) {
    static_assert(sizeof...(P) == sizeof...(A));
    static_assert((std::is_trivially_copyable_v<std::decay_t<P>> && ...));
    if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
    BeginLaunch(reinterpret_cast<const void*>(kernel), shape, sizeof...(P));
    (PutArgument<std::decay_t<P>>(static_cast<std::decay_t<P>>(std::forward<A>(a))), ...);
  }
  template <typename... P, typename... A>
  void Launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, A&&... a) {
    Launch(kernel, Shape{.grid = grid, .block = block, .shared_bytes = shared_bytes},
           std::forward<A>(a)...);
  }
  // Work of a library on the stream. `key` holds all that it depends on.
  void Add(std::span<const std::byte> key, std::function<void(cudaStream_t)> run);
  // Copies and zeroes device memory.
  void Copy(void* to, const void* from, int64_t bytes);
  void Zero(void* at, int64_t bytes);

  struct Counts {
    int64_t passes = 0, launches = 0, replays = 0, captures = 0;  // launches: one by one
  };
  const Counts& counts() const { return counts_; }

 private:
  static constexpr size_t kTableAlignment = 64;
  // Table memory: the host's copies (one a pass, several passes in flight) and the device's.
  struct Chunk;
  struct Action;
  struct Graph;

  void Enter();
  void Leave();
  void BeginTables();
  void EndTables();
  void UploadTables();
  std::pair<std::byte*, std::byte*> Put(size_t bytes);
  void BeginLaunch(const void* function, const Shape& shape, size_t arguments);
  std::byte* AppendBytes(size_t bytes);
  template <typename T>
  void PutArgument(const T& value) {
    std::memcpy(AppendArgument(sizeof(T)), &value, sizeof(T));
  }
  std::byte* AppendArgument(size_t bytes);
  void RunActions();
  void Replay();
  std::unique_ptr<Graph> Capture();

  cudaStream_t stream_;
  Options options_;
  Counts counts_;
  bool clusters_ = false;  // compute capability 9.0 on
  bool in_pass_ = false;
  int depth_ = 0;   // of operations
  int pieces_ = 0;  // of this pass that have started before its end
  size_t generation_ = 0;
  std::vector<std::unique_ptr<Chunk>> chunks_;
  // Actions since the last flush: headers, arguments and keys one after another.
  std::vector<std::byte> bytes_;
  std::vector<size_t> actions_;  // where each begins
  size_t next_argument_ = 0;     // of the launch that is being recorded
  std::vector<std::function<void(cudaStream_t)>> functions_;
  std::vector<std::unique_ptr<Graph>> graphs_;
  std::vector<std::pair<const void*, size_t>> shared_;  // limits raised so far
};

}  // namespace baton::cuda
