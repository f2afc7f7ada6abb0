// From a plan's entry for a layer to the operations it needs: rank, select, attend. The one
// attention path of Baton, for every role, for prompts and decode, for one sequence or many.
//
// Within a forward pass, publishers leave index sets behind and later layers pick them up; the sets
// belong to this object (the carrier), never to the cache: they live for one pass.
#pragma once

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

// Consecutive rows of one sequence in a forward pass. The cache already has room for them.
struct AttentionSegment {
  Rows rows;
  const KvSequence* kv = nullptr;
  const ResolvedPlan* plan = nullptr;  // null: every layer as the model defines it
  bool prompt = false;                 // the plan's prefill mode; otherwise every row decodes
  Watch* watch = nullptr;
};

// Sees every layer's queries and cache after it attended: what profiling measures from. Only decode
// rows are shown.
class AttentionObserver {
 public:
  struct Tap {
    int layer = 0;
    Rows rows;
    View<const float> q;    // [T, Hq, D] of the whole batch, rotated
    View<const float> lse;  // [T, Hq]
    KvView kv;
  };
  virtual ~AttentionObserver() = default;
  virtual void OnLayer(const Tap& tap) = 0;
};

class Attention {
 public:
  Attention(Ops& ops, const ModelShape& shape, float scale);
  ~Attention();

  // Starts a pass over `segments` (kept by reference until the next call).
  void Begin(std::span<const AttentionSegment> segments, AttentionObserver* observer);

  // One layer: rotates q and k, writes K and V, attends. `store` comes without segments. o: [T, Hq,
  // D].
  Status Run(int layer, StoreParams store, View<float> o);

  const ModelShape& shape() const { return shape_; }

 private:
  struct Part;
  void Split(const AttentionSegment& segment);
  KeySet ModelKeys(int layer) const;
  KeySet Keys(int layer, const Part& part) const;
  Status Rank(int layer, Publish::Ranking ranking, bool itself, const View<float>& q);
  Status SelectSets(int layer, std::span<Part* const> parts);
  void SampleWatch(int layer, const View<float>& q);

  Ops& ops_;
  const ModelShape& shape_;
  float scale_;
  std::vector<Part> parts_;
  AttentionObserver* observer_ = nullptr;
  std::vector<float> lse_, scores_, mass_, watch_o_, watch_lse_;  // grown when needed, kept
  int64_t mass_stride_ = 0;
  std::vector<StoreParams::Segment> store_segments_;
  std::vector<AttendParams::Segment> attend_segments_;
  std::vector<MassParams::Segment> mass_segments_;
};

}  // namespace baton
