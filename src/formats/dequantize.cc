// Decodes the packed layouts of GGUF, written for readability: one value at a time, straight from
// its bits. The scales of whole blocks are f16, except MXFP4's exponent.

#include "formats/dequantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"

namespace baton {
namespace {

uint8_t Byte(const std::byte* p) { return static_cast<uint8_t>(*p); }

uint16_t Load16(const std::byte* p) {
  uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}
float Half(const std::byte* p) { return HalfToFloat(Load16(p)); }

// Value i of 32: its low four bits are in byte i % 16, the lower half of the values in the low
// nibbles.
int Nibble(const std::byte* q, int i) { return i < 16 ? Byte(q + i) & 15 : Byte(q + i - 16) >> 4; }

int Bit(const std::byte* bits, int i) { return (Byte(bits + i / 8) >> (i % 8)) & 1; }

float Q4_0(const std::byte* b, int i) { return Half(b) * static_cast<float>(Nibble(b + 2, i) - 8); }

float Q4_1(const std::byte* b, int i) {
  return Half(b) * static_cast<float>(Nibble(b + 4, i)) + Half(b + 2);
}

// d, 32 fifth bits, nibbles.
float Q5_0(const std::byte* b, int i) {
  return Half(b) * static_cast<float>((Nibble(b + 6, i) | Bit(b + 2, i) << 4) - 16);
}

float Q5_1(const std::byte* b, int i) {
  return Half(b) * static_cast<float>(Nibble(b + 8, i) | Bit(b + 4, i) << 4) + Half(b + 2);
}

float Q8_0(const std::byte* b, int i) {
  return Half(b) * static_cast<float>(static_cast<int8_t>(Byte(b + 2 + i)));
}

// Twelve bytes hold eight 6-bit scales and eight 6-bit minimums. Scales 0-3 are the low six bits of
// bytes 0-3, minimums 0-3 those of bytes 4-7. Of scales and minimums 4-7, the top two bits are the
// top bits of bytes 0-3 and 4-7; the low four bits share bytes 8-11.
struct ScaleMin {
  int scale, min;
};
ScaleMin ScaleOf(const std::byte* s, int j) {
  if (j < 4) return {Byte(s + j) & 63, Byte(s + j + 4) & 63};
  return {(Byte(s + j + 4) & 15) | (Byte(s + j - 4) >> 6) << 4,
          (Byte(s + j + 4) >> 4) | (Byte(s + j) >> 6) << 4};
}

// Nibbles of 256 values: 32 bytes carry 64 values, the first 32 of them in the low nibbles.
int SuperNibble(const std::byte* q, int i) {
  const int byte = Byte(q + i / 64 * 32 + i % 32);
  return i % 64 < 32 ? byte & 15 : byte >> 4;
}

// d, dmin, scales, nibbles: eight sub-blocks of 32.
float Q4_K(const std::byte* b, int i) {
  const ScaleMin s = ScaleOf(b + 4, i / 32);
  const float d = Half(b) * static_cast<float>(s.scale),
              m = Half(b + 2) * static_cast<float>(s.min);
  return d * static_cast<float>(SuperNibble(b + 16, i)) - m;
}

// As Q4_K, with the fifth bits between scales and nibbles: bit i / 32 of byte i % 32.
float Q5_K(const std::byte* b, int i) {
  const ScaleMin s = ScaleOf(b + 4, i / 32);
  const float d = Half(b) * static_cast<float>(s.scale),
              m = Half(b + 2) * static_cast<float>(s.min);
  const int high = (Byte(b + 16 + i % 32) >> (i / 32)) & 1;
  return d * static_cast<float>(SuperNibble(b + 48, i) | high << 4) - m;
}

// 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales, d. Each half of 128 values has
// 64 bytes of nibbles, the first 64 values in the low ones, and 32 bytes of bit pairs, 32 values
// per bit position.
float Q6_K(const std::byte* b, int i) {
  const int half = i / 128, r = i % 128;
  const int low_byte = Byte(b + half * 64 + r % 64);
  const int low = r < 64 ? low_byte & 15 : low_byte >> 4;
  const int high = (Byte(b + 128 + half * 32 + r % 32) >> (2 * (r / 32))) & 3;
  const auto scale = static_cast<int8_t>(Byte(b + 192 + i / 16));
  return Half(b + 208) * static_cast<float>(scale) * static_cast<float>((low | high << 4) - 32);
}

// Bit pairs of 256 values: 32 bytes carry 128 values, 32 to a bit position.
int SuperPair(const std::byte* q, int i) {
  return (Byte(q + i / 128 * 32 + i % 32) >> (i % 128 / 32 * 2)) & 3;
}

// 16 bytes with a scale (low half) and a minimum for 16 values each, bit pairs, d, dmin.
float Q2_K(const std::byte* b, int i) {
  const int s = Byte(b + i / 16);
  return Half(b + 80) * static_cast<float>(s & 15) * static_cast<float>(SuperPair(b + 16, i)) -
         Half(b + 82) * static_cast<float>(s >> 4);
}

// 32 bytes of high bits (bit i / 32 of byte i % 32), bit pairs, sixteen 6-bit scales, d. Scale j
// has its low four bits in byte j % 8 and its high two in byte 8 + j % 4.
float Q3_K(const std::byte* b, int i) {
  const std::byte* scales = b + 96;
  const int j = i / 16;
  const int low = Byte(scales + j % 8) >> (j < 8 ? 0 : 4) & 15;
  const int high = Byte(scales + 8 + j % 4) >> (j / 4 * 2) & 3;
  const int bit = Byte(b + i % 32) >> (i / 32) & 1;
  return Half(b + 108) * static_cast<float>((low | high << 4) - 32) *
         static_cast<float>(SuperPair(b + 32, i) - (bit ? 0 : 4));
}

float IQ4_NL(const std::byte* b, int i) {
  return Half(b) * static_cast<float>(kNonLinear4[Nibble(b + 2, i)]);
}

// d, the high bits of eight 6-bit scales (16 bits), their low nibbles (4 bytes), nibbles: 16 bytes
// for each 32 values.
float IQ4_XS(const std::byte* b, int i) {
  const int j = i / 32;
  const int low = Byte(b + 4 + j / 2) >> (j % 2 * 4) & 15;
  const int high = Load16(b + 2) >> (2 * j) & 3;
  return Half(b) * static_cast<float>((low | high << 4) - 32) *
         static_cast<float>(kNonLinear4[Nibble(b + 8 + j * 16, i % 32)]);
}

// An exponent, then nibbles that are 4-bit floats. The table holds twice their values.
float MXFP4(const std::byte* b, int i) {
  return std::ldexp(static_cast<float>(kFloat4Doubled[Nibble(b + 1, i)]), Byte(b) - 128);
}

float F32(const std::byte* b, int) {
  float v;
  std::memcpy(&v, b, 4);
  return v;
}
float F16(const std::byte* b, int) { return Half(b); }
float Bf16(const std::byte* b, int) { return ToFloat(bf16{Load16(b)}); }
float I8(const std::byte* b, int) { return static_cast<float>(static_cast<int8_t>(Byte(b))); }

// The element function is a template argument so that it is inlined and block-wide loads are
// hoisted.
template <float (*Value)(const std::byte*, int), DType kType>
void Expand(const std::byte* data, int64_t first, int64_t count, float* out) {
  constexpr DTypeInfo info = Info(kType);
  BATON_CHECK_EQ(first % info.block_elements, 0);
  const std::byte* block = data + BytesOf(kType, first);
  for (int64_t done = 0; done < count; done += info.block_elements, block += info.block_bytes) {
    const int n = static_cast<int>(std::min<int64_t>(count - done, info.block_elements));
    for (int i = 0; i < n; ++i) out[done + i] = Value(block, i);
  }
}

}  // namespace

void Dequantize(DType dtype, const std::byte* data, int64_t first, int64_t count, float* out) {
  switch (dtype) {
    case DType::kF32:
      return Expand<F32, DType::kF32>(data, first, count, out);
    case DType::kF16:
      return Expand<F16, DType::kF16>(data, first, count, out);
    case DType::kBF16:
      return Expand<Bf16, DType::kBF16>(data, first, count, out);
    case DType::kQ4_0:
      return Expand<Q4_0, DType::kQ4_0>(data, first, count, out);
    case DType::kQ4_1:
      return Expand<Q4_1, DType::kQ4_1>(data, first, count, out);
    case DType::kQ5_0:
      return Expand<Q5_0, DType::kQ5_0>(data, first, count, out);
    case DType::kQ5_1:
      return Expand<Q5_1, DType::kQ5_1>(data, first, count, out);
    case DType::kQ8_0:
      return Expand<Q8_0, DType::kQ8_0>(data, first, count, out);
    case DType::kQ4_K:
      return Expand<Q4_K, DType::kQ4_K>(data, first, count, out);
    case DType::kQ5_K:
      return Expand<Q5_K, DType::kQ5_K>(data, first, count, out);
    case DType::kQ6_K:
      return Expand<Q6_K, DType::kQ6_K>(data, first, count, out);
    case DType::kQ2_K:
      return Expand<Q2_K, DType::kQ2_K>(data, first, count, out);
    case DType::kQ3_K:
      return Expand<Q3_K, DType::kQ3_K>(data, first, count, out);
    case DType::kIQ4_NL:
      return Expand<IQ4_NL, DType::kIQ4_NL>(data, first, count, out);
    case DType::kIQ4_XS:
      return Expand<IQ4_XS, DType::kIQ4_XS>(data, first, count, out);
    case DType::kMXFP4:
      return Expand<MXFP4, DType::kMXFP4>(data, first, count, out);
    case DType::kI8:
      return Expand<I8, DType::kI8>(data, first, count, out);
  }
}

}  // namespace baton
