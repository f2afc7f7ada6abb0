// Weight matrices in the formats of products.h.
#include <atomic>
#include <vector>

#include "formats/dequantize.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/quant_blocks.h"

namespace baton::cuda {
namespace {

void Choose(DType dtype, CudaMatrix& m) {
  switch (dtype) {
    case DType::kQ4_0:
      m.format = Format::kQ4, m.zero = 8;
      return;
    case DType::kQ4_1:
    case DType::kQ4_K:
      m.format = Format::kQ4, m.has_min = true;
      return;
    case DType::kQ5_0:
    case DType::kQ8_0:
    case DType::kIQ4_NL:
    case DType::kIQ4_XS:
      m.format = Format::kQ8, m.zero = 128;
      return;
    case DType::kQ5_1:
    case DType::kQ5_K:
      m.format = Format::kQ8, m.has_min = true;
      return;
    case DType::kQ6_K:
    case DType::kQ3_K:
      m.format = Format::kQ8Halves, m.zero = 128;
      return;
    default:
      m.format = Format::kBf16;
  }
}

// A finite scale that f16 cannot represent. Only products of the K types can be that large, and no
// trained model has them.
bool Overflows(float x) { return std::isfinite(x) && std::fabs(x) >= 65520.0f; }

// The columns of a slab that a lane of the quantised formats holds.
int ColumnOf(int quad, int i) { return i < 4 ? 4 * quad + i : 16 + 4 * quad + i - 4; }

// One row's share of the blocks of its tile. False if a scale overflowed.
bool PackQuantRow(const RawMatrix& raw, const CudaMatrix& m, int64_t row, std::byte* blocks) {
  const int slabs = SlabsOf(m.format), parts = m.format == Format::kQ8Halves ? 2 : 1;
  const int limit = m.format == Format::kQ4 ? 15 : 255;
  const std::byte* from = raw.data + row * BytesOf(raw.dtype, raw.cols);
  std::vector<float> values(static_cast<size_t>(raw.cols));
  Dequantize(raw.dtype, raw.data, row * raw.cols, raw.cols, values.data());
  const int r = static_cast<int>(row % kTileRows);
  bool fits = true;
  for (int64_t s = 0; s < (raw.cols + kSlab - 1) / kSlab; ++s) {
    std::byte* block = blocks + s / slabs * m.block_bytes();
    const int j = static_cast<int>(s % slabs);
    const SubBlock scales = ScalesOf(raw.dtype, from, s);
    const auto half = [&](float value, int part, bool minimum) {
      fits = fits && !Overflows(value);
      const uint16_t bits = FloatToHalf(value);
      std::memcpy(block + QuantBytes(m.format) + (minimum ? ScaleBytes(m.format) : 0) +
                      ((r * slabs + j) * parts + part) * 2,
                  &bits, 2);
    };
    for (int part = 0; part < parts; ++part) half(scales.scale[part], part, false);
    if (m.has_min) half(scales.minimum, 0, true);
    for (int quad = 0; quad < 4; ++quad) {
      auto* lane = reinterpret_cast<uint8_t*>(block) + (r * 4 + quad) * 16;
      for (int i = 0; i < 8; ++i) {
        const int64_t c = ColumnOf(quad, i);
        const float scale = scales.scale[c / 16];
        const float steps = (values[static_cast<size_t>(s * kSlab + c)] - scales.minimum) / scale;
        const long q = std::isfinite(steps) ? std::lrintf(steps) + m.zero : m.zero;
        const auto quant = static_cast<uint8_t>(std::clamp<long>(q, 0, limit));
        if (m.format == Format::kQ4) {  // nibbles of even columns, then of odd ones
          const int nibble = i / 2 + i % 2 * 4;
          lane[j * 4 + nibble / 2] |= static_cast<uint8_t>(quant << (nibble % 2 * 4));
        } else {
          lane[j * 8 + i] = quant;
        }
      }
    }
  }
  return fits;
}

void PackBf16Row(const RawMatrix& raw, int64_t row, bf16* to) {
  const auto cols = static_cast<size_t>(raw.cols);
  std::fill(to + raw.cols, to + Padded(raw.cols), bf16{0});
  if (raw.dtype == DType::kBF16) {
    std::memcpy(to, raw.data + row * raw.cols * 2, cols * 2);
    return;
  }
  std::vector<float> values(cols);
  Dequantize(raw.dtype, raw.data, row * raw.cols, raw.cols, values.data());
  for (size_t c = 0; c < cols; ++c) to[c] = ToBf16(values[c]);
}

Status CheckRaw(const RawMatrix& raw) {
  const DTypeInfo type = Info(raw.dtype);
  if (raw.dtype == DType::kI8) {
    return Error::Unsupported("a weight matrix of type {}: expected F32, F16, BF16 or a Q type",
                              type.name);
  }
  if (raw.rows <= 0 || raw.cols <= 0 || raw.cols % type.block_elements != 0 ||
      raw.data == nullptr) {
    return Error::InvalidArgument(
        "a weight matrix of {} x {} {}: expected positive sizes and columns in multiples of {}",
        raw.rows, raw.cols, type.name, type.block_elements);
  }
  return Status::Ok();
}

}  // namespace

Result<std::unique_ptr<Matrix>> CudaOps::Pack(const RawMatrix& raw) {
  BATON_TRY(CheckRaw(raw));
  auto m = std::make_unique<CudaMatrix>();
  m->rows = raw.rows;
  m->cols = raw.cols;
  Choose(raw.dtype, *m);
  if (m->format != Format::kBf16) {
    const int64_t columns = SlabsOf(m->format) * kSlab;
    m->groups = (raw.cols + columns - 1) / columns;
    const int64_t strip = m->groups * m->block_bytes();  // of a tile
    m->bytes = m->tiles() * strip;
    BATON_ASSIGN(m->memory, Buffer::Allocate(m->bytes, device_));
    std::atomic<bool> fits{true};
    device_.UploadPieces(m->memory.data(), m->bytes, strip,
                         [&](std::byte* to, int64_t first, int64_t count) {
                           threads_.For(count / strip, [&](int64_t i, int) {
                             const int64_t row = (first / strip + i) * kTileRows;
                             std::memset(to + i * strip, 0, static_cast<size_t>(strip));
                             for (int64_t r = row; r < std::min(raw.rows, row + kTileRows); ++r) {
                               if (!PackQuantRow(raw, *m, r, to + i * strip))
                                 fits.store(false, std::memory_order_relaxed);
                             }
                           });
                         });
    if (fits.load()) return std::unique_ptr<Matrix>(std::move(m));
    m->format = Format::kBf16, m->has_min = false, m->zero = 0;
  }
  const int64_t row_bytes = Padded(raw.cols) * 2;
  m->groups = Padded(raw.cols) / 64;
  m->bytes = m->rows * row_bytes;
  BATON_ASSIGN(m->memory, Buffer::Allocate(m->bytes, device_));
  device_.UploadPieces(
      m->memory.data(), m->bytes, row_bytes, [&](std::byte* to, int64_t first, int64_t count) {
        threads_.For(count / row_bytes, [&](int64_t i, int) {
          PackBf16Row(raw, first / row_bytes + i, reinterpret_cast<bf16*>(to + i * row_bytes));
        });
      });
  return std::unique_ptr<Matrix>(std::move(m));
}

}  // namespace baton::cuda
