// Attention: what is computed by which kernel, and the merge of splits.
#include <vector>

#include "kernels/cuda/attend_kernels.h"
#include "kernels/cuda/attention_kernels.h"

namespace baton::cuda {
namespace {

using Segment = AttendParams::Segment;

// Fewer rows of a segment, or of an index set, are taken one by one.
constexpr int64_t kTileTokens = 17, kTileSetTokens = 16;
// Units that fill a large GPU, and keys that are worth a split of a tile.
constexpr int64_t kFullDevice = 264, kLeastTileSplit = 1024;

constexpr int kMergeThreads = 512, kMostMerged = 1024;

// Merges the splits of one row and head, in their order. An entry names a row of the table and a
// token of its tile.
__global__ void __launch_bounds__(kMergeThreads)
    MergeSplitsKernel(AttendCall call, const RowSplit* entries) {
  __shared__ float weights[kMostMerged];
  __shared__ float sums[kMergeThreads];
  const RowSplit entry = entries[blockIdx.x / call.heads];
  if (entry.row < 0) return;
  const int head = blockIdx.x % call.heads, kv_head = head / (call.heads / call.kv_heads);
  const AttendRow row = call.rows[entry.row];
  const AttendSegment& segment = call.segments[row.segment];
  const int keys = KeysOf(segment, row.row, row.rows, kv_head).count;
  const int per_split = row.keys_per_split ? row.keys_per_split : KeysPerSplit(keys, call.kv_heads);
  if (keys <= per_split) return;
  const int splits = (keys + per_split - 1) / per_split;
  const int64_t stride = static_cast<int64_t>(row.rows) * call.heads;
  const int64_t part = row.part + static_cast<int64_t>(entry.split) * call.heads + head;

  // Every warp for itself.
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
  const int64_t out = (segment.first + row.row + entry.split) * call.heads + head;
  if (threadIdx.x == 0 && call.lse) call.lse[out] = total == 0 ? kNoKeys : reference + logf(total);

  // Several threads share the splits of a channel; how many depends on D alone.
  const int padded = (call.dim + 31) / 32 * 32;
  const int shares = max(1, kMergeThreads / padded);
  for (int base = 0; base < call.dim; base += kMergeThreads) {
    const int d = base + static_cast<int>(threadIdx.x) % padded;
    const int share = static_cast<int>(threadIdx.x) / padded;
    float x = 0;
    if (d < call.dim && share < shares) {
      const float* o = call.partial.o + part * call.dim + d;
#pragma unroll 8
      for (int i = share; i < splits; i += shares) x += weights[i] * o[i * stride * call.dim];
    }
    sums[threadIdx.x] = x;
    __syncthreads();
    if (share == 0 && d < call.dim) {
      for (int i = 1; i < shares; ++i) x += sums[i * padded + static_cast<int>(threadIdx.x)];
      call.o[out * call.dim + d] = x * inverse;
    }
    __syncthreads();
  }
}

int64_t RoundedUp(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

// The most keys that rows of a segment up to position `last` see, rounded up so that it seldom
// changes from step to step.
int64_t MostKeys(const Segment& s, int64_t rows, int64_t last) {
  int64_t keys = RoundedUp(last + 1);
  if (s.keys.kind == KeySet::Kind::kIndex) keys = std::min(keys, s.keys.index->capacity);
  if (s.keys.kind == KeySet::Kind::kWindow) {
    keys = std::min(keys, Clamp(s.keys.sink, 0, keys) + Clamp(s.keys.recent, 0, keys) + rows - 1);
  }
  return std::max<int64_t>(1, keys);
}

// The work of a call for one type of cache.
class Plan {
 public:
  Plan(const AttendParams& p, DType cache) : p_(p), cache_(cache) {
    const int64_t tile_rows = TileRows(cache, p.q.dim(2));
    for (size_t i = 0; i < p.segments.size(); ++i) {
      const Segment& s = p.segments[i];
      if (s.kv.layout.dtype != cache || s.rows.count == 0) continue;
      const bool listed = s.keys.kind == KeySet::Kind::kIndex;
      const bool tiles = tile_rows > 0 && !s.scores && s.rows.count >= kTileTokens &&
                         (!listed || std::min(s.keys.rows_per_set, s.rows.count) >= kTileSetTokens);
      tiles ? AddTiles(static_cast<int32_t>(i), tile_rows) : AddRows(static_cast<int32_t>(i));
    }
  }

  void Launch(Recorder& recorder, Scratch& scratch, AttendCall call) const {
    if (rows_.empty()) return;
    call.rows = TableOf(recorder, rows_);
    if (parts_ > 0) {
      call.partial.o = scratch.Get<float>(Scratch::kPartial, parts_ * (call.dim + 1));
      call.partial.lse = call.partial.o + parts_ * call.dim;
    }
    const auto table = [&](const std::vector<RowSplit>& units) {
      return AttendWork{TableOf(recorder, units), std::ssize(units)};
    };
    if (!tile_units_.empty()) LaunchTiles(recorder, call, cache_, table(tile_units_));
    if (!row_units_.empty()) LaunchRows(recorder, call, cache_, table(row_units_), true);
    if (merged_.empty()) return;
    const AttendWork merged = table(merged_);
    recorder.Launch(MergeSplitsKernel, dim3(static_cast<unsigned>(merged.count * call.heads)),
                    dim3(kMergeThreads), 0, call, merged.units);
  }

 private:
  int kv_heads(const Segment& s) const { return s.kv.layout.kv_heads; }

  void AddRows(int32_t index) {
    const Segment& s = p_.segments[static_cast<size_t>(index)];
    for (int64_t i = 0; i < s.rows.count; ++i) {
      const int splits = MostSplits(MostKeys(s, 1, s.rows.position + i), kv_heads(s));
      Add({.segment = index, .row = static_cast<int32_t>(i), .part = parts_}, splits, row_units_);
    }
  }

  // The last tiles have the most keys: they begin first.
  void AddTiles(int32_t index, int64_t tile_rows) {
    const Segment& s = p_.segments[static_cast<size_t>(index)];
    const int64_t per_head = p_.q.dim(1) / kv_heads(s), heads = std::min(per_head, tile_rows);
    const int64_t tokens = tile_rows / heads, blocks = (per_head + heads - 1) / heads;
    std::vector<AttendRow> tiles;
    for (int64_t row = 0; row < s.rows.count;) {
      int64_t end = std::min(s.rows.count, row + tokens);
      if (s.keys.kind == KeySet::Kind::kIndex)
        end = std::min(end, (row / s.keys.rows_per_set + 1) * s.keys.rows_per_set);
      tiles.push_back({.segment = index,
                       .row = static_cast<int32_t>(row),
                       .rows = static_cast<int32_t>(end - row)});
      row = end;
    }
    const int64_t keys = MostKeys(s, s.rows.count, s.rows.position + s.rows.count - 1);
    const int64_t want = kFullDevice / (std::ssize(tiles) * kv_heads(s) * blocks);
    const int64_t per_split =
        want > 1 ? std::max(kLeastTileSplit, RoundedUp((keys + want - 1) / want)) : keys;
    const int64_t splits = (keys + per_split - 1) / per_split;
    for (auto tile = tiles.rbegin(); tile != tiles.rend(); ++tile) {
      tile->part = parts_;
      tile->keys_per_split = splits > 1 ? static_cast<int32_t>(per_split) : 0;
      Add(*tile, static_cast<int>(splits), tile_units_);
    }
  }

  void Add(const AttendRow& row, int splits, std::vector<RowSplit>& units) {
    const auto index = static_cast<int32_t>(rows_.size());
    rows_.push_back(row);
    for (int i = 0; i < splits; ++i) units.push_back({index, i});
    if (splits == 1) return;
    BATON_CHECK_LE(splits, kMostMerged);
    parts_ += splits * row.rows * p_.q.dim(1);
    for (int i = 0; i < row.rows; ++i) merged_.push_back({index, i});
  }

  const AttendParams& p_;
  DType cache_;
  std::vector<AttendRow> rows_;
  std::vector<RowSplit> row_units_, tile_units_, merged_;
  int64_t parts_ = 0;
};

}  // namespace

bool AllowShared(const void* kernel, int bytes) {
  if (bytes <= 48 * 1024) return true;
  int device = 0, most = 0;
  BATON_CUDA(cudaGetDevice(&device));
  BATON_CUDA(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (bytes > most) return false;
  BATON_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  return true;
}

void LaunchRows(Recorder& recorder, const AttendCall& call, DType cache, AttendWork work,
                bool values) {
  if (!LaunchTensorRows(recorder, call, cache, work, values))
    LaunchPlainRows(recorder, call, cache, work, values);
}

AttendSegment SegmentOf(Recorder& recorder, const AttendParams::Segment& s) {
  AttendSegment to{.kv = KvAccess(s.kv),
                   .first = s.rows.first,
                   .position = s.rows.position,
                   .sink = s.keys.sink,
                   .recent = s.keys.recent,
                   .rows_per_set = s.keys.rows_per_set,
                   .scores = s.scores,
                   .score_stride = s.score_stride,
                   .kind = s.keys.kind};
  if (s.keys.kind != KeySet::Kind::kIndex) return to;
  const IndexSets& index = *s.keys.index;
  to.lists = index.positions.data(), to.counts = index.counts.data();
  to.capacity = index.capacity, to.groups = static_cast<int32_t>(index.groups);
  if (index.groups > 1 && s.keys.head_map) {
    static_assert(sizeof(int) == sizeof(int32_t));
    to.head_map = recorder.Table(
        std::span<const int32_t>(s.keys.head_map, static_cast<size_t>(s.kv.layout.kv_heads)));
  }
  return to;
}

void Attend(Recorder& recorder, Scratch& scratch, const AttendParams& p) {
  if (p.segments.empty()) return;
  std::vector<AttendSegment> segments;
  for (const Segment& s : p.segments) segments.push_back(SegmentOf(recorder, s));
  const AttendCall call{.q = p.q.data(),
                        .o = p.o.data(),
                        .lse = p.lse.empty() ? nullptr : p.lse.data(),
                        .segments = TableOf(recorder, segments),
                        .scale = p.scale,
                        .heads = static_cast<int32_t>(p.q.dim(1)),
                        .kv_heads = p.segments[0].kv.layout.kv_heads,
                        .dim = static_cast<int32_t>(p.q.dim(2))};
  for (DType cache : {DType::kF32, DType::kBF16, DType::kI8})
    Plan(p, cache).Launch(recorder, scratch, call);
}

}  // namespace baton::cuda
