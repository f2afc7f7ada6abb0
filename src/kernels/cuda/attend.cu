// Attention: the choice of kernels, and the merge of splits.
#include <vector>

#include "kernels/cuda/attend_kernels.h"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/library_attention.h"
#include "kernels/cuda/reduce.cuh"

namespace baton::cuda {
namespace {

using Segment = AttendParams::Segment;

// With fewer rows, a segment or index set is computed row by row.
constexpr int64_t kTileTokens = 17, kTileSetTokens = 16;
// Units that fill a large GPU, and the fewest keys for which splitting a tile pays.
constexpr int64_t kFullDevice = 264, kLeastTileSplit = 1024;

constexpr int kMergeThreads = 512, kMergeShares = kMergeThreads / 32, kMostMerged = 2049;

// Merges the splits of one row and head, in their order, for 32 channels. An entry names an
// AttendRows and, in `split`, one of its rows.
__global__ void __launch_bounds__(kMergeThreads)
    MergeSplitsKernel(AttendCall call, AttendWork work) {
  __shared__ float weights[kMostMerged];
  __shared__ float sums[kMergeThreads];
  const RowSplit entry = work.entry(blockIdx.x / call.heads);
  const int head = blockIdx.x % call.heads, kv_head = head / (call.heads / call.kv_heads);
  const AttendRows& row = call.rows[entry.row];
  const int64_t stride = static_cast<int64_t>(row.rows) * call.heads;
  const int64_t part = row.part + static_cast<int64_t>(entry.split) * call.heads + head;
  AwaitPrevious();
  LetNextBegin();
  const int keys = KeysOf(row, kv_head).count;
  const int per_split = row.keys_per_split ? row.keys_per_split : call.KeysOfSplit(keys);
  if (keys <= per_split) return;
  const int splits = (keys + per_split - 1) / per_split;

  // Every warp computes this for itself.
  const int lane = threadIdx.x % 32;
  float most = kNoKeys;
  for (int i = lane; i < splits; i += 32) most = fmaxf(most, call.partial.lse[part + i * stride]);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
  const float reference = most == kNoKeys ? 0 : most;
  for (int i = threadIdx.x; i < splits; i += kMergeThreads)
    weights[i] = Exp2((call.partial.lse[part + i * stride] - reference) * kLog2E);
  __syncthreads();
  float total = 0;
  for (int i = lane; i < splits; i += 32) total += weights[i];
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) total += __shfl_xor_sync(~0u, total, mask);
  const float inverse = total == 0 ? 0 : 1 / total;
  const int64_t out = (row.first + entry.split) * call.heads + head;
  if (threadIdx.x == 0 && blockIdx.y == 0 && call.lse)
    call.lse[out] = total == 0 ? kNoKeys : reference + logf(total);

  // Each warp sums a share of the splits.
  const int d = blockIdx.y * 32 + lane, share = threadIdx.x / 32;
  float x = 0;
  if (d < call.dim) {
    const float* o = call.partial.o + part * call.dim + d;
#pragma unroll 8
    for (int i = share; i < splits; i += kMergeShares) x += weights[i] * o[i * stride * call.dim];
  }
  sums[threadIdx.x] = x;
  __syncthreads();
  if (share == 0 && d < call.dim) {
    for (int i = 1; i < kMergeShares; ++i) x += sums[i * 32 + lane];
    call.o[out * call.dim + d] = x * inverse;
  }
}

int64_t RoundedUp(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

// The most keys that rows of a segment up to position `last` see, rounded up so that it seldom
// changes from one step to the next.
int64_t MostKeys(const Segment& s, int64_t rows, int64_t last) {
  int64_t keys = RoundedUp(last + 1);
  if (s.keys.kind == KeySet::Kind::kIndex) keys = std::min(keys, s.keys.index->capacity);
  if (s.keys.kind == KeySet::Kind::kWindow) {
    keys = std::min(keys, Clamp(s.keys.sink, 0, keys) + Clamp(s.keys.recent, 0, keys) + rows - 1);
  }
  return std::max<int64_t>(1, keys);
}

// Rows [row, row + count) of a segment, which share an index set.
AttendRows RowsOf(const AttendCall& call, const Segment& s, const int32_t* head_map, int64_t row,
                  int64_t count) {
  AttendRows to{.kv = KvAccess(s.kv),
                .first = s.rows.first + row,
                .position = s.rows.position + row,
                .sink = s.keys.sink,
                .recent = s.keys.recent,
                .rows = static_cast<int32_t>(count),
                .kind = s.keys.kind};
  if (s.scores) to.scores = s.scores + row * call.heads * s.score_stride;
  to.score_stride = s.score_stride;
  if (s.keys.kind != KeySet::Kind::kIndex) return to;
  const IndexSets& index = *s.keys.index;
  const int64_t set = row / s.keys.rows_per_set;
  to.lists = index.list(set, 0), to.counts = &index.count(set, 0);
  to.capacity = index.capacity, to.groups = static_cast<int32_t>(index.groups);
  to.head_map = head_map;
  return to;
}

// The work of a call for one type of cache.
class Plan {
 public:
  Plan(Recorder& recorder, const AttendParams& p, std::span<const Segment> segments,
       const AttendCall& call, DType cache)
      : recorder_(recorder), cache_(cache), call_(call) {
    SetUnits(call_, p.q.dim(2) * BytesOf(cache, 1));
    const int64_t tile_rows = TileRows(cache, p.q.dim(2));
    for (const Segment& s : segments) {
      if (s.kv.layout.dtype != cache || s.rows.count == 0) continue;
      const bool listed = s.keys.kind == KeySet::Kind::kIndex;
      const bool tiles = tile_rows > 0 && !s.scores && s.rows.count >= kTileTokens &&
                         (!listed || std::min(s.keys.rows_per_set, s.rows.count) >= kTileSetTokens);
      const int32_t* head_map = nullptr;
      if (listed && s.keys.index->groups > 1 && s.keys.head_map) {
        static_assert(sizeof(int) == sizeof(int32_t));
        head_map = recorder.Table(
            std::span<const int32_t>(s.keys.head_map, static_cast<size_t>(s.kv.layout.kv_heads)));
      }
      tiles ? AddTiles(s, head_map, tile_rows) : AddRows(s, head_map);
    }
  }

  void Launch(Scratch& scratch) {
    if (parts_ > 0) {
      call_.partial.o = scratch.Get<float>(Scratch::kPartial, parts_ * (call_.dim + 1));
      call_.partial.lse = call_.partial.o + parts_ * call_.dim;
    }
    if (!tiles_.rows.empty()) LaunchTiles(recorder_, Begin(tiles_), cache_, Work(tiles_));
    if (!tiles_.merged.empty()) Merge(tiles_);
    if (!rows_.rows.empty()) LaunchRows(recorder_, Begin(rows_), cache_, Work(rows_), true);
    if (!rows_.merged.empty()) Merge(rows_);
  }

 private:
  struct List {
    std::vector<AttendRows> rows;
    std::vector<int32_t> splits;   // of each
    std::vector<RowSplit> merged;  // rows of them with several splits
  };

  const AttendCall& Begin(const List& list) {
    call_.rows = TableOf(recorder_, list.rows);
    return call_;
  }
  // Without a table where that leaves few units idle.
  AttendWork Work(const List& list) const {
    const int32_t most = std::ranges::max(list.splits);
    int64_t all = 0;
    for (const int32_t n : list.splits) all += n;
    if (most * std::ssize(list.rows) <= 2 * all) {
      return {.count = static_cast<int32_t>(most * std::ssize(list.rows)), .splits = most};
    }
    std::vector<RowSplit> table;
    for (size_t i = 0; i < list.splits.size(); ++i) {
      for (int32_t split = 0; split < list.splits[i]; ++split)
        table.push_back({static_cast<int32_t>(i), split});
    }
    return {.table = TableOf(recorder_, table), .count = static_cast<int32_t>(std::ssize(table))};
  }
  void Merge(const List& list) {
    const AttendWork work{.table = TableOf(recorder_, list.merged),
                          .count = static_cast<int32_t>(std::ssize(list.merged))};
    recorder_.Launch(MergeSplitsKernel,
                     {.grid = dim3(static_cast<unsigned>(work.count * call_.heads),
                                   static_cast<unsigned>((call_.dim + 31) / 32)),
                      .block = dim3(kMergeThreads),
                      .overlapped = true},
                     call_, work);
  }

  void AddRows(const Segment& s, const int32_t* head_map) {
    for (int64_t i = 0; i < s.rows.count; ++i) {
      const int64_t keys = MostKeys(s, 1, s.rows.position + i);
      Add(rows_, RowsOf(call_, s, head_map, i, 1), MostSplits(keys, call_));
    }
  }

  // The last tiles have the most keys, so they start first.
  void AddTiles(const Segment& s, const int32_t* head_map, int64_t tile_rows) {
    const int64_t per_head = call_.heads / call_.kv_heads, heads = std::min(per_head, tile_rows);
    const int64_t tokens = tile_rows / heads, blocks = (per_head + heads - 1) / heads;
    std::vector<AttendRows> tiles;
    for (int64_t row = 0; row < s.rows.count;) {
      int64_t end = std::min(s.rows.count, row + tokens);
      if (s.keys.kind == KeySet::Kind::kIndex)
        end = std::min(end, (row / s.keys.rows_per_set + 1) * s.keys.rows_per_set);
      tiles.push_back(RowsOf(call_, s, head_map, row, end - row));
      row = end;
    }
    const int64_t keys = MostKeys(s, s.rows.count, s.rows.position + s.rows.count - 1);
    const int64_t want = kFullDevice / (std::ssize(tiles) * call_.kv_heads * blocks);
    const int64_t per_split =
        want > 1 ? std::max(kLeastTileSplit, RoundedUp((keys + want - 1) / want)) : keys;
    const int64_t splits = (keys + per_split - 1) / per_split;
    for (auto tile = tiles.rbegin(); tile != tiles.rend(); ++tile) {
      tile->keys_per_split = splits > 1 ? static_cast<int32_t>(per_split) : 0;
      Add(tiles_, *tile, static_cast<int32_t>(splits));
    }
  }

  void Add(List& list, const AttendRows& rows, int32_t splits) {
    const auto index = static_cast<int32_t>(list.rows.size());
    list.rows.push_back(rows);
    list.splits.push_back(splits);
    if (splits == 1) return;
    BATON_CHECK_LE(splits, kMostMerged);
    list.rows.back().part = parts_;
    parts_ += int64_t{splits} * rows.rows * call_.heads;
    for (int32_t i = 0; i < rows.rows; ++i) list.merged.push_back({index, i});
  }

  Recorder& recorder_;
  DType cache_;
  AttendCall call_;
  List rows_, tiles_;
  int64_t parts_ = 0;
};

}  // namespace

int MostShared() {
  int device = 0, most = 0;
  BATON_CUDA(cudaGetDevice(&device));
  BATON_CUDA(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return most;
}

bool AllowShared(const void* kernel, int bytes, int fixed) {
  if (bytes + fixed <= 48 * 1024) return true;
  if (bytes + fixed > MostShared()) return false;
  BATON_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  return true;
}

void LaunchRows(Recorder& recorder, const AttendCall& call, DType cache, AttendWork work,
                bool values) {
  if (!LaunchTensorRows(recorder, call, cache, work, values))
    LaunchPlainRows(recorder, call, cache, work, values);
}

void Attend(Recorder& recorder, Scratch& scratch, LibraryAttention* library,
            const AttendParams& p) {
  std::span<const Segment> own = p.segments;
  std::vector<Segment> left;
  if (library && std::ranges::any_of(p.segments, LibraryAttention::Suits)) {
    for (const Segment& s : p.segments)
      if (!library->Attend(recorder, scratch, p, s)) left.push_back(s);
    own = left;
  }
  if (own.empty()) return;
  const AttendCall call{.q = p.q.data(),
                        .o = p.o.data(),
                        .lse = p.lse.empty() ? nullptr : p.lse.data(),
                        .scale = p.scale,
                        .heads = static_cast<int32_t>(p.q.dim(1)),
                        .kv_heads = own[0].kv.layout.kv_heads,
                        .dim = static_cast<int32_t>(p.q.dim(2))};
  for (DType cache : {DType::kF32, DType::kBF16, DType::kI8})
    Plan(recorder, p, own, call, cache).Launch(scratch);
}

}  // namespace baton::cuda
