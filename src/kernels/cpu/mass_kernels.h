// Kernels of the mass operation. Scores are kept in log2 units throughout (score * log2 e), so that
// a probability is one fused multiply-subtract and one exp2 away from a dot product. A block is the
// 64 keys of one page.
//
// What a kernel computes for one query and key never depends on the other queries or keys of the
// call.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numbers>

#include "kv/page.h"

namespace baton::cpu {

constexpr int64_t kMassBlock = KvLayout::kSlots;
constexpr float kLog2E = std::numbers::log2e_v<float>;

// The address of a head's K of the page after the one at `position`, prefetched while that one is
// packed, because a thread's pages follow each other. At the sequence's end, the page itself.
[[gnu::always_inline]] inline const std::byte* NextKeys(const KvView& kv, int64_t position,
                                                        int head) {
  const int64_t next = position + kMassBlock;
  return kv.row(next < kv.length ? next : position) + head * kv.layout.head_bytes();
}

struct MassQuery {
  // Written by pack_query. The queries of a call are 4 dim bytes apart, and up to 15 more may be
  // read after the last one.
  const void* q = nullptr;
  float lse = 0;           // log2 units; natural for log_max
  int32_t visible = 0;     // keys of the block that the query may see; <= 0: none, >= 64: all
  float* out = nullptr;    // accumulate: [64]
  float* stats = nullptr;  // log_sum: {largest score, sum of 2^(score - largest)}, log2 units
};

// The operands: the keys themselves, where they are bf16, with q in 8 bits of mantissa (coarse) or
// 16 (fine); or the 4-bit copy of K, with q as int8 (amx: bf16, portable: f32).
enum class MassForm { kCoarse, kFine, kLowBit };

// One set per instruction set.
struct MassKernels {
  // q: [dim] -> 4 * dim bytes at most.
  void (*pack_query)(const float* q, int64_t dim, MassForm form, void* out);
  // K of one head and the page that starts at `position` (a multiple of 64), transposed: 256 * dim
  // bytes at most. Slots past the sequence's end are packed as found; no query may see them.
  void (*pack_keys)(const KvView& kv, int64_t position, int head, MassForm form, void* out);
  // out[n] = out[n] + p or max(out[n], p), p = 2^(scale q.k[n] - lse), for the n that the query
  // sees. When ranking by low-bit copies, all but portable use the chord below in place of 2^x,
  // limited to 1; NaN scores give 1.
  void (*accumulate)(const void* keys, int64_t dim, MassForm form, float scale,
                     const MassQuery* queries, int64_t count, bool max);
  // out[n] = max(out[n], scale q.k[n] - lse) for the n that the query sees, NaN counting as the
  // largest: natural logarithms, scale and lse in the same unit. Not kLowBit.
  void (*log_max)(const void* keys, int64_t dim, MassForm form, float scale,
                  const MassQuery* queries, int64_t count);
  // Adds the visible scores to each query's running stats.
  void (*log_sum)(const void* keys, int64_t dim, MassForm form, float scale,
                  const MassQuery* queries, int64_t count);
  // out[n] (+)= sum or max over heads of 2^(scores[h * stride + n] * log2 e - lse[h]).
  void (*pool_scores)(const float* scores, int64_t stride, const float* lse, int64_t heads,
                      int64_t n, bool max, bool add, float* out);
};

// The decode scan of machines with byte dot products or their like: one row against the whole
// low-bit copy.

// q rounded to int8 with one scale per 32 channels. Also what avx2's and avx512's pack_query makes
// for MassForm::kLowBit: int8 [dim], then per 32 channels the scale (f32) and -8 * sum(q) (int32).
struct LowBitQuery {
  static constexpr int64_t Bytes(int64_t dim) { return dim + dim / 32 * 8; }
  // False if an element of the query was NaN or infinite: packing then stores NaN as a scale.
  static bool Finite(const std::byte* packed, int64_t dim) {
    for (int64_t b = 0; b < dim / 32; ++b) {
      float scale;
      std::memcpy(&scale, packed + dim + 8 * b, 4);
      if (std::isnan(scale)) return false;
    }
    return true;
  }
};

// A key's weight is the chord of the exponential between powers of two, 2^floor(x) (1 + x -
// floor(x)) for a score of x in log2 units, rounded to 1 / 128. It is at most 6 % above 2^x, has
// the same order, and its 16 bits are those of a bf16 number, 128 (x + 127). Scores of queries
// packed with a score_scale of kWeightUnit log2 e are in units of 1 / 128. A NaN weight counts as
// the largest.
constexpr float kWeightUnit = 128;

struct LowBitKernels {
  int64_t read_ahead;  // distance in bytes from a page in use to the one being prefetched
  // out: a LowBitQuery, its scales times score_scale.
  void (*pack)(const float* q, int64_t dim, float score_scale, std::byte* out);
  // start[r]: the offset that makes the largest score among the sequence's first min(n, 32) keys a
  // weight between 1/2 and 1. Weights up to 2^100 and down to 2^-126 keep their precision.
  void (*starts)(const KvView& kv, int64_t n, int head, const std::byte* queries, int64_t count,
                 float* start);
  // out[r * stride + i] = weight of query r and key i of the page whose copy of one head is
  // `blocks`, in the order that `pool` expects of every 32; 0 from the key `visible` on. Queries
  // are Bytes(dim) apart. next, another page's copy, or null, is prefetched meanwhile.
  void (*page)(const LowBitBlock* blocks, const LowBitBlock* next, int64_t dim,
               const std::byte* queries, const float* start, int64_t count, int64_t visible,
               uint16_t* out, int64_t stride);
  // The sum of the weights of n keys, followed by zeros up to the page's end.
  float (*sum)(const uint16_t* weights, int64_t n);
  // out[n] = sum or max over heads of weights[h * stride + n] * factor[h].
  void (*pool)(const uint16_t* weights, int64_t stride, const float* factor, int64_t heads,
               int64_t n, bool max, float* out);
};

namespace portable {
const MassKernels& GetMassKernels();  // every cache type

// Pool log-probabilities x = scores[h * stride + n] - lse[h] over heads, for all instruction sets;
// lse null: 0. A NaN makes the result NaN.
//   out[n] = max_h x
void MaxOfHeads(const float* scores, int64_t stride, const float* lse, int64_t heads, int64_t n,
                float* out);
//   out[n] = log sum_h e^x; -inf where every x is
void LogSumOfHeads(const float* scores, int64_t stride, const float* lse, int64_t heads, int64_t n,
                   float* out);
// out[b] = the largest of x[b * block, (b + 1) * block), the last block being cut at n; NaN where
// one of them is.
void MaxOfBlocks(const float* x, int64_t n, int64_t block, float* out);
}  // namespace portable
namespace avx2 {
const MassKernels& GetMassKernels();  // bf16 caches and low-bit copies
const LowBitKernels& GetLowBitKernels();
}  // namespace avx2
namespace amx {
const MassKernels& GetMassKernels();  // bf16 caches and low-bit copies
}
namespace avx512 {
const MassKernels& GetMassKernels();  // bf16 caches and low-bit copies
const LowBitKernels& GetLowBitKernels();
}  // namespace avx512

}  // namespace baton::cpu
