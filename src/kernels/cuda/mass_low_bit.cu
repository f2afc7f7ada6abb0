// Mass by the 4-bit copy of K, in two kernels: weights of 32 keys relative to their largest score,
// as bf16, with what joins them to one softmax; then the pooled shares.
//
// q is rounded to signed bytes, one scale per 32 channels. A byte of a block holds channels 4v + i
// and 4(v + 4) + i, which is how m16n8k32 wants a lane's bytes: a lane loads 16 bytes, masks and
// shifts them into operands for two products of 16 keys, 32 channels and 8 query heads. Nibbles go
// in as unsigned; the sum starts at -8 times the sum of q.
#include <cuda_fp16.h>

#include "kernels/cuda/mass.cuh"

namespace baton::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kStep = 32;                    // keys of a warp's step
constexpr int kChunkSteps = 32;              // of a block
constexpr int kChunk = kChunkSteps * kStep;  // keys
constexpr int kGroupHeads = 8;
constexpr int kPooledKeys = kThreads * 8;  // of a block of the second kernel

struct Stat {
  float max, sum;  // in powers of two
};

// For each row (of all units, in order): weights [Hq, keys], the largest score of each step [Hq,
// keys / 32], and per chunk and head its maximum and sum [chunks, Hq].
struct LowBitScratch {
  __nv_bfloat16* weights = nullptr;
  float* maxima = nullptr;
  Stat* stats = nullptr;
  int64_t keys = 0;  // a multiple of kChunk
};

// A row of a unit.
struct LowBitRow {
  int32_t segment = -1;
  int32_t row = 0;
};

int64_t Rounded(int64_t keys) { return (keys + kChunk - 1) / kChunk * kChunk; }

// Query heads of a KV head as bytes.
template <int kBlocks>
struct ByteQueries {
  static constexpr int kStride = kBlocks * 32 + 16;  // of a head: other banks for each
  int8_t* values;                                    // [heads, kStride], heads rounded up to 8
  float* scales;                                     // [heads, kBlocks]
  int* offsets;                                      // [heads, kBlocks]: -8 times the sum

  static __host__ __device__ size_t Bytes(int heads) {
    const int rounded = (heads + kGroupHeads - 1) / kGroupHeads * kGroupHeads;
    return static_cast<size_t>(rounded) * (kStride + 8 * kBlocks);
  }
  __device__ ByteQueries(std::byte* shared, int heads) {
    const int rounded = (heads + kGroupHeads - 1) / kGroupHeads * kGroupHeads;
    values = reinterpret_cast<int8_t*>(shared);
    scales = reinterpret_cast<float*>(shared + rounded * kStride);
    offsets = reinterpret_cast<int*>(scales + rounded * kBlocks);
  }
  // One warp per 32 channels.
  __device__ void Load(const float* q, int heads) const {
    const int lane = threadIdx.x % 32;
    const int rounded = (heads + kGroupHeads - 1) / kGroupHeads * kGroupHeads;
    for (int i = threadIdx.x / 32; i < rounded * kBlocks; i += kWarps) {
      const float x = i < heads * kBlocks ? q[i * 32 + lane] : 0;
      float most = fabsf(x);
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) {
        const float other = __shfl_xor_sync(~0u, most, mask);
        most = most >= other || isnan(most) ? most : other;
      }
      const float inverse = most > 0 ? 127 / most : 0;  // 0 for NaN, which stays in the scale
      const int value = __float2int_rn(x * inverse);
      values[i / kBlocks * kStride + i % kBlocks * 32 + lane] = static_cast<int8_t>(value);
      const int sum = __reduce_add_sync(~0u, value);
      if (lane == 0) scales[i] = most / 127, offsets[i] = -8 * sum;
    }
  }
};

// 32 keys of a KV head: 4 keys and 4 bytes of each block in a lane (g, t), keys 16 (g / 4) + 4 (g %
// 4) + i.
template <int kBlocks>
struct KeyNibbles {
  uint4 nibbles[kBlocks];
  uint2 scales[kBlocks];

  __device__ __forceinline__ void Load(const KvAccess& kv, int64_t position, int head, int lane) {
    const int g = lane >> 2, t = lane & 3;
    const LowBitBlock* from = kv.low_bit_block(position + g / 4 * 16, head, 0);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      nibbles[b] = reinterpret_cast<const uint4*>(from[b].nibbles)[t * 4 + g % 4];
      scales[b] = reinterpret_cast<const uint2*>(from[b].scale)[g % 4];
    }
  }
};

// Scores of 32 keys and 8 heads without the softmax's scale: x[i] holds key i of the lane's four
// for heads 2t and 2t + 1.
template <int kBlocks>
__device__ __forceinline__ void Score(const KeyNibbles<kBlocks>& keys,
                                      const ByteQueries<kBlocks>& q, int group, int lane,
                                      float (&x)[4][2]) {
  const int g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i][0] = x[i][1] = 0;
  const auto* values =
      reinterpret_cast<const uint32_t*>(q.values + (group * kGroupHeads + g) * q.kStride) + t;
  const int head = (group * kGroupHeads + 2 * t) * kBlocks;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    const uint32_t b0 = values[b * 8], b1 = values[b * 8 + 4];
    const float scale[2] = {q.scales[head + b], q.scales[head + kBlocks + b]};
    const int offset[2] = {q.offsets[head + b], q.offsets[head + kBlocks + b]};
    const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&keys.scales[b].x));
    const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&keys.scales[b].y));
    const float key_scale[4] = {low.x, low.y, high.x, high.y};
    const uint32_t words[4] = {keys.nibbles[b].x, keys.nibbles[b].y, keys.nibbles[b].z,
                               keys.nibbles[b].w};
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const uint32_t w0 = words[2 * m], w1 = words[2 * m + 1];
      const uint32_t a[4] = {w0 & 0x0f0f0f0fu, w1 & 0x0f0f0f0fu, w0 >> 4 & 0x0f0f0f0fu,
                             w1 >> 4 & 0x0f0f0f0fu};
      int c[4] = {offset[0], offset[1], offset[0], offset[1]};
      MmaBytes(c, a, b0, b1);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[2 * m + (i >> 1)][i & 1] +=
            static_cast<float>(c[i]) * scale[i & 1] * key_scale[2 * m + (i >> 1)];
      }
    }
  }
}

// One block per row, chunk of keys and KV head.
template <int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks <= 4 ? 2 : 1)
    LowBitWeightsKernel(MassCall call, const LowBitRow* rows, LowBitScratch scratch) {
  extern __shared__ __align__(16) std::byte shared[];
  const LowBitRow row = rows[blockIdx.z];
  if (row.segment < 0) return;
  const MassSegment& segment = call.segments[row.segment];
  const int64_t visible = segment.position + row.row + 1;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * kChunk;
  if (begin >= visible) return;
  const int kv_head = blockIdx.x, heads = call.heads / call.kv_heads;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  const KvAccess kv = segment.kv;
  const int64_t first_head = static_cast<int64_t>(kv_head) * heads;

  KeyNibbles<kBlocks> next;
  const auto position = [&](int step) { return begin + (step * kWarps + warp) * kStep; };
  if (position(0) < visible) next.Load(kv, position(0), kv_head, lane);
  const ByteQueries<kBlocks> q(shared, heads);
  q.Load(call.q + ((segment.first + row.row) * call.heads + first_head) * kBlocks * 32, heads);
  auto* stats =
      reinterpret_cast<Stat*>(shared + ByteQueries<kBlocks>::Bytes(heads));  // [heads, 32]
  for (int i = threadIdx.x; i < heads * kChunkSteps; i += kThreads) stats[i] = {-INFINITY, 0};
  __syncthreads();

  __nv_bfloat16* weights = scratch.weights + (blockIdx.z * call.heads + first_head) * scratch.keys;
  float* maxima = scratch.maxima + (blockIdx.z * call.heads + first_head) * (scratch.keys / kStep);
#pragma unroll 1
  for (int step = 0; step < kChunkSteps / kWarps; ++step) {
    const int64_t at = position(step);
    if (at >= visible) break;
    const KeyNibbles<kBlocks> keys = next;
    if (step + 1 < kChunkSteps / kWarps && position(step + 1) < visible)
      next.Load(kv, position(step + 1), kv_head, lane);
    const int64_t own = at + g / 4 * 16 + g % 4 * 4;
    for (int group = 0; group * kGroupHeads < heads; ++group) {
      float x[4][2];
      Score(keys, q, group, lane, x);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float most = -INFINITY;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          x[i][j] = own + i < visible ? x[i][j] * (call.scale * kLog2E) : -INFINITY;
          most = fmaxf(most, x[i][j]);
        }
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2)
          most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
        const float reference = most == -INFINITY ? 0 : most;
        const uint2 packed = {PackBf16(Exp2(x[0][j] - reference), Exp2(x[1][j] - reference)),
                              PackBf16(Exp2(x[2][j] - reference), Exp2(x[3][j] - reference))};
        // The sum is that of the rounded weights: shares then add up to one.
        float sum = LowBf16(packed.x) + HighBf16(packed.x) + LowBf16(packed.y) + HighBf16(packed.y);
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) sum += __shfl_xor_sync(~0u, sum, mask);
        const int head = group * kGroupHeads + 2 * t + j;
        if (head >= heads) continue;
        *reinterpret_cast<uint2*>(weights + head * scratch.keys + own) = packed;
        if (g == 0) {
          maxima[head * (scratch.keys / kStep) + at / kStep] = most;
          stats[head * kChunkSteps + step * kWarps + warp] = {most, sum};
        }
      }
    }
  }
  __syncthreads();
  for (int head = warp; head < heads; head += kWarps) {
    const Stat own = stats[head * kChunkSteps + lane];
    float most = own.max;
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
    const float reference = most == -INFINITY ? 0 : most;
    float sum = own.sum == 0 ? 0 : own.sum * Exp2(own.max - reference);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
    if (lane == 0) {
      scratch.stats[(blockIdx.z * (scratch.keys / kChunk) + blockIdx.y) * call.heads + first_head +
                    head] = {most, sum};
    }
  }
}

// The log-sum-exp of a head over the chunks of a row, in powers of two; by a warp.
__device__ float JoinChunks(const Stat* stats, int64_t stride, int chunks, int lane) {
  float most = -INFINITY;
  for (int i = lane; i < chunks; i += 32) most = fmaxf(most, stats[i * stride].max);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
  const float reference = most == -INFINITY ? 0 : most;
  float sum = 0;
  for (int i = lane; i < chunks; i += 32)
    sum += stats[i * stride].sum * Exp2(stats[i * stride].max - reference);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
  return reference + log2f(sum);
}

// One block per unit, group of heads and kPooledKeys keys; a thread has eight consecutive ones.
// `first_rows` [units]: where a unit's rows begin in the scratch.
__global__ void __launch_bounds__(kThreads)
    LowBitPoolKernel(MassCall call, const int32_t* first_rows, LowBitScratch scratch) {
  extern __shared__ float lse[];  // [heads of the group]
  const MassUnit unit = call.units[blockIdx.y];
  if (unit.segment < 0) return;
  const MassSegment& segment = call.segments[unit.segment];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPooledKeys;
  if (begin >= segment.keys) return;
  const int64_t own = begin + threadIdx.x * 8;
  const int heads = call.heads / call.groups, group = blockIdx.z;
  float* mass =
      segment.mass + (unit.row / segment.rows_per_set * call.groups + group) * segment.mass_stride;
  float sum[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] = unit.add && own + i < segment.keys ? mass[own + i] : 0;
  for (int r = 0; r < unit.rows; ++r) {
    const int64_t visible = segment.position + unit.row + r + 1;
    if (begin >= visible) continue;
    const int64_t row = first_rows[blockIdx.y] + r;
    const int chunks = static_cast<int>((visible + kChunk - 1) / kChunk);
    __syncthreads();
    for (int h = threadIdx.x / 32; h < heads; h += kWarps) {
      const Stat* stats =
          scratch.stats + row * (scratch.keys / kChunk) * call.heads + group * heads + h;
      const float x = JoinChunks(stats, call.heads, chunks, threadIdx.x % 32);
      if (threadIdx.x % 32 == 0) lse[h] = x;
    }
    __syncthreads();
    if (own >= visible) continue;
    const int64_t head = row * call.heads + group * heads;
    const __nv_bfloat16* weights = scratch.weights + head * scratch.keys + own;
    const float* maxima = scratch.maxima + head * (scratch.keys / kStep) + own / kStep;
    float pooled[8] = {};
#pragma unroll 4
    for (int h = 0; h < heads; ++h) {
      const uint4 w = *reinterpret_cast<const uint4*>(weights + h * scratch.keys);
      const float factor = Exp2(maxima[h * (scratch.keys / kStep)] - lse[h]);
      const uint32_t pairs[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float x = (i % 2 ? HighBf16(pairs[i / 2]) : LowBf16(pairs[i / 2])) * factor;
        pooled[i] = call.max ? LargerOrNan(pooled[i], x) : pooled[i] + x;
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (own + i < visible) sum[i] += pooled[i];
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (own + i < segment.keys) mass[own + i] = sum[i];
  }
}

template <int kBlocks>
void LaunchWeights(Recorder& recorder, const MassCall& call, const LowBitRow* rows, int64_t count,
                   const LowBitScratch& scratch) {
  const int heads = call.heads / call.kv_heads;
  const size_t shared =
      ByteQueries<kBlocks>::Bytes(heads) + static_cast<size_t>(heads) * kChunkSteps * sizeof(Stat);
  const auto kernel = LowBitWeightsKernel<kBlocks>;
  BATON_CHECK(AllowShared(reinterpret_cast<const void*>(kernel), static_cast<int>(shared)));
  constexpr int64_t kMostRows = 65535;  // of a grid
  BATON_CHECK_LE(count, kMostRows);
  recorder.Launch(kernel,
                  dim3(static_cast<unsigned>(call.kv_heads),
                       static_cast<unsigned>(scratch.keys / kChunk), static_cast<unsigned>(count)),
                  dim3(kThreads), shared, call, rows, scratch);
}

}  // namespace

int64_t LowBitScratchBytes(int64_t heads, int64_t keys) {
  const int64_t rounded = Rounded(keys);
  return heads * (rounded * 2 + rounded / kStep * 4 +
                  rounded / kChunk * static_cast<int64_t>(sizeof(Stat)));
}

void LaunchLowBit(Recorder& recorder, const MassCall& call, std::span<const MassUnit> units,
                  int64_t rows, int64_t keys, std::byte* memory) {
  LowBitScratch scratch{.keys = Rounded(keys)};
  const int64_t heads = rows * call.heads;
  scratch.weights = reinterpret_cast<__nv_bfloat16*>(memory);
  scratch.maxima = reinterpret_cast<float*>(scratch.weights + heads * scratch.keys);
  scratch.stats = reinterpret_cast<Stat*>(scratch.maxima + heads * (scratch.keys / kStep));
  std::vector<LowBitRow> list;
  std::vector<int32_t> first_rows;
  for (const MassUnit& unit : units) {
    first_rows.push_back(static_cast<int32_t>(list.size()));
    for (int32_t i = 0; i < unit.rows; ++i) list.push_back({unit.segment, unit.row + i});
  }
  BATON_CHECK_EQ(std::ssize(list), rows);
  const LowBitRow* table = TableOf(recorder, list);
  switch (call.dim / 32) {
#define BATON_CASE(n)                                       \
  case n:                                                   \
    LaunchWeights<n>(recorder, call, table, rows, scratch); \
    break
    BATON_CASE(1);
    BATON_CASE(2);
    BATON_CASE(3);
    BATON_CASE(4);
    BATON_CASE(5);
    BATON_CASE(6);
    BATON_CASE(7);
    BATON_CASE(8);
    BATON_CASE(16);
#undef BATON_CASE
    default:
      BATON_CHECK(false);  // a head size without a kernel
  }
  recorder.Launch(LowBitPoolKernel,
                  dim3(static_cast<unsigned>((keys + kPooledKeys - 1) / kPooledKeys),
                       static_cast<unsigned>(units.size()), static_cast<unsigned>(call.groups)),
                  dim3(kThreads), sizeof(float) * static_cast<size_t>(call.heads / call.groups),
                  call, TableOf(recorder, first_rows), scratch);
}

}  // namespace baton::cuda
