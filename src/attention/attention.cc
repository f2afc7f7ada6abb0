#include "attention/attention.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "attention/part.h"
#include "base/check.h"

namespace baton {
namespace {

// Up to this many decode rows of one sequence keep their raw scores for ranking, if these are no
// more than kStoredScores. Otherwise scores are recomputed tile by tile, so that memory stays
// bounded.
constexpr int64_t kStoredScoreRows = 4;
constexpr int64_t kStoredScores = int64_t{64} << 20;
// The most index sets in one part, in models that rank every row.
constexpr int64_t kRankedSets = 64;
// Layers that read the same list from the same cache share a copy of its tokens if there are at
// least this many: the copy costs as much as the first of them saves and half of what the second
// saves.
constexpr int kSharingLayers = 4;

}  // namespace

Attention::Attention(Ops& ops, const ModelShape& shape, float scale)
    : ops_(ops),
      shape_(shape),
      scale_(scale),
      lse_{Array<float>(ops.device()), Array<float>(ops.device())},
      branch_o_(ops.device()),
      scores_(ops.device()),
      mass_(ops.device()),
      watch_o_(ops.device()),
      watch_lse_(ops.device()),
      bad_positions_(ops.device()) {
  BATON_CHECK_EQ(static_cast<int>(shape.plan.size()), shape.layers);
  ranks_every_row_ = std::any_of(shape.plan.begin(), shape.plan.end(),
                                 [](const LayerPlan& l) { return l.publish.has_value(); });
}
Attention::~Attention() = default;

void Attention::Begin(std::span<const AttentionSegment> segments, AttentionObserver* observer) {
  observer_ = observer;
  rankings_.clear();
  for (Part& p : parts_) p.live = 0;
  std::vector<Part> old = std::move(parts_);
  parts_.clear();
  for (const AttentionSegment& s : segments) Split(s);
  for (size_t i = 0; i < std::min(old.size(), parts_.size()); ++i) {
    parts_[i].published = std::move(old[i].published);
  }
}

// Sets of one part: all of a segment's, unless their masses take too much memory (kMassElements) or
// the model ranks row by row.
int64_t Attention::SetsOfPart(const AttentionSegment& s, bool planned) const {
  int64_t lists = 0;
  for (const LayerPlan& layer : planned ? s.plan->layers : shape_.plan) {
    if (layer.publish) lists = std::max(lists, Lists(*layer.publish, shape_));
  }
  if (lists == 0) return std::numeric_limits<int64_t>::max() / 2;
  // A single row is ranked by its stored scores, several are not.
  if (s.rows_alone) return 1;
  const int64_t keys = RoundUp(s.rows.position + s.rows.count, 16);
  const int64_t most = std::max<int64_t>(1, kMassElements / (lists * keys));
  // A power of two: parts of two passes that are cut at a page begin at the same rows.
  return ranks_every_row_
             ? std::min(static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(most))),
                        kRankedSets)
             : most;
}

void Attention::AddParts(const AttentionSegment& s, int64_t begin, int64_t end, bool planned,
                         int64_t rows_per_set) {
  const int64_t rows = std::max<int64_t>(end - begin, 1);
  const int64_t step =
      std::min((rows - 1) / rows_per_set + 1, SetsOfPart(s, planned)) * rows_per_set;
  for (int64_t row = begin; row < end; row += step) {
    Part p;
    p.segment = &s;
    p.shape = &shape_;
    p.rows = {s.rows.first + row, std::min(step, end - row), s.rows.position + row};
    p.planned = planned;
    p.rows_per_set = rows_per_set;
    parts_.push_back(std::move(p));
  }
}

void Attention::Split(const AttentionSegment& s) {
  const int64_t count = s.rows.count;
  const ResolvedPlan& plan = *s.plan;
  if (s.prompt && !plan.prefill.sparse) return AddParts(s, 0, count, false, 1);
  if (s.prompt) {
    // Up to the smallest budget every key is selected, so these tiles run dense.
    const int64_t tile = plan.prefill.tile;
    const int64_t dense =
        std::clamp<int64_t>(plan.prefill.min - s.rows.position, 0, count) / tile * tile;
    AddParts(s, 0, dense, false, 1);
    return AddParts(s, dense, count, true, tile);
  }
  const int64_t dense = std::clamp<int64_t>(plan.min_context - s.rows.position, 0, count);
  AddParts(s, 0, dense, false, 1);
  AddParts(s, dense, count, true, 1);
}

KvView Attention::CacheOf(const Part& part, int cache) const {
  return part.segment->kv->View(cache, part.end());
}

KeySet Attention::Keys(int layer, const Part& part, const TokenSet& set) const {
  KeySet keys;
  if (set.kind == TokenSet::Kind::kWindow) {
    keys.kind = KeySet::Kind::kWindow;
    keys.sink = set.sink;
    keys.recent = set.recent;
  } else if (set.kind == TokenSet::Kind::kIndex) {
    const Part::Published* published = part.Find(set.publisher, part.ListBudget(set.k));
    BATON_CHECK(published != nullptr);
    keys.kind = KeySet::Kind::kIndex;
    keys.index = &published->sets;
    keys.rows_per_set = part.rows_per_set;
    // A scan layer reads its own ranking head by head; head maps are for the rankings of others.
    if (!set.head_map.empty() && set.publisher != layer) keys.head_map = set.head_map.data();
  }
  return keys;
}

void Attention::Append(int cache, StoreParams store) {
  store_segments_.clear();
  for (const Part& p : parts_) store_segments_.push_back({p.rows, CacheOf(p, cache)});
  store.segments = store_segments_;
  ops_.Store(store);
}

int Attention::Readers(const Branch& branch) const {
  int readers = 0;
  for (const LayerPlan& layer : shape_.plan) {
    for (const Branch& b : layer.branches)
      readers += b.cache == branch.cache && b.set.kind == TokenSet::Kind::kIndex &&
                 b.set.publisher == branch.set.publisher && b.set.k == branch.set.k;
  }
  return readers;
}

// Only for single rows, since several rows would each need a copy, and only for lists that all KV
// heads share. It pays only on CPUs, whose caches hold the copy; a GPU's do not, and the lengths of
// its lists are not known on the host.
bool Attention::SharesList(const Part& part, const Branch& branch) const {
  if (!ops_.device().host() || branch.set.kind != TokenSet::Kind::kIndex || part.rows.count != 1)
    return false;
  const Part::Published* list = part.Find(branch.set.publisher, part.ListBudget(branch.set.k));
  return list != nullptr && list->sets.groups == 1 && list->sets.count(0, 0) > 0 &&
         Readers(branch) >= kSharingLayers;
}

// The tokens of a list, copied to contiguous memory.
KvView Attention::Gathered(Part& part, const Branch& branch) {
  Part::Published& list = *part.Find(branch.set.publisher, part.ListBudget(branch.set.k));
  const KvView from = CacheOf(part, branch.cache);
  KvView to{.layout = from.layout};
  to.layout.low_bit = false;
  to.length = list.sets.count(0, 0);
  const int64_t pages = RoundUp(to.length, KvLayout::kSlots) / KvLayout::kSlots;
  if (list.tokens.size() < to.layout.arena_bytes(pages))
    list.tokens = Buffer::AllocateOrDie(to.layout.arena_bytes(pages));
  for (auto page = static_cast<int64_t>(list.pages.size()); page < pages; ++page)
    list.pages.push_back(static_cast<int32_t>(page));
  to.arena = list.tokens.data();
  to.pages = list.pages.data();
  if (list.gathered != branch.cache) {
    ops_.Gather({.from = from,
                 .positions = std::span(list.sets.list(0, 0), static_cast<size_t>(to.length)),
                 .to = to});
    list.gathered = branch.cache;
  }
  return to;
}

void Attention::AttendBranch(int layer, size_t branch, const View<float>& q, View<float> o,
                             View<float> lse) {
  attend_segments_.clear();
  for (Part& p : parts_) {
    const Branch& b = p.layer(layer).branches[branch];
    if (SharesList(p, b)) {
      const KvView tokens = Gathered(p, b);
      attend_segments_.push_back({.rows = {p.rows.first, 1, tokens.length - 1}, .kv = tokens});
      continue;
    }
    const bool scores = branch == 0 && p.stored_scores;
    attend_segments_.push_back({.rows = p.rows,
                                .kv = CacheOf(p, b.cache),
                                .keys = Keys(layer, p, b.set),
                                .rows_alone = p.segment->rows_alone,
                                .scores = scores ? p.scores : nullptr,
                                .score_stride = p.score_stride});
  }
  ops_.Attend({.q = q, .scale = scale_, .segments = attend_segments_, .o = o, .lse = lse});
}

// Gates, sink logits and the sum or union of two branches. All rows of a batch belong to one model,
// whose own plan says which there are; user plans change none of them.
void Attention::MergeBranches(int layer, const LayerInput& in, View<float> o) {
  const LayerPlan& plan = shape_.plan[static_cast<size_t>(layer)];
  const bool plain =
      plan.branches.size() == 1 && in.gates[0].empty() && in.sink_logits[0] == nullptr;
  if (plain) return;
  std::array<MergeParams::Part, 2> parts;
  for (size_t b = 0; b < plan.branches.size(); ++b) {
    const float* from = b == 0 ? o.data() : branch_o_.data();
    parts[b] = {.o = View<const float>(from, {o.dim(0), o.dim(1), o.dim(2)}),
                .lse = View<const float>(lse_[b].data(), {o.dim(0), o.dim(1)}),
                .sink_logit = in.sink_logits[b],
                .gate = in.gates[b]};
  }
  ops_.Merge({.parts = std::span(parts).first(plan.branches.size()),
              .gated_sum = plan.merge == Merge::kGatedSum,
              .out = o});
}

void Attention::Run(int layer, LayerInput in, View<float> o) {
  const View<float> q = in.store.q;
  const size_t branches = shape_.plan[static_cast<size_t>(layer)].branches.size();
  store_segments_.clear();
  int64_t score_size = 0;
  for (Part& p : parts_) {
    const int own = p.segment->plan->OwnCache(layer);
    if (!in.store.k.empty()) store_segments_.push_back({p.rows, CacheOf(p, own)});
    p.score_stride = RoundUp(p.end(), 16);
    p.stored_scores = p.Publishes(layer, Publish::Ranking::kExact) && !p.RanksItself(layer) &&
                      !p.segment->prompt && p.rows.count <= kStoredScoreRows &&
                      p.rows.count * shape_.heads * p.score_stride <= kStoredScores;
    if (p.stored_scores) score_size += p.rows.count * shape_.heads * p.score_stride;
  }
  in.store.segments = store_segments_;
  ops_.Store(in.store);

  Rank(layer, Publish::Ranking::kLowBit, false, q);
  Rank(layer, Publish::Ranking::kIndexer, false, in.index_q);
  const View<float> lse = Shaped(lse_[0], {q.dim(0), shape_.heads});
  attend_segments_.clear();
  for (const Part& p : parts_) {
    if (!p.RanksItself(layer)) continue;
    const Branch& model = shape_.plan[static_cast<size_t>(layer)].branches[0];
    attend_segments_.push_back(
        {.rows = p.rows, .kv = CacheOf(p, model.cache), .keys = Keys(layer, p, model.set)});
  }
  if (!attend_segments_.empty()) {
    ops_.Attend({.q = q, .scale = scale_, .segments = attend_segments_, .o = o, .lse = lse});
    Rank(layer, Publish::Ranking::kExact, true, q);
  }

  float* scores = Shaped(scores_, {score_size}).data();
  for (Part& p : parts_) {
    if (!p.stored_scores) continue;
    p.scores = scores;
    scores += p.rows.count * shape_.heads * p.score_stride;
  }
  AttendBranch(layer, 0, q, o, lse);
  Rank(layer, Publish::Ranking::kExact, false, q);
  if (branches > 1) {
    AttendBranch(layer, 1, q, Shaped(branch_o_, {q.dim(0), q.dim(1), q.dim(2)}),
                 Shaped(lse_[1], {q.dim(0), shape_.heads}));
  }
  MergeBranches(layer, in, o);
  SampleWatch(layer, q);
  Observe(layer, q);
}

void Attention::Observe(int layer, const View<float>& q) {
  if (!observer_) return;
  const View<const float> lse(lse_[0].data(), {q.dim(0), shape_.heads});
  for (const Part& p : parts_) {
    if (p.segment->prompt) continue;
    AttentionObserver::Tap tap{layer,  p.rows, q, lse, CacheOf(p, p.layer(layer).branches[0].cache),
                               nullptr};
    for (size_t i = 0; i < p.live; ++i)
      if (p.published[i]->publisher == layer) tap.sets = &p.published[i]->sets;
    observer_->OnLayer(tap);
  }
}

}  // namespace baton
