// The CPU backend. This class splits work over threads and keeps scratch memory; the arithmetic is
// in sets of kernels: portable/ (Highway, any x86-64, single precision), avx2/ and avx512/ (with
// VNNI and BF16), which use intrinsics, and amx/, which multiplies the rows of prompts in tile
// registers and uses avx512/ for everything else. The set is chosen once, here.
#pragma once

#include <memory>
#include <string>

#include "base/buffer.h"
#include "ops/ops.h"

namespace baton {

enum class CpuIsa { kPortable, kAvx2, kAvx512, kAmx };  // a machine runs all up to its best

// The best the machine runs: kAvx2 also needs FMA, F16C, BMI2 and LZCNT; kAvx512 needs F, BW, VL,
// DQ, CD, VBMI, VBMI2, VNNI and BF16; kAmx needs TILE and BF16 and the system's permission to use
// them.
CpuIsa DetectCpuIsa();

// Fails when `isa` is not supported by this machine.
Result<std::unique_ptr<Ops>> MakeCpuOps(ThreadPool& threads, CpuIsa isa);

namespace cpu {

class CpuOps final : public Ops {
 public:
  CpuOps(ThreadPool& threads, CpuIsa isa);
  ~CpuOps() override;
  std::string name() const override;
  Result<std::unique_ptr<Matrix>> Pack(const RawMatrix& raw) override;  // linear.cc

 protected:
  void DoLinear(const LinearParams& p) override;  // linear.cc
  void DoGlu(const GluParams& p) override;        // linear.cc
  void DoNorm(const NormParams& p) override;      // store.cc
  void DoStore(const StoreParams& p) override;    // store.cc
  void DoAttend(const AttendParams& p) override;  // attend.cc
  void DoMerge(const MergeParams& p) override;    // merge.cc
  void DoMass(const MassParams& p) override;      // mass.cc
  void DoSelect(const SelectParams& p) override;  // select.cc

 private:
  // Scratch that lives between calls. Each file that needs some defines its state and makes it on
  // first use; shared_ptr, so that the other files need not see the definition.
  struct LinearState;
  struct AttendState;
  struct MassState;
  CpuIsa isa_;
  Arena weights_;
  // Shared pointers because they can be destroyed where the type is not defined.
  std::shared_ptr<LinearState> linear_;
  std::shared_ptr<AttendState> attend_;
  std::shared_ptr<MassState> mass_;
};

}  // namespace cpu
}  // namespace baton
