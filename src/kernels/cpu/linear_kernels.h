// Entry points of the matrix kernels. Every instruction set implements the same four functions.
//
// Rows of x (tokens) come in tiles, of 6 except for amx, which are prepared once per call:
// normalised and converted to the form that the kernel multiplies. Unused tokens of the last tile
// are not read, but amx multiplies and writes them like the others. The product of a panel (up to
// 64 rows of W) and a range of tokens goes to a small scratch matrix, from which a finishing pass
// writes y. A (row, token) result is the same sequence of operations whatever tile, panel or call
// it is part of.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/pack.h"
#include "ops/ops.h"

namespace baton::cpu {

constexpr int kTileTokens = 6;
constexpr int kPanelGroups = 4;
constexpr int kPanelRows = kPanelGroups * kGroupRows;

// 32 values of one row of x as bytes: x = d q. Their products with the layouts' offsets are stored
// too, as start values of the integer sums.
struct alignas(64) QuantBlock {
  int8_t q[32];
  float d;            // NaN if a value is not finite
  float d_sum;        // d * sum of q
  int32_t start4;     // -8 * sum of q
  int32_t start8;     // -128 * sum of q
  int32_t start6[2];  // -32 * sum of each half of q
  int32_t unused[2];
};

// The same in 16 bits, for decode. Decode is bound by reading the weights, so products twice as
// wide cost little, while with 8 bits the rounding of x alone makes two runs of the same plan
// differ by 0.004 nats (docs/numerics.md). avx512 has q as 32 high bytes and 32 low ones, 256 high
// + low, both signed; avx2 as 16-bit integers with the columns of every four in the order 0, 2, 1,
// 3.
struct alignas(64) FineBlock {
  int8_t q[64];
  float d;
  float d_sum;  // all sums are of the whole integers
  int32_t start4;
  int32_t start8;
  int32_t start6[2];
  int32_t unused[10];
};
static_assert(sizeof(QuantBlock) == 64 && sizeof(FineBlock) == 128);

// Sets all but q, from the sums of q over each half of the block. Always inlined: a copy compiled
// for one instruction set must not be used on machines with another.
template <typename Block>
[[gnu::always_inline]] inline void SetSums(int32_t s0, int32_t s1, float d, Block& out) {
  out.d = d;
  out.d_sum = d * static_cast<float>(s0 + s1);
  out.start4 = -8 * (s0 + s1);
  out.start8 = -128 * (s0 + s1);
  out.start6[0] = -32 * s0;
  out.start6[1] = -32 * s1;
}

struct PrepareArgs {
  const float* x = nullptr;  // [count, cols]
  int64_t x_stride = 0;
  int count = 0;  // 1 to tile_tokens
  int64_t cols = 0;
  int64_t blocks = 0;                  // cols padded to 32, divided by 32
  const float* norm_weight = nullptr;  // [cols] or null
  float norm_eps = 0;
  QuantBlock* quant = nullptr;  // [blocks, 6], or null: not wanted
  FineBlock* fine = nullptr;    // likewise
  // amx: bf16 [16, blocks * 32]; avx512: bf16 [blocks * 16, 6, 2]; others: f32 [blocks * 32, 6]; or
  // null.
  std::byte* plain = nullptr;
};

struct PanelArgs {
  const PackedMatrix* w = nullptr;
  int64_t group = 0;  // first group of 16 rows
  int groups = 0;     // 1 to 4
  // What the thread reads after the panel. It is prefetched during the panel's last groups, unless
  // these are long (not in amx, which is for prompts only); or null.
  const std::byte* next = nullptr;
  const std::byte* x = nullptr;  // prepared tiles; the first token begins a tile
  bool fine = false;             // x holds FineBlocks; quantised layouts only
  int64_t tile_bytes = 0;
  int64_t tokens = 0;
  float* out = nullptr;          // [tokens rounded up to a tile, 64], 64-byte aligned
  std::byte* scratch = nullptr;  // scratch_bytes, 64-byte aligned
};

struct FinishArgs {
  const float* acc = nullptr;  // [tokens, 64]
  const float* up = nullptr;   // [tokens, 64], Glu only
  int64_t tokens = 0;
  int rows = 0;                 // of y, 1 to 64
  const float* bias = nullptr;  // [rows] or null
  bool accumulate = false;
  GluActivation activation = GluActivation::kSilu;
  float* y = nullptr;
  int64_t y_stride = 0;
};

struct LinearKernels {
  bool quantises_x;  // the quantised layouts read QuantBlock or FineBlock, else `plain`
  int tile_tokens = kTileTokens;
  // Tokens whose prepared x stays in the second-level cache (up to 3 KB a token at 1,536 columns)
  // while the weights of a unit pass through the first. A multiple of tile_tokens.
  int64_t token_block = 192;
  int64_t plain_tile_bytes_per_block;
  int64_t scratch_bytes = 0;  // of a thread
  void (*prepare)(const PrepareArgs&);
  void (*multiply)(const PanelArgs&);
  void (*finish_linear)(const FinishArgs&);
  void (*finish_glu)(const FinishArgs&);
};

namespace amx {
LinearKernels GetPromptLinearKernels();  // not for FineBlocks
}
namespace avx512 {
LinearKernels GetLinearKernels();
}
namespace avx2 {
LinearKernels GetLinearKernels();
}
namespace portable {
LinearKernels GetLinearKernels();
}

}  // namespace baton::cpu
