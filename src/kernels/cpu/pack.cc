#include "kernels/cpu/pack.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "formats/dequantize.h"

namespace baton::cpu {
namespace {

// 32 columns of one row: w[i] = d[i / 16] * (q[i] - offset of the layout) + m.
struct RowBlock {
  uint8_t q[32];
  float d[2];
  float m;
};

float LoadHalf(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return HalfToFloat(h);
}

void ReadQ4(const uint8_t* p, int header, RowBlock& b) {
  for (int i = 0; i < 16; ++i) {
    b.q[i] = p[header + i] & 15;
    b.q[i + 16] = p[header + i] >> 4;
  }
}

void ReadQ5(const uint8_t* p, int header, int add, RowBlock& b) {
  uint32_t high;
  std::memcpy(&high, p + header, 4);
  const uint8_t* low = p + header + 4;
  for (int i = 0; i < 16; ++i) {
    b.q[i] = static_cast<uint8_t>(((low[i] & 15) | ((high >> i & 1) << 4)) + add);
    b.q[i + 16] = static_cast<uint8_t>(((low[i] >> 4) | ((high >> (i + 16) & 1) << 4)) + add);
  }
}

// Six-bit scale and min of sub-block s in the 12 bytes shared by Q4_K and Q5_K.
void ReadScaleMin(const uint8_t* p, int s, int& scale, int& min) {
  if (s < 4) {
    scale = p[s] & 63;
    min = p[s + 4] & 63;
  } else {
    scale = (p[s + 4] & 15) | (p[s - 4] >> 6 << 4);
    min = (p[s + 4] >> 4) | (p[s] >> 6 << 4);
  }
}

void ReadQ45K(const uint8_t* p, int s, bool five, RowBlock& b) {
  int scale, min;
  ReadScaleMin(p + 4, s, scale, min);
  b.d[0] = b.d[1] = LoadHalf(p) * static_cast<float>(scale);
  b.m = -LoadHalf(p + 2) * static_cast<float>(min);
  const uint8_t* low = p + (five ? 48 : 16) + s / 2 * 32;
  for (int i = 0; i < 32; ++i) {
    b.q[i] = low[i] >> (s % 2 * 4) & 15;
    if (five) b.q[i] |= static_cast<uint8_t>((p[16 + i] >> s & 1) << 4);
  }
}

void ReadQ6K(const uint8_t* p, int s, RowBlock& b) {
  const int half = s / 4, quarter = s % 4;
  const uint8_t* low = p + half * 64 + quarter % 2 * 32;
  const uint8_t* high = p + 128 + half * 32;
  const auto* scales = reinterpret_cast<const int8_t*>(p + 192 + half * 8 + quarter * 2);
  const float d = LoadHalf(p + 208);
  b.d[0] = d * static_cast<float>(scales[0]);
  b.d[1] = d * static_cast<float>(scales[1]);
  for (int i = 0; i < 32; ++i) {
    b.q[i] = static_cast<uint8_t>((low[i] >> (quarter / 2 * 4) & 15) |
                                  (high[i] >> (quarter * 2) & 3) << 4);
  }
}

// Sub-blocks 2s and 2s + 1 of 16 values; q - 4 fits the layout's offset of 32.
void ReadQ3K(const uint8_t* p, int s, RowBlock& b) {
  const uint8_t* scales = p + 96;
  for (int h = 0; h < 2; ++h) {
    const int j = 2 * s + h;
    const int low = scales[j % 8] >> (j < 8 ? 0 : 4) & 15;
    const int high = scales[8 + j % 4] >> (j / 4 * 2) & 3;
    b.d[h] = LoadHalf(p + 108) * static_cast<float>((low | high << 4) - 32);
  }
  const uint8_t* pairs = p + 32 + s / 4 * 32;
  for (int i = 0; i < 32; ++i)
    b.q[i] = static_cast<uint8_t>(28 + (pairs[i] >> (s % 4 * 2) & 3) + (p[i] >> s & 1) * 4);
}

void ReadTable4(const uint8_t* quants, const int8_t (&table)[16], RowBlock& b) {
  for (int i = 0; i < 16; ++i) {
    b.q[i] = static_cast<uint8_t>(128 + table[quants[i] & 15]);
    b.q[i + 16] = static_cast<uint8_t>(128 + table[quants[i] >> 4]);
  }
}

void ReadIQ4XS(const uint8_t* p, int s, RowBlock& b) {
  uint16_t high;
  std::memcpy(&high, p + 2, 2);
  const int scale = (p[4 + s / 2] >> (s % 2 * 4) & 15) | (high >> (2 * s) & 3) << 4;
  b.d[0] = b.d[1] = LoadHalf(p) * static_cast<float>(scale - 32);
  ReadTable4(p + 8 + s * 16, kNonLinear4, b);
}

// Q2_K has a scale and a minimum for 16 columns, which no layout has: 32 values are rounded to 8
// bits of their greatest magnitude.
void ReadQ2K(const uint8_t* p, int s, RowBlock& b) {
  float all[256];
  Dequantize(DType::kQ2_K, reinterpret_cast<const std::byte*>(p), 0, 256, all);
  const float* w = all + s * 32;
  float most = 0;
  for (int i = 0; i < 32; ++i) most = std::max(most, std::fabs(w[i]));
  // d as it is stored, so that quants are rounded with the scale that is used.
  const float d = HalfToFloat(FloatToHalf(most / 127.0f));
  b.d[0] = b.d[1] = d;
  for (int i = 0; i < 32; ++i) {
    const float q = d > 0 ? std::clamp(std::nearbyint(w[i] / d), -128.0f, 127.0f) : 0.0f;
    b.q[i] = static_cast<uint8_t>(128 + static_cast<int>(q));
  }
}

// Block `index` of a row that starts at `row`.
void ReadRowBlock(DType dtype, const uint8_t* row, int64_t index, RowBlock& b) {
  const int per_super = Info(dtype).block_elements / kBlockColumns;
  const uint8_t* p = row + index / per_super * Info(dtype).block_bytes;
  const int s = static_cast<int>(index % per_super);
  b.m = 0;
  if (per_super == 1) b.d[0] = b.d[1] = LoadHalf(p);
  switch (dtype) {
    case DType::kQ4_0:
      return ReadQ4(p, 2, b);
    case DType::kQ4_1:
      b.m = LoadHalf(p + 2);
      return ReadQ4(p, 4, b);
    case DType::kQ5_0:
      return ReadQ5(p, 2, 128 - 16, b);
    case DType::kQ5_1:
      b.m = LoadHalf(p + 2);
      return ReadQ5(p, 4, 0, b);
    case DType::kQ8_0:
      for (int i = 0; i < 32; ++i) b.q[i] = p[2 + i] ^ 0x80;
      return;
    case DType::kQ4_K:
      return ReadQ45K(p, s, false, b);
    case DType::kQ5_K:
      return ReadQ45K(p, s, true, b);
    case DType::kQ6_K:
      return ReadQ6K(p, s, b);
    case DType::kQ2_K:
      return ReadQ2K(p, s, b);
    case DType::kQ3_K:
      return ReadQ3K(p, s, b);
    case DType::kIQ4_NL:
      return ReadTable4(p + 2, kNonLinear4, b);
    case DType::kIQ4_XS:
      return ReadIQ4XS(p, s, b);
    case DType::kMXFP4:
      b.d[0] = b.d[1] = std::ldexp(1.0f, p[0] - 128);
      return ReadTable4(p + 1, kFloat4Doubled, b);
    default:
      BATON_CHECK(false);
  }
}

bool LayoutOf(DType dtype, PackLayout& layout) {
  switch (dtype) {
    case DType::kQ4_0:
      layout = PackLayout::kSym4;
      return true;
    case DType::kQ4_1:
    case DType::kQ4_K:
      layout = PackLayout::kMin4;
      return true;
    case DType::kQ8_0:
    case DType::kQ5_0:
    case DType::kIQ4_NL:
    case DType::kIQ4_XS:
    case DType::kMXFP4:
    case DType::kQ2_K:
      layout = PackLayout::kSym8;
      return true;
    case DType::kQ5_1:
    case DType::kQ5_K:
      layout = PackLayout::kMin8;
      return true;
    case DType::kQ6_K:
    case DType::kQ3_K:
      layout = PackLayout::kSym8x2;
      return true;
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      layout = PackLayout::kBf16;
      return true;
    case DType::kI8:
      return false;
  }
  return false;
}

// Q4_0 and Q4_1 pair column i with column i + 16 as the packed blocks do, so bytes only move: an 8B
// model is packed in a second.
void PackQ4Group(const RawMatrix& raw, PackedMatrix& m, int64_t group) {
  const auto* rows = reinterpret_cast<const uint8_t*>(raw.data);
  const int64_t row_bytes = BytesOf(raw.dtype, raw.cols);
  const int block_bytes = Info(raw.dtype).block_bytes;
  const int header = block_bytes - 16;
  auto* quants = reinterpret_cast<uint8_t*>(m.memory.data + group * m.group_bytes);
  auto* scales = reinterpret_cast<uint16_t*>(quants + m.blocks * 256);
  uint16_t* mins = scales + m.blocks * 16;
  const int valid = static_cast<int>(std::min<int64_t>(kGroupRows, raw.rows - group * kGroupRows));
  for (int r = 0; r < valid; ++r) {
    const uint8_t* p = rows + (group * kGroupRows + r) * row_bytes;
    for (int64_t b = 0; b < m.blocks; ++b, p += block_bytes) {
      uint8_t* q = quants + b * 256 + r * 4;
      for (int v = 0; v < 4; ++v) std::memcpy(q + v * 64, p + header + v * 4, 4);
      std::memcpy(scales + b * 16 + r, p, 2);
      if (header == 4) std::memcpy(mins + b * 16 + r, p + 2, 2);
    }
  }
}

// A finite scale that f16 cannot represent. Only products of the K types can be that large, and no
// trained model has them.
bool Overflows(float scale) { return std::isfinite(scale) && std::fabs(scale) >= 65520.0f; }

// False if a scale overflowed.
bool PackQuantGroup(const RawMatrix& raw, PackedMatrix& m, int64_t group) {
  const auto* rows = reinterpret_cast<const uint8_t*>(raw.data);
  const int64_t row_bytes = BytesOf(raw.dtype, raw.cols);
  const int quant_bytes = QuantBytesPerBlock(m.layout);
  std::byte* base = m.memory.data + group * m.group_bytes;
  auto* quants = reinterpret_cast<uint8_t*>(base);
  const int halves = m.layout == PackLayout::kSym8x2 ? 2 : 1;
  auto* scales = reinterpret_cast<uint16_t*>(base + m.blocks * quant_bytes);
  uint16_t* mins = scales + m.blocks * 16;
  const bool has_min = m.layout == PackLayout::kMin4 || m.layout == PackLayout::kMin8;
  const int valid = static_cast<int>(std::min<int64_t>(kGroupRows, raw.rows - group * kGroupRows));
  bool fits = true;
  for (int r = 0; r < valid; ++r) {
    const uint8_t* row = rows + (group * kGroupRows + r) * row_bytes;
    for (int64_t b = 0; b < m.blocks; ++b) {
      RowBlock block;
      ReadRowBlock(raw.dtype, row, b, block);
      uint8_t* q = quants + b * quant_bytes + r * 4;
      for (int c = 0; c < 32; ++c) {
        if (quant_bytes == 256) {
          uint8_t& byte = q[c / 4 % 4 * 64 + c % 4];
          byte = c < 16 ? block.q[c] : static_cast<uint8_t>(byte | block.q[c] << 4);
        } else {
          q[c / 4 * 64 + c % 4] = block.q[c];
        }
      }
      for (int h = 0; h < halves; ++h) {
        fits = fits && !Overflows(block.d[h]);
        scales[(b * halves + h) * 16 + r] = FloatToHalf(block.d[h]);
      }
      if (has_min) {
        fits = fits && !Overflows(block.m);
        mins[b * 16 + r] = FloatToHalf(block.m);
      }
    }
  }
  return fits;
}

void PackBf16Group(const RawMatrix& raw, PackedMatrix& m, int64_t group) {
  auto* out = reinterpret_cast<bf16*>(m.memory.data + group * m.group_bytes);
  const int valid = static_cast<int>(std::min<int64_t>(kGroupRows, raw.rows - group * kGroupRows));
  std::vector<float> row(static_cast<size_t>(raw.cols));
  for (int r = 0; r < valid; ++r) {
    Dequantize(raw.dtype, raw.data, (group * kGroupRows + r) * raw.cols, raw.cols, row.data());
    for (int64_t c = 0; c < raw.cols; ++c)
      out[c / 2 * 32 + r * 2 + c % 2] = ToBf16(row[static_cast<size_t>(c)]);
  }
}

Status Allocate(PackedMatrix& m, Arena& arena) {
  const int64_t quants = m.blocks * (QuantBytesPerBlock(m.layout) + ScaleBytesPerBlock(m.layout));
  m.group_bytes = (quants + 63) / 64 * 64;
  m.bytes = m.groups * m.group_bytes;
  BATON_ASSIGN(m.memory, arena.Take(m.bytes));
  return Status::Ok();
}

}  // namespace

Result<std::unique_ptr<PackedMatrix>> PackMatrix(const RawMatrix& raw, Arena& arena,
                                                 ThreadPool& threads) {
  auto m = std::make_unique<PackedMatrix>();
  if (!LayoutOf(raw.dtype, m->layout)) {
    return Error::Unsupported("a weight matrix of type {}: expected F32, F16, BF16 or a block type",
                              Info(raw.dtype).name);
  }
  const int block = Info(raw.dtype).block_elements;
  if (raw.rows <= 0 || raw.cols <= 0 || raw.cols % block != 0 || raw.data == nullptr) {
    return Error::InvalidArgument(
        "a weight matrix of {} x {} {}: expected positive sizes and columns in multiples of {}",
        raw.rows, raw.cols, Info(raw.dtype).name, block);
  }
  m->rows = raw.rows;
  m->cols = raw.cols;
  m->groups = (raw.rows + kGroupRows - 1) / kGroupRows;
  m->blocks = (raw.cols + kBlockColumns - 1) / kBlockColumns;
  BATON_TRY(Allocate(*m, arena));
  if (raw.dtype == DType::kQ4_0 || raw.dtype == DType::kQ4_1) {
    threads.For(m->groups, [&](int64_t g, int) { PackQ4Group(raw, *m, g); });
    return m;
  }
  if (m->layout != PackLayout::kBf16) {
    std::atomic<bool> fits{true};
    threads.For(m->groups, [&](int64_t g, int) {
      if (!PackQuantGroup(raw, *m, g)) fits.store(false, std::memory_order_relaxed);
    });
    if (fits.load()) return m;
    m->layout = PackLayout::kBf16;
    BATON_TRY(Allocate(*m, arena));
  }
  threads.For(m->groups, [&](int64_t g, int) { PackBf16Group(raw, *m, g); });
  return m;
}

}  // namespace baton::cpu
