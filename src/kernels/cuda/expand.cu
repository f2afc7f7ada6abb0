// Quantised weights as bf16, for the library's products.
#include "kernels/cuda/products.h"
#include "kernels/cuda/weights.cuh"

namespace baton::cuda {
namespace {

constexpr int kThreads = 256;

// One thread per lane: it expands the lane's share of a tile's group.
template <Format kFormat>
__global__ void __launch_bounds__(kThreads)
    ExpandKernel(const std::byte* blocks, int64_t count, int groups, int block_bytes, int has_min,
                 float zero, int rows, int cols, __nv_bfloat16* to) {
  constexpr int kSlabs = SlabsOf(kFormat);
  constexpr int kParts = kFormat == Format::kQ8Halves ? 2 : 1;
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i >= count * 32) return;
  const int lane = static_cast<int>(i % 32), quad = lane % 4;
  const int64_t tile = i / 32 / groups;
  const int group = static_cast<int>(i / 32 % groups);
  const int64_t row = tile * kTileRows + lane / 4;
  if (row >= rows) return;
  const std::byte* block = blocks + i / 32 * block_bytes;
  const uint4 words = reinterpret_cast<const uint4*>(block)[lane];
  const auto* scales =
      reinterpret_cast<const __half*>(block + QuantBytes(kFormat)) + lane / 4 * kSlabs * kParts;
  const __half* minima = scales + ScaleBytes(kFormat) / 2;
#pragma unroll
  for (int j = 0; j < kSlabs; ++j) {
    uint32_t pairs[4];
    ExpandSlab<kFormat>(words, j, zero, pairs);
    const int first = (group * kSlabs + j) * kSlab + quad * 4;
    if (first - quad * 4 >= cols) break;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = j * kParts + (kParts == 2 ? half : 0);
      const float scale = __half2float(scales[at]);
      const float minimum = has_min ? __half2float(minima[at]) : 0.0f;
      uint2 out;
      uint32_t* rounded = &out.x;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const auto q = *reinterpret_cast<const __nv_bfloat162*>(&pairs[half * 2 + k]);
        rounded[k] = Bits(__floats2bfloat162_rn(__low2float(q) * scale + minimum,
                                                __high2float(q) * scale + minimum));
      }
      *reinterpret_cast<uint2*>(to + row * cols + first + half * 16) = out;
    }
  }
}

}  // namespace

void ExpandMatrix(Recorder& recorder, const CudaMatrix& m, __nv_bfloat16* to) {
  const int64_t count = m.tiles() * m.groups;
  const auto kernel = m.format == Format::kQ4   ? ExpandKernel<Format::kQ4>
                      : m.format == Format::kQ8 ? ExpandKernel<Format::kQ8>
                                                : ExpandKernel<Format::kQ8Halves>;
  recorder.Launch(kernel, static_cast<unsigned>((count * 32 + kThreads - 1) / kThreads), kThreads,
                  0, m.memory.data(), count, m.groups, m.block_bytes(), int{m.has_min},
                  static_cast<float>(m.zero), m.rows, Padded(m.cols), to);
}

}  // namespace baton::cuda
