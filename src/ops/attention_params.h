// Parameters of the attention operations, one struct each, with shapes in the letters of ops.h,
// which also says what is in a device's memory.
#pragma once

#include <cstdint>
#include <span>

#include "base/buffer.h"
#include "base/view.h"
#include "baton/plan.h"
#include "kv/page.h"
#include "ops/params.h"

namespace baton {

// Per head of q and k: optional RMS norm, rotation; then K and V are written to the cache (and the
// 4-bit copy of K, where the layout has one). q and k are changed in place.
struct StoreParams {
  // Either may be empty. Without k nothing is stored, there are no segments, and the queries of all
  // T rows are prepared.
  View<float> q;                  // [T, Hq, D]
  View<float> k;                  // [T, Hkv, D]
  View<const float> v;            // [T, Hkv, D], empty for layouts without values
  const float* q_norm = nullptr;  // [D] or null
  const float* k_norm = nullptr;
  float norm_eps = 0;
  // [T, n/2]: the first n dimensions of a head are rotated, n <= D. Empty: none are.
  View<const float> cos, sin;
  bool interleaved = false;  // pairs (2i, 2i+1), else (i, i + n/2)
  bool round_bf16 = false;   // q and k are rounded to bf16 last, whatever the cache's type
  struct Segment {
    Rows rows;
    KvView kv;  // length covers the rows
  };
  std::span<const Segment> segments;
};

// Lists of key positions, ascending: [sets][groups], each with room for `capacity`. Select writes
// them, in the memory of its device.
struct IndexSets {
  explicit IndexSets(Device& device = Device::Host()) : positions(device), counts(device) {}

  int64_t sets = 0, groups = 0, capacity = 0;
  Array<int32_t> positions;  // [sets, groups, capacity]
  Array<int32_t> counts;     // [sets, groups]

  // Room for lists of this shape; what they hold is undefined.
  void Reset(int64_t s, int64_t g, int64_t c) {
    sets = s, groups = g, capacity = c;
    positions.Reserve(s * g * c);
    counts.Reserve(s * g);
  }
  // The same lists in the host's memory.
  IndexSets OnHost() &&;

  // Pointers into the device's memory; the host may dereference them only where it is the device.
  int32_t* list(int64_t set, int64_t group) const {
    return positions.data() + (set * groups + group) * capacity;
  }
  int32_t& count(int64_t set, int64_t group) const { return counts.data()[set * groups + group]; }
};

// Which of the keys at or before a query's position it attends to.
struct KeySet {
  enum class Kind { kAll, kWindow, kIndex } kind = Kind::kAll;
  int64_t sink = 0, recent = 0;  // kWindow: position < sink or position > query - recent
  const IndexSets* index =
      nullptr;  // kIndex: row t uses set t / rows_per_set; positions after the query are masked
  int64_t rows_per_set = 1;
  const int* head_map = nullptr;  // kIndex with groups > 1: KV head -> group; null = identity
};

// o = softmax(scale q K^T) V over each row's keys, and its log-sum-exp.
struct AttendParams {
  struct Segment {
    Rows rows;
    KvView kv;
    KeySet keys;
    // A row's result is bit-identical to that of a call with this row alone.
    bool rows_alone = false;
    float* scores = nullptr;   // optional, kAll only: scaled q.k, [rows, Hq, score_stride]
    int64_t score_stride = 0;  // >= position + count
  };
  View<const float> q;  // [T, Hq, D]
  float scale = 0;      // > 0
  std::span<const Segment> segments;
  View<float> o;    // [T, Hq, D]; zero where a row has no key
  View<float> lse;  // [T, Hq] natural log, or empty; -inf where a row has no key
};

// Copies listed tokens of a cache, K, V and int8 scales, to the front of another of the same layout
// (except low-bit copies): layers that share a list then read memory sequentially.
struct GatherParams {
  KvView from;
  std::span<const int32_t> positions;  // on the device; each in [0, from.length)
  KvView to;                           // token i is from's positions[i]; length covers them
};

// Joins the partial results (o, lse) of a layer's branches, per row and head.
//
// One softmax over the union of the branches' keys (a key in two branches counts twice):
//   lse = log(sum_b e^lse_b + e^sink),  out = sigmoid(gate) * sum_b e^(lse_b - lse) o_b
// with the sink logit and the gate of parts[0]; the other parts have none. Or a gated sum of
// softmaxes (arXiv 2602.03560), each with its own sink and gate:
//   out = sum_b sigmoid(gate_b) e^lse_b / (e^lse_b + e^sink_b) o_b
// A part that attended to nothing, lse = -inf, counts as zero. No sink is a sink of -inf, no gate
// a factor of 1.
struct MergeParams {
  static constexpr int kMaxParts = 8;
  struct Part {
    View<const float> o;                // [T, Hq, D]
    View<const float> lse;              // [T, Hq] natural log, without the sink
    const float* sink_logit = nullptr;  // [Hq] or null
    View<const float> gate;             // logits: [T, Hq * D] or [T, Hq], or empty
  };
  std::span<const Part> parts;  // 1 to kMaxParts
  bool gated_sum = false;
  View<float> out;  // [T, Hq, D]; may be the o of a part
};

// Which heads share a set: one per layer, per KV head, or per query head (profiling only).
enum class MassScope { kAll, kGroup, kHead };

// How much each key is attended to. Segments share no row.
//
// kProbability: mass[s, g, n] = attention probability of key n, pooled over the query heads of
// scope g (sum or max) and summed over the rows of set s. Keys a row cannot see count as 0.
//
// kLogProbability: mass[s, g, n] = log of the same for sets of one row: the largest z_hn - lse_h of
// the heads h of scope g (Pool::kMax; arXiv 2602.03560 eq. 3, whose e^(z - lse) would underflow to
// ties), or log sum_h e^(z_hn - lse_h) (kSum), z being scaled scores. Keys a row cannot see are
// -inf. An indexer (arXiv 2606.06467) ranks by plain scores: one head and no lse.
//
// The probabilities are the exact ones (from K and the given lse, or from stored scores) or those
// of the 4-bit copy of K (their own softmax; kProbability only).
struct MassParams {
  enum class Source { kExact, kScores, kLowBit } source = Source::kExact;
  enum class Score { kProbability, kLogProbability } score = Score::kProbability;
  struct Segment {
    Rows rows;
    KvView kv;
    const float* scores = nullptr;  // kScores: as written by Attend
    int64_t score_stride = 0;
    int64_t rows_per_set = 1;  // kLogProbability: 1
    float* mass = nullptr;     // [sets = ceil(rows / rows_per_set), groups, mass_stride]
    int64_t mass_stride = 0;   // >= position + count
  };
  View<const float> q;  // [T, Hq, D]
  float scale = 0;
  // [T, Hq]: kExact and kScores. kLogProbability: empty for lse = 0.
  View<const float> lse;
  MassScope scope = MassScope::kAll;
  Pool pool = Pool::kSum;
  // kLogProbability with kSum: each head counts with its largest score of a block of so many
  // consecutive tokens (counted from position 0), and every visible token of the block gets the
  // block's value. Of no effect with kMax, where a block's maximum is the same either way.
  int64_t block = 1;
  std::span<const Segment> segments;
};

// The k heaviest keys of each set: the first `sink` and last `recent` visible keys first, then by
// mass; equal mass: the lower position. Any mass but NaN is ranked, -0.0 like 0.0, -inf last; a set
// with a NaN is reported, and its list then holds the forced keys and the lowest others. With block
// > 1, blocks of consecutive tokens are ranked by the sum or the maximum of their mass and k /
// block blocks are taken (a block that holds a forced token is forced). At least one token or block
// is taken, unless k = 0 and nothing is forced: then the list is empty.
struct SelectParams {
  struct Segment {
    const float* mass = nullptr;  // [sets, groups, mass_stride]
    int64_t mass_stride = 0;
    int64_t sets = 0;
    std::span<const int64_t> visible;  // [sets] keys that the set may name: [0, visible)
    std::span<const int64_t> k;        // [sets] budget, counted in tokens
    std::span<const int64_t> recent;   // [sets] forced recent keys
    // Reset by the caller to [sets, groups, >= max k rounded up to blocks]; every list is written.
    IndexSets* out = nullptr;
    // On the device. Receives the lowest position whose mass is NaN in any set, and is left alone
    // where none is.
    int64_t* bad_position = nullptr;  // or null
  };
  int64_t groups = 1;
  int64_t sink = 0;
  int64_t block = 1;
  enum class BlockScore { kSum, kMax } block_score = BlockScore::kSum;
  std::span<const Segment> segments;
};

}  // namespace baton
