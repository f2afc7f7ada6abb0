#include <algorithm>
#include <cstring>

#include "base/buffer.h"
#include "kernels/cuda/cuda_device.h"

namespace baton::cuda {
namespace {

// Within a pass, uploads up to this size are sent with the tables.
constexpr int64_t kTableUpload = 64 << 10;

}  // namespace

CudaDevice::CudaDevice(Recorder& recorder) : recorder_(recorder), pinned_(*this) {
  for (Staging& s : staging_) BATON_CUDA(cudaEventCreateWithFlags(&s.sent, cudaEventDisableTiming));
}

CudaDevice::~CudaDevice() {
  recorder_.Wait();
  for (const Staging& s : staging_) {
    cudaEventDestroy(s.sent);
    cudaFreeHost(s.data);
  }
}

std::byte* CudaDevice::NextStaging(int64_t bytes) {
  Staging& s = staging_[next_];
  BATON_CUDA(cudaEventSynchronize(s.sent));
  if (s.bytes < bytes) {
    BATON_CUDA(cudaFreeHost(s.data));
    s.bytes = std::max(bytes, kStagingBytes);
    BATON_CUDA(cudaHostAlloc(reinterpret_cast<void**>(&s.data), static_cast<size_t>(s.bytes), 0));
  }
  return s.data;
}

void CudaDevice::SendStaging(std::byte* to, int64_t bytes) {
  Staging& s = staging_[next_];
  recorder_.Flush();
  BATON_CUDA(cudaMemcpyAsync(to, s.data, static_cast<size_t>(bytes), cudaMemcpyDefault,
                             recorder_.stream()));
  BATON_CUDA(cudaEventRecord(s.sent, recorder_.stream()));
  next_ = (next_ + 1) % staging_.size();
}

void CudaDevice::Upload(std::byte* to, const void* from, int64_t bytes) {
  if (bytes <= 0) return;
  const auto* source = static_cast<const std::byte*>(from);
  if (recorder_.in_pass() && bytes <= kTableUpload) {
    Recorder::Operation operation(recorder_);
    const std::byte* table = recorder_.Table(std::span(source, static_cast<size_t>(bytes)));
    recorder_.Copy(to, table, bytes);
    return;
  }
  UploadPieces(to, bytes, 1, [&](std::byte* staging, int64_t first, int64_t count) {
    std::memcpy(staging, source + first, static_cast<size_t>(count));
  });
}

void CudaDevice::Download(void* to, const std::byte* from, int64_t bytes) {
  if (bytes <= 0) return;
  recorder_.Flush();
  const auto size = static_cast<size_t>(bytes);
  if (bytes > kStagingBytes) {
    BATON_CUDA(cudaMemcpyAsync(to, from, size, cudaMemcpyDefault, recorder_.stream()));
    BATON_CUDA(cudaStreamSynchronize(recorder_.stream()));
    return;
  }
  // For pageable memory the driver copies through a buffer of its own, which is slower.
  std::byte* const staging = NextStaging(bytes);
  BATON_CUDA(cudaMemcpyAsync(staging, from, size, cudaMemcpyDefault, recorder_.stream()));
  BATON_CUDA(cudaStreamSynchronize(recorder_.stream()));
  std::memcpy(to, staging, size);
}

void CudaDevice::Copy(std::byte* to, const std::byte* from, int64_t bytes) {
  Recorder::Operation operation(recorder_);
  recorder_.Copy(to, from, bytes);
}

void CudaDevice::Zero(std::byte* at, int64_t bytes) {
  Recorder::Operation operation(recorder_);
  recorder_.Zero(at, bytes);
}

Result<std::byte*> CudaDevice::Allocate(int64_t bytes) {
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  void* data = nullptr;
  const cudaError_t error = bytes < 0 ? cudaErrorInvalidValue : cudaMalloc(&data, size);
  if (error != cudaSuccess) {
    cudaGetLastError();  // otherwise the next launch would report it
    return OutOfMemory(size);
  }
  BATON_CUDA(cudaMemsetAsync(data, 0, size, recorder_.stream()));
  return static_cast<std::byte*>(data);
}

Result<std::byte*> CudaDevice::Reserve(int64_t bytes) {
  BATON_ASSIGN(AddressRange range, AddressRange::Reserve(bytes));
  std::byte* const data = range.data();
  reserved_.emplace(data, std::move(range));
  return data;
}

Status CudaDevice::Commit(std::byte* data, int64_t begin, int64_t bytes) {
  const auto range = reserved_.find(data);
  if (range == reserved_.end()) return Status::Ok();
  return range->second.Map(begin, bytes, [&](int64_t first, int64_t size) {
    BATON_CUDA(cudaMemsetAsync(data + first, 0, static_cast<size_t>(size), recorder_.stream()));
  });
}

void CudaDevice::Free(std::byte* data, int64_t) {
  recorder_.Wait();
  if (reserved_.erase(data) == 0) BATON_CUDA(cudaFree(data));
}

Result<std::byte*> CudaDevice::PinnedMemory::Allocate(int64_t bytes) {
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  const int64_t free = AvailableMemoryBytes();
  void* data = nullptr;
  const cudaError_t error = bytes < 0 || bytes > free
                                ? cudaErrorMemoryAllocation
                                : cudaHostAlloc(&data, size, cudaHostAllocDefault);
  if (error != cudaSuccess) {
    cudaGetLastError();  // otherwise the next launch would report it
    return Error::Resource("cannot pin {:.1f} MB of host memory, {:.1f} MB are free ({})",
                           static_cast<double>(bytes) / 1e6, static_cast<double>(free) / 1e6,
                           cudaGetErrorString(error))
        .Hint("lower --context, or leave the cache on the GPU");
  }
  std::memset(data, 0, size);
  return static_cast<std::byte*>(data);
}

void CudaDevice::PinnedMemory::Free(std::byte* data, int64_t) {
  device_.Wait();
  BATON_CUDA(cudaFreeHost(data));
}

int64_t CudaDevice::Discard(std::byte* data, int64_t size, int64_t begin, int64_t bytes) {
  const auto range = reserved_.find(data);
  if (range == reserved_.end()) return 0;
  // The rest of the last piece belongs to nothing else.
  if (begin + bytes == size) bytes += range->second.piece_bytes();
  if (!range->second.MapsWithin(begin, bytes)) return 0;
  recorder_.Wait();
  return range->second.Unmap(begin, bytes);
}

}  // namespace baton::cuda
