// The exact k largest of a long set, read once: a sample gives a lower bound of the k-th key, the
// keys that reach it are collected, and the k largest of these few are found in shared memory.
//
// Blocks of a cluster share a set. Each takes the same sample (64 or 128 chunks of 128 keys)
// and so finds the same bound: the sample's r-th largest key, with r five standard deviations above
// the expected k x sample / N, so that about 1.4 k keys reach it (k = 2,048 of 131,072). Each block
// then streams its stretch of the set and keeps what reaches the bound; the first block takes all
// of it over. Neither the order in which keys were collected nor the bound changes the result: the
// k-th key is found by counting digits, equal keys go by position, and a bitmap of the chosen units
// gives the list its order. Where fewer than k keys reach the bound, or more than kCandidates, or
// one is not a number, the blocks fall back to RadixSelect.
#pragma once

#include "kernels/cuda/select_radix.cuh"

namespace baton::cuda {

constexpr int kChunk = 128;  // keys that a warp loads at once
constexpr int kMostSampleChunks = 128;
constexpr uint32_t kCandidates = 6144;  // that a set may have
constexpr int kLeastSampled = 32768;    // units of a set; the sample is a quarter of these
constexpr int kCoarseBins = 2048;       // digits of 11 bits

// Dynamic shared memory; after it comes the bitmap, a bit for each unit.
struct Candidates {
  uint32_t key[kCandidates];
  int32_t unit[kCandidates];
};

struct SampledShared {
  RadixShared radix;   // its histogram also holds kCoarseBins counts
  uint32_t collected;  // candidates of this block; kNotANumber if one is none
  int32_t last_equal;
};
constexpr uint32_t kNotANumber = 1u << 28;  // the sum over a cluster is above kCandidates

// The number that Ordered makes `key` of.
__device__ __forceinline__ float Unordered(uint32_t key) {
  return __uint_as_float(key >> 31 ? key ^ 0x80000000u : ~key);
}

// Over the threads of a block, in order; all must call it.
__device__ inline uint32_t ExclusiveSum(uint32_t x, uint32_t* warp_sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto inclusive = [lane](uint32_t sum) {
    for (int step = 1; step < 32; step *= 2) {
      const uint32_t y = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += y;
    }
    return sum;
  };
  const uint32_t sum = inclusive(x);
  __syncthreads();  // of an earlier call
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  const uint32_t warps = inclusive(lane < kSelectWarps ? warp_sums[lane] : 0);
  return sum - x + (warp > 0 ? __shfl_sync(~0u, warps, warp - 1) : 0);
}

// Narrows `cut` by `bits` bits: for_each_key(count) calls count(key) for every key of the block.
template <typename F>
__device__ void NarrowInBlock(Cut& cut, int bits, RadixShared& shared, F&& for_each_key) {
  static_assert(kCoarseBins == 4 * kSelectThreads);
  uint32_t* bins = shared.histogram[0];
  reinterpret_cast<uint4*>(bins)[threadIdx.x] = {0, 0, 0, 0};
  __syncthreads();
  const int shift = cut.shift - bits;
  for_each_key([&](uint32_t key) {
    if (cut.shift < 32 && !cut.Equal(key)) return;
    atomicAdd(bins + (key >> shift & ((1u << bits) - 1)), 1);
  });
  __syncthreads();
  // Thread 0 has the four highest digits.
  const int first = kCoarseBins - 4 - 4 * static_cast<int>(threadIdx.x);
  const uint4 four = reinterpret_cast<const uint4*>(bins)[first / 4];
  const uint32_t counts[4] = {four.w, four.z, four.y, four.x};
  uint32_t above = ExclusiveSum(four.x + four.y + four.z + four.w, shared.warp_sums);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (above < cut.need && above + counts[i] >= cut.need)
      shared.digit = first + 3 - i, shared.above = above, shared.in_digit = counts[i];
    above += counts[i];
  }
  __syncthreads();
  cut.shift = shift;
  cut.prefix |= shared.digit << shift;
  cut.need -= shared.above;
}

__device__ inline int SampleChunks(const SelectSet& set) {
  return set.units > 1 << 18 ? kMostSampleChunks : kMostSampleChunks / 2;
}

// How many of the sample's keys reach the bound.
__device__ inline float SampleRank(const SelectSet& set) {
  const auto sample = static_cast<float>(SampleChunks(set) * kChunk);
  const float expected = static_cast<float>(set.take) * sample / static_cast<float>(set.units);
  return ceilf(expected + 5 * sqrtf(expected) + 8);
}

// Whether a set is long enough, and its candidates are likely to be few enough.
__device__ inline bool CanSample(const SelectSet& set) {
  const float per_sampled =
      static_cast<float>(set.units) / static_cast<float>(SampleChunks(set) * kChunk);
  return set.units >= kLeastSampled && set.take > 0 &&
         SampleRank(set) * per_sampled < 0.8f * kCandidates &&
         reinterpret_cast<uintptr_t>(set.mass) % 16 == 0;
}

__device__ inline float SampleBound(const SelectSet& set, RadixShared& shared) {
  constexpr int kMostPerWarp = kMostSampleChunks / kSelectWarps;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int chunks = set.units / kChunk, sample = SampleChunks(set);
  const int per_warp = sample / kSelectWarps;
  float4 x[kMostPerWarp];
#pragma unroll
  for (int i = 0; i < kMostPerWarp; ++i) {
    if (i >= per_warp) break;
    // Anywhere within its share of the set: what repeats there must not repeat in the sample.
    const uint32_t j = i * kSelectWarps + warp;
    const uint32_t within = (j * 2654435761u >> 16) % static_cast<uint32_t>(chunks / sample);
    const int64_t chunk = int64_t{j} * chunks / sample + within;
    x[i] = reinterpret_cast<const float4*>(set.mass)[chunk * (kChunk / 4) + lane];
  }
  Cut cut{.need = static_cast<uint32_t>(SampleRank(set))};
  for (int round = 0; round < 2; ++round) {
    NarrowInBlock(cut, 11, shared, [&](auto&& count) {
#pragma unroll
      for (int i = 0; i < kMostPerWarp; ++i) {
        if (i >= per_warp) break;
        count(Ordered(x[i].x)), count(Ordered(x[i].y));
        count(Ordered(x[i].z)), count(Ordered(x[i].w));
      }
    });
  }
  return Unordered(cut.prefix);
}

// Collects the units of this block's stretch whose keys reach the bound or are no numbers, and
// those that are forced; then reads their keys again, which are few.
__device__ inline void Collect(const SelectSet& set, const Team& team, float bound,
                               Candidates& found, SampledShared& shared) {
  constexpr int kAhead = 8;  // chunks that a warp has in flight: four bits of `hits` each
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int chunks = (set.units + kChunk - 1) / kChunk, per_block = (chunks - 1) / team.size() + 1;
  const int first = team.rank() * per_block, end = min(chunks, first + per_block);
  // Chunks in [0, sinks) and from `tail` on hold forced units or end behind the last one.
  const int sinks = (set.sink + set.block * kChunk - 1) / (set.block * kChunk);
  const int tail = min(set.recent_from / (set.block * kChunk), set.units / kChunk);
  for (int base = first + warp; base < end; base += kSelectWarps * kAhead) {
    float4 x[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int chunk = base + i * kSelectWarps, unit = chunk * kChunk + lane * 4;
      x[i] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
      if (chunk < end && unit + 4 <= set.units)
        x[i] = *reinterpret_cast<const float4*>(set.mass + unit);
    }
    uint32_t hits = 0;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {  // a comparison with NaN is false
      hits |= (uint32_t{!(x[i].x < bound)} | uint32_t{!(x[i].y < bound)} << 1 |
               uint32_t{!(x[i].z < bound)} << 2 | uint32_t{!(x[i].w < bound)} << 3)
              << 4 * i;
    }
#pragma unroll 1
    for (int i = 0; i < kAhead; ++i) {
      const int chunk = base + i * kSelectWarps;  // the same for all lanes
      if (chunk >= end || (chunk >= sinks && chunk < tail)) continue;
      for (int j = 0; j < 4; ++j) {
        const int unit = chunk * kChunk + lane * 4 + j;
        if (unit >= set.units) continue;
        if (IsForced(set, unit) || !(set.mass[unit] < bound)) hits |= 1u << (4 * i + j);
      }
    }
    const int count = __popc(hits);
    int before = count;
    for (int step = 1; step < 32; step *= 2) {
      const int y = __shfl_up_sync(~0u, before, step);
      if (lane >= step) before += y;
    }
    uint32_t at = 0;
    if (lane == 31) at = atomicAdd(&shared.collected, static_cast<uint32_t>(before));
    at = __shfl_sync(~0u, at, 31) + static_cast<uint32_t>(before - count);
    for (; hits != 0 && at < kCandidates; hits &= hits - 1, ++at) {
      const int bit = __ffs(static_cast<int>(hits)) - 1;
      found.unit[at] = (base + bit / 4 * kSelectWarps) * kChunk + lane * 4 + bit % 4;
    }
  }
  __syncthreads();
  const uint32_t count = min(shared.collected, kCandidates);
  bool bad = false;
  for (uint32_t i = threadIdx.x; i < count; i += kSelectThreads) {
    const int32_t unit = found.unit[i];
    const float x = set.mass[unit];
    bad |= isnan(x);
    found.key[i] = IsForced(set, unit) ? kForced : Ordered(x);
  }
  __syncthreads();
  if (bad) shared.collected = kNotANumber;
}

// The first block's part: the list from all candidates.
__device__ inline void ListCandidates(const SelectSet& set, const Candidates& found, uint32_t count,
                                      uint32_t* bitmap, SampledShared& shared) {
  const auto for_each = [&](auto&& body) {
    for (uint32_t i = threadIdx.x; i < count; i += kSelectThreads)
      body(found.key[i], found.unit[i]);
  };
  Cut cut{.need = static_cast<uint32_t>(set.take)};
  for (int round = 0; round < 3; ++round) {
    NarrowInBlock(cut, round < 2 ? 11 : 10, shared.radix, [&](auto&& count_key) {
      for_each([&](uint32_t key, int32_t) { count_key(key); });
    });
    if (cut.need == shared.radix.in_digit) break;  // all keys that are left
  }
  // A thread has whole groups of four words.
  const int words = (set.units + 127) / 128 * 4;
  const int per_thread = ((words - 1) / kSelectThreads + 4) / 4 * 4;
  const int begin = min(words, static_cast<int>(threadIdx.x) * per_thread);
  const int end = min(words, begin + per_thread);
  const auto mark = [&](auto&& chosen) {
    for (int i = threadIdx.x; i < words; i += kSelectThreads) bitmap[i] = 0;
    __syncthreads();
    for_each([&](uint32_t key, int32_t unit) {
      if (chosen(key, unit)) atomicOr(bitmap + unit / 32, 1u << unit % 32);
    });
    __syncthreads();
    uint32_t marked = 0;
    for (int i = begin; i < end; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(bitmap + i);
      marked += __popc(four.x) + __popc(four.y) + __popc(four.z) + __popc(four.w);
    }
    return ExclusiveSum(marked, shared.radix.warp_sums);
  };
  const uint32_t least = cut.prefix >> cut.shift;
  int32_t last_equal = INT_MAX;
  if (cut.need < shared.radix.in_digit) {
    uint32_t place = mark([&](uint32_t key, int32_t) { return key >> cut.shift == least; });
    for (int i = begin; i < end; ++i) {
      for (uint32_t bits = bitmap[i]; bits != 0; bits &= bits - 1) {
        if (++place == cut.need) shared.last_equal = i * 32 + __ffs(static_cast<int>(bits)) - 1;
      }
    }
    __syncthreads();
    last_equal = shared.last_equal;
  }
  uint32_t place = mark([&](uint32_t key, int32_t unit) {
    key >>= cut.shift;
    return key > least || (key == least && unit <= last_equal);
  });
  for (int i = begin; i < end; ++i) {
    for (uint32_t bits = bitmap[i]; bits != 0; bits &= bits - 1)
      Put(set, i * 32 + __ffs(static_cast<int>(bits)) - 1, place++);
  }
}

// True if the set's list is written; false, for all blocks alike, if it has to be found otherwise.
__device__ inline bool SampledSelect(const SelectSet& set, const Team& team, Candidates& found,
                                     uint32_t* bitmap, SampledShared& shared) {
  if (threadIdx.x == 0) shared.collected = 0;
  const float bound = SampleBound(set, shared.radix);
  if (!(bound > -INFINITY)) return false;
  Collect(set, team, bound, found, shared);
  team.Sync();
  // Lane r asks block r.
  const int lane = threadIdx.x % 32;
  const uint32_t theirs = lane < team.size() ? team.Of(&shared, lane)->collected : 0;
  const uint32_t count = __reduce_add_sync(~0u, theirs);
  const uint32_t before = __reduce_add_sync(~0u, lane < team.rank() ? theirs : 0);
  if (count < static_cast<uint32_t>(set.take) || count > kCandidates) return false;
  LetNextBegin();
  if (team.rank() > 0) {
    Candidates* first = team.Of(&found, 0);
    const uint32_t own = shared.collected;
    for (uint32_t i = threadIdx.x; i < own; i += kSelectThreads)
      first->key[before + i] = found.key[i], first->unit[before + i] = found.unit[i];
  }
  team.Sync();
  if (team.rank() == 0) ListCandidates(set, found, count, bitmap, shared);
  return true;
}

}  // namespace baton::cuda
