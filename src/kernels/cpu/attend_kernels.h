// Entry points of the attention kernels. Every instruction set implements the same three functions,
// an online softmax over blocks of keys for a stack of query rows that share a KV head: begin once,
// update per block of keys, finish per row.
//
// Decode and prompt share the entry points; tiles of few rows may be computed differently inside. A
// decode tile is the R query heads of one token over blocks of 32 keys; the tiles of all KV heads
// advance together, so that every K and V row is read once and in memory order. A prompt tile
// stacks several tokens times R heads over blocks of 64 or 128 keys, enough to amortise packing K
// and V into the order that the dot products need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "kv/page.h"

namespace baton::cpu {

inline constexpr int kMaxBlockKeys = 128;
inline constexpr int kKeyStep = 32;  // blocks are padded to a multiple of this
// Stack rows that a product handles at once: in registers, and at most (in tiles).
inline constexpr int kRowStep = 12, kMaxRowStep = 16;

inline constexpr int64_t PaddedHead(int64_t head_dim) { return (head_dim + 31) / 32 * 32; }

// Up to kMaxBlockKeys keys, ascending. From `count` to the next multiple of kKeyStep the last key
// is repeated, with the position kNoPosition, which every mask excludes.
struct KeyBlock {
  static constexpr int32_t kNoPosition = std::numeric_limits<int32_t>::max();
  int count = 0;
  int32_t positions[kMaxBlockKeys];
  const std::byte* rows[kMaxBlockKeys];  // K of the token's head 0
  const float* scales[kMaxBlockKeys];    // int8 caches: [2][Hkv], of K then of V
};

struct AttendTile {
  KvLayout layout;
  int kv_head = 0;
  int heads = 0;         // R; stack row i is query head kv_head * R + i % R of token i / R
  int rows = 0;          // tokens * R
  int64_t position = 0;  // of token 0
  int64_t sink = 0,
          recent =
              std::numeric_limits<int64_t>::max();  // a key is seen if < sink or > query - recent
  float scale = 0;
  float* scores = nullptr;  // scaled q.k of stack row 0, by position; null: not requested
  int64_t scores_token_stride = 0, scores_head_stride = 0;
  // The part of the next block that this tile prefetches: rows [share, share + 1) / shares of it,
  // all heads of them; with shares = 0 all rows, its own head only.
  int share = 0, shares = 0;
  // Scratch of the kernels, 64-byte aligned.
  std::byte* queries = nullptr;  // QueryBytes
  float* acc = nullptr;          // [rows, PaddedHead(D)]
  float* max = nullptr;          // [rows]
  float* sum = nullptr;          // [rows]

  // Rounded up to whole steps: rows after the last row of a tile are multiplied, but not used.
  static int64_t RoundedRows(int64_t rows) {
    return (rows + kMaxRowStep - 1) / kMaxRowStep * kMaxRowStep;
  }
  static int64_t QueryBytes(int64_t rows, int64_t head_dim) {
    return RoundedRows(rows) * PaddedHead(head_dim) * 4;
  }
};

// Scratch shared by the tiles of a thread, 64-byte aligned.
struct AttendScratch {
  std::byte* keys = nullptr;    // [kMaxBlockKeys, PaddedHead(D)] f32 or smaller
  std::byte* values = nullptr;  // same size
  float* scores = nullptr;      // [kMaxRowStep, kMaxBlockKeys]
  uint32_t* weights = nullptr;  // [kMaxRowStep, kMaxBlockKeys / 2]
};

struct AttendKernels {
  // For prompt tiles: stack rows (packing the keys costs 4 % then) and keys at a time.
  int64_t prompt_rows = 96, prompt_block = kMaxBlockKeys;
  // q: stack row i is q + i / R * token_stride + i % R * D.
  void (*begin)(const AttendTile& tile, const float* q, int64_t token_stride);
  // Adds the keys of `block`; `next`, or null, is prefetched meanwhile.
  void (*update)(const AttendTile& tile, const KeyBlock& block, const KeyBlock* next,
                 const AttendScratch& scratch);
  // Writes o, [D], of a stack row and returns its log-sum-exp; (0, -inf) if it has seen no key.
  float (*finish)(const AttendTile& tile, int row, float* o);
};

namespace amx {
AttendKernels GetPromptAttendKernels();  // bf16 and int8 caches; for prompt tiles
}
namespace avx512 {
AttendKernels GetAttendKernels();  // bf16 and int8 caches
}
namespace avx2 {
AttendKernels GetAttendKernels();  // bf16 and int8 caches
}
namespace portable {
AttendKernels GetAttendKernels();  // every cache, single precision
}

}  // namespace baton::cpu
