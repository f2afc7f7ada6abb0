// The class behind cuda_ops.h. Operations of attention are functions of attention_kernels.h, the
// others are members, defined beside their kernels.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/library_attention.h"
#include "kernels/cuda/recorder.h"
#include "kernels/cuda/scratch.h"

namespace baton::cuda {

class LibraryGemm;

// A stream that is destroyed with its owner.
class Stream {
 public:
  Stream() { BATON_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaOps final : public Ops {
 public:
  CudaOps(ThreadPool& threads, const CudaOptions& options, std::string name);
  ~CudaOps() override;

  std::string name() const override { return name_; }
  Device& device() override { return device_; }
  int64_t most_decode_rows() const override { return 64; }
  const Recorder::Counts& counts() const { return recorder_.counts(); }

  Result<std::unique_ptr<Matrix>> Pack(const RawMatrix& raw) override;  // pack.cu

 protected:
  void BeginPass() override { recorder_.BeginPass(); }
  void EndPass() override { recorder_.EndPass(); }

  void DoLinear(const LinearParams& p) override;  // linear.cu
  void DoGlu(const GluParams& p) override;        // linear.cu
  void DoNorm(const NormParams& p) override;      // norm.cu
  void DoStore(const StoreParams& p) override;    // store.cu
  void DoAttend(const AttendParams& p) override;
  void DoMerge(const MergeParams& p) override;
  void DoMass(const MassParams& p) override;
  void DoSelect(const SelectParams& p) override;
  void DoGather(const GatherParams& p) override;            // row_ops.cu
  void DoEmbed(const EmbedParams& p) override;              // row_ops.cu
  void DoCopyRows(const CopyRowsParams& p) override;        // row_ops.cu
  void DoAdd(const AddParams& p) override;                  // row_ops.cu
  void DoRotaryTable(const RotaryTableParams& p) override;  // row_ops.cu
  void DoRoute(const RouteParams& p) override;              // route.cu
  void DoSample(const SampleParams& p) override;            // sample.cu

 private:
  std::string name_;
  Stream stream_;
  Recorder recorder_;
  CudaDevice device_;
  Scratch scratch_;
  std::unique_ptr<LibraryGemm> library_;  // null where the library is absent
  LibraryAttention library_attention_;
};

}  // namespace baton::cuda
