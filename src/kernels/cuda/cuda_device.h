// The memory of one GPU. Work goes through the recorder's stream, in the order of the calls.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>

#include "base/device.h"
#include "kernels/cuda/address_range.h"
#include "kernels/cuda/recorder.h"

namespace baton::cuda {

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(Recorder& recorder);
  ~CudaDevice() override;
  CudaDevice(const CudaDevice&) = delete;

  bool host() const override { return false; }
  void Upload(std::byte* to, const void* from, int64_t bytes) override;
  void Download(void* to, const std::byte* from, int64_t bytes) override;
  void Copy(std::byte* to, const std::byte* from, int64_t bytes) override;
  void Zero(std::byte* at, int64_t bytes) override;
  Device& host_memory() override { return pinned_; }
  void Wait() override { recorder_.Wait(); }

  // Calls write(host, first, count) for pieces of `bytes` bytes, each of which is then copied to
  // `to`: data that is expanded on the way to the device needs no copy of its own. Pieces are
  // multiples of `unit` bytes except the last.
  template <typename F>
  void UploadPieces(std::byte* to, int64_t bytes, int64_t unit, F&& write) {
    const int64_t piece = unit > kStagingBytes ? unit : kStagingBytes / unit * unit;
    for (int64_t first = 0; first < bytes; first += piece) {
      const int64_t count = bytes - first < piece ? bytes - first : piece;
      write(NextStaging(count), first, count);
      SendStaging(to + first, count);
    }
  }

 private:
  // Host memory that kernels reach over the bus. It is pinned as a whole: ranges that are pinned
  // piece by piece cannot be copied across their borders.
  class PinnedMemory final : public Device {
   public:
    explicit PinnedMemory(CudaDevice& device) : device_(device) {}

    bool host() const override { return false; }  // writes of the host would not be ordered
    void Upload(std::byte* to, const void* from, int64_t bytes) override {
      device_.Upload(to, from, bytes);
    }
    void Download(void* to, const std::byte* from, int64_t bytes) override {
      device_.Download(to, from, bytes);
    }
    void Copy(std::byte* to, const std::byte* from, int64_t bytes) override {
      device_.Copy(to, from, bytes);
    }
    void Zero(std::byte* at, int64_t bytes) override { device_.Zero(at, bytes); }
    void Wait() override { device_.Wait(); }

   private:
    Result<std::byte*> Allocate(int64_t bytes) override;
    void Free(std::byte* data, int64_t bytes) override;
    int64_t Discard(std::byte*, int64_t, int64_t, int64_t) override { return 0; }

    CudaDevice& device_;
  };

  static constexpr int64_t kStagingBytes = int64_t{8} << 20;
  // Pinned memory: the copy engine reads one buffer while the host fills the next.
  struct Staging {
    std::byte* data = nullptr;
    int64_t bytes = 0;
    cudaEvent_t sent = nullptr;
  };

  std::byte* NextStaging(int64_t bytes);
  void SendStaging(std::byte* to, int64_t bytes);

  Result<std::byte*> Allocate(int64_t bytes) override;
  Result<std::byte*> Reserve(int64_t bytes) override;
  Status Commit(std::byte* data, int64_t begin, int64_t bytes) override;
  void Free(std::byte* data, int64_t bytes) override;
  int64_t Discard(std::byte* data, int64_t size, int64_t begin, int64_t bytes) override;

  Recorder& recorder_;
  std::array<Staging, 3> staging_;
  size_t next_ = 0;
  PinnedMemory pinned_;
  std::map<std::byte*, AddressRange> reserved_;  // by address
};

}  // namespace baton::cuda
