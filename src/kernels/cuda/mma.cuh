// Tensor-core instructions and asynchronous copies (from sm_80 on), and conversions for them.
//
// Fragments of m16n8k16, in a warp whose lane is 4 g + t:
//   A [16, 16]: a0 = (g, 2t..2t+1), a1 = (g + 8, same), a2 = (g, 2t+8..2t+9), a3 = (g + 8, same)
//   B [16, 8]:  b0 = (2t..2t+1, g), b1 = (2t+8..2t+9, g)
//   C [16, 8]:  c0, c1 = (g, 2t..2t+1), c2, c3 = (g + 8, same)
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>

namespace baton::cuda {

__device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// m16n8k32 of unsigned (a) and signed (b) bytes: fragments as above, but with four bytes, 4t and 4t
// + 16, in place of two values, 2t and 2t + 8.
__device__ __forceinline__ void MmaBytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Four 8 x 8 matrices of 16-bit values; lanes 8i .. 8i + 7 hold the addresses of the rows of
// matrix i.
__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ uint32_t TransposeMatrix(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// Copies 16 bytes, or writes 16 zeros.
__device__ __forceinline__ void CopyAsync16(uint32_t shared, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void CopyAsync4(uint32_t shared, const void* global, bool valid) {
  const int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until all but the last `kPending` groups of this thread have arrived.
template <int kPending>
__device__ __forceinline__ void AwaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Two floats as bf16, `low` in the low half.
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ float LowBf16(uint32_t x) { return __uint_as_float(x << 16); }
__device__ __forceinline__ float HighBf16(uint32_t x) { return __uint_as_float(x & 0xffff0000u); }

// x = high + low: 16 bits of mantissa in two bf16 values. Infinities and NaN are preserved.
struct SplitBf16 {
  uint32_t high, low;
};
__device__ __forceinline__ SplitBf16 Split(float a, float b) {
  const uint32_t high = PackBf16(a, b);
  return {high, PackBf16(a - LowBf16(high), b - HighBf16(high))};
}

// Byte i of `bytes` as a float; the bytes are signed ones with the sign bit flipped (x ^ 0x80).
template <int kByte>
__device__ __forceinline__ float FlippedByte(uint32_t bytes) {
  return __uint_as_float(__byte_perm(bytes, 0x4b000000u, 0x7650 + kByte)) - 8388736.0f;
}
// The high halves of two floats whose low halves are zero: small integers as bf16.
__device__ __forceinline__ uint32_t PackExact(float low, float high) {
  return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
}

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

}  // namespace baton::cuda
