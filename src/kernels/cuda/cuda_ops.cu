#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/library_gemm.h"

namespace baton {
namespace cuda {
namespace {

__global__ void Probe() {}

}  // namespace

CudaOps::CudaOps(ThreadPool& threads, const CudaOptions& options, std::string name)
    : Ops(threads),
      name_(std::move(name)),
      recorder_(stream_.get(), {.graphs = options.graphs, .synchronous = options.synchronous}),
      device_(recorder_),
      scratch_(recorder_),
      library_(LibraryGemm::Load()) {
  trace_.wait = [this] { recorder_.Wait(); };
}

CudaOps::~CudaOps() = default;

void CudaOps::DoAttend(const AttendParams& p) {
  Recorder::Operation operation(recorder_);
  cuda::Attend(recorder_, scratch_, &library_attention_, p);
}

void CudaOps::DoMerge(const MergeParams& p) {
  Recorder::Operation operation(recorder_);
  cuda::Merge(recorder_, scratch_, p);
}

void CudaOps::DoMass(const MassParams& p) {
  Recorder::Operation operation(recorder_);
  cuda::Mass(recorder_, scratch_, p);
}

void CudaOps::DoSelect(const SelectParams& p) {
  Recorder::Operation operation(recorder_);
  cuda::Select(recorder_, scratch_, p);
}

// Whether this build has code for the current GPU.
static bool HasCode() {
  cudaFuncAttributes attributes;
  const bool has =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(Probe)) == cudaSuccess;
  cudaGetLastError();
  return has;
}

}  // namespace cuda

Result<std::unique_ptr<Ops>> MakeCudaOps(ThreadPool& threads, const CudaOptions& options) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    cudaGetLastError();
    return Error::Unsupported(
               "the cuda backend needs an NVIDIA GPU and its driver, found none ({})",
               error == cudaSuccess ? "no device" : cudaGetErrorString(error))
        .Hint("use --backend cpu");
  }
  BATON_CUDA(cudaSetDevice(0));
  cudaDeviceProp properties;
  BATON_CUDA(cudaGetDeviceProperties(&properties, 0));
  if (!cuda::HasCode()) {
    return Error::Unsupported(
               "the cuda backend was built for compute capabilities {}, {} has {}.{}",
               BATON_CUDA_ARCHITECTURES, properties.name, properties.major, properties.minor)
        .Hint("configure with -DBATON_CUDA_ARCHITECTURES, or use --backend cpu");
  }
  return std::unique_ptr<Ops>(
      std::make_unique<cuda::CudaOps>(threads, options, fmt::format("cuda ({})", properties.name)));
}

}  // namespace baton
