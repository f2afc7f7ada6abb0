// Where the time of a forward pass goes: calls, seconds, bytes that had to move and multiply-adds,
// per operation.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <iterator>
#include <string_view>

namespace baton {

enum class OpKind {
  kLinear,
  kGlu,
  kOutput,
  kNorm,
  kStore,
  kGather,
  kAttend,
  kMerge,
  kMass,
  kSelect,
  kEmbed,
  kCopyRows,
  kSample,
  kAdd,
  kRotaryTable,
  kRoute,
  kCount
};

constexpr std::string_view Name(OpKind op) {
  constexpr std::string_view kNames[] = {
      "linear", "glu",    "output layer", "norm",      "store",  "gather", "attend",       "merge",
      "mass",   "select", "embed",        "copy rows", "sample", "add",    "rotary table", "route"};
  static_assert(std::size(kNames) == static_cast<size_t>(OpKind::kCount));
  return kNames[static_cast<int>(op)];
}

class Trace {
 public:
  struct Entry {
    int64_t calls = 0;
    double seconds = 0;
    double bytes = 0;
    double flops = 0;
  };

  bool enabled = false;
  // For asynchronous backends: waits for all operations called so far, before an operation's time
  // is taken.
  std::function<void()> wait;
  const Entry& operator[](OpKind op) const { return entries_[static_cast<size_t>(op)]; }
  void Reset() { entries_ = {}; }

  class Scope {
   public:
    Scope(Trace& trace, OpKind op, double bytes, double flops)
        : trace_(trace),
          entry_(trace.enabled ? &trace.entries_[static_cast<size_t>(op)] : nullptr) {
      if (!entry_) return;
      entry_->calls++;
      entry_->bytes += bytes;
      entry_->flops += flops;
      start_ = std::chrono::steady_clock::now();
    }
    ~Scope() {
      if (!entry_) return;
      if (trace_.wait) trace_.wait();
      entry_->seconds +=
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }
    Scope(const Scope&) = delete;

   private:
    Trace& trace_;
    Entry* entry_;
    std::chrono::steady_clock::time_point start_;
  };

 private:
  std::array<Entry, static_cast<size_t>(OpKind::kCount)> entries_{};
};

}  // namespace baton
