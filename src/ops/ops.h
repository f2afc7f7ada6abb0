// The operations a forward pass is made of: one params struct each (params.h, attention_params.h),
// one interface, one slow reference (reference.cc) and one fast backend per device. Checks, timing
// and byte counts live here, above the backends.
//
// Letters: T rows of the batch, N visible keys, C model width, Hq/Hkv heads, R = Hq/Hkv, D head
// size, K selected tokens. Results never depend on the number of threads, nor on which other rows
// or segments share a call.
//
// Memory: what params point at is in the memory of the backend's device (device()): every View, the
// caches and page tables of a KvView, index sets, stored scores and masses, norm weights, biases,
// sink logits, router weights and logits. Spans, and with them everything that describes a step
// (segments, rows, positions, lengths, budgets, head maps), are in the host's memory: a backend
// copies what it needs of them before it returns. The tokens and the table of EmbedParams are in
// host memory too.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/device.h"
#include "base/thread_pool.h"
#include "baton/error.h"
#include "ops/attention_params.h"
#include "ops/params.h"
#include "ops/sample.h"
#include "ops/trace.h"

namespace baton {

class Ops {
 public:
  virtual ~Ops() = default;
  virtual std::string name() const = 0;  // "ref", "cpu (avx512)", ...
  virtual Device& device() { return Device::Host(); }
  // The most rows of a decode pass; more run in turns. Beyond it a pass with twice the rows takes
  // about twice the time, and a row waits for it (bench/results/h200.md: products).
  virtual int64_t most_decode_rows() const { return 16; }

  // The operations of one forward pass. Within it a backend may queue them and launch them
  // together, at the latest when something is downloaded from its device.
  class Pass {
   public:
    explicit Pass(Ops& ops) : ops_(ops), hot_(ops.threads_) { ops_.BeginPass(); }
    ~Pass() { ops_.EndPass(); }
    Pass(const Pass&) = delete;

   private:
    Ops& ops_;
    ThreadPool::Hot hot_;
  };

  // Copies a weight matrix into this backend's layout, on huge pages.
  virtual Result<std::unique_ptr<Matrix>> Pack(const RawMatrix& raw) = 0;

  void Linear(const LinearParams& p);
  void Glu(const GluParams& p);
  void Norm(const NormParams& p);
  void Store(const StoreParams& p);
  void Gather(const GatherParams& p);
  void Attend(const AttendParams& p);
  void Merge(const MergeParams& p);
  void Mass(const MassParams& p);
  void Select(const SelectParams& p);

  void Embed(const EmbedParams& p);
  void CopyRows(const CopyRowsParams& p);
  void Sample(const SampleParams& p);
  void Add(const AddParams& p);
  void RotaryTable(const RotaryTableParams& p);
  void Route(const RouteParams& p);

  Trace& trace() { return trace_; }
  ThreadPool& threads() { return threads_; }

 protected:
  explicit Ops(ThreadPool& threads) : threads_(threads) {}
  virtual void BeginPass() {}
  virtual void EndPass() {}
  virtual void DoLinear(const LinearParams& p) = 0;
  virtual void DoGlu(const GluParams& p) = 0;
  virtual void DoNorm(const NormParams& p) = 0;
  virtual void DoStore(const StoreParams& p) = 0;
  virtual void DoAttend(const AttendParams& p) = 0;
  virtual void DoMerge(const MergeParams& p) = 0;
  virtual void DoMass(const MassParams& p) = 0;
  virtual void DoSelect(const SelectParams& p) = 0;
  // Small or bound by memory: one implementation serves every backend that computes on the host
  // (row_ops.cc, route.cc, sample.cc).
  virtual void DoGather(const GatherParams& p);
  virtual void DoEmbed(const EmbedParams& p);
  virtual void DoCopyRows(const CopyRowsParams& p);
  virtual void DoSample(const SampleParams& p);
  virtual void DoAdd(const AddParams& p);
  virtual void DoRotaryTable(const RotaryTableParams& p);
  virtual void DoRoute(const RouteParams& p);

  ThreadPool& threads_;
  Trace trace_;

 private:
  std::vector<HostSampler> samplers_;  // [threads], of DoSample
};

// The obvious implementation, single precision throughout, no SIMD: the oracle of every other
// backend.
std::unique_ptr<Ops> MakeReferenceOps(ThreadPool& threads);

}  // namespace baton
