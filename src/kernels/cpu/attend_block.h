// Helpers for blocks of keys, shared by the attention kernels of every instruction set.
#pragma once

#include "kernels/cpu/attend_kernels.h"

namespace baton::cpu {
// In an unnamed namespace, so that every file has its own copy: one compiled for AVX-512 must not
// be used on machines without it.
namespace {

// Rows are split into groups of equal size, up to `most`; the last may be smaller.
inline int GroupRows(int rows, int most) {
  const int groups = (rows + most - 1) / most;
  return (rows + groups - 1) / groups;
}

// Keys of the block that a row at `query` may see, rounded up to whole steps.
inline int VisibleKeys(const KeyBlock& block, int64_t query) {
  int n = block.count;
  while (n > 0 && block.positions[n - 1] > query) --n;
  return (n + kKeyStep - 1) / kKeyStep * kKeyStep;
}

// Runs between scores and softmax, for the stack rows [row, row + rows): store(block, keys, scores,
// out) where scores are requested, mask(tile, block, keys, position, scores) where some row does
// not see all keys.
template <typename Store, typename Mask>
void StoreAndMask(const AttendTile& t, const KeyBlock& block, int row, int rows, int keys,
                  float* scores, Store&& store, Mask&& mask) {
  const int64_t first = t.position + row / t.heads;
  const int64_t last = t.position + (row + rows - 1) / t.heads;
  const bool hidden = block.positions[keys - 1] > first || (block.positions[keys - 1] >= t.sink &&
                                                            block.positions[0] <= last - t.recent);
  for (int i = 0; i < rows && (hidden || t.scores); ++i) {
    float* s = scores + i * kMaxBlockKeys;
    const int token = (row + i) / t.heads;
    if (t.scores) {
      const int64_t head = (row + i) % t.heads;
      store(block, keys, s, t.scores + token * t.scores_token_stride + head * t.scores_head_stride);
    }
    if (hidden) mask(t, block, keys, t.position + token, s);
  }
}

// Prefetches rows of the next block a few lines at a time, in memory order and spread over all of
// the arithmetic. A core has few line fill buffers: a burst fills them and blocks the loads behind
// it, so that memory and arithmetic do not overlap (Zen 4, one thread: 5.5 GB/s without prefetch,
// 11 with bursts while packing, 15 spread). Prefetches into the second-level cache only: into the
// first it is little better than none, because the block does not fit. A further stage, into the
// third-level cache, costs more instructions than it saves stalls.
class Ahead {
 public:
  // `steps` is how often Step will be called.
  Ahead(const AttendTile& t, const KeyBlock* next, int64_t key_offset, int64_t value_offset,
        int64_t steps) {
    if (!next) return;
    const bool whole = t.shares > 0;
    row_ = next->rows + (whole ? next->count * t.share / t.shares : 0);
    end_ = next->rows + (whole ? next->count * (t.share + 1) / t.shares : next->count);
    if (row_ == end_) return;
    begin_[0] = whole ? 0 : key_offset;
    begin_[1] = value_offset;
    bytes_ = whole ? t.layout.row_bytes() : t.layout.head_bytes();
    ranges_ = whole ? 1 : 2;
    const int64_t lines = (end_ - row_) * ranges_ * ((bytes_ + 63) / 64);
    lines_ = static_cast<int>((lines + steps - 1) / steps);
    at_ = *row_ + begin_[0];
    stop_ = at_ + bytes_;
  }
  void Step() {
    for (int i = 0; i < lines_; ++i) {
      __builtin_prefetch(at_, 0, 2);
      at_ += 64;
      if (at_ >= stop_ && !NextRange()) return;
    }
  }

 private:
  bool NextRange() {
    if (++range_ == ranges_) {
      range_ = 0;
      if (++row_ == end_) {
        lines_ = 0;
        return false;
      }
    }
    at_ = *row_ + begin_[range_];
    stop_ = at_ + bytes_;
    return true;
  }
  const std::byte* const* row_ = nullptr;
  const std::byte* const* end_ = nullptr;
  const std::byte* at_ = nullptr;
  const std::byte* stop_ = nullptr;
  int64_t begin_[2] = {}, bytes_ = 0;
  int range_ = 0, ranges_ = 0, lines_ = 0;
};

}  // namespace
}  // namespace baton::cpu
