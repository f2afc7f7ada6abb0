// Attention above the kernels: how rows and keys are divided into units of work, and how partial
// results are merged.
//
// A group is a set of rows whose results are computed together: one token with all its heads
// (decode), or a tile of tokens with one KV head (prompt). Its keys are cut into chunks of fixed
// size, one unit of work each, so that one long sequence fills all threads; when all units are
// done, the chunks of each group are merged in their order.
#include <algorithm>
#include <bit>
#include <vector>

#include "base/buffer.h"
#include "kernels/cpu/attend_kernels.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/fetch.h"
#include "kernels/merge.h"

namespace baton::cpu {
namespace {

// With fewer rows, a tile or index set is computed row by row.
constexpr int64_t kPromptRows = 8;
constexpr int64_t kTileTokens = KvLayout::kSlots;  // at most
constexpr int kDecodeBlock =
    32;  // keys; small, so that a unit's first block stalls only briefly on memory
// The keys of a token, range or list, are cut into about 16 chunks: few enough to start and merge
// cheaply, and as many as most machines have threads; larger teams would need more. The thread that
// merges fetches every chunk's result from the cache of another, so short lists use few threads: k
// = 512 and less two.
constexpr int64_t kRowChunks = 16, kLeastRowChunk = 256, kMostRowChunk = 4096;
constexpr int64_t kShortRowChunk = 64;  // half of the length from which two threads pay
constexpr int64_t kPromptChunk = 4096;

using Segment = AttendParams::Segment;

// The keys of a group, ascending, by index: a list, or [0, sink) followed by [sink + gap, ...).
struct Keys {
  const int32_t* list = nullptr;
  int64_t count = 0;
  int64_t sink = 0, gap = 0;
  int64_t position(int64_t i) const { return list ? list[i] : i < sink ? i : i + gap; }
};

struct Group {
  const Segment* segment = nullptr;
  int64_t row = 0, rows = 0;  // of the segment
  int kv_head = 0, kv_heads = 0;
  Keys keys;
  int64_t chunk = 0, chunks = 0;  // keys per chunk, how many
  int64_t part = 0;  // first partial result, if more than one chunk: [chunks][rows][kv_heads * R]
  bool prompt = false;

  // A prompt's rows are one tile, decode's are one each for every KV head: tiles are [token][head].
  int64_t tile_rows() const { return prompt ? rows : 1; }
  int64_t tiles() const { return rows / tile_rows() * kv_heads; }
};

struct Unit {
  int64_t group = 0;
  int64_t chunk = 0;
};

int64_t RowChunk(int64_t keys) {
  const auto part = [keys](int64_t n) { return (keys / n + kKeyStep - 1) / kKeyStep * kKeyStep; };
  const int64_t least = std::clamp(part(2), kShortRowChunk, kLeastRowChunk);
  return std::clamp(part(kRowChunks), least, kMostRowChunk);
}

// Keys of rows [row, row + rows) of a segment: every key that one of them sees.
Keys KeysOf(const Segment& s, int64_t row, int64_t rows, int kv_head) {
  const int64_t first = s.rows.position + row;
  const int64_t last = first + rows - 1;
  Keys keys{.count = last + 1, .sink = last + 1};
  if (s.keys.kind == KeySet::Kind::kWindow) {
    // sink or recent may be negative or past the end; from >= sink holds after clamping.
    const int64_t sink = std::clamp<int64_t>(s.keys.sink, 0, last + 1);
    const int64_t recent = std::clamp<int64_t>(s.keys.recent, 0, last + 1);
    const int64_t from = std::clamp<int64_t>(first - recent + 1, sink, last + 1);
    keys = {.count = sink + last + 1 - from, .sink = sink, .gap = from - sink};
  } else if (s.keys.kind == KeySet::Kind::kIndex) {
    const IndexSets& index = *s.keys.index;
    const int64_t set = row / s.keys.rows_per_set;
    const int64_t group = index.groups == 1 ? 0
                          : s.keys.head_map ? s.keys.head_map[kv_head]
                                            : kv_head;
    const int32_t* list = index.list(set, group);
    const int32_t* end = std::upper_bound(list, list + index.count(set, group), last,
                                          [](int64_t p, int32_t key) { return p < key; });
    keys = {.list = list, .count = end - list};
  }
  return keys;
}

// Keys [begin, begin + n) of a group, padded as KeyBlock says. Zero keys make an empty block.
void FillBlock(const Keys& keys, const KvView& kv, int64_t begin, int64_t n, KeyBlock& block) {
  block.count = static_cast<int>(n);
  if (n == 0) return;
  const KvLayout& l = kv.layout;
  const int64_t page_bytes = l.page_bytes();
  const int64_t row_bytes = l.row_bytes();
  const int64_t scales_offset = l.scales_offset();
  const bool scaled = l.dtype == DType::kI8;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t position = keys.position(begin + i);
    const std::byte* page = kv.arena + kv.pages[position / KvLayout::kSlots] * page_bytes;
    const int64_t slot = position % KvLayout::kSlots;
    block.positions[i] = static_cast<int32_t>(position);
    block.rows[i] = page + slot * row_bytes;
    if (scaled) {
      block.scales[i] =
          reinterpret_cast<const float*>(page + scales_offset) + slot * 2 * l.kv_heads;
    }
  }
  for (int64_t i = n; i % kKeyStep != 0; ++i) {
    block.positions[i] = KeyBlock::kNoPosition;
    block.rows[i] = block.rows[n - 1];
    block.scales[i] = block.scales[n - 1];
  }
}

// Prefetches all rows of a block. Later blocks are prefetched during the arithmetic of those before
// them; without this, the first one would stall head by head, on keys and then on values.
void FetchRows(const KeyBlock& block, const KvLayout& l) {
  for (int i = 0; i < block.count; ++i) {
    for (int64_t b = 0; b < l.row_bytes(); b += 64) __builtin_prefetch(block.rows[i] + b, 0, 2);
  }
}

int64_t Aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

// Scratch kept between calls. It grows to the size that the largest call needs.
struct CpuOps::AttendState {
  struct Thread {
    Buffer memory;
    AttendScratch scratch;
    std::byte* rows = nullptr;  // divided among the tiles
    std::vector<AttendTile> tiles;
    KeyBlock blocks[2];
  };
  std::vector<Thread> threads;
  std::vector<Group> groups;
  std::vector<Unit> units;
  std::vector<int64_t> split;  // groups of several units, whose parts are merged at the end
  int64_t parts = 0;           // partial results of this call
  int64_t max_rows = 0;        // stacked rows of the largest group
  int64_t max_tiles = 0;
  Buffer part_o;    // [parts, D]
  Buffer part_lse;  // [parts]

  void Plan(const AttendParams& p, int64_t prompt_rows);
  void Reserve(int threads, int64_t head_dim);
  void Run(const AttendParams& p, const AttendKernels& kernels, const Unit& unit, Thread& thread);
  void Merge(const AttendParams& p, const Group& group);

 private:
  void AddGroup(const AttendParams& p, Group group);
  void PlanTile(const AttendParams& p, const Segment& s, int64_t begin, int64_t end);
  void PlanRows(const AttendParams& p, const Segment& s, int64_t begin, int64_t end);
  std::span<AttendTile> Begin(const AttendParams& p, const AttendKernels& kernels,
                              const Group& group, Thread& thread);
};

void CpuOps::AttendState::AddGroup(const AttendParams& p, Group group) {
  const int64_t heads = p.q.dim(1) / group.segment->kv.layout.kv_heads * group.kv_heads;
  group.chunks = std::max<int64_t>(1, (group.keys.count + group.chunk - 1) / group.chunk);
  if (group.chunks > 1) {
    split.push_back(static_cast<int64_t>(groups.size()));
    group.part = parts;
    parts += group.chunks * group.rows * heads;
  }
  max_rows = std::max(max_rows, group.rows * heads);
  max_tiles = std::max<int64_t>(max_tiles, group.tiles());
  for (int64_t c = 0; c < group.chunks; ++c)
    units.push_back({static_cast<int64_t>(groups.size()), c});
  groups.push_back(group);
}

void CpuOps::AttendState::PlanTile(const AttendParams& p, const Segment& s, int64_t begin,
                                   int64_t end) {
  for (int h = 0; h < s.kv.layout.kv_heads; ++h) {
    AddGroup(p, {.segment = &s,
                 .row = begin,
                 .rows = end - begin,
                 .kv_head = h,
                 .kv_heads = 1,
                 .keys = KeysOf(s, begin, end - begin, h),
                 .chunk = kPromptChunk,
                 .prompt = true});
  }
}

void CpuOps::AttendState::PlanRows(const AttendParams& p, const Segment& s, int64_t begin,
                                   int64_t stop) {
  // One unit serves all heads of a token, unless they read different keys.
  const bool by_head = s.keys.kind == KeySet::Kind::kIndex && s.keys.index->groups > 1;
  const int kv_heads = by_head ? 1 : s.kv.layout.kv_heads;
  // Rows that see all keys are computed together, sharing each read of the keys, while they are cut
  // into the same chunks: a row's result is then bit-identical to that of the row alone.
  const auto chunks = [](int64_t keys) {
    return std::pair(RowChunk(keys), (keys - 1) / RowChunk(keys));
  };
  for (int64_t row = begin, end = 0; row < stop; row = end) {
    end = row + 1;
    const int64_t first = s.rows.position + end;  // keys of that row
    while (s.keys.kind == KeySet::Kind::kAll && s.scores == nullptr && end < stop &&
           chunks(s.rows.position + end + 1) == chunks(first))
      ++end;
    for (int h = 0; h < s.kv.layout.kv_heads; h += kv_heads) {
      const Keys keys = KeysOf(s, row, end - row, h);
      AddGroup(p, {.segment = &s,
                   .row = row,
                   .rows = end - row,
                   .kv_head = h,
                   .kv_heads = kv_heads,
                   .keys = keys,
                   .chunk = RowChunk(keys.count)});
    }
  }
}

void CpuOps::AttendState::Plan(const AttendParams& p, int64_t prompt_rows) {
  groups.clear();
  units.clear();
  split.clear();
  parts = max_rows = max_tiles = 0;
  // Calls f(segment, begin, end, is a tile) for pieces of all segments. Tiles begin at absolute
  // multiples of their size, a power of two that divides a page: a prompt that is cut between two
  // pages, to be continued from there, has the tiles, and so the bits, of the whole one.
  const auto for_pieces = [&](auto&& f) {
    for (const Segment& s : p.segments) {
      const int64_t most = std::max<int64_t>(1, prompt_rows * s.kv.layout.kv_heads / p.q.dim(1));
      const auto above = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(most)));
      const int64_t tile = std::min<int64_t>(2 * above > 3 * most ? above / 2 : above, kTileTokens);
      const bool index = s.keys.kind == KeySet::Kind::kIndex;
      if (s.rows_alone || s.rows.count < kPromptRows ||
          (index && s.keys.rows_per_set < kPromptRows)) {
        f(s, int64_t{0}, s.rows.count, false);
        continue;
      }
      for (int64_t row = 0; row < s.rows.count;) {
        const int64_t position = s.rows.position + row;
        int64_t end = std::min(s.rows.count, row + tile - position % tile);
        if (index) end = std::min(end, (row / s.keys.rows_per_set + 1) * s.keys.rows_per_set);
        // One by one: together they would need scratch for all their heads.
        const bool few = end - row < kPromptRows;
        if (few) end = row + 1;
        f(s, row, end, !few);
        row = end;
      }
    }
  };
  // Large units first, so that little is left to balance between threads at the end.
  for_pieces([&](const Segment& s, int64_t begin, int64_t end, bool tile) {
    if (tile) PlanTile(p, s, begin, end);
  });
  std::reverse(units.begin(), units.end());
  for_pieces([&](const Segment& s, int64_t begin, int64_t end, bool tile) {
    if (!tile) PlanRows(p, s, begin, end);
  });
}

void CpuOps::AttendState::Reserve(int thread_count, int64_t head_dim) {
  const int64_t padded = PaddedHead(head_dim);
  const int64_t block = Aligned(kMaxBlockKeys * padded * 4);
  const int64_t scores = Aligned(kMaxRowStep * kMaxBlockKeys * 4);
  const int64_t rows = (max_rows + max_tiles * kMaxRowStep) * (padded * 8 + 8) + max_tiles * 4 * 64;
  threads.resize(static_cast<size_t>(thread_count));
  for (Thread& t : threads) {
    const int64_t bytes = 2 * block + 2 * scores + rows;
    if (t.memory.size() < bytes) t.memory = Buffer::AllocateOrDie(bytes);
    std::byte* at = t.memory.data();
    t.scratch = {.keys = at,
                 .values = at + block,
                 .scores = reinterpret_cast<float*>(at + 2 * block),
                 .weights = reinterpret_cast<uint32_t*>(at + 2 * block + scores)};
    t.rows = at + 2 * block + 2 * scores;
    if (static_cast<int64_t>(t.tiles.size()) < max_tiles)
      t.tiles.resize(static_cast<size_t>(max_tiles));
  }
  if (part_o.size() < parts * head_dim * 4) part_o = Buffer::AllocateOrDie(parts * head_dim * 4);
  if (part_lse.size() < parts * 4) part_lse = Buffer::AllocateOrDie(parts * 4);
}

std::span<AttendTile> CpuOps::AttendState::Begin(const AttendParams& p,
                                                 const AttendKernels& kernels, const Group& group,
                                                 Thread& thread) {
  const Segment& s = *group.segment;
  const int64_t head_dim = p.q.dim(2);
  const int heads = static_cast<int>(p.q.dim(1)) / s.kv.layout.kv_heads;
  std::byte* at = thread.rows;
  const auto take = [&at](int64_t bytes) {
    std::byte* r = at;
    at += Aligned(bytes);
    return r;
  };
  for (int64_t tile = 0; tile < group.tiles(); ++tile) {
    AttendTile& t = thread.tiles[static_cast<size_t>(tile)];
    const auto i = static_cast<int>(tile % group.kv_heads);
    const int64_t row = group.row + tile / group.kv_heads;
    const int64_t head = static_cast<int64_t>(group.kv_head + i) * heads;
    const int64_t rows = group.tile_rows() * heads;
    t = {.layout = s.kv.layout,
         .kv_head = group.kv_head + i,
         .heads = heads,
         .rows = static_cast<int>(rows),
         .position = s.rows.position + row,
         .scale = p.scale,
         .scores_token_stride = p.q.dim(1) * s.score_stride,
         .scores_head_stride = s.score_stride};
    if (s.keys.kind == KeySet::Kind::kWindow) t.sink = s.keys.sink, t.recent = s.keys.recent;
    if (group.kv_heads == s.kv.layout.kv_heads) t.share = i, t.shares = group.kv_heads;
    if (s.scores) t.scores = s.scores + (row * p.q.dim(1) + head) * s.score_stride;
    t.queries = take(AttendTile::QueryBytes(rows, head_dim));
    t.acc = reinterpret_cast<float*>(take(rows * PaddedHead(head_dim) * 4));
    t.max = reinterpret_cast<float*>(take(rows * 4));
    t.sum = reinterpret_cast<float*>(take(rows * 4));
    kernels.begin(t, p.q.row(s.rows.first + row, head), p.q.stride(0));
  }
  return {thread.tiles.data(), static_cast<size_t>(group.tiles())};
}

void CpuOps::AttendState::Run(const AttendParams& p, const AttendKernels& kernels, const Unit& unit,
                              Thread& thread) {
  const Group& group = groups[static_cast<size_t>(unit.group)];
  const Segment& s = *group.segment;
  const int64_t block = group.prompt ? kernels.prompt_block : kDecodeBlock;
  const int64_t begin = unit.chunk * group.chunk;
  const int64_t end = std::min(group.keys.count, begin + group.chunk);
  const auto fill = [&](int64_t from, int64_t limit, KeyBlock& b) {
    FillBlock(group.keys, s.kv, from, std::clamp<int64_t>(limit - from, 0, block), b);
  };
  KeyBlock* now = &thread.blocks[0];
  KeyBlock* next = &thread.blocks[1];
  fill(begin, end, *now);
  if (!group.prompt && group.kv_heads == s.kv.layout.kv_heads) FetchRows(*now, s.kv.layout);
  const std::span<AttendTile> tiles = Begin(p, kernels, group, thread);
  const int64_t dim = p.q.dim(2);
  const int64_t items = group.rows * group.kv_heads * tiles[0].heads;
  const int64_t first_part = group.part + unit.chunk * items;
  if (group.chunks > 1 && !group.prompt)
    FetchToWrite(part_o.as<float>() + first_part * dim, items * dim);
  for (int64_t i = begin; i < end; i += block, std::swap(now, next)) {
    // Past the chunk's end, prefetch the next chunk's keys: most likely this thread computes that
    // too.
    fill(i + block, i + block < end ? end : group.keys.count, *next);
    // The first token's tiles prefetch for all others.
    for (size_t tile = 0; tile < tiles.size(); ++tile) {
      const bool fetches = next->count > 0 && tile < static_cast<size_t>(group.kv_heads);
      kernels.update(tiles[tile], *now, fetches ? next : nullptr, thread.scratch);
    }
  }

  const int64_t first_row = s.rows.first + group.row;
  for (const AttendTile& t : tiles) {
    for (int i = 0; i < t.rows; ++i) {
      const int64_t row = t.position - s.rows.position - group.row + i / t.heads;
      const int64_t head = static_cast<int64_t>(t.kv_head) * t.heads + i % t.heads;
      if (group.chunks == 1) {
        const float lse = kernels.finish(t, i, p.o.row(first_row + row, head));
        if (!p.lse.empty()) p.lse.row(first_row + row)[head] = lse;
      } else {
        const int64_t item =
            row * (items / group.rows) + head - static_cast<int64_t>(group.kv_head) * t.heads;
        const int64_t part = first_part + item;
        part_lse.as<float>()[part] = kernels.finish(t, i, part_o.as<float>() + part * dim);
      }
    }
  }
}

void CpuOps::AttendState::Merge(const AttendParams& p, const Group& group) {
  const Segment& s = *group.segment;
  const int64_t dim = p.q.dim(2);
  const int64_t per_kv_head = p.q.dim(1) / s.kv.layout.kv_heads;
  const int64_t heads = group.kv_heads * per_kv_head;
  const int64_t items = group.rows * heads;
  // Many of the parts were written by other threads, and fetching cache lines from their caches one
  // by one is slow: all lines of an item are prefetched while the item before is merged.
  const auto fetch = [&](int64_t item) {
    for (int64_t c = 0; c < group.chunks && item < items; ++c)
      FetchToRead(part_o.as<float>() + (group.part + c * items + item) * dim, dim);
  };
  fetch(0);
  for (int64_t item = 0; item < items; ++item) {
    fetch(item + 1);
    const int64_t row = s.rows.first + group.row + item / heads;
    const int64_t head = group.kv_head * per_kv_head + item % heads;
    const int64_t part = group.part + item;
    const float lse =
        MergeAll(part_o.as<float>() + part * dim, items * dim, part_lse.as<float>() + part, items,
                 group.chunks, dim, p.o.row(row, head));
    if (!p.lse.empty()) p.lse.row(row)[head] = lse;
  }
}

void CpuOps::DoAttend(const AttendParams& p) {
  if (p.segments.empty()) return;
  if (!attend_) attend_ = std::make_shared<AttendState>();
  AttendState& state = *attend_;
  const AttendKernels plain = portable::GetAttendKernels();
  const AttendKernels decode = isa_ >= CpuIsa::kAvx512 ? avx512::GetAttendKernels()
                               : isa_ == CpuIsa::kAvx2 ? avx2::GetAttendKernels()
                                                       : plain;
  const AttendKernels prompt = isa_ == CpuIsa::kAmx ? amx::GetPromptAttendKernels() : decode;
  state.Plan(p, prompt.prompt_rows);
  state.Reserve(threads_.threads(), p.q.dim(2));
  threads_.For(static_cast<int64_t>(state.units.size()), [&](int64_t i, int rank) {
    const Unit& unit = state.units[static_cast<size_t>(i)];
    // f32 caches are for checking, where bf16 products would defeat their purpose.
    const Group& group = state.groups[static_cast<size_t>(unit.group)];
    const bool exact = group.segment->kv.layout.dtype == DType::kF32;
    state.Run(p,
              exact          ? plain
              : group.prompt ? prompt
                             : decode,
              unit, state.threads[static_cast<size_t>(rank)]);
  });
  threads_.For(static_cast<int64_t>(state.split.size()), [&](int64_t i, int) {
    state.Merge(p, state.groups[static_cast<size_t>(state.split[static_cast<size_t>(i)])]);
  });
}

}  // namespace baton::cpu
