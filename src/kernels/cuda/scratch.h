// Device memory that operations keep between calls: named arrays that grow and never shrink, so
// that their addresses, and graphs that contain these, stay valid.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/recorder.h"

namespace baton::cuda {

class Scratch {
 public:
  // Each slot is one array. An operation's content is lost with the next operation that takes the
  // same slot: operations may share a slot because no content is needed after its operation.
  enum Slot {
    kInput,        // the library's inputs: rows normed and rounded
    kSplit,        // the same for own products, in the order of bf16 weights
    kSplitHalves,  // and of quantised ones
    kExpanded,     // a quantised matrix in bf16
    kProduct,      // products of prompts before their activation
    kRouter,       // the router's vectors
    kPartial,      // Attend: partial results of a row's splits
    kMass,         // Mass: partial sums and denominators
    kSelect,       // Select: histograms and candidates
    kKeys,         // Sample: logits as integers in their order
    kWorkspace,    // of a library's products
    kSlots
  };

  explicit Scratch(Recorder& recorder) : recorder_(recorder) {}
  ~Scratch();
  Scratch(const Scratch&) = delete;

  // Room for n elements, 256-byte aligned, not initialised. Growing starts all recorded work and
  // waits for it, because it may use the old array.
  template <typename T>
  T* Get(Slot slot, int64_t n) {
    T* const data = TryGet<T>(slot, n);
    BATON_CHECK(data != nullptr || n == 0);
    return data;
  }
  // Null where the GPU has no room: for what can be done otherwise.
  template <typename T>
  T* TryGet(Slot slot, int64_t n) {
    return static_cast<T*>(Grow(slot, n * static_cast<int64_t>(sizeof(T))));
  }

 private:
  struct Memory {
    void* data = nullptr;
    int64_t bytes = 0;
  };
  void* Grow(Slot slot, int64_t bytes);

  Recorder& recorder_;
  std::array<Memory, kSlots> slots_;
};

}  // namespace baton::cuda
