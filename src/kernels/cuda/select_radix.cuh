// The exact k largest of each set by a radix search for the k-th key.
//
// A set is shared by a cluster of blocks. Keys are integers in the order of the floats; each block
// holds the upper 16 bits of a stretch of them in shared memory, so that many blocks can run at a
// time. Up to four passes over 8 bits count digits and narrow the range of the k-th key; the lower
// bits of the few remaining candidates are read again. Integer counts make the result exact and
// independent of any order. The list is then compacted: every warp owns consecutive keys, so the
// counts of larger and equal keys before a warp give each selected key its place. Longer stretches
// are not held in shared memory but read again in every pass.
#pragma once

#include <climits>
#include <cstdint>

#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/team.cuh"

namespace baton::cuda {

constexpr int kSelectThreads = 512, kSelectWarps = kSelectThreads / 32;
constexpr int kHeld = 32;                         // keys of a lane that are held
constexpr int kStretch = kSelectThreads * kHeld;  // keys that a block holds
constexpr int kBlockKeys = 4096;                  // fewer keys are not worth a block
constexpr int kDigitBits = 8, kBins = 1 << kDigitBits, kPasses = 4;
// Lanes that count the same digit at once would serialise: each lane of a half warp has its own
// bins, side by side.
constexpr int kCopies = 16;
constexpr int kHeldBytes = kStretch * 2;
constexpr uint32_t kForced = ~0u, kAbsent = 0, kFlat = 0x80000000u;

struct SelectSet {
  const float* mass = nullptr;  // of tokens; of units if these are blocks of several tokens
  int32_t* list = nullptr;
  int32_t* count = nullptr;
  int64_t* bad_position = nullptr;
  int64_t capacity = 0;
  int32_t visible = 0, units = 0, take = 0;
  int32_t sink = 0, recent_from = 0;  // forced: tokens before `sink` and from `recent_from` on
  int32_t block = 1;
};

__device__ __forceinline__ bool IsForced(const SelectSet& s, int32_t unit) {
  const int32_t first = unit * s.block, last = min(s.visible, first + s.block) - 1;
  return first < s.sink || last >= s.recent_from;
}

struct RadixShared {
  uint32_t histogram[kBins][kCopies];
  uint32_t published[kPasses + 1]
                    [kBins];  // this block's counts, one array per pass, read by the other blocks
  uint32_t warp_sums[kSelectWarps];
  uint32_t greater[kSelectWarps], equal[kSelectWarps];
  uint32_t block_greater, block_equal;
  uint32_t digit, above, in_digit;
  int32_t bad;
};

// The keys of a warp: units first + 32 i + lane, i < count.
template <bool kIsHeld>
struct WarpKeys {
  uint16_t* held;  // [kHeld][32], the upper bits; kIsHeld
  const SelectSet* set;
  int32_t first, count;
  bool flat = false;  // treats all keys as equal, because one is NaN

  __device__ __forceinline__ int32_t unit(int i) const {
    return first + i * 32 + static_cast<int>(threadIdx.x % 32);
  }
  __device__ __forceinline__ uint32_t Of(int32_t unit, float x) const {
    return IsForced(*set, unit) ? kForced : flat ? kFlat : Ordered(x);
  }
  __device__ __forceinline__ uint32_t Key(int i) const {
    const int32_t n = unit(i);
    return n < set->units && i < count ? Of(n, set->mass[n]) : kAbsent;
  }
  // Reads all keys, and holds them. Returns the lowest unit that is NaN, or INT_MAX.
  __device__ __forceinline__ int32_t Load() {
    int32_t bad = INT_MAX;
    for (int base = 0; base < count; base += 8) {
      float x[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int32_t n = unit(base + j);
        x[j] = base + j < count && n < set->units ? set->mass[n] : 0;
        if (isnan(x[j])) bad = min(bad, n);
      }
      if constexpr (kIsHeld) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const int32_t n = unit(base + j);
          const bool there = base + j < count && n < set->units;
          held[(base + j) * 32 + threadIdx.x % 32] =
              static_cast<uint16_t>((there ? Of(n, x[j]) : kAbsent) >> 16);
        }
      }
    }
    return bad;
  }
  __device__ __forceinline__ void Flatten() {
    flat = true;
    if constexpr (kIsHeld) {
      for (int i = 0; i < count; ++i)
        held[i * 32 + threadIdx.x % 32] = static_cast<uint16_t>(Key(i) >> 16);
    }
  }
  // Key i, exact down to bit `shift` (or lower) if its bits from 16 on equal those of `prefix`;
  // otherwise its bits below 16 may be zeros.
  __device__ __forceinline__ uint32_t Key(int i, int shift, uint32_t prefix) const {
    if constexpr (!kIsHeld) return Key(i);
    const uint32_t upper = held[i * 32 + threadIdx.x % 32];
    return shift < 16 && upper == prefix >> 16 ? Key(i) : upper << 16;
  }
};

// The k-th key is among the keys whose bits from `shift` on equal those of `prefix`. All larger
// keys are selected, and `need` of these: in the end, those of the lowest units.
struct Cut {
  uint32_t prefix = 0, need = 0;
  int shift = 32;

  __device__ __forceinline__ bool Equal(uint32_t key) const { return (key ^ prefix) >> shift == 0; }
};

// Counts the next digit of the keys that are still candidates.
template <bool kIsHeld>
__device__ void Count(const WarpKeys<kIsHeld>& keys, const Cut& cut, RadixShared& shared) {
  uint32_t* histogram = &shared.histogram[0][threadIdx.x % kCopies];
  const int shift = cut.shift - kDigitBits;
  // Consecutive equal digits are counted at once.
  uint32_t digit = 0, run = 0;
#pragma unroll 4
  for (int i = 0; i < keys.count; ++i) {
    const uint32_t key = keys.Key(i, shift, cut.prefix);
    if (key == kAbsent || (cut.shift < 32 && !cut.Equal(key))) continue;
    const uint32_t d = key >> shift & (kBins - 1);
    if (d != digit && run > 0) atomicAdd(histogram + digit * kCopies, run), run = 0;
    digit = d, ++run;
  }
  if (run > 0) atomicAdd(histogram + digit * kCopies, run);
}

// Publishes the block's counts, and clears the histogram.
__device__ inline void Publish(const Team& team, uint32_t* published, RadixShared& shared) {
  __syncthreads();
  if (threadIdx.x < kBins) {
    auto* copies = reinterpret_cast<uint4*>(shared.histogram[threadIdx.x]);
    uint32_t sum = 0;
#pragma unroll
    for (int i = 0; i < kCopies / 4; ++i) {
      // Neighbouring threads start at different copies, hence different banks.
      uint4& x = copies[(i + threadIdx.x) % (kCopies / 4)];
      sum += x.x + x.y + x.z + x.w;
      x = {0, 0, 0, 0};
    }
    published[threadIdx.x] = sum;
  }
  team.Sync();
}

// The digit of the need-th largest key, how many keys have larger ones, and how many have this one.
__device__ inline void FindDigit(const Team& team, uint32_t* published, uint32_t need,
                                 RadixShared& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t here = 0, before = 0;
  if (threadIdx.x < kBins) {
    const int bin = kBins - 1 - static_cast<int>(threadIdx.x);
    const int blocks = team.size();
#pragma unroll
    for (int r = 0; r < kMostTeam; ++r) {
      if (r < blocks) here += team.Of(published, r)[bin];
    }
    before = here;  // inclusive
    for (int step = 1; step < 32; step *= 2) {
      const uint32_t x = __shfl_up_sync(~0u, before, step);
      if (lane >= step) before += x;
    }
    if (lane == 31) shared.warp_sums[warp] = before;
  }
  __syncthreads();
  if (threadIdx.x < kBins) {
    for (int w = 0; w < warp; ++w) before += shared.warp_sums[w];
    before -= here;
    if (before < need && before + here >= need) {
      shared.digit = kBins - 1 - threadIdx.x, shared.above = before, shared.in_digit = here;
    }
  }
  __syncthreads();
}

// Writes the tokens of the unit at `place` in the list.
__device__ __forceinline__ void Put(const SelectSet& s, int32_t unit, uint32_t place) {
  if (s.block == 1) {
    if (place < s.capacity) s.list[place] = unit;
    if (static_cast<int32_t>(place) == s.take - 1)
      *s.count = static_cast<int32_t>(min(int64_t{place} + 1, s.capacity));
    return;
  }
  const int32_t first = unit * s.block, end = min(s.visible, first + s.block);
  const int64_t at = static_cast<int64_t>(place) * s.block;
  for (int32_t n = first; n < end; ++n) {
    if (at + n - first < s.capacity) s.list[at + n - first] = n;
  }
  if (static_cast<int32_t>(place) == s.take - 1)
    *s.count = static_cast<int32_t>(min(at + end - first, s.capacity));
}

template <bool kIsHeld>
__device__ void Compact(const WarpKeys<kIsHeld>& keys, const Cut& cut, const Team& team,
                        RadixShared& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t least = cut.prefix >> cut.shift;
  uint32_t greater = 0, equal = 0;
#pragma unroll 4
  for (int i = 0; i < keys.count; ++i) {
    const uint32_t key = keys.Key(i, cut.shift, cut.prefix) >> cut.shift;
    greater += key > least, equal += key == least;
  }
  greater = __reduce_add_sync(~0u, greater), equal = __reduce_add_sync(~0u, equal);
  if (lane == 0) shared.greater[warp] = greater, shared.equal[warp] = equal;
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t g = 0, e = 0;
    for (int w = 0; w < kSelectWarps; ++w) g += shared.greater[w], e += shared.equal[w];
    shared.block_greater = g, shared.block_equal = e;
  }
  team.Sync();
  const bool any = greater + equal > 0;
  greater = equal = 0;
  for (int r = 0; r < team.rank(); ++r) {
    const RadixShared* of = team.Of(&shared, r);
    greater += of->block_greater, equal += of->block_equal;
  }
  for (int w = 0; w < warp; ++w) greater += shared.greater[w], equal += shared.equal[w];
  const uint32_t below = (1u << lane) - 1;
  for (int i = 0; any && i < keys.count; ++i) {
    const uint32_t key = keys.Key(i, cut.shift, cut.prefix) >> cut.shift;
    if (!__any_sync(~0u, key >= least)) continue;
    const uint32_t g = __ballot_sync(~0u, key > least), e = __ballot_sync(~0u, key == least);
    const uint32_t equal_before = equal + __popc(e & below);
    if (key > least || (key == least && equal_before < cut.need))
      Put(*keys.set, keys.unit(i), greater + __popc(g & below) + min(equal_before, cut.need));
    greater += __popc(g), equal += __popc(e);
  }
  team.Sync();  // no block may exit while others read its counts
}

// Selects from one set, by all blocks of its team. `held`: dynamic shared memory of kHeldBytes.
template <bool kIsHeld>
__device__ void RadixSelect(const SelectSet& set, const Team& team, uint16_t* held,
                            RadixShared& shared) {
  if (threadIdx.x == 0) shared.bad = INT_MAX;
  for (int i = threadIdx.x; i < kBins * kCopies; i += kSelectThreads) shared.histogram[0][i] = 0;
  __syncthreads();
  const int32_t warps = team.size() * kSelectWarps, own = static_cast<int>(threadIdx.x) / 32;
  const int32_t per_warp = (set.units + warps * 32 - 1) / (warps * 32);  // in steps of 32
  WarpKeys<kIsHeld> keys;
  keys.held = held + own * kHeld * 32;
  keys.set = &set, keys.first = (team.rank() * kSelectWarps + own) * per_warp * 32;
  keys.count = per_warp;
  const int32_t bad = keys.Load();
  if (bad != INT_MAX) atomicMin(&shared.bad, bad);

  Cut cut{.need = static_cast<uint32_t>(set.take)};
  for (int pass = 0; pass < kPasses; ++pass) {
    uint32_t* published = shared.published[pass];
    Count(keys, cut, shared);
    Publish(team, published, shared);
    if (pass == 0) {
      int32_t worst = INT_MAX;
      for (int r = 0; r < team.size(); ++r) worst = min(worst, team.Of(&shared, r)->bad);
      if (worst != INT_MAX) {
        // As an unsigned number -1, for none, is the largest.
        if (team.rank() == 0 && threadIdx.x == 0 && set.bad_position && set.block == 1) {
          atomicMin(reinterpret_cast<unsigned long long*>(set.bad_position),
                    static_cast<unsigned long long>(worst));
        }
        keys.Flatten();
        published = shared.published[kPasses];
        Count(keys, cut, shared);
        Publish(team, published, shared);
      }
      if (set.take == 0) {
        if (team.rank() == 0 && threadIdx.x == 0) *set.count = 0;
        team.Sync();
        return;
      }
    }
    FindDigit(team, published, cut.need, shared);
    cut.shift -= kDigitBits;
    cut.prefix |= shared.digit << cut.shift;
    cut.need -= shared.above;
    if (cut.need == shared.in_digit) break;  // all keys that are left
  }
  LetNextBegin();
  Compact(keys, cut, team, shared);
}

}  // namespace baton::cuda
