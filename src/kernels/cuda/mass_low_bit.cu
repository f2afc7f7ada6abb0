// Mass by the 4-bit copy of K, in two kernels. The first computes weights of keys as bf16, relative
// to a reference of each warp, and the factors that join them to one softmax; the second pools the
// shares.
//
// q is rounded to signed bytes, one scale per 32 channels. A byte of a block holds channels 4v + i
// and 4(v + 4) + i, which matches a lane's bytes in m16n8k32: a lane loads 16 bytes, then masks and
// shifts them into operands for two products of 16 keys, 32 channels and 8 query heads. Nibbles are
// used as unsigned; the sum starts at -8 times the sum of q.
//
// The reference is the largest score of the warp's first 32 keys: maintaining a running maximum
// would cost as much as the products. Keys more than 100 powers of two above it count as equal.
#include <cuda_fp16.h>

#include "kernels/cuda/mass.cuh"
#include "kernels/cuda/reduce.cuh"

namespace baton::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kStep = 32;                    // keys of a warp's step
constexpr int kChunk = 16 * kWarps * kStep;  // keys of a block
constexpr int kGroupHeads = 8;
constexpr int kPoolThreads = 128, kPoolWarps = kPoolThreads / 32;
constexpr int kPooledKeys = kPoolThreads * 8;  // of a block of the second kernel

// For each row (of all units, in order): weights [Hq, keys], and per chunk of keys the references
// of its warps [chunks, Hq, kWarps] and the log-sum-exp [chunks, Hq], in powers of two.
struct LowBitScratch {
  __nv_bfloat16* weights = nullptr;
  float* references = nullptr;
  float* lse = nullptr;
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
  // Words per head: a lane's two words of a block are adjacent, and heads are in different banks.
  static constexpr int kStride = 8 * (kBlocks + (5 - kBlocks % 4) % 4);
  struct Scale {
    float scale[2];  // with that of the softmax, in powers of two; of two heads
    int offset[2];   // -8 times the sum
  };
  uint32_t* values;  // [heads, kStride], heads rounded up to 8
  Scale* scales;     // [heads / 2, kBlocks]

  static __host__ __device__ int Rounded(int heads) {
    return (heads + kGroupHeads - 1) / kGroupHeads * kGroupHeads;
  }
  static __host__ __device__ size_t Bytes(int heads) {
    return Rounded(heads) * (kStride * 4 + kBlocks * sizeof(Scale) / 2);
  }
  __device__ ByteQueries(std::byte* shared, int heads) {
    values = reinterpret_cast<uint32_t*>(shared);
    scales = reinterpret_cast<Scale*>(values + Rounded(heads) * kStride);
  }
  // One warp per 32 channels.
  __device__ void Load(const float* q, int heads, float softmax_scale) const {
    const int lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < Rounded(heads) * kBlocks; i += kWarps) {
      const float x = i < heads * kBlocks ? q[i * 32 + lane] : 0;
      float most = fabsf(x);
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2)
        most = LargerOrNan(most, __shfl_xor_sync(~0u, most, mask));
      const float inverse = most > 0 ? 127 / most : 0;  // 0 for NaN, which stays in the scale
      const int value = __float2int_rn(x * inverse);
      const int head = i / kBlocks, block = i % kBlocks;
      auto* bytes = reinterpret_cast<int8_t*>(values + head * kStride + block * 8);
      bytes[lane % 16 / 4 * 8 + lane / 16 * 4 + lane % 4] = static_cast<int8_t>(value);
      const int sum = __reduce_add_sync(~0u, value);
      Scale& scale = scales[head / 2 * kBlocks + block];
      if (lane == 0) {
        scale.scale[head % 2] = most / 127 * softmax_scale;
        scale.offset[head % 2] = -8 * sum;
      }
    }
  }
};

// The ring of a warp's steps in shared memory.
template <int kBlocks>
struct StepRing {
  static constexpr int kStages = kBlocks <= 8 ? 3 : 2;
  static constexpr int kBytes = 2 * kBlocks * static_cast<int>(sizeof(LowBitBlock));  // of a step
  static constexpr int kWarpBytes = kStages * kBytes;

  // Copies both groups of 16 slots of half a page, one after the other.
  static __device__ __forceinline__ void Copy(const std::byte* from, uint32_t to, int lane) {
#pragma unroll
    for (int i = lane; i < kBytes / 16; i += 32) CopyAsync16(to + i * 16, from + i * 16, true);
  }
};

// 32 keys of a KV head: 4 keys and 4 bytes of each block in a lane (g, t), keys 16 (g / 4) + 4 (g %
// 4) + i.
template <int kBlocks>
struct KeyNibbles {
  uint4 nibbles[kBlocks];
  uint2 scales[kBlocks];

  __device__ __forceinline__ void Load(const std::byte* step, int lane) {
    const int g = lane >> 2, t = lane & 3;
    const auto* from = reinterpret_cast<const LowBitBlock*>(step) + g / 4 * kBlocks;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      nibbles[b] = reinterpret_cast<const uint4*>(from[b].nibbles)[t * 4 + g % 4];
      scales[b] = reinterpret_cast<const uint2*>(from[b].scale)[g % 4];
    }
  }
};

// Scores of 32 keys and 8 heads: x[i] holds key i of the lane's four for heads 2t and 2t + 1.
template <int kBlocks>
__device__ __forceinline__ void Score(const KeyNibbles<kBlocks>& keys,
                                      const ByteQueries<kBlocks>& q, int group, int lane,
                                      float (&x)[4][2]) {
  const int g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i][0] = x[i][1] = 0;
  const auto* values = reinterpret_cast<const uint2*>(q.values + (group * kGroupHeads + g) *
                                                                     ByteQueries<kBlocks>::kStride);
  const auto* scales = q.scales + (group * kGroupHeads / 2 + t) * kBlocks;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    const uint2 of_q = values[b * 4 + t];
    const uint4 packed = *reinterpret_cast<const uint4*>(&scales[b]);
    const float scale[2] = {__uint_as_float(packed.x), __uint_as_float(packed.y)};
    const int offset[2] = {static_cast<int>(packed.z), static_cast<int>(packed.w)};
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
      MmaBytes(c, a, of_q.x, of_q.y);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[2 * m + (i >> 1)][i & 1] +=
            static_cast<float>(c[i]) * (scale[i & 1] * key_scale[2 * m + (i >> 1)]);
      }
    }
  }
}

// The largest score of the lane's existing keys, over all lanes with the same heads.
__device__ __forceinline__ float LargestOf(const float (&x)[4][2], int head, int64_t there) {
  float most = -INFINITY;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < there) most = fmaxf(most, x[i][head]);
  }
#pragma unroll
  for (int mask = 4; mask < 32; mask *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
  return most == -INFINITY ? 0 : most;
}

// The weight of a score, NaN for NaN.
__device__ __forceinline__ float WeightOf(float x) {
  float bounded;
  asm("min.NaN.f32 %0, %1, 0f42C80000;" : "=f"(bounded) : "f"(x));  // 100
  return Exp2(bounded);
}

// One block per row, chunk of keys and KV head, whose query heads are 8 kGroups at most.
template <int kBlocks, int kGroups>
__global__ void __launch_bounds__(kThreads, kBlocks <= 4 && kGroups == 1 ? 3 : 1)
    LowBitWeightsKernel(MassCall call, const LowBitRow* rows, LowBitScratch scratch) {
  extern __shared__ __align__(16) std::byte shared[];
  const LowBitRow row = rows[blockIdx.z];
  const MassSegment& segment = call.segments[row.segment];
  const int64_t visible = segment.position + row.row + 1;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * kChunk;
  if (begin >= visible) return AwaitPrevious();
  const int kv_head = blockIdx.x, heads = call.heads / call.kv_heads;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  const KvAccess kv = segment.kv;
  const int64_t first_head = static_cast<int64_t>(kv_head) * heads;

  using Ring = StepRing<kBlocks>;
  const std::byte* ring = shared + warp * Ring::kWarpBytes;
  const auto position = [&](int step) { return begin + (step * kWarps + warp) * kStep; };
  const int64_t left = min(int64_t{kChunk}, visible - begin) - warp * kStep;
  const int count =
      static_cast<int>(max(int64_t{0}, (left + kWarps * kStep - 1) / (kWarps * kStep)));
  // The page of a step, looked up before it is copied.
  const auto page = [&](int step) {
    return step < count ? kv.pages[position(step) / KvLayout::kSlots] : 0;
  };
  const auto copy = [&](int step, int64_t of_page) {
    if (step < count) {
      const int64_t group = position(step) % KvLayout::kSlots / 16;
      const int64_t block = (int64_t{kv_head} * (KvLayout::kSlots / 16) + group) * kBlocks;
      Ring::Copy(kv.low_bits + of_page * kv.low_bit_bytes + block * int64_t{sizeof(LowBitBlock)},
                 SharedAddress(ring) + step % Ring::kStages * Ring::kBytes, lane);
    }
    CommitCopies();
  };
  int64_t pages[Ring::kStages];
#pragma unroll
  for (int i = 0; i < Ring::kStages; ++i) pages[i] = page(i);
  AwaitPrevious();
#pragma unroll
  for (int i = 0; i < Ring::kStages - 1; ++i) copy(i, pages[i]);
  int64_t next_page = pages[Ring::kStages - 1];
  std::byte* rest = shared + kWarps * Ring::kWarpBytes;
  const ByteQueries<kBlocks> q(rest, heads);
  q.Load(call.q + ((segment.first + row.row) * call.heads + first_head) * kBlocks * 32, heads,
         call.scale * kLog2E);
  __syncthreads();

  const int64_t of_chunk =
      (blockIdx.z * (scratch.keys / kChunk) + blockIdx.y) * call.heads + first_head;
  __nv_bfloat16* weights = scratch.weights + (blockIdx.z * call.heads + first_head) * scratch.keys;
  float references[kGroups][2] = {}, sums[kGroups][2] = {};
  for (int step = 0; step < count; ++step) {
    AwaitCopies<Ring::kStages - 2>();
    __syncwarp();
    copy(step + Ring::kStages - 1, next_page);
    next_page = page(step + Ring::kStages);
    KeyNibbles<kBlocks> keys;
    keys.Load(ring + step % Ring::kStages * Ring::kBytes, lane);
    const int64_t own = position(step) + g / 4 * 16 + g % 4 * 4;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      if (group * kGroupHeads >= heads) break;
      float x[4][2];
      Score(keys, q, group, lane, x);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (step == 0) references[group][j] = LargestOf(x, j, visible - own);
        float e[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) e[i] = WeightOf(x[i][j] - references[group][j]);
        if (own + 4 > visible) {
#pragma unroll
          for (int i = 0; i < 4; ++i) e[i] = own + i < visible ? e[i] : 0;
        }
        const uint2 packed = {PackBf16(e[0], e[1]), PackBf16(e[2], e[3])};
        // The sum is that of the rounded weights, so that shares add up to one.
        sums[group][j] +=
            LowBf16(packed.x) + HighBf16(packed.x) + LowBf16(packed.y) + HighBf16(packed.y);
        const int head = group * kGroupHeads + 2 * t + j;
        if (head < heads) *reinterpret_cast<uint2*>(weights + head * scratch.keys + own) = packed;
      }
    }
  }
  LetNextBegin();
  // The log-sum-exp of each warp, then of the block.
  __syncthreads();                                    // the ring is no longer used
  auto* of_warps = reinterpret_cast<float*>(shared);  // [heads, warps]
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float sum = sums[group][j];
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) sum += __shfl_xor_sync(~0u, sum, mask);
      const int head = group * kGroupHeads + 2 * t + j;
      if (g == 0 && head < heads) {
        const float reference = references[group][j];
        scratch.references[(of_chunk + head) * kWarps + warp] = reference;
        of_warps[head * kWarps + warp] = count > 0 ? reference + log2f(sum) : -INFINITY;
      }
    }
  }
  __syncthreads();
  for (int head = threadIdx.x; head < heads; head += kThreads) {
    float most = -INFINITY, sum = 0;
    for (int w = 0; w < kWarps; ++w) most = fmaxf(most, of_warps[head * kWarps + w]);
    const float reference = most == -INFINITY ? 0 : most;
    for (int w = 0; w < kWarps; ++w) sum += Exp2(of_warps[head * kWarps + w] - reference);
    scratch.lse[of_chunk + head] = reference + log2f(sum);
  }
}

// The log-sum-exp of `heads` heads over the chunks of a row. of_chunks: [chunks, stride].
__device__ void JoinChunks(const float* of_chunks, int64_t stride, int chunks, int heads,
                           float (*parts)[2][kPoolWarps], float* lse) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int head = lane; head < (heads + 31) / 32 * 32; head += 32) {
    float most = -INFINITY, sum = 0;
    if (head < heads) {
#pragma unroll 8
      for (int i = warp; i < chunks; i += kPoolWarps)
        most = fmaxf(most, of_chunks[i * stride + head]);
      const float reference = most == -INFINITY ? 0 : most;
#pragma unroll 8
      for (int i = warp; i < chunks; i += kPoolWarps)
        sum += Exp2(of_chunks[i * stride + head] - reference);
    }
    parts[lane][0][warp] = most, parts[lane][1][warp] = sum;
    __syncthreads();
    if (warp == 0 && head < heads) {
      most = -INFINITY, sum = 0;
      for (int w = 0; w < kPoolWarps; ++w) most = fmaxf(most, parts[lane][0][w]);
      const float reference = most == -INFINITY ? 0 : most;
      for (int w = 0; w < kPoolWarps; ++w)
        sum += parts[lane][1][w] * Exp2(parts[lane][0][w] - reference);
      lse[head] = reference + log2f(sum);
    }
    __syncthreads();
  }
}

// One block per unit, group of heads and kPooledKeys keys; a thread has eight consecutive ones.
// `first_rows` [units]: where a unit's rows begin in the scratch.
__global__ void __launch_bounds__(kPoolThreads)
    LowBitPoolKernel(MassCall call, const int32_t* first_rows, LowBitScratch scratch) {
  extern __shared__ float lse[];  // [heads of the group]
  __shared__ float parts[32][2][kPoolWarps];
  const MassUnit unit = call.units[blockIdx.y];
  const MassSegment& segment = call.segments[unit.segment];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPooledKeys;
  const int64_t own = begin + threadIdx.x * 8;
  const int heads = call.heads / call.groups, group = blockIdx.z;
  AwaitPrevious();
  LetNextBegin();
  if (begin >= segment.keys) return;
  float* mass =
      segment.mass + (unit.row / segment.rows_per_set * call.groups + group) * segment.mass_stride;
  float sum[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] = unit.add && own + i < segment.keys ? mass[own + i] : 0;
  for (int r = 0; r < unit.rows; ++r) {
    const int64_t visible = segment.position + unit.row + r + 1;
    if (begin >= visible) continue;
    const int64_t row = first_rows[blockIdx.y] + r, chunks = scratch.keys / kChunk;
    const int64_t first = row * chunks * call.heads + group * heads;
    JoinChunks(scratch.lse + first, call.heads, static_cast<int>((visible + kChunk - 1) / kChunk),
               heads, parts, lse);
    if (own >= visible) continue;
    const __nv_bfloat16* weights =
        scratch.weights + (row * call.heads + group * heads) * scratch.keys + own;
    const float* references =
        scratch.references + (first + own / kChunk * call.heads) * kWarps + own / kStep % kWarps;
    float pooled[8] = {};
#pragma unroll 8
    for (int h = 0; h < heads; ++h) {
      const uint4 w = *reinterpret_cast<const uint4*>(weights + h * scratch.keys);
      const float factor = Exp2(references[h * kWarps] - lse[h]);
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

template <int kBlocks, int kGroups>
void LaunchGroups(Recorder& recorder, const MassCall& call, const LowBitRow* rows, int64_t count,
                  const LowBitScratch& scratch) {
  const int heads = call.heads / call.kv_heads;
  BATON_CHECK_LE(heads, kGroups * kGroupHeads);
  const size_t ring = kWarps * StepRing<kBlocks>::kWarpBytes;
  const size_t shared = ring + ByteQueries<kBlocks>::Bytes(heads);
  const auto kernel = LowBitWeightsKernel<kBlocks, kGroups>;
  static const bool kAllowed =
      AllowShared(reinterpret_cast<const void*>(kernel),
                  static_cast<int>(ring + ByteQueries<kBlocks>::Bytes(kGroups * kGroupHeads)));
  BATON_CHECK(kAllowed);
  constexpr int64_t kMostRows = 65535;  // of a grid
  BATON_CHECK_LE(count, kMostRows);
  recorder.Launch(
      kernel,
      {.grid = dim3(static_cast<unsigned>(call.kv_heads),
                    static_cast<unsigned>(scratch.keys / kChunk), static_cast<unsigned>(count)),
       .block = dim3(kThreads),
       .shared_bytes = shared,
       .overlapped = true},
      call, rows, scratch);
}

// Common shapes have kernels with fewer registers.
template <int kBlocks>
void LaunchWeights(Recorder& recorder, const MassCall& call, const LowBitRow* rows, int64_t count,
                   const LowBitScratch& scratch) {
  const int heads = call.heads / call.kv_heads;
  if constexpr (kBlocks == 2 || kBlocks == 3 || kBlocks == 4 || kBlocks == 8) {
    if (heads <= kGroupHeads) return LaunchGroups<kBlocks, 1>(recorder, call, rows, count, scratch);
    if (heads <= 2 * kGroupHeads)
      return LaunchGroups<kBlocks, 2>(recorder, call, rows, count, scratch);
  }
  LaunchGroups<kBlocks, 16>(recorder, call, rows, count, scratch);
}

}  // namespace

int64_t LowBitScratchBytes(int64_t heads, int64_t keys) {
  const int64_t rounded = Rounded(keys);
  return heads * (rounded * 2 + rounded / kChunk * (kWarps + 1) * 4);
}

void LaunchLowBit(Recorder& recorder, const MassCall& call, std::span<const MassUnit> units,
                  int64_t rows, int64_t keys, std::byte* memory) {
  LowBitScratch scratch{.keys = Rounded(keys)};
  const int64_t heads = rows * call.heads;
  scratch.weights = reinterpret_cast<__nv_bfloat16*>(memory);
  scratch.references = reinterpret_cast<float*>(scratch.weights + heads * scratch.keys);
  scratch.lse = scratch.references + heads * (scratch.keys / kChunk) * kWarps;
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
  recorder.Launch(
      LowBitPoolKernel,
      {.grid = dim3(static_cast<unsigned>((keys + kPooledKeys - 1) / kPooledKeys),
                    static_cast<unsigned>(units.size()), static_cast<unsigned>(call.groups)),
       .block = dim3(kPoolThreads),
       .shared_bytes = sizeof(float) * static_cast<size_t>(call.heads / call.groups),
       .overlapped = true},
      call, TableOf(recorder, first_rows), scratch);
}

}  // namespace baton::cuda
