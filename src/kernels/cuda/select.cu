// Selection: the exact k largest of each set. Long sets are read once (select_sampled.cuh), others
// by a radix search (select_radix.cuh).
#include <vector>

#include "kernels/cuda/attend_kernels.h"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/select_sampled.cuh"

namespace baton::cuda {
namespace {

template <bool kIsHeld>
__global__ void __launch_bounds__(kSelectThreads, kIsHeld ? 4 : 2)
    SelectKernel(const SelectSet* sets) {
  extern __shared__ __align__(16) uint16_t held[];  // [kSelectWarps][kHeld][32]
  __shared__ __align__(16) RadixShared shared;
  __shared__ SelectSet set;
  const Team team;
  if (threadIdx.x == 0) set = sets[blockIdx.x / team.size()];
  __syncthreads();
  AwaitPrevious();
  RadixSelect<kIsHeld>(set, team, held, shared);
}

__global__ void __launch_bounds__(kSelectThreads, 2) SampledSelectKernel(const SelectSet* sets) {
  extern __shared__ __align__(16) std::byte dynamic[];  // Candidates, bitmap
  __shared__ __align__(16) SampledShared shared;
  __shared__ SelectSet set;
  const Team team;
  if (threadIdx.x == 0) set = sets[blockIdx.x / team.size()];
  __syncthreads();
  AwaitPrevious();
  auto& found = *reinterpret_cast<Candidates*>(dynamic);
  auto* bitmap = reinterpret_cast<uint32_t*>(dynamic + sizeof(Candidates));
  if (CanSample(set) && SampledSelect(set, team, found, bitmap, shared)) return;
  RadixSelect<false>(set, team, nullptr, shared.radix);
}

// The score of each block of tokens, summed or compared in their order; NaN if one of them is.
// Reports the lowest token that is NaN.
__global__ void BlockScoresKernel(const SelectSet* sets, float* scores, int64_t stride, bool max) {
  AwaitPrevious();
  const SelectSet& s = sets[blockIdx.y];
  const int32_t unit = blockIdx.x * blockDim.x + threadIdx.x;
  if (unit >= s.units) return;
  float score = max ? -INFINITY : 0;
  bool bad = false;
  for (int32_t n = unit * s.block; n < min(s.visible, (unit + 1) * s.block); ++n) {
    const float x = s.mass[n];
    if (isnan(x) && !bad) {
      bad = true;
      if (s.bad_position) {
        atomicMin(reinterpret_cast<unsigned long long*>(s.bad_position),
                  static_cast<unsigned long long>(n));
      }
    }
    score = max ? fmaxf(score, x) : score + x;
  }
  // Infinity minus infinity ranks last; only a NaN in the mass is a failure.
  if (isnan(score)) score = -INFINITY;
  scores[blockIdx.y * stride + unit] = bad ? NAN : score;
}

// The same for the maxima of large blocks: a warp per block, because one thread's loads would not
// be adjacent to its neighbours'.
constexpr int kMaximaWarps = 8;
__global__ void __launch_bounds__(kMaximaWarps * 32)
    BlockMaximaKernel(const SelectSet* sets, float* scores, int64_t stride) {
  AwaitPrevious();
  const SelectSet& s = sets[blockIdx.y];
  const int lane = threadIdx.x % 32;
  const int32_t unit = blockIdx.x * kMaximaWarps + threadIdx.x / 32;
  if (unit >= s.units) return;
  float largest = -INFINITY;
  int32_t bad = INT_MAX;
  for (int32_t n = unit * s.block + lane; n < min(s.visible, (unit + 1) * s.block); n += 32) {
    const float x = s.mass[n];
    if (isnan(x)) bad = min(bad, n);
    largest = fmaxf(largest, x);
  }
  bad = __reduce_min_sync(~0u, bad);
  largest = WarpMax(largest);
  if (lane != 0) return;
  if (bad != INT_MAX && s.bad_position) {
    atomicMin(reinterpret_cast<unsigned long long*>(s.bad_position),
              static_cast<unsigned long long>(bad));
  }
  scores[blockIdx.y * stride + unit] = bad != INT_MAX ? NAN : largest;
}

SelectSet SetOf(const SelectParams& p, const SelectParams::Segment& s, int64_t set, int64_t group) {
  const auto i = static_cast<size_t>(set);
  const int64_t visible = s.visible[i], recent = std::max<int64_t>(0, s.recent[i]);
  const int64_t units = (visible + p.block - 1) / p.block;
  const bool none = s.k[i] == 0 && p.sink <= 0 && recent <= 0;
  const int64_t take = none ? 0 : std::min(units, std::max<int64_t>(1, s.k[i] / p.block));
  return {.mass = s.mass + (set * p.groups + group) * s.mass_stride,
          .list = s.out->list(set, group),
          .count = &s.out->count(set, group),
          .bad_position = s.bad_position,
          .capacity = s.out->capacity,
          .visible = static_cast<int32_t>(visible),
          .units = static_cast<int32_t>(units),
          .take = static_cast<int32_t>(take),
          .sink = static_cast<int32_t>(std::clamp<int64_t>(p.sink, 0, visible)),
          .recent_from = static_cast<int32_t>(visible - std::min(visible, recent)),
          .block = static_cast<int32_t>(p.block)};
}

}  // namespace

void Select(Recorder& recorder, Scratch& scratch, const SelectParams& p) {
  std::vector<SelectSet> sets;
  int64_t units = 1;
  for (const auto& s : p.segments) {
    for (int64_t set = 0; set < s.sets; ++set) {
      for (int64_t group = 0; group < p.groups; ++group) {
        sets.push_back(SetOf(p, s, set, group));
        units = std::max<int64_t>(units, sets.back().units);
      }
    }
  }
  if (sets.empty()) return;
  int64_t bucket = 1;  // launches repeat while the longest set grows within it
  while (bucket < units) bucket *= 2;
  const auto count = static_cast<unsigned>(sets.size());
  if (p.block > 1) {
    float* scores = scratch.Get<float>(Scratch::kSelect, std::ssize(sets) * bucket);
    constexpr int64_t kBlock = 256, kMostSets = 65535;
    const bool max = p.block_score == SelectParams::BlockScore::kMax;
    const bool warps = max && p.block >= 32;
    const int64_t per_block = warps ? kMaximaWarps : kBlock;
    const SelectSet* tokens = TableOf(recorder, sets);
    for (int64_t i = 0; i < std::ssize(sets); i += kMostSets) {
      const dim3 grid(static_cast<unsigned>((bucket + per_block - 1) / per_block),
                      static_cast<unsigned>(std::min(kMostSets, std::ssize(sets) - i)));
      if (warps) {
        recorder.Launch(BlockMaximaKernel, grid, dim3(kMaximaWarps * 32), 0, tokens + i,
                        scores + i * bucket, bucket);
      } else {
        recorder.Launch(BlockScoresKernel, grid, dim3(kBlock), 0, tokens + i, scores + i * bucket,
                        bucket, max);
      }
    }
    for (size_t i = 0; i < sets.size(); ++i)
      sets[i].mass = scores + static_cast<int64_t>(i) * bucket;
  }
  static const int64_t kMostDynamic = MostShared() - int64_t{sizeof(SampledShared)} - 1024;
  const int64_t step = bucket / 16;
  const int64_t sampled_bytes =
      int64_t{sizeof(Candidates)} + (units + step - 1) / std::max<int64_t>(1, step) * step / 8;
  if (bucket > kLeastSampled && sampled_bytes <= kMostDynamic) {
    // About a block for each multiprocessor of an H200.
    const int cluster = TeamSize(recorder, bucket, kLeastSampled / 4, 136 / std::ssize(sets));
    return recorder.Launch(SampledSelectKernel,
                           {.grid = dim3(count * static_cast<unsigned>(cluster)),
                            .block = dim3(kSelectThreads),
                            .shared_bytes = static_cast<size_t>(sampled_bytes),
                            .cluster = static_cast<unsigned>(cluster),
                            .overlapped = true},
                           TableOf(recorder, sets));
  }
  const int cluster = TeamSize(recorder, bucket, kBlockKeys, INT_MAX);
  const bool held = bucket <= int64_t{cluster} * kStretch;
  static const bool kAllowed = AllowShared(reinterpret_cast<const void*>(SelectKernel<true>),
                                           kHeldBytes, sizeof(RadixShared) + sizeof(SelectSet));
  BATON_CHECK(kAllowed);
  recorder.Launch(held ? SelectKernel<true> : SelectKernel<false>,
                  {.grid = dim3(count * static_cast<unsigned>(cluster)),
                   .block = dim3(kSelectThreads),
                   .shared_bytes = static_cast<size_t>(held ? kHeldBytes : 0),
                   .cluster = static_cast<unsigned>(cluster),
                   .overlapped = true},
                  TableOf(recorder, sets));
}

}  // namespace baton::cuda
