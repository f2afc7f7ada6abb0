// Weights and activations inside kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/products.h"

namespace baton::cuda {

__device__ inline float Activate(GluActivation activation, float x) {
  // Both as x * sigmoid(s): 1 + tanh would lose the digits of negative tails.
  const float s = activation == GluActivation::kSilu
                      ? x
                      : 2 * 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return x / (1.0f + expf(-s));
}

__device__ inline uint32_t Bits(__nv_bfloat162 x) { return *reinterpret_cast<uint32_t*>(&x); }

// Eight weights minus their zero as four pairs of bf16, which hold them exactly.
//
// Four bits: 128 + q is the bf16 0x4300 | q. Nibbles 0 and 4 of a word are the first pair, 1 and 5
// the second, and so on.
__device__ inline void ExpandQ4(uint32_t word, float zero, uint32_t (&pairs)[4]) {
  const __nv_bfloat162 offset = __float2bfloat162_rn(128.0f + zero);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t biased;  // (word >> 4i & 0x000f000f) | 0x43004300, which the compiler makes two of
    asm("lop3.b32 %0, %1, %2, %3, 0xea;"
        : "=r"(biased)
        : "r"(word >> (4 * i)), "r"(0x000f000fu), "r"(0x43004300u));
    pairs[i] = Bits(__hsub2(*reinterpret_cast<const __nv_bfloat162*>(&biased), offset));
  }
}

// Eight bits: 2^23 + q is the float 0x4b000000 | q.
__device__ inline void ExpandQ8(uint32_t low, uint32_t high, float zero, uint32_t (&pairs)[4]) {
  const float offset = 8388608.0f + zero;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t word = i < 2 ? low : high;
    const float a = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7650 + i % 2 * 2)) - offset;
    const float b = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7651 + i % 2 * 2)) - offset;
    pairs[i] = Bits(__floats2bfloat162_rn(a, b));
  }
}

// Slab j of a lane's 16 bytes.
template <Format kFormat>
__device__ inline void ExpandSlab(const uint4& words, int j, float zero, uint32_t (&pairs)[4]) {
  if constexpr (kFormat == Format::kQ4) {
    ExpandQ4(j == 0 ? words.x : j == 1 ? words.y : j == 2 ? words.z : words.w, zero, pairs);
  } else {
    ExpandQ8(j == 0 ? words.x : words.z, j == 0 ? words.y : words.w, zero, pairs);
  }
}

}  // namespace baton::cuda
