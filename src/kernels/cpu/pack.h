// Weight matrices in the layouts of the CPU kernels. 16 consecutive rows form a group; a group's
// columns come in blocks of 32. Rows are padded to 16 and columns to 32, with zeros. The kernels of
// all instruction sets read these layouts.
//
//   quantised group   quants [blocks], scales d [blocks][16] f16 (kSym8x2: [blocks][2][16]), then
//   for kMin* m [blocks][16] f16
//     4-bit quants    256 bytes per block: byte v * 64 + row * 4 + i holds column 4v + i in its low
//     half and column
//                     4(v + 4) + i in its high half (the arrangement of LowBitBlock in kv/page.h)
//     8-bit quants    512 bytes per block: byte v * 64 + row * 4 + i holds column 4v + i
//   bf16 group        [columns / 2][16 rows][2]
//
// Quants are unsigned and x is signed, as the byte dot product requires; the offsets of the quants
// are corrected with sums of x, which all rows of W share. Quants come before scales so that every
// 64-byte load is aligned.
#pragma once

#include <cstdint>
#include <memory>

#include "base/buffer.h"
#include "ops/ops.h"

namespace baton::cpu {

constexpr int kGroupRows = 16;
constexpr int kBlockColumns = 32;

enum class PackLayout : uint8_t {
  kSym4,    // w = d (q - 8): Q4_0
  kMin4,    // w = d q + m: Q4_1, Q4_K
  kSym8,    // w = d (q - 128): Q8_0, Q5_0, Q2_K, IQ4_NL, IQ4_XS, MXFP4
  kMin8,    // w = d q + m: Q5_1, Q5_K
  kSym8x2,  // w = d (q - 32), one d per 16 columns: Q6_K, Q3_K
  kBf16,    // F32, F16, BF16
};

constexpr int QuantBytesPerBlock(PackLayout l) {
  return l == PackLayout::kSym4 || l == PackLayout::kMin4 ? 256
         : l == PackLayout::kBf16                         ? 1024
                                                          : 512;
}
// Bytes of all f16 scales and mins of one block.
constexpr int ScaleBytesPerBlock(PackLayout l) {
  if (l == PackLayout::kBf16) return 0;
  return l == PackLayout::kSym4 || l == PackLayout::kSym8 ? 32 : 64;
}

struct PackedMatrix final : Matrix {
  PackLayout layout = PackLayout::kBf16;
  int64_t blocks = 0;       // of 32 columns
  int64_t groups = 0;       // of 16 rows
  int64_t group_bytes = 0;  // a multiple of 64
  Arena::Piece memory;

  const std::byte* group(int64_t g) const { return memory.data + g * group_bytes; }
};

// Errors: a size that is not positive or no multiple of the block, a type that holds no weights, no
// memory.
Result<std::unique_ptr<PackedMatrix>> PackMatrix(const RawMatrix& raw, Arena& arena,
                                                 ThreadPool& threads);

}  // namespace baton::cpu
