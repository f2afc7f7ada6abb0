// Products with weight matrices: the layouts of matrices on the GPU, and the two methods.
//
// Decode (LinearParams::fine): FewRows, which is bound by reading the weights. x is split into two
// bf16 halves that both go through the tensor cores, so that 16 bits of it count. The order of an
// output's sums is fixed, whatever rows share the call.
//
// Prompts: x in bf16, cuBLASLt (library_gemm.h); quantised weights are expanded to bf16 first.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <span>

#include "base/buffer.h"
#include "kernels/cuda/recorder.h"
#include "kernels/cuda/scratch.h"
#include "ops/params.h"

namespace baton::cuda {

// A matrix is read in tiles of 8 rows by groups of columns; a group is some slabs of 32 columns.
constexpr int kSlab = 32;
constexpr int kTileRows = 8;

// Layouts of weights. A lane (row r, quad t) of the warp that multiplies a slab has eight columns
// of one row: in kBf16 the columns 8t to 8t + 7, in the others 4t to 4t + 3 and 16 + 4t to 19 + 4t.
//
// kBf16: rows in order, padded to whole groups with zeros: [rows, groups, 64 columns].
// The others: [tiles, groups] blocks of 512 bytes of quants, 16 of each lane, then f16 scales
// [row][slab or half slab] and, where the type has them, minima in the same order: w = scale *
// (quant - zero) + minimum.
enum class Format {
  kBf16,      // groups of 2 slabs
  kQ4,        // groups of 4 slabs, 4 bits
  kQ8,        // groups of 2 slabs, 8 bits
  kQ8Halves,  // the same, a scale per 16 columns
};
__host__ __device__ constexpr int SlabsOf(Format f) { return f == Format::kQ4 ? 4 : 2; }
__host__ __device__ constexpr int QuantBytes(Format f) {
  return f == Format::kBf16 ? 1024 : 512;
}  // of a tile's group
__host__ __device__ constexpr int ScaleBytes(Format f) {
  return f == Format::kBf16 ? 0 : f == Format::kQ8 ? 32 : 64;
}

struct CudaMatrix final : Matrix {
  Format format = Format::kBf16;
  bool has_min = false;
  int zero = 0;  // see above
  int64_t groups = 0;
  Buffer memory;
  int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  int64_t block_bytes() const {
    return QuantBytes(format) + ScaleBytes(format) * (has_min ? 2 : 1);
  }
};

inline const CudaMatrix& Cast(const Matrix* m) { return *static_cast<const CudaMatrix*>(m); }

// Columns, padded, of bf16 matrices, expanded matrices and inputs of the library.
constexpr int64_t Padded(int64_t cols) { return (cols + 63) / 64 * 64; }

struct InputParams {
  View<const float> x;  // [T, in]
  const float* norm_weight;
  float norm_eps;
};

// For the library: the rows of x, normed where there is a norm, in bf16: [T, Padded(in)].
void PrepareInput(Recorder& recorder, const InputParams& p, __nv_bfloat16* to);  // input.cu

// For FewRows: the same, split. `halves`: columns in the order of quantised formats.
struct SplitInput {
  const __nv_bfloat16* x;  // [T, slabs, quad, {high, low}, 8]
  const float* sums;       // [T, slabs]: of the columns of a slab
  int64_t slabs;           // a multiple of 4
};
SplitInput PrepareSplitInput(Recorder& recorder, Scratch& scratch, const InputParams& p,
                             bool halves);  // input.cu

// The matrix in bf16, [rows, Padded(cols)].
void ExpandMatrix(Recorder& recorder, const CudaMatrix& m, __nv_bfloat16* to);  // expand.cu

// y (+)= norm(x) W^T (+ bias), or act(norm(x) gate^T) * (norm(x) up^T). All matrices have the same
// columns; gate and up are of one format.
struct FewRowsOut {
  const CudaMatrix* w;
  const CudaMatrix* up;  // null: no product of two
  const float* bias;
  float* y;  // [T, rows]
};
struct FewRowsParams {
  InputParams input;
  std::span<const FewRowsOut> outs;
  bool accumulate;
  GluActivation activation;
};
void FewRows(Recorder& recorder, Scratch& scratch, const FewRowsParams& p);  // few_rows.cu

// Whether two matrices can be multiplied by one kernel.
inline bool SameFormat(const CudaMatrix& a, const CudaMatrix& b) {
  return a.format == b.format && a.has_min == b.has_min && a.zero == b.zero;
}

}  // namespace baton::cuda
