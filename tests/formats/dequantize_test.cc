// Blocks are packed from known integers by the test's own code; unpacking must return the same
// ones.
#include "formats/dequantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

namespace baton {
namespace {

constexpr DType kAll[] = {DType::kF32,  DType::kF16,    DType::kBF16,   DType::kQ4_0,
                          DType::kQ4_1, DType::kQ5_0,   DType::kQ5_1,   DType::kQ8_0,
                          DType::kQ4_K, DType::kQ5_K,   DType::kQ6_K,   DType::kQ2_K,
                          DType::kQ3_K, DType::kIQ4_NL, DType::kIQ4_XS, DType::kMXFP4};

// A block as numbers: value = d * scale[sub] * (q - bias) [+ m or - dmin * min[sub]].
struct Block {
  float d, m;
  std::vector<int> q, scale, min;
};

void PutHalf(std::vector<uint8_t>& b, size_t at, float v) {
  const uint16_t h = FloatToHalf(v);
  b[at] = static_cast<uint8_t>(h & 255);
  b[at + 1] = static_cast<uint8_t>(h >> 8);
}

// Sets bit `bit` of byte `at` from bit `from` of v.
void PutBit(std::vector<uint8_t>& b, size_t at, int bit, int v, int from) {
  b[at] = static_cast<uint8_t>(b[at] | ((v >> from) & 1) << bit);
}

void PutBits(std::vector<uint8_t>& b, size_t at, int low_bit, int v, int from, int count) {
  for (int i = 0; i < count; ++i) PutBit(b, at, low_bit + i, v, from + i);
}

std::vector<uint8_t> PackSmall(DType t, const Block& x) {
  std::vector<uint8_t> b(static_cast<size_t>(Info(t).block_bytes));
  PutHalf(b, 0, x.d);
  const bool has_m = t == DType::kQ4_1 || t == DType::kQ5_1;
  const bool has_fifth = t == DType::kQ5_0 || t == DType::kQ5_1;
  if (has_m) PutHalf(b, 2, x.m);
  const size_t bits = has_m ? 4 : 2, quants = bits + (has_fifth ? 4 : 0);
  for (size_t i = 0; i < 32; ++i) {
    if (t == DType::kQ8_0) {
      PutBits(b, 2 + i, 0, x.q[i], 0, 8);
      continue;
    }
    PutBits(b, quants + i % 16, i < 16 ? 0 : 4, x.q[i], 0, 4);
    if (has_fifth) PutBit(b, bits + i / 8, static_cast<int>(i % 8), x.q[i], 4);
  }
  return b;
}

std::vector<uint8_t> PackQ45K(DType t, const Block& x) {
  std::vector<uint8_t> b(static_cast<size_t>(Info(t).block_bytes));
  PutHalf(b, 0, x.d);
  PutHalf(b, 2, x.m);
  for (size_t j = 0; j < 4; ++j) {
    PutBits(b, 4 + j, 0, x.scale[j], 0, 6);
    PutBits(b, 8 + j, 0, x.min[j], 0, 6);
    PutBits(b, 12 + j, 0, x.scale[j + 4], 0, 4);
    PutBits(b, 12 + j, 4, x.min[j + 4], 0, 4);
    PutBits(b, 4 + j, 6, x.scale[j + 4], 4, 2);
    PutBits(b, 8 + j, 6, x.min[j + 4], 4, 2);
  }
  const size_t quants = t == DType::kQ4_K ? 16 : 48;
  for (size_t group = 0, i = 0; group < 4; ++group) {
    for (int high = 0; high < 2; ++high) {
      for (size_t l = 0; l < 32; ++l, ++i) {
        PutBits(b, quants + group * 32 + l, high * 4, x.q[i], 0, 4);
        if (t == DType::kQ5_K) PutBit(b, 16 + l, static_cast<int>(group * 2) + high, x.q[i], 4);
      }
    }
  }
  return b;
}

std::vector<uint8_t> PackQ6K(const Block& x) {
  std::vector<uint8_t> b(210);
  for (size_t half = 0; half < 2; ++half) {
    for (size_t l = 0; l < 32; ++l) {
      for (size_t quarter = 0; quarter < 4; ++quarter) {
        const int q = x.q[half * 128 + quarter * 32 + l];
        PutBits(b, half * 64 + (quarter % 2) * 32 + l, quarter < 2 ? 0 : 4, q, 0, 4);
        PutBits(b, 128 + half * 32 + l, static_cast<int>(quarter) * 2, q, 4, 2);
      }
    }
  }
  for (size_t j = 0; j < 16; ++j) PutBits(b, 192 + j, 0, x.scale[j], 0, 8);
  PutHalf(b, 208, x.d);
  return b;
}

std::vector<float> Expand(DType t, const std::vector<uint8_t>& bytes) {
  const auto blocks = static_cast<int64_t>(bytes.size()) / Info(t).block_bytes;
  std::vector<float> out(static_cast<size_t>(blocks * Info(t).block_elements));
  Dequantize(t, reinterpret_cast<const std::byte*>(bytes.data()), 0,
             static_cast<int64_t>(out.size()), out.data());
  return out;
}

std::vector<int> RandomInts(std::mt19937& random, size_t n, int low, int high) {
  std::vector<int> out(n);
  for (int& v : out) v = low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1));
  return out;
}

TEST(Dequantize, FloatsOfEveryWidth) {
  EXPECT_EQ(Expand(DType::kF32, {0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0}),
            (std::vector<float>{1.0f, -2.5f}));
  EXPECT_EQ(Expand(DType::kF16, {0x00, 0x3c, 0x00, 0xc1, 0x01, 0x00}),
            (std::vector<float>{1.0f, -2.5f, 0x1p-24f}));
  EXPECT_EQ(Expand(DType::kBF16, {0x80, 0x3f, 0x20, 0xc0}), (std::vector<float>{1.0f, -2.5f}));
}

// One block worked out by hand: d = 2, so nibble 0 is -16 and nibble 15 is 14.
TEST(Dequantize, Q4_0ByHand) {
  std::vector<uint8_t> b(18);
  b[1] = 0x40;   // 2.0
  b[2] = 0xf0;   // value 0: 0, value 16: 15
  b[17] = 0x9a;  // value 15: 10, value 31: 9
  const std::vector<float> v = Expand(DType::kQ4_0, b);
  EXPECT_EQ(v[0], -16.0f);
  EXPECT_EQ(v[16], 14.0f);
  EXPECT_EQ(v[15], 4.0f);
  EXPECT_EQ(v[31], 2.0f);
  EXPECT_EQ(v[1], -16.0f);
}

TEST(Dequantize, BlocksOf32GiveBackTheirIntegers) {
  std::mt19937 random(1);
  const struct {
    DType type;
    int low, high, bias;
    bool has_m;
  } cases[] = {{DType::kQ4_0, 0, 15, 8, false},
               {DType::kQ4_1, 0, 15, 0, true},
               {DType::kQ5_0, 0, 31, 16, false},
               {DType::kQ5_1, 0, 31, 0, true},
               {DType::kQ8_0, -128, 127, 0, false}};
  for (const auto& c : cases) {
    for (int trial = 0; trial < 50; ++trial) {
      const Block x{
          .d = 0.25f, .m = c.has_m ? -1.5f : 0.0f, .q = RandomInts(random, 32, c.low, c.high)};
      const std::vector<float> v = Expand(c.type, PackSmall(c.type, x));
      for (size_t i = 0; i < 32; ++i)
        ASSERT_EQ(v[i], x.d * static_cast<float>(x.q[i] - c.bias) + x.m)
            << Info(c.type).name << " value " << i;
    }
  }
}

TEST(Dequantize, SuperblocksGiveBackTheirIntegers) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 50; ++trial) {
    for (DType t : {DType::kQ4_K, DType::kQ5_K}) {
      const Block x{.d = 0.5f,
                    .m = 0.125f,
                    .q = RandomInts(random, 256, 0, t == DType::kQ4_K ? 15 : 31),
                    .scale = RandomInts(random, 8, 0, 63),
                    .min = RandomInts(random, 8, 0, 63)};
      const std::vector<float> v = Expand(t, PackQ45K(t, x));
      for (size_t i = 0; i < 256; ++i)
        ASSERT_EQ(v[i], x.d * static_cast<float>(x.scale[i / 32] * x.q[i]) -
                            x.m * static_cast<float>(x.min[i / 32]))
            << Info(t).name << " value " << i;
    }
    const Block x{.d = -0.25f,
                  .q = RandomInts(random, 256, 0, 63),
                  .scale = RandomInts(random, 16, -128, 127)};
    const std::vector<float> v = Expand(DType::kQ6_K, PackQ6K(x));
    for (size_t i = 0; i < 256; ++i)
      ASSERT_EQ(v[i], x.d * static_cast<float>(x.scale[i / 16] * (x.q[i] - 32)))
          << "Q6_K value " << i;
  }
}

// tests/golden/README.md says where the values come from.
TEST(Dequantize, RandomBlocksHaveTheGoldenValues) {
  std::ifstream in("tests/golden/quants.json");
  const auto golden = nlohmann::json::parse(in);
  for (DType t : kAll) {
    const std::string name(Info(t).name);
    if (!golden.contains(name)) continue;
    const std::string hex = golden[name]["bytes"];
    std::vector<uint8_t> bytes;
    for (size_t i = 0; i < hex.size(); i += 2)
      bytes.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    const std::vector<float> want = golden[name]["values"];
    const std::vector<float> got = Expand(t, bytes);
    ASSERT_EQ(got.size(), want.size()) << name;
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_NEAR(got[i], want[i], 1e-6 * std::fabs(want[i])) << name << " value " << i;
  }
  for (const char* name : {"Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS", "MXFP4"})
    EXPECT_TRUE(golden.contains(name)) << name;
}

TEST(Dequantize, AnyPartEqualsThatPartOfTheWhole) {
  std::mt19937 random(3);
  for (DType t : kAll) {
    const int64_t block = Info(t).block_elements, blocks = 7;
    std::vector<uint8_t> bytes(static_cast<size_t>(blocks * Info(t).block_bytes));
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(random() % 60);  // no NaN in any type
    const std::vector<float> whole = Expand(t, bytes);
    for (int64_t first = 0; first < blocks; ++first) {
      for (int64_t n = 0; first + n <= blocks; ++n) {
        std::vector<float> part(static_cast<size_t>(n * block));
        Dequantize(t, reinterpret_cast<const std::byte*>(bytes.data()), first * block, n * block,
                   part.data());
        ASSERT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first * block))
            << Info(t).name;
      }
    }
  }
}

}  // namespace
}  // namespace baton
