// Store: a warp prepares one head of one row (q, k or v) and writes it to the cache.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <vector>

#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/kv_access.cuh"
#include "kernels/cuda/reduce.cuh"

namespace baton::cuda {
namespace {

constexpr int kWarps = 4;

struct StoreSegment {
  int64_t first, count, position;
  KvAccess kv;
};

// Parameters of all rows; heads are numbered q, then k, then v.
struct StoreShape {
  float *q, *k;
  const float* v;
  int64_t q_stride, k_stride, v_stride;  // of rows
  int64_t q_head, k_head, v_head;        // of heads
  const float *q_norm, *k_norm;
  const float *cos, *sin;
  int64_t cos_stride, sin_stride;
  int64_t rows;  // of all segments; without k, of the batch
  int32_t q_heads, k_heads, v_heads, dim, rotated, segments;
  float eps;
  uint8_t interleaved, round_bf16, unused[2];
};

__device__ void NormHead(float* x, int dim, const float* weight, float eps, int lane) {
  float sum = 0;
  for (int i = lane; i < dim; i += kWarp) sum += x[i] * x[i];
  const float scale = 1.0f / sqrtf(WarpSum(sum) / static_cast<float>(dim) + eps);
  for (int i = lane; i < dim; i += kWarp) x[i] = x[i] * scale * weight[i];
  __syncwarp();
}

__device__ void RotateHead(float* x, const StoreShape& s, int64_t t, int lane) {
  const int half = s.rotated / 2;
  const float* cos = s.cos + t * s.cos_stride;
  const float* sin = s.sin + t * s.sin_stride;
  for (int i = lane; i < half; i += kWarp) {
    float& first = x[s.interleaved ? 2 * i : i];
    float& second = x[s.interleaved ? 2 * i + 1 : i + half];
    const float a = first, b = second;
    first = a * cos[i] - b * sin[i];
    second = a * sin[i] + b * cos[i];
  }
  __syncwarp();
}

// Writes a head of K or V; x becomes what the cache holds.
__device__ void WriteHead(const KvAccess& kv, int64_t position, bool value, int head, float* x,
                          int dim, int lane) {
  std::byte* at = kv.row(position) + (value ? kv.value_offset : 0) + int64_t{head} * kv.head_bytes;
  if (kv.dtype == DType::kF32) {
    for (int i = lane; i < dim; i += kWarp) reinterpret_cast<float*>(at)[i] = x[i];
  } else if (kv.dtype == DType::kBF16) {
    for (int i = lane; i < dim; i += kWarp) {
      const __nv_bfloat16 rounded = __float2bfloat16_rn(x[i]);
      reinterpret_cast<__nv_bfloat16*>(at)[i] = rounded;
      x[i] = __bfloat162float(rounded);
    }
  } else {
    float largest = 0;
    for (int i = lane; i < dim; i += kWarp) largest = fmaxf(largest, fabsf(x[i]));
    largest = WarpMax(largest);
    const float scale = largest / 127.0f;
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    if (lane == 0) *kv.scale(position, value, head) = scale;
    for (int i = lane; i < dim; i += kWarp) {
      const auto rounded = static_cast<int8_t>(__float2int_rn(x[i] * inverse));
      reinterpret_cast<int8_t*>(at)[i] = rounded;
      x[i] = static_cast<float>(rounded) * scale;
    }
  }
  __syncwarp();
}

// The same as StoreLowBit (kv/low_bit.h), bit for bit; one lane per channel of a block.
__device__ void WriteLowBit(const KvAccess& kv, int64_t position, int head, const float* x, int dim,
                            int lane) {
  const int64_t slot = position % 16;
  for (int block = 0; block < dim / 32; ++block) {
    LowBitBlock& b = *kv.low_bit_block(position, head, block);
    const float value = x[block * 32 + lane];
    const __half half = __float2half_rn(WarpMax(fabsf(value)) / 7.0f);
    const float scale = __half2float(half);
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    const float q = rintf(value * inverse);
    const int nibble = (isnan(q) ? 0 : static_cast<int>(fminf(fmaxf(q, -7.0f), 7.0f))) + 8;
    const int high = __shfl_down_sync(kAllLanes, nibble, 16);
    if (lane < 16)
      b.nibbles[lane / 4 * 64 + slot * 4 + lane % 4] = static_cast<uint8_t>(nibble | high << 4);
    if (lane == 0) b.scale[slot] = __half_as_ushort(half);
  }
}

__global__ void __launch_bounds__(kWarps* kWarp)
    StoreHeads(const StoreShape s, const StoreSegment* segments) {
  extern __shared__ float heads[];
  LetNextBegin();
  AwaitPrevious();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float* x = heads + warp * s.dim;
  const int per_row = s.q_heads + s.k_heads + s.v_heads;
  const int64_t unit = blockIdx.x * int64_t{kWarps} + warp;
  if (unit >= s.rows * per_row) return;
  int64_t t = unit / per_row;
  int head = static_cast<int>(unit % per_row);
  int64_t position = 0;
  const StoreSegment* segment = segments;
  if (s.segments > 0) {
    while (t >= segment->count) t -= segment++->count;
    position = segment->position + t;
    t += segment->first;
  }
  const bool is_q = head < s.q_heads, is_v = head >= s.q_heads + s.k_heads;
  head -= is_q ? 0 : is_v ? s.q_heads + s.k_heads : s.q_heads;
  const float* from = is_q   ? s.q + t * s.q_stride + head * s.q_head
                      : is_v ? s.v + t * s.v_stride + head * s.v_head
                             : s.k + t * s.k_stride + head * s.k_head;
  for (int i = lane; i < s.dim; i += kWarp) x[i] = from[i];
  __syncwarp();
  if (!is_v) {
    const float* norm = is_q ? s.q_norm : s.k_norm;
    if (norm) NormHead(x, s.dim, norm, s.eps, lane);
    if (s.rotated > 0) RotateHead(x, s, t, lane);
    float* to =
        is_q ? s.q + t * s.q_stride + head * s.q_head : s.k + t * s.k_stride + head * s.k_head;
    for (int i = lane; i < s.dim; i += kWarp) {
      if (s.round_bf16) x[i] = __bfloat162float(__float2bfloat16_rn(x[i]));
      to[i] = x[i];
    }
    __syncwarp();
  }
  if (is_q) return;
  WriteHead(segment->kv, position, is_v, head, x, s.dim, lane);
  if (!is_v && segment->kv.low_bit) WriteLowBit(segment->kv, position, head, x, s.dim, lane);
}

}  // namespace

void CudaOps::DoStore(const StoreParams& p) {
  if (p.q.empty() && p.k.empty()) return;
  const View<float>& any = p.q.empty() ? p.k : p.q;
  StoreShape s = {};
  s.dim = static_cast<int32_t>(any.dim(2));
  if (!p.q.empty()) {
    s.q = p.q.data();
    s.q_stride = p.q.stride(0), s.q_head = p.q.stride(1);
    s.q_heads = static_cast<int32_t>(p.q.dim(1));
  }
  if (!p.k.empty()) {
    s.k = p.k.data();
    s.k_stride = p.k.stride(0), s.k_head = p.k.stride(1);
    s.k_heads = static_cast<int32_t>(p.k.dim(1));
  }
  if (!p.v.empty()) {
    s.v = p.v.data();
    s.v_stride = p.v.stride(0), s.v_head = p.v.stride(1);
    s.v_heads = static_cast<int32_t>(p.v.dim(1));
  }
  s.q_norm = p.q_norm, s.k_norm = p.k_norm, s.eps = p.norm_eps;
  if (!p.cos.empty()) {
    s.cos = p.cos.data(), s.sin = p.sin.data();
    s.cos_stride = p.cos.stride(0), s.sin_stride = p.sin.stride(0);
    s.rotated = static_cast<int32_t>(p.cos.dim(1) * 2);
  }
  s.interleaved = p.interleaved, s.round_bf16 = p.round_bf16;
  std::vector<StoreSegment> segments;
  for (const auto& g : p.segments) {
    segments.push_back({g.rows.first, g.rows.count, g.rows.position, KvAccess(g.kv)});
    s.rows += g.rows.count;
  }
  s.segments = static_cast<int32_t>(segments.size());
  if (p.k.empty()) s.rows = p.q.dim(0);
  Recorder::Operation operation(recorder_);
  const StoreSegment* table = recorder_.Table(std::span<const StoreSegment>(segments));
  const int64_t units = s.rows * (s.q_heads + s.k_heads + s.v_heads);
  recorder_.Launch(StoreHeads,
                   {.grid = static_cast<unsigned>((units + kWarps - 1) / kWarps),
                    .block = kWarps * kWarp,
                    .shared_bytes = static_cast<size_t>(kWarps * s.dim) * sizeof(float),
                    .overlapped = true},
                   s, table);
}

}  // namespace baton::cuda
