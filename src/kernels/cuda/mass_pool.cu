// Mass from stored scores.
#include "kernels/cuda/mass.cuh"

namespace baton::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// The input and output of a unit for one group of heads.
struct Pooled {
  const MassSegment& segment;
  const MassUnit& unit;
  int heads, first_head, all_heads;  // of the group, of the call
  const float* lse;                  // [rows, Hq] of the unit's rows, or null
  float* mass;

  __device__ Pooled(const MassCall& call, const MassUnit& u, int group)
      : segment(call.segments[u.segment]), unit(u) {
    all_heads = call.heads, heads = call.heads / call.groups, first_head = group * heads;
    lse = call.lse ? call.lse + (segment.first + unit.row) * all_heads + first_head : nullptr;
    const int64_t set = unit.row / segment.rows_per_set;
    mass = segment.mass + (set * call.groups + group) * segment.mass_stride;
  }
  // Keys that row i of the unit sees.
  __device__ int64_t visible(int i) const { return segment.position + unit.row + i + 1; }
  // Scores of row i of the unit and head h of the group.
  __device__ const float* scores(int i, int h) const {
    const int64_t row = unit.row + i - segment.scores_row;
    return segment.scores + (row * all_heads + first_head + h) * segment.score_stride;
  }
  __device__ float lse_of(int i, int h) const { return lse ? lse[i * all_heads + h] : 0; }
};

// Consecutive scores of a thread.
template <int kKeys>
struct Scores {
  float x[kKeys];
  __device__ __forceinline__ explicit Scores(const float* from) {
    if constexpr (kKeys == 4) {
      const float4 four = *reinterpret_cast<const float4*>(from);
      x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
    } else {
      x[0] = *from;
    }
  }
};

// kKeys keys per thread: e^(score - lse), pooled over heads and summed over rows. With four, scores
// behind the last key are read but not used.
template <int kKeys>
__global__ void __launch_bounds__(kThreads) ProbabilityKernel(MassCall call) {
  const MassUnit unit = call.units[blockIdx.y];
  if (unit.segment < 0) return;
  const Pooled p(call, unit, blockIdx.z);
  const int64_t n = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kKeys;
  if (n >= p.segment.keys) return;
  float sum[kKeys] = {};
#pragma unroll
  for (int k = 0; k < kKeys; ++k) {
    if (unit.add && n + k < p.segment.keys) sum[k] = p.mass[n + k];
  }
  for (int i = 0; i < unit.rows; ++i) {
    if (n >= p.visible(i)) continue;
    const float* scores = p.scores(i, 0) + n;
    float pooled[kKeys] = {};
#pragma unroll 8
    for (int h = 0; h < p.heads; ++h) {
      const Scores<kKeys> score(scores + h * p.segment.score_stride);
      const float lse = p.lse_of(i, h);
#pragma unroll
      for (int k = 0; k < kKeys; ++k) {
        const float x = Exp2((score.x[k] - lse) * kLog2E);
        pooled[k] = call.max ? LargerOrNan(pooled[k], x) : pooled[k] + x;
      }
    }
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
      if (n + k < p.visible(i)) sum[k] += pooled[k];
    }
  }
#pragma unroll
  for (int k = 0; k < kKeys; ++k) {
    if (n + k < p.segment.keys) p.mass[n + k] = sum[k];
  }
}

// kKeys keys per thread, as above: the largest score - lse of the heads, or the log of the sum of
// e^it.
template <int kKeys>
__global__ void __launch_bounds__(kThreads) LogProbabilityKernel(MassCall call) {
  const MassUnit unit = call.units[blockIdx.y];
  if (unit.segment < 0) return;
  const Pooled p(call, unit, blockIdx.z);
  const int64_t n = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kKeys;
  if (n >= p.segment.keys) return;
  float largest[kKeys], sum[kKeys] = {};
#pragma unroll
  for (int k = 0; k < kKeys; ++k) largest[k] = -INFINITY;
  if (n < p.visible(0)) {
    const float* scores = p.scores(0, 0) + n;
#pragma unroll 8
    for (int h = 0; h < p.heads; ++h) {
      const Scores<kKeys> score(scores + h * p.segment.score_stride);
      const float lse = p.lse_of(0, h);
#pragma unroll
      for (int k = 0; k < kKeys; ++k) largest[k] = LargerOrNan(largest[k], score.x[k] - lse);
    }
#pragma unroll 8
    for (int h = 0; h < p.heads && !call.max; ++h) {
      const Scores<kKeys> score(scores + h * p.segment.score_stride);
      const float lse = p.lse_of(0, h);
#pragma unroll
      for (int k = 0; k < kKeys; ++k) sum[k] += expf(score.x[k] - lse - largest[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < kKeys; ++k) {
    if (!call.max && largest[k] > -INFINITY) largest[k] += logf(sum[k]);
    if (n + k < p.segment.keys) p.mass[n + k] = n + k < p.visible(0) ? largest[k] : -INFINITY;
  }
}

__device__ __forceinline__ float WarpLarger(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x = LargerOrNan(x, __shfl_xor_sync(~0u, x, mask));
  return x;
}

// One warp per block of tokens: the log of the sum over heads of e^(largest score - lse).
__global__ void __launch_bounds__(kThreads) LogBlockKernel(MassCall call) {
  const MassUnit unit = call.units[blockIdx.y];
  if (unit.segment < 0) return;
  const Pooled p(call, unit, blockIdx.z);
  const int lane = threadIdx.x % 32;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32) * call.block;
  if (first >= p.segment.keys) return;
  const int64_t end = min(first + call.block, p.visible(0));
  // Online over heads: sum of e^(x - largest). The loads and maxima of some heads overlap.
  constexpr int kHeads = 4;
  float largest = -INFINITY, sum = 0;
  for (int base = 0; base < p.heads; base += kHeads) {
    float x[kHeads];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      x[h] = -INFINITY;
      if (base + h >= p.heads) continue;
      const float* scores = p.scores(0, base + h);
      const float lse = p.lse_of(0, base + h);
#pragma unroll 2
      for (int64_t n = first + lane; n < end; n += 32) x[h] = LargerOrNan(x[h], scores[n] - lse);
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) x[h] = WarpLarger(x[h]);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (base + h >= p.heads) break;
      const float before = largest;
      largest = LargerOrNan(largest, x[h]);
      if (largest > -INFINITY) sum = sum * expf(before - largest) + expf(x[h] - largest);
    }
  }
  const float value = largest > -INFINITY ? largest + logf(sum) : largest;
  for (int64_t n = first + lane; n < min(first + call.block, p.segment.keys); n += 32)
    p.mass[n] = n < end ? value : -INFINITY;
}

}  // namespace

void LaunchPoolScores(Recorder& recorder, const MassCall& call, int64_t units, int64_t keys,
                      bool log, bool fours) {
  constexpr int64_t kMostUnits = 65535;  // of a grid
  const bool blocks = log && !call.max && call.block > 1;
  const int64_t per_block = blocks ? int64_t{kWarps} * call.block : (fours ? 4 : 1) * kThreads;
  for (int64_t i = 0; i < units; i += kMostUnits) {
    MassCall part = call;
    part.units += i;
    const dim3 grid(static_cast<unsigned>((keys + per_block - 1) / per_block),
                    static_cast<unsigned>(std::min(kMostUnits, units - i)),
                    static_cast<unsigned>(call.groups));
    const auto keys_kernel = log     ? fours ? LogProbabilityKernel<4> : LogProbabilityKernel<1>
                                 : fours ? ProbabilityKernel<4>
                                     : ProbabilityKernel<1>;
    recorder.Launch(blocks ? LogBlockKernel : keys_kernel, grid, dim3(kThreads), 0, part);
  }
}

}  // namespace baton::cuda
