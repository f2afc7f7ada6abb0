// Rows of a pass that are treated alike. A segment is cut where its plan starts to apply; long
// prompts of models that rank every row are cut into pieces whose rankings fit into memory.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "attention/attention.h"
#include "base/buffer.h"

namespace baton {

struct Attention::Part {
  const AttentionSegment* segment = nullptr;
  const ModelShape* shape = nullptr;
  Rows rows;
  bool planned = false;      // the request's plan applies, not just the model's own
  int64_t rows_per_set = 1;  // 1 in decode, the tile in sparse prompts
  // For the current layer: whether its raw scores are kept for ranking.
  bool stored_scores = false;
  float* scores = nullptr;
  int64_t score_stride = 0;
  int64_t mass_offset = 0;  // in Attention::mass_
  // Index sets by (publisher, budget), made when the publisher ran.
  struct Published {
    explicit Published(Device& device) : sets(device) {}

    int publisher = -1;
    Budget k;
    IndexSets sets;
    // The listed tokens of a cache that many layers read by this list, copied when the first of
    // these layers runs. Only on the host.
    int gathered = -1;  // the copied cache; -1: none yet
    Buffer tokens;
    std::vector<int32_t> pages;
  };
  std::vector<std::unique_ptr<Published>> published;
  size_t live = 0;  // of `published`; the rest are kept for their memory

  int64_t end() const { return rows.position + rows.count; }
  int64_t sets() const { return (rows.count + rows_per_set - 1) / rows_per_set; }
  bool tiles() const { return segment->prompt && planned && segment->plan->prefill.sparse; }
  bool Promoted(int l) const {
    return segment->watch && !segment->watch->layers.empty() &&
           segment->watch->layers[static_cast<size_t>(l)].promoted;
  }
  // The layer plan of these rows: the request's, or the model's own.
  const LayerPlan& layer(int l) const {
    const LayerPlan& plan = segment->plan->layer(l);
    const bool holds = (!segment->prompt || plan.in_prompts) && (planned || plan.at_any_length);
    return holds && !Promoted(l) ? plan : shape->plan[static_cast<size_t>(l)];
  }
  // The keys that set s may name.
  int64_t Visible(int64_t s) const {
    return rows.position + std::min(rows.count, (s + 1) * rows_per_set);
  }
  const Publish* Publishes(int l, Publish::Ranking ranking) const {
    const LayerPlan& plan = layer(l);
    return plan.publish && plan.publish->ranking == ranking ? &*plan.publish : nullptr;
  }
  // Whether the layer attends to its own exact top k. This is not a plan role: profiling uses it as
  // the upper bound for a layer.
  bool RanksItself(int l) const {
    const TokenSet& set = layer(l).branches[0].set;
    return Publishes(l, Publish::Ranking::kExact) && set.kind == TokenSet::Kind::kIndex &&
           set.publisher == l;
  }
  Published* Find(int publisher, const Budget& k) const {
    for (size_t i = 0; i < live; ++i) {
      if (published[i]->publisher == publisher && published[i]->k == k) return published[i].get();
    }
    return nullptr;
  }
  // The budget of a list of these rows: sparse prompts have one for all layers.
  Budget ListBudget(const Budget& k) const {
    return tiles() ? Budget{segment->plan->prefill.min, 0} : k;
  }
};

// A scratch view of this shape.
inline View<float> Shaped(Array<float>& storage, std::initializer_list<int64_t> dims) {
  int64_t size = 1;
  for (const int64_t d : dims) size *= d;
  return View<float>(storage.Reserve(size), dims);
}

// The number of lists that a ranking makes for a set.
inline int64_t Lists(const Publish& r, const ModelShape& shape) {
  return r.scope == Scope::kAll ? 1 : shape.kv_heads;
}

// Masses of one ranking; more parts go in further calls.
constexpr int64_t kMassElements = int64_t{16} << 20;

inline int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace baton
