// Products with weight matrices: the matrices as the GPU holds them, and the two ways to multiply.
//
// Decode (LinearParams::fine): FewRows, which waits for the weights. x is split into two bf16
// halves whose products both go through the tensor cores, so that 16 bits of it count; an output's
// sums have one order, whatever rows it shares a call with.
//
// Prompts: x in bf16, cuBLASLt (library_gemm.h).
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <span>

#include "base/buffer.h"
#include "kernels/cuda/recorder.h"
#include "ops/params.h"

namespace baton::cuda {

// Columns that a warp multiplies at a time; rows of matrices and of inputs are padded to them with
// zeros.
constexpr int64_t kSlab = 32;

struct CudaMatrix final : Matrix {
  Buffer memory;       // [rows, stride] bf16
  int64_t stride = 0;  // elements, a multiple of kSlab
  const __nv_bfloat16* data() const { return memory.as<__nv_bfloat16>(); }
};

inline const CudaMatrix& Cast(const Matrix* m) { return *static_cast<const CudaMatrix*>(m); }

constexpr int64_t Padded(int64_t cols) { return (cols + kSlab - 1) / kSlab * kSlab; }

// The rows of x, normed where there is a norm, rounded to bf16 and padded: [T, Padded(in)].
struct InputParams {
  View<const float> x;
  const float* norm_weight;
  float norm_eps;
};
void PrepareInput(Recorder& recorder, const InputParams& p, __nv_bfloat16* to);  // input.cu

// y (+)= norm(x) W^T (+ bias), or act(norm(x) gate^T) * (norm(x) up^T). All matrices have the same
// columns.
struct FewRowsOut {
  const CudaMatrix* w;
  const CudaMatrix* up;  // null: no product of two
  const float* bias;
  float* y;  // [T, rows]
};
struct FewRowsParams {
  View<const float> x;  // [T, in]
  const float* norm_weight;
  float norm_eps;
  std::span<const FewRowsOut> outs;
  bool accumulate;
  GluActivation activation;
};
void FewRows(Recorder& recorder, const FewRowsParams& p);  // few_rows.cu

#ifdef __CUDACC__
__device__ inline float Activate(GluActivation activation, float x) {
  // Both as x * sigmoid(s): 1 + tanh would lose the digits of negative tails.
  const float s = activation == GluActivation::kSilu
                      ? x
                      : 2 * 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return x / (1.0f + expf(-s));
}
#endif

}  // namespace baton::cuda
