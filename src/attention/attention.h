// Runs the operations that a layer's plan needs: store, rank, attend, merge. This is the only
// attention path of Baton, for every role, for prompts and decode, for one sequence or many.
//
// Within a forward pass, publishers write index sets that later layers read. The sets belong to
// this object, never to a cache, and are valid for one pass.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "baton/error.h"
#include "kv/kv_store.h"
#include "ops/ops.h"
#include "plan/resolved.h"

namespace baton {

// Run-time check of a planned request: on a sampled step each reuse layer also attends densely, and
// the share of attention mass that its borrowed set captured, exp(lse_set - lse_all) averaged over
// heads, is compared with a threshold.
struct Watch {
  int interval = 0;  // decode steps between samples; 0 = off
  double threshold = 0.8;
  int64_t steps = 0;
  struct Layer {
    double smallest = 1.0;
    bool sampled = false;
    bool promoted = false;  // attends fully from now on
  };
  std::vector<Layer> layers;
};

// Why a segment could not be ranked: in this layer the mass of this key was NaN. The pass still
// completes and other segments are unaffected, but this segment's results are invalid.
struct SegmentFailure {
  int layer = -1;  // -1: none
  int64_t position = -1;

  bool failed() const { return layer >= 0; }
  Error ToError() const {
    return Error::InvalidArgument("layer {}: attention mass is not a number at position {}", layer,
                                  position);
  }
};

// Consecutive rows of one sequence in a forward pass. The caches already have room for them.
struct AttentionSegment {
  Rows rows;
  KvSequence* kv = nullptr;
  const ResolvedPlan* plan = nullptr;
  bool prompt = false;      // the plan's prefill mode; otherwise every row decodes
  bool rows_alone = false;  // decode rows have the bits that they have one at a time
  Watch* watch = nullptr;
  SegmentFailure* failure = nullptr;  // receives the first one of a pass; null: not reported
};

// The inputs of a layer's attention.
struct LayerInput {
  // q and, where the layer writes its own cache, k and v (empty otherwise), with their norms and
  // rotation; segments stay empty.
  StoreParams store;
  View<const float> index_q;                  // [T, 1, d_idx] of an indexer that ranks here
  std::array<View<const float>, 2> gates;     // logits by branch: [T, Hq] or [T, Hq * D]; or empty
  std::array<const float*, 2> sink_logits{};  // [Hq] by branch, or null
};

// Called after every layer has attended, with its queries and cache, for profiling. Only decode
// rows are passed.
class AttentionObserver {
 public:
  struct Tap {
    int layer = 0;
    Rows rows;
    // In the device's memory.
    View<const float> q;    // [T, Hq, D] of the whole batch, rotated
    View<const float> lse;  // [T, Hq] of the first branch
    KvView kv;
    const IndexSets* sets = nullptr;  // what the layer published for these rows, if it did
  };
  virtual ~AttentionObserver() = default;
  virtual void OnLayer(const Tap& tap) = 0;
};

class Attention {
 public:
  // `shape` is complete (ModelShape::Completed) and outlives this.
  Attention(Ops& ops, const ModelShape& shape, float scale);
  ~Attention();

  // Starts a pass over `segments` (kept by reference until the next call).
  void Begin(std::span<const AttentionSegment> segments, AttentionObserver* observer);
  // After the pass's last layer: reports NaN in a ranking to the segments concerned
  // (AttentionSegment::failure).
  void Finish();

  // Writes k and v (no q) into a cache that another layer's stream feeds.
  void Append(int cache, StoreParams store);

  // One layer: rotates q and k, writes K and V, ranks, attends. o: [T, Hq, D].
  void Run(int layer, LayerInput in, View<float> o);

  const ModelShape& shape() const { return shape_; }

 private:
  struct Part;
  void Split(const AttentionSegment& segment);
  int64_t SetsOfPart(const AttentionSegment& s, bool planned) const;
  void AddParts(const AttentionSegment& s, int64_t begin, int64_t end, bool planned,
                int64_t rows_per_set);
  KvView CacheOf(const Part& part, int cache) const;
  KeySet Keys(int layer, const Part& part, const TokenSet& set) const;
  // How many layers read the branch's list from its cache.
  int Readers(const Branch& branch) const;
  bool SharesList(const Part& part, const Branch& branch) const;
  KvView Gathered(Part& part, const Branch& branch);
  void AttendBranch(int layer, size_t branch, const View<float>& q, View<float> o, View<float> lse);
  void MergeBranches(int layer, const LayerInput& in, View<float> o);
  // Ranks the parts that publish with `ranking`: Mass and Select, in pieces of bounded memory.
  void Rank(int layer, Publish::Ranking ranking, bool itself, const View<const float>& q);
  void RankAlike(int layer, std::span<Part* const> parts, const View<const float>& q);
  void SelectSets(int layer, std::span<Part* const> parts);
  size_t AskForSets(int layer, Part& part, std::span<int64_t> visible, std::span<int64_t> recent,
                    std::span<int64_t> k);
  void GrowBadPositions(int64_t more);
  int64_t* BadPosition(int layer, const AttentionSegment& segment);
  void SampleWatch(int layer, const View<float>& q);
  void Observe(int layer, const View<float>& q);

  Ops& ops_;
  const ModelShape& shape_;
  float scale_;
  bool ranks_every_row_ = false;  // the model itself publishes rankings
  std::vector<Part> parts_;
  AttentionObserver* observer_ = nullptr;
  // In the device's memory; lse_ by branch.
  std::array<Array<float>, 2> lse_;
  Array<float> branch_o_, scores_, mass_, watch_o_, watch_lse_;
  int64_t mass_stride_ = 0;
  // Rankings of this pass, and Select's report on each: -1, or the position of a NaN. The reports
  // are in the device's memory, which holds only -1 between passes.
  struct Ranking {
    int layer;
    const AttentionSegment* segment;
  };
  std::vector<Ranking> rankings_;
  Array<int64_t> bad_positions_;
  std::vector<StoreParams::Segment> store_segments_;
  std::vector<AttendParams::Segment> attend_segments_;
  std::vector<MassParams::Segment> mass_segments_;
  std::vector<SelectParams::Segment> select_segments_;
  std::vector<Budget> asked_;
  std::vector<int64_t> visible_, recent_, k_;
};

}  // namespace baton
