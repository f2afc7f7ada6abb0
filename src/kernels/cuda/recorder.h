// Kernel launches of a forward pass, recorded on the host and started together.
//
// Within a pass an operation leaves an action (a kernel and its arguments) and tables (segments,
// positions, lengths: what describes the step). When the pass ends, or something is downloaded, all
// tables go to the device in one copy and the actions run in order. Tables of equal sizes in equal
// order lie at equal addresses, so a decode step repeats the actions of the step before it byte for
// byte and differs in the tables alone: such a run of actions is captured as a CUDA graph the
// second time it is seen, and replayed from then on. Outside a pass every action starts at once.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <tuple>
#include <type_traits>
#include <vector>

#include "base/check.h"

namespace baton::cuda {

// Aborts with the call's name and CUDA's message: a failed launch leaves nothing to go on with.
void Check(cudaError_t error, const char* what);
#define BATON_CUDA(call) ::baton::cuda::Check((call), #call)

class Recorder {
 public:
  explicit Recorder(cudaStream_t stream);
  ~Recorder();
  Recorder(const Recorder&) = delete;

  cudaStream_t stream() const { return stream_; }

  void BeginPass();
  void EndPass();
  // Starts everything recorded so far; returns before it has run.
  void Flush();

  // The device address that a copy of `values` has when the actions recorded from now on run. Valid
  // for those of this pass.
  template <typename T>
  T* Table(std::span<const T> values) {
    static_assert(std::is_trivially_copyable_v<T>);
    return static_cast<T*>(Put(values.data(), values.size_bytes()));
  }

  // A kernel with arguments that are copied now. Everything that changes from step to step belongs
  // into tables, so that the launch repeats.
  template <typename... P, typename... A>
  void Launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, A&&... a) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    std::tuple<std::decay_t<P>...> args(static_cast<std::decay_t<P>>(std::forward<A>(a))...);
    auto* function = reinterpret_cast<const void*>(kernel);
    std::vector<std::byte> key;
    Append(key, function), Append(key, grid), Append(key, block), Append(key, shared_bytes);
    std::apply([&](const auto&... each) { (Append(key, each), ...); }, args);
    Add(std::move(key), [=](cudaStream_t stream) mutable {
      std::apply(
          [&](auto&... each) {
            void* pointers[] = {static_cast<void*>(&each)..., nullptr};
            BATON_CUDA(cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream));
          },
          args);
    });
  }
  // Work of a library on the stream. `key` holds all that it depends on.
  void Add(std::vector<std::byte> key, std::function<void(cudaStream_t)> run);

  template <typename T>
  static void Append(std::vector<std::byte>& key, const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    key.insert(key.end(), bytes, bytes + sizeof(T));
  }

  struct Counts {
    int64_t passes = 0, launches = 0, replays = 0, captures = 0;
  };
  const Counts& counts() const { return counts_; }

 private:
  struct Action {
    std::vector<std::byte> key;
    std::function<void(cudaStream_t)> run;
  };
  struct Graph;
  void* Put(const void* data, size_t bytes);

  cudaStream_t stream_;
  Counts counts_;
  // ... pinned host tables (several generations in flight), their device copy, actions, graphs.
};

}  // namespace baton::cuda
