// Weight matrices on the device: bf16, rows padded to whole slabs.
#include <vector>

#include "base/dtype.h"
#include "formats/dequantize.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/products.h"

namespace baton::cuda {

Result<std::unique_ptr<Matrix>> CudaOps::Pack(const RawMatrix& raw) {
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
  auto m = std::make_unique<CudaMatrix>();
  m->rows = raw.rows;
  m->cols = raw.cols;
  m->stride = Padded(raw.cols);
  const int64_t row_bytes = m->stride * 2;
  m->bytes = m->rows * row_bytes;
  BATON_ASSIGN(m->memory, Buffer::Allocate(m->bytes, device_));
  device_.UploadPieces(m->memory.data(), m->bytes, row_bytes,
                       [&](std::byte* to, int64_t first, int64_t count) {
                         const int64_t first_row = first / row_bytes;
                         threads_.For(count / row_bytes, [&](int64_t i, int) {
                           auto* row = reinterpret_cast<bf16*>(to + i * row_bytes);
                           const int64_t at = (first_row + i) * raw.cols;
                           std::fill(row + raw.cols, row + m->stride, bf16{0});
                           if (raw.dtype == DType::kBF16) {
                             std::memcpy(row, raw.data + at * 2, static_cast<size_t>(raw.cols) * 2);
                             return;
                           }
                           std::vector<float> values(static_cast<size_t>(raw.cols));
                           Dequantize(raw.dtype, raw.data, at, raw.cols, values.data());
                           for (size_t c = 0; c < values.size(); ++c) row[c] = ToBf16(values[c]);
                         });
                       });
  return std::unique_ptr<Matrix>(std::move(m));
}

}  // namespace baton::cuda
