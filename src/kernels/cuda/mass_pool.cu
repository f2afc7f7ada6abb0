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

// One thread per key: e^(score - lse), pooled over heads and summed over rows.
__global__ void __launch_bounds__(kThreads) ProbabilityKernel(MassCall call) {
  const MassUnit unit = call.units[blockIdx.y];
  if (unit.segment < 0) return;
  const Pooled p(call, unit, blockIdx.z);
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= p.segment.keys) return;
  float sum = unit.add ? p.mass[n] : 0;
  for (int i = 0; i < unit.rows; ++i) {
    if (n >= p.visible(i)) continue;
    const float* scores = p.scores(i, 0) + n;
    float pooled = 0;
#pragma unroll 8
    for (int h = 0; h < p.heads; ++h) {
      const float x = Exp2((scores[h * p.segment.score_stride] - p.lse_of(i, h)) * kLog2E);
      pooled = call.max ? LargerOrNan(pooled, x) : pooled + x;
    }
    sum += pooled;
  }
  p.mass[n] = sum;
}

// One thread per key: the largest score - lse of the heads, or the log of the sum of e^it.
__global__ void __launch_bounds__(kThreads) LogProbabilityKernel(MassCall call) {
  const MassUnit unit = call.units[blockIdx.y];
  if (unit.segment < 0) return;
  const Pooled p(call, unit, blockIdx.z);
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= p.segment.keys) return;
  float largest = -INFINITY;
  if (n < p.visible(0)) {
    const float* scores = p.scores(0, 0) + n;
#pragma unroll 8
    for (int h = 0; h < p.heads; ++h)
      largest = LargerOrNan(largest, scores[h * p.segment.score_stride] - p.lse_of(0, h));
    if (!call.max && largest > -INFINITY) {
      float sum = 0;
#pragma unroll 8
      for (int h = 0; h < p.heads; ++h)
        sum += expf(scores[h * p.segment.score_stride] - p.lse_of(0, h) - largest);
      largest += logf(sum);
    }
  }
  p.mass[n] = largest;
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
  // Online over heads: sum of e^(x - largest).
  float largest = -INFINITY, sum = 0;
  for (int h = 0; h < p.heads; ++h) {
    const float* scores = p.scores(0, h);
    float x = -INFINITY;
    for (int64_t n = first + lane; n < end; n += 32) x = LargerOrNan(x, scores[n] - p.lse_of(0, h));
    x = WarpLarger(x);
    const float before = largest;
    largest = LargerOrNan(largest, x);
    if (largest > -INFINITY) sum = sum * expf(before - largest) + expf(x - largest);
  }
  const float value = largest > -INFINITY ? largest + logf(sum) : largest;
  for (int64_t n = first + lane; n < min(first + call.block, p.segment.keys); n += 32)
    p.mass[n] = n < end ? value : -INFINITY;
}

}  // namespace

void LaunchPoolScores(Recorder& recorder, const MassCall& call, int64_t units, int64_t keys,
                      bool log) {
  constexpr int64_t kMostUnits = 65535;  // of a grid
  const bool blocks = log && !call.max && call.block > 1;
  const int64_t per_block = blocks ? int64_t{kWarps} * call.block : kThreads;
  for (int64_t i = 0; i < units; i += kMostUnits) {
    MassCall part = call;
    part.units += i;
    const dim3 grid(static_cast<unsigned>((keys + per_block - 1) / per_block),
                    static_cast<unsigned>(std::min(kMostUnits, units - i)),
                    static_cast<unsigned>(call.groups));
    recorder.Launch(blocks ? LogBlockKernel
                    : log  ? LogProbabilityKernel
                           : ProbabilityKernel,
                    grid, dim3(kThreads), 0, part);
  }
}

}  // namespace baton::cuda
