// Attention without tensor cores, for f32 caches (used for checking) and for head sizes that the
// other kernels do not support. Single precision throughout; one warp per key.
#pragma once

#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/reduce.cuh"

namespace baton::cuda {

constexpr int kPlainWarps = 4, kPlainHeads = 4;

// Value d of a head's K or V.
template <DType kType>
__device__ __forceinline__ float LoadValue(const std::byte* row, int d, float scale) {
  if constexpr (kType == DType::kF32) {
    return reinterpret_cast<const float*>(row)[d];
  } else if constexpr (kType == DType::kBF16) {
    return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(row)[d]);
  } else {
    return static_cast<float>(reinterpret_cast<const int8_t*>(row)[d]) * scale;
  }
}

// One block for each of `work`, KV head and kPlainHeads query heads. A lane holds channels lane +
// 32 i, i < kChannels, of a key.
template <DType kType, int kChannels, bool kValues>
__global__ void __launch_bounds__(kPlainWarps * 32)
    AttendPlainKernel(AttendCall call, AttendWork work) {
  __shared__ float maxima[kPlainWarps][kPlainHeads], sums[kPlainWarps][kPlainHeads];
  extern __shared__ float values[];  // [warps, heads, D]
  const int per_head = call.heads / call.kv_heads, dim = call.dim;
  const int blocks = (per_head + kPlainHeads - 1) / kPlainHeads;
  const int units = call.kv_heads * blocks;
  const RowSplit split = work.entry(blockIdx.x / units);
  if (split.row < 0) return;
  const int kv_head = blockIdx.x % units / blocks;
  const int first_head = blockIdx.x % units % blocks * kPlainHeads;
  const int heads = min(per_head - first_head, kPlainHeads);
  const AttendRows& row = call.rows[split.row];
  const KvAccess& kv = row.kv;
  const Keys keys = KeysOf(row, kv_head);
  const int per_split = call.KeysOfSplit(keys.count);
  const int32_t begin = split.split * per_split;
  if (split.split > 0 && begin >= keys.count) return;
  const int32_t end = min(keys.count, begin + per_split);
  const int64_t last = row.position;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t out_head = row.first * call.heads + kv_head * per_head + first_head;
  float q[kPlainHeads][kChannels], o[kPlainHeads][kChannels];
  float max[kPlainHeads], sum[kPlainHeads];
#pragma unroll
  for (int h = 0; h < kPlainHeads; ++h) {
    max[h] = kNoKeys, sum[h] = 0;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const int d = lane + 32 * i;
      o[h][i] = 0;
      q[h][i] = h < heads && d < dim ? call.q[(out_head + h) * dim + d] : 0;
    }
  }
  float* scores = row.scores;
  if (scores) scores += (kv_head * per_head + first_head) * row.score_stride;
  for (int32_t i = begin + warp; i < end; i += kPlainWarps) {
    const int32_t position = keys.position(i);
    if (position > last) continue;
    const int32_t slot = SlotOf(kv, position);
    const std::byte* k = RowOf(kv, slot) + kv_head * kv.head_bytes;
    const float* scale = kType == DType::kI8 ? ScaleOf(kv, slot, kv_head) : nullptr;
    float x[kChannels], score[kPlainHeads] = {};
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const int d = lane + 32 * c;
      x[c] = d < dim ? LoadValue<kType>(k, d, scale ? scale[0] : 1) : 0;
#pragma unroll
      for (int h = 0; h < kPlainHeads; ++h) score[h] += q[h][c] * x[c];
    }
    if (kValues) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const int d = lane + 32 * c;
        x[c] =
            d < dim ? LoadValue<kType>(k + kv.value_offset, d, scale ? scale[kv.kv_heads] : 1) : 0;
      }
    }
#pragma unroll
    for (int h = 0; h < kPlainHeads; ++h) {
      score[h] = WarpSum(score[h]) * call.scale;
      if (scores && lane == 0 && h < heads) scores[h * row.score_stride + i] = score[h];
      if constexpr (kValues) {
        const float before = max[h];
        max[h] = fmaxf(before, score[h]);
        const float reference = max[h] == kNoKeys ? 0 : max[h];
        const float factor = Exp2((before - reference) * kLog2E);
        const float p = Exp2((score[h] - reference) * kLog2E);
        sum[h] = sum[h] * factor + p;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) o[h][c] = o[h][c] * factor + p * x[c];
      }
    }
  }
  if constexpr (kValues) {
#pragma unroll
    for (int h = 0; h < kPlainHeads; ++h) {
      if (lane == 0) maxima[warp][h] = max[h], sums[warp][h] = sum[h];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const int d = lane + 32 * c;
        if (d < dim) values[(warp * kPlainHeads + h) * dim + d] = o[h][c];
      }
    }
    __syncthreads();
    float* out = call.o + out_head * dim;
    float* lse = call.lse ? call.lse + out_head : nullptr;
    if (keys.count > per_split) {
      const int64_t part = row.part + static_cast<int64_t>(split.split) * call.heads +
                           kv_head * per_head + first_head;
      out = call.partial.o + part * dim;
      lse = call.partial.lse + part;
    }
    for (int i = threadIdx.x; i < heads * dim; i += kPlainWarps * 32) {
      const int h = i / dim, d = i % dim;
      float most = kNoKeys, total = 0, x = 0;
      for (int w = 0; w < kPlainWarps; ++w) most = fmaxf(most, maxima[w][h]);
      const float reference = most == kNoKeys ? 0 : most;
      for (int w = 0; w < kPlainWarps; ++w) {
        const float factor = Exp2((maxima[w][h] - reference) * kLog2E);
        total += factor * sums[w][h];
        x += factor * values[(w * kPlainHeads + h) * dim + d];
      }
      out[i] = total == 0 ? 0 : x / total;
      if (d == 0 && lse) lse[h] = total == 0 ? kNoKeys : reference + logf(total);
    }
  }
}

}  // namespace baton::cuda
