// Address space of the GPU that is given memory piece by piece: a cache reserves what its longest
// sequences may need, and takes the memory of the pages in use.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "baton/error.h"

namespace baton::cuda {

// So many bytes could not be had.
Error OutOfMemory(size_t bytes);

class AddressRange {
 public:
  // Errors: Resource.
  static Result<AddressRange> Reserve(int64_t bytes);
  AddressRange(AddressRange&& o) noexcept;
  AddressRange& operator=(AddressRange&&) = delete;
  // No work that uses the memory may be running.
  ~AddressRange();

  std::byte* data() const { return reinterpret_cast<std::byte*>(address_); }
  // Memory comes in pieces of this size.
  int64_t piece_bytes() const { return piece_bytes_; }

  // Gives [begin, begin + bytes) memory where it has none; calls fresh(first byte, bytes) for each
  // new piece, whose content is undefined. Errors: Resource; earlier pieces stay.
  template <typename F>
  Status Map(int64_t begin, int64_t bytes, F&& fresh) {
    for (int64_t i = begin / piece_bytes_; i * piece_bytes_ < begin + bytes; ++i) {
      if (pieces_[static_cast<size_t>(i)] != 0) continue;
      BATON_TRY(MapPiece(i));
      fresh(i * piece_bytes_, piece_bytes_);
    }
    return Status::Ok();
  }
  // Takes the memory of whole pieces within [begin, begin + bytes); no work that uses it may be
  // running. Returns the bytes.
  int64_t Unmap(int64_t begin, int64_t bytes);
  bool MapsWithin(int64_t begin, int64_t bytes) const;

 private:
  AddressRange(CUdeviceptr address, int64_t size, int64_t piece_bytes);
  Status MapPiece(int64_t i);
  struct Whole {  // pieces
    int64_t first, end;
  };
  Whole WholePieces(int64_t begin, int64_t bytes) const;

  CUdeviceptr address_ = 0;
  int64_t size_ = 0, piece_bytes_ = 0;
  std::vector<CUmemGenericAllocationHandle> pieces_;  // 0: none
};

}  // namespace baton::cuda
