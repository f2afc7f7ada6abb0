// Picks a token from one row of logits by a team of blocks.
//
// Each block has a stretch of consecutive ids, each warp of it a part. Once adjusted, a logit is
// its key, an integer in the order of the floats, in the team's scratch, where the next passes find
// it in the cache. A weight is a fixed-point number with 32 bits behind the point: sums are exact,
// hence the same in any order. Two searches make all cuts and draws from them:
//
//   Descend  where, in descending order of the logits, a sum passes a target: a radix search with
//            digits of 8 bits, which keeps sums of weights (or counts) by digit
//   Locate   where a sum passes a target in the order of ids
//
// What a cut leaves is a beginning of the descending order, so its sum of weights says all about
// it: of several cuts the least sum counts.
#pragma once

#include <cstdint>

#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/team.cuh"
#include "ops/params.h"
#include "ops/sample.h"

namespace baton::cuda {

constexpr int kSampleThreads = 512, kSampleWarps = kSampleThreads / kWarp;
constexpr int kDigit = 8, kDigits = 1 << kDigit;
// Lanes that add to the same digit at once would serialise: each lane of a half warp has its own
// sums. A sum of the lower or the upper 16 bits of 65,536 weights fits into 32 bits, and shared
// memory adds these without a loop.
constexpr int kLaneSums = 16;
constexpr int64_t kMostOfBlock = int64_t{kLaneSums} << 16;  // ids

// A SampleRow with what it points at on the device.
struct SampleTask {
  const SampleEntry* entries = nullptr;
  const uint32_t* mask = nullptr;  // null: all
  double uniform = 0;
  float temperature = 0, top_p = 1, min_p = 0;
  float repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  int32_t top_k = 0, entry_count = 0;
};

struct SampleShared {
  uint32_t low[kDigits][kLaneSums], high[kDigits][kLaneSums];
  // What this block tells the others of its team. Two in turn: who writes one again has been
  // through a Sync that the readers of its last content have come to.
  uint64_t board[2][kDigits];
  uint64_t warps[kSampleWarps];
  uint64_t rest;
  uint32_t digit;
};

class RowSampler {
 public:
  // keys: [vocab] scratch of the row.
  __device__ RowSampler(const SampleTask& task, const float* logits, int32_t vocab, uint32_t* keys,
                        const Team& team, SampleShared& shared)
      : task_(task), logits_(logits), vocab_(vocab), keys_(keys), team_(team), shared_(shared) {
    const int32_t unit = team.size() * kSampleThreads;
    const int32_t per_warp = (vocab + unit - 1) / unit * kWarp;
    block_begin_ = team.rank() * kSampleWarps * per_warp;
    block_end_ = block_begin_ + kSampleWarps * per_warp;
    begin_ = block_begin_ + warp() * per_warp;
    end_ = min(begin_ + per_warp, vocab);
    for (int i = threadIdx.x; i < kDigits * kLaneSums; i += kSampleThreads)
      shared.low[i / kLaneSums][i % kLaneSums] = shared.high[i / kLaneSums][i % kLaneSums] = 0;
  }

  __device__ void Run(SampledRow* sampled) {
    const bool first = team_.rank() == 0 && threadIdx.x == 0;
    const uint64_t hash = Load();
    if (first) sampled->hash = static_cast<uint32_t>((hash ^ hash >> 32) * kHashFold >> 32);
    const uint64_t best = Best();
    largest_key_ = static_cast<uint32_t>(best >> 32);
    if (largest_key_ == kNoKey) {
      const bool numbers = CountNumbers() > 0;
      if (first) sampled->token = numbers ? SampledRow::kNoneAllowed : SampledRow::kNoNumber;
    } else if (task_.temperature == 0) {
      if (first) sampled->token = static_cast<int32_t>(~static_cast<uint32_t>(best));
    } else {
      Draw(&sampled->token);
    }
    team_.Sync();  // no block may exit while others read its board
  }

 private:
  static constexpr uint32_t kNoKey = 0;  // of what may not be picked, or is no number
  static constexpr int kAhead = 4;       // keys that a lane loads at once

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }

  // Calls f(id, value) for the ids of this warp, all lanes together; value is `none` past the end.
  template <typename T, typename F>
  __device__ __forceinline__ void ForIds(const T* values, T none, F&& f) const {
    for (int32_t base = begin_; base < end_; base += kAhead * kWarp) {
      T value[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int32_t id = base + i * kWarp + lane();
        value[i] = id < end_ ? values[id] : none;
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) f(base + i * kWarp + lane(), value[i]);
    }
  }
  template <typename F>
  __device__ __forceinline__ void ForKeys(F&& f) const {
    ForIds(keys_, kNoKey, f);
  }

  __device__ __forceinline__ uint32_t Key(int32_t id, float x) const {
    const bool allowed = task_.mask == nullptr || (task_.mask[id / 32] >> (id % 32) & 1);
    return allowed && x > -INFINITY ? Ordered(x) : kNoKey;
  }
  // As the host computes it: no multiply-add.
  __device__ float Adjusted(const SampleEntry& e) const {
    float l = __fadd_rn(logits_[e.token], e.bias);
    if (e.count == 0) return l;
    l = l > 0 ? __fdiv_rn(l, task_.repetition_penalty) : __fmul_rn(l, task_.repetition_penalty);
    const float often = __fmul_rn(task_.frequency_penalty, static_cast<float>(e.count));
    return __fsub_rn(l, __fadd_rn(task_.presence_penalty, often));
  }
  __device__ static float Value(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
  }
  __device__ __forceinline__ uint32_t Weight(uint32_t key) const {
    if (key == kNoKey) return 0;
    if (key == largest_key_) return ~0u;  // which may be infinite
    return __float2uint_rn(exp2f((Value(key) - largest_) * scale_) * 0x1p32f);
  }

  // Makes the keys, and returns the sum that the hash is of.
  __device__ uint64_t Load() {
    uint64_t hash = 0;
    ForIds(logits_, 0.0f, [&](int32_t id, float x) {
      if (id >= end_) return;
      const uint64_t word = __float_as_uint(x) + static_cast<uint32_t>(id) * kHashKey;
      hash += word * word;
      keys_[id] = Key(id, x);
    });
    __syncthreads();
    for (int i = threadIdx.x; i < task_.entry_count; i += kSampleThreads) {
      const SampleEntry& e = task_.entries[i];
      if (e.token >= block_begin_ && e.token < block_end_)
        keys_[e.token] = Key(e.token, Adjusted(e));
    }
    __syncthreads();
    return Across(hash, Plus());
  }

  // The largest key above the complement of its id: the lowest id of the largest. 0: none.
  __device__ uint64_t Best() {
    uint64_t best = 0;
    ForKeys([&](int32_t id, uint32_t key) {
      if (key != kNoKey) best = max(best, uint64_t{key} << 32 | static_cast<uint32_t>(~id));
    });
    return Across(best, Larger());
  }

  __device__ uint64_t CountNumbers() {
    uint64_t count = 0;
    ForIds(logits_, -INFINITY, [&](int32_t, float x) { count += x > -INFINITY; });
    return Across(count, Plus());
  }

  __device__ void Draw(int32_t* token) {
    largest_ = Value(largest_key_);
    scale_ = 1.44269504f / task_.temperature;
    const auto weight = [this](uint32_t key) { return Weight(key); };
    const auto one = [](uint32_t key) { return key == kNoKey ? 0u : 1u; };
    uint64_t rest = 0;
    // The sum of weights that top-k leaves, then of those that the other cuts leave too.
    uint64_t kept = 0;
    if (task_.top_k > 0 && Sum(one) > static_cast<uint64_t>(task_.top_k)) {
      const uint32_t last = Descend(static_cast<uint64_t>(task_.top_k) - 1, one, &rest);
      kept = Sum([&](uint32_t key) { return key > last ? Weight(key) : 0; });
      kept += (rest + 1) * Weight(last);
    } else {
      kept = Sum(weight);
    }
    uint64_t stay = kept;
    if (task_.top_p < 1) {
      // The last that stays is the one within which the sum reaches this much.
      const double reach = ceil(static_cast<double>(task_.top_p) * static_cast<double>(kept));
      const uint64_t target = min(max(static_cast<uint64_t>(reach), uint64_t{1}), kept) - 1;
      const uint32_t last = Descend(target, weight, &rest);
      const uint64_t w = Weight(last);
      stay = min(stay, target - rest + (rest / w + 1) * w);
    }
    if (task_.min_p > 0) {
      const auto least = __double2uint_ru(static_cast<double>(task_.min_p) * 0x1p32);
      stay = min(stay, Sum([&](uint32_t key) {
                   const uint32_t w = Weight(key);
                   return w >= least ? w : 0;
                 }));
    }
    const uint64_t target =
        min(static_cast<uint64_t>(task_.uniform * static_cast<double>(stay)), stay - 1);
    if (task_.top_k == 0 && task_.top_p >= 1 && task_.min_p == 0)
      return Locate(target, weight, token);
    const uint32_t drawn = Descend(target, weight, &rest);
    Locate(
        rest / Weight(drawn), [&](uint32_t key) { return key == drawn ? 1u : 0u; }, token);
  }

  // ---- over the whole row; every thread gets the result

  struct Plus {
    __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
  };
  struct Larger {
    __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return max(a, b); }
  };

  __device__ uint64_t* NextBoard() { return shared_.board[turn_ ^= 1]; }

  template <typename Combine>
  __device__ uint64_t Across(uint64_t x, Combine combine) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
      x = combine(x, __shfl_xor_sync(kAllLanes, x, offset));
    if (lane() == 0) shared_.warps[warp()] = x;
    __syncthreads();
    uint64_t* const board = NextBoard();
    if (threadIdx.x == 0) {
      for (int w = 1; w < kSampleWarps; ++w) x = combine(x, shared_.warps[w]);
      board[0] = x;
    }
    team_.Sync();
    x = *team_.Of(board, 0);
    for (int r = 1; r < team_.size(); ++r) x = combine(x, *team_.Of(board, r));
    return x;
  }

  template <typename F>
  __device__ uint64_t Sum(F f) {
    uint64_t sum = 0;
    ForKeys([&](int32_t, uint32_t key) { sum += f(key); });
    return Across(sum, Plus());
  }

  // The key at which the sum of f, in descending order of keys, passes `target`, which is below the
  // sum of all. rest: what is left of it for the ids that have this key.
  template <typename F>
  __device__ uint32_t Descend(uint64_t target, F f, uint64_t* rest) {
    uint32_t prefix = 0;
    for (int shift = 32 - kDigit; shift >= 0; shift -= kDigit) {
      ForKeys([&](int32_t, uint32_t key) {
        const uint32_t above = uint64_t{key ^ prefix} >> (shift + kDigit);
        if (key == kNoKey || above != 0) return;
        const uint32_t digit = key >> shift & (kDigits - 1), value = f(key);
        if (value == 0) return;
        atomicAdd(&shared_.low[digit][lane() % kLaneSums], value & 0xffffu);
        if (value >> 16) atomicAdd(&shared_.high[digit][lane() % kLaneSums], value >> 16);
      });
      __syncthreads();
      uint64_t* const board = NextBoard();
      if (threadIdx.x < kDigits) board[threadIdx.x] = TakeSum(threadIdx.x);
      team_.Sync();
      FindDigit(board, target);
      prefix |= shared_.digit << shift;
      target = shared_.rest;
    }
    *rest = target;
    return prefix;
  }

  // A digit's sum in this block, which goes back to 0.
  __device__ uint64_t TakeSum(uint32_t digit) {
    uint64_t low = 0, high = 0;
#pragma unroll
    for (uint32_t i = 0; i < kLaneSums; ++i) {
      const uint32_t at = (i + digit) % kLaneSums;  // neighbouring threads: different banks
      low += shared_.low[digit][at], high += shared_.high[digit][at];
      shared_.low[digit][at] = shared_.high[digit][at] = 0;
    }
    return low + (high << 16);
  }

  // From the largest digit on, the one in which the sums of all blocks pass the target.
  __device__ void FindDigit(uint64_t* board, uint64_t target) {
    uint64_t here = 0, before = 0;
    const auto digit = kDigits - 1 - static_cast<int>(threadIdx.x);
    if (threadIdx.x < kDigits) {
      for (int r = 0; r < team_.size(); ++r) here += team_.Of(board, r)[digit];
      before = Inclusive(here);
      if (lane() == kWarp - 1) shared_.warps[warp()] = before;
    }
    __syncthreads();
    if (threadIdx.x < kDigits) {
      before -= here;
      for (int w = 0; w < warp(); ++w) before += shared_.warps[w];
      if (before <= target && target - before < here)
        shared_.digit = static_cast<uint32_t>(digit), shared_.rest = target - before;
    }
    __syncthreads();
  }

  // Stores the id at which the sum of f, in the order of ids, passes `target`.
  template <typename F>
  __device__ void Locate(uint64_t target, F f, int32_t* token) {
    uint64_t own = 0;
    ForKeys([&](int32_t, uint32_t key) { own += f(key); });
    own = WarpSum(own);
    if (lane() == 0) shared_.warps[warp()] = own;
    __syncthreads();
    uint64_t* const board = NextBoard();
    if (threadIdx.x == 0) {
      board[0] = 0;
      for (int w = 0; w < kSampleWarps; ++w) board[0] += shared_.warps[w];
    }
    team_.Sync();
    uint64_t before = 0;
    for (int r = 0; r < team_.rank(); ++r) before += *team_.Of(board, r);
    for (int w = 0; w < warp(); ++w) before += shared_.warps[w];
    if (target < before || target - before >= own) return;  // in another warp
    ForKeys([&](int32_t id, uint32_t key) {
      const uint64_t value = f(key), through = before + Inclusive(value);
      if (through - value <= target && target < through) *token = id;
      before = __shfl_sync(kAllLanes, through, kWarp - 1);
    });
  }

  // The sum of x over this lane and those before it.
  __device__ static uint64_t Inclusive(uint64_t x) {
    for (int step = 1; step < kWarp; step *= 2) {
      const uint64_t other = __shfl_up_sync(kAllLanes, x, step);
      if (lane() >= step) x += other;
    }
    return x;
  }

  const SampleTask& task_;
  const float* const logits_;
  const int32_t vocab_;
  uint32_t* const keys_;
  const Team team_;
  SampleShared& shared_;
  int32_t block_begin_ = 0, block_end_ = 0, begin_ = 0, end_ = 0;
  uint32_t largest_key_ = 0;
  float largest_ = 0, scale_ = 0;
  int turn_ = 0;
};

}  // namespace baton::cuda
