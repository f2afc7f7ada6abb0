#include <algorithm>
#include <utility>

#include "kernels/cuda/address_range.h"
#include "kernels/cuda/recorder.h"

namespace baton::cuda {
namespace {

constexpr int64_t kLeastPiece = int64_t{2} << 20, kMostPiece = int64_t{256} << 20;
constexpr int64_t kPieces = 64;  // of a range: what is mapped and not used is at most this share

int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// The driver's functions, found at run time: linking with the driver would tie the program to
// machines that have one.
template <typename F>
F* Entry(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  BATON_CUDA(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found));
  BATON_CHECK(found == cudaDriverEntryPointSuccess);
  return reinterpret_cast<F*>(function);
}

struct Driver {
  decltype(::cuMemGetAllocationGranularity)* granularity =
      Entry<decltype(::cuMemGetAllocationGranularity)>("cuMemGetAllocationGranularity");
  decltype(::cuMemAddressReserve)* reserve =
      Entry<decltype(::cuMemAddressReserve)>("cuMemAddressReserve");
  decltype(::cuMemAddressFree)* free_address =
      Entry<decltype(::cuMemAddressFree)>("cuMemAddressFree");
  decltype(::cuMemCreate)* create = Entry<decltype(::cuMemCreate)>("cuMemCreate");
  decltype(::cuMemRelease)* release = Entry<decltype(::cuMemRelease)>("cuMemRelease");
  decltype(::cuMemMap)* map = Entry<decltype(::cuMemMap)>("cuMemMap");
  decltype(::cuMemUnmap)* unmap = Entry<decltype(::cuMemUnmap)>("cuMemUnmap");
  decltype(::cuMemSetAccess)* set_access = Entry<decltype(::cuMemSetAccess)>("cuMemSetAccess");
};

const Driver& TheDriver() {
  static const Driver driver;
  return driver;
}

CUmemAllocationProp DeviceMemory() {
  int device = 0;
  BATON_CUDA(cudaGetDevice(&device));
  CUmemAllocationProp memory = {};
  memory.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  memory.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  memory.location.id = device;
  return memory;
}

}  // namespace

Error OutOfMemory(size_t bytes) {
  size_t free = 0, total = 0;
  BATON_CUDA(cudaMemGetInfo(&free, &total));
  return Error::Resource("cannot allocate {:.1f} MB of GPU memory, {:.1f} of {:.1f} MB are free",
                         static_cast<double>(bytes) / 1e6, static_cast<double>(free) / 1e6,
                         static_cast<double>(total) / 1e6)
      .Hint("use a smaller model or --context");
}

Result<AddressRange> AddressRange::Reserve(int64_t bytes) {
  const CUmemAllocationProp memory = DeviceMemory();
  size_t least = 0;
  BATON_CHECK(TheDriver().granularity(&least, &memory, CU_MEM_ALLOC_GRANULARITY_MINIMUM) ==
              CUDA_SUCCESS);
  const int64_t unit = std::max(kLeastPiece, static_cast<int64_t>(least));
  bytes = std::max<int64_t>(bytes, 1);
  const int64_t piece = RoundUp(std::clamp(bytes / kPieces, unit, kMostPiece), unit);
  const int64_t size = RoundUp(bytes, piece);
  CUdeviceptr address = 0;
  if (TheDriver().reserve(&address, static_cast<size_t>(size), 0, 0, 0) != CUDA_SUCCESS) {
    return Error::Resource("cannot reserve {:.1f} MB of the GPU's address space",
                           static_cast<double>(bytes) / 1e6)
        .Hint("lower --context");
  }
  return AddressRange(address, size, piece);
}

AddressRange::AddressRange(CUdeviceptr address, int64_t size, int64_t piece_bytes)
    : address_(address),
      size_(size),
      piece_bytes_(piece_bytes),
      pieces_(static_cast<size_t>(size / piece_bytes)) {}

AddressRange::AddressRange(AddressRange&& o) noexcept
    : address_(std::exchange(o.address_, 0)),
      size_(std::exchange(o.size_, 0)),
      piece_bytes_(o.piece_bytes_),
      pieces_(std::move(o.pieces_)) {}

AddressRange::~AddressRange() {
  if (address_ == 0) return;
  Unmap(0, size_);
  TheDriver().free_address(address_, static_cast<size_t>(size_));
}

Status AddressRange::MapPiece(int64_t i) {
  const Driver& driver = TheDriver();
  const CUmemAllocationProp memory = DeviceMemory();
  const auto bytes = static_cast<size_t>(piece_bytes_);
  const CUdeviceptr at = address_ + static_cast<CUdeviceptr>(i * piece_bytes_);
  CUmemGenericAllocationHandle piece = 0;
  if (driver.create(&piece, bytes, &memory, 0) != CUDA_SUCCESS) {
    return OutOfMemory(bytes);
  }
  BATON_CHECK(driver.map(at, bytes, 0, piece, 0) == CUDA_SUCCESS);
  CUmemAccessDesc access = {};
  access.location = memory.location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  BATON_CHECK(driver.set_access(at, bytes, &access, 1) == CUDA_SUCCESS);
  pieces_[static_cast<size_t>(i)] = piece;
  return Status::Ok();
}

AddressRange::Whole AddressRange::WholePieces(int64_t begin, int64_t bytes) const {
  return {(begin + piece_bytes_ - 1) / piece_bytes_,
          std::min((begin + bytes) / piece_bytes_, std::ssize(pieces_))};
}

bool AddressRange::MapsWithin(int64_t begin, int64_t bytes) const {
  const Whole whole = WholePieces(begin, bytes);
  for (int64_t i = whole.first; i < whole.end; ++i) {
    if (pieces_[static_cast<size_t>(i)] != 0) return true;
  }
  return false;
}

int64_t AddressRange::Unmap(int64_t begin, int64_t bytes) {
  const Driver& driver = TheDriver();
  int64_t returned = 0;
  const Whole whole = WholePieces(begin, bytes);
  for (int64_t i = whole.first; i < whole.end; ++i) {
    CUmemGenericAllocationHandle& piece = pieces_[static_cast<size_t>(i)];
    if (piece == 0) continue;
    const CUdeviceptr at = address_ + static_cast<CUdeviceptr>(i * piece_bytes_);
    driver.unmap(at, static_cast<size_t>(piece_bytes_));
    driver.release(piece);
    piece = 0;
    returned += piece_bytes_;
  }
  return returned;
}

}  // namespace baton::cuda
