#include "attention/attention.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace baton {
namespace {

// Decode rows of one sequence up to this many keep their raw scores for ranking; more rows
// recompute them tile by tile, so that memory stays bounded.
constexpr int64_t kStoredScoreRows = 4;

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

bool Uses(const Branch& b, int publisher) {
  return b.set.kind == TokenSet::Kind::kIndex && b.set.publisher == publisher;
}

}  // namespace

// Rows that are treated alike: a segment is cut where the plan starts to apply (min_context).
struct Attention::Part {
  const AttentionSegment* segment = nullptr;
  Rows rows;
  bool planned = false;
  int64_t rows_per_set = 1;    // 1 in decode, the tile in sparse prompts
  bool stored_scores = false;  // this layer's raw scores are kept for ranking
  float* scores = nullptr;
  int64_t score_stride = 0;
  int64_t mass_offset = 0;  // in Attention::mass_
  // Index sets by (publisher, budget), made when the publisher ran.
  struct Published {
    int publisher;
    Budget k;
    IndexSets sets;
  };
  std::vector<std::unique_ptr<Published>> published;
  size_t live = 0;  // of `published`; the rest are kept for their memory

  int64_t sets() const { return (rows.count + rows_per_set - 1) / rows_per_set; }
  const ResolvedLayer& layer(int l) const { return segment->plan->layers[static_cast<size_t>(l)]; }
  // The keys that set s may name.
  int64_t Visible(int64_t s) const {
    return rows.position + std::min(rows.count, (s + 1) * rows_per_set);
  }
  bool Promoted(int l) const {
    return segment->watch && !segment->watch->layers.empty() &&
           segment->watch->layers[static_cast<size_t>(l)].promoted;
  }
  bool Publishes(int l, Publish::Ranking ranking) const {
    return planned && layer(l).publish && layer(l).publish->ranking == ranking;
  }
  // Attends to its own exact top k: no plan role, but the upper bound that profiling measures a
  // layer by.
  bool RanksItself(int l) const {
    return Publishes(l, Publish::Ranking::kExact) &&
           layer(l).branches[0].set.kind == TokenSet::Kind::kIndex;
  }
  const Published* Find(int publisher, const Budget& k) const {
    for (size_t i = 0; i < live; ++i) {
      if (published[i]->publisher == publisher && published[i]->k == k) return published[i].get();
    }
    return nullptr;
  }
};

Attention::Attention(Ops& ops, const ModelShape& shape, float scale)
    : ops_(ops), shape_(shape), scale_(scale) {}
Attention::~Attention() = default;

void Attention::Begin(std::span<const AttentionSegment> segments, AttentionObserver* observer) {
  observer_ = observer;
  for (Part& p : parts_) p.live = 0;
  std::vector<Part> old = std::move(parts_);
  parts_.clear();
  for (const AttentionSegment& s : segments) Split(s);
  for (size_t i = 0; i < std::min(old.size(), parts_.size()); ++i) {
    parts_[i].published = std::move(old[i].published);
  }
}

void Attention::Split(const AttentionSegment& s) {
  if (s.rows.count == 0) return;
  const auto add = [&](int64_t begin, int64_t end, bool planned, int64_t rows_per_set) {
    if (begin >= end) return;
    Part p;
    p.segment = &s;
    p.rows = {s.rows.first + begin, end - begin, s.rows.position + begin};
    p.planned = planned;
    p.rows_per_set = rows_per_set;
    parts_.push_back(std::move(p));
  };
  const int64_t count = s.rows.count;
  if (s.plan == nullptr || (s.prompt && !s.plan->prefill.sparse)) return add(0, count, false, 1);
  if (s.prompt) {
    // Every key counts within the smallest budget: those tiles are dense anyway.
    const int64_t tile = s.plan->prefill.tile;
    const int64_t dense =
        std::clamp<int64_t>(s.plan->prefill.min - s.rows.position, 0, count) / tile * tile;
    add(0, dense, false, 1);
    return add(dense, count, true, tile);
  }
  const int64_t dense = std::clamp<int64_t>(s.plan->min_context - s.rows.position, 0, count);
  add(0, dense, false, 1);
  add(dense, count, true, 1);
}

KeySet Attention::ModelKeys(int layer) const {
  const int64_t window = shape_.window.empty() ? 0 : shape_.window[static_cast<size_t>(layer)];
  KeySet keys;
  if (window > 0) {
    keys.kind = KeySet::Kind::kWindow;
    keys.recent = window;
  }
  return keys;
}

// Index sets of a publisher's ranking, one for each budget that it or a later layer asks for.
Status Attention::SelectSets(int layer, std::span<Part* const> parts) {
  for (Part* part : parts) {
    const ResolvedPlan& plan = *part->segment->plan;
    const bool tiles = part->segment->prompt;
    const int64_t groups = plan.scope == Scope::kAll ? 1 : shape_.kv_heads;
    const int64_t sets = part->sets();
    std::vector<Budget> asked;
    for (const ResolvedLayer& user : plan.layers) {
      for (const Branch& b : user.branches) {
        // A sparse prompt has one budget for all layers; decode has each user's own.
        const Budget k = tiles ? Budget{plan.prefill.min, 0} : b.set.k;
        if (Uses(b, layer) && std::find(asked.begin(), asked.end(), k) == asked.end())
          asked.push_back(k);
      }
    }
    std::vector<int64_t> visible(static_cast<size_t>(sets)), recent(visible),
        k(visible.size() * asked.size());
    int64_t largest = 0;
    std::vector<SelectParams::Segment> segments;
    for (size_t a = 0; a < asked.size(); ++a) {
      for (int64_t s = 0; s < sets; ++s) {
        const auto i = static_cast<size_t>(s);
        visible[i] = part->Visible(s);
        const int64_t rows =
            std::min(part->rows_per_set, part->rows.count - s * part->rows_per_set);
        // A tile's own keys are always in, and what is recent for its first query (which counts
        // itself), so that a tile of one query has the sets of decode.
        recent[i] = tiles ? rows - 1 + std::max<int64_t>(plan.recent, 1) : plan.recent;
        const int64_t budget =
            tiles ? std::max(plan.prefill.min,
                             static_cast<int64_t>(
                                 plan.prefill.fraction * static_cast<double>(visible[i]) + 0.5))
                  : asked[a].At(visible[i]);
        // Whole blocks within the budget, except that a budget for every key gets the last one.
        const int64_t size = budget >= visible[i]
                                 ? visible[i]
                                 : std::min(visible[i], std::max(budget / plan.block * plan.block,
                                                                 plan.sink + recent[i]));
        k[a * visible.size() + i] = RoundUp(size, plan.block);
        largest = std::max(largest, RoundUp(size, plan.block));
      }
    }
    for (size_t a = 0; a < asked.size(); ++a) {
      if (part->live == part->published.size())
        part->published.push_back(std::make_unique<Part::Published>());
      Part::Published& published = *part->published[part->live++];
      published.publisher = layer;
      published.k = asked[a];
      published.sets.Reset(sets, groups, largest + plan.block);
      segments.push_back({.mass = mass_.data() + part->mass_offset,
                          .mass_stride = mass_stride_,
                          .sets = sets,
                          .visible = visible,
                          .k = std::span(k).subspan(a * visible.size(), visible.size()),
                          .recent = recent,
                          .out = &published.sets});
    }
    Status status = ops_.Select(
        {.groups = groups, .sink = plan.sink, .block = plan.block, .segments = segments});
    if (!status.ok()) return std::move(status).error().At(fmt::format("layer {}", layer));
  }
  return Status::Ok();
}

// Calls Mass and then SelectSets for the parts whose plan has this layer publish with `ranking`.
// Parts that pool differently (other plans in the batch) go in separate calls.
Status Attention::Rank(int layer, Publish::Ranking ranking, bool itself, const View<float>& q) {
  std::vector<Part*> todo;
  int64_t stride = 0;
  for (Part& p : parts_) {
    if (!p.Publishes(layer, ranking) || p.RanksItself(layer) != itself) continue;
    todo.push_back(&p);
    stride = std::max(stride, p.rows.position + p.rows.count);
  }
  if (todo.empty()) return Status::Ok();
  mass_stride_ = RoundUp(stride, 16);
  while (!todo.empty()) {
    const ResolvedPlan& plan = *todo.front()->segment->plan;
    const bool stored = todo.front()->stored_scores;
    std::vector<Part*> now, later;
    for (Part* p : todo) {
      const ResolvedPlan& other = *p->segment->plan;
      const bool alike = (other.scope == Scope::kAll) == (plan.scope == Scope::kAll) &&
                         other.pool == plan.pool && p->stored_scores == stored;
      (alike ? now : later).push_back(p);
    }
    const int64_t groups = plan.scope == Scope::kAll ? 1 : shape_.kv_heads;
    mass_segments_.clear();
    int64_t size = 0;
    for (Part* p : now) {
      p->mass_offset = size;
      size += p->sets() * groups * mass_stride_;
    }
    if (static_cast<int64_t>(mass_.size()) < size) mass_.resize(static_cast<size_t>(size));
    for (Part* p : now) {
      mass_segments_.push_back({.rows = p->rows,
                                .kv = p->segment->kv->View(layer, p->rows.position + p->rows.count),
                                .scores = stored ? p->scores : nullptr,
                                .score_stride = p->score_stride,
                                .rows_per_set = p->rows_per_set,
                                .mass = mass_.data() + p->mass_offset,
                                .mass_stride = mass_stride_});
    }
    ops_.Mass({.source = ranking == Publish::Ranking::kLowBit ? MassParams::Source::kLowBit
                         : stored                             ? MassParams::Source::kScores
                                                              : MassParams::Source::kExact,
               .q = q,
               .scale = scale_,
               .lse = View<const float>(lse_.data(), {q.dim(0), shape_.heads}),
               .scope = plan.scope == Scope::kAll ? MassScope::kAll : MassScope::kGroup,
               .pool = plan.pool,
               .segments = mass_segments_});
    BATON_TRY(SelectSets(layer, now));
    todo = std::move(later);
  }
  return Status::Ok();
}

KeySet Attention::Keys(int layer, const Part& part) const {
  if (!part.planned || part.Promoted(layer)) return ModelKeys(layer);
  const ResolvedPlan& plan = *part.segment->plan;
  BATON_CHECK_EQ(part.layer(layer).branches.size(), 1u);
  const TokenSet& set = part.layer(layer).branches[0].set;
  KeySet keys;
  switch (set.kind) {
    case TokenSet::Kind::kAll:
      return ModelKeys(layer);
    case TokenSet::Kind::kWindow:
      // What a plan's windows hide from a prompt is missing in every later key and value: answers
      // lose more than by all other sparse layers together (docs/quality.md).
      if (part.segment->prompt) return ModelKeys(layer);
      keys.kind = KeySet::Kind::kWindow;
      keys.sink = set.sink;
      keys.recent = set.recent;
      return keys;
    case TokenSet::Kind::kIndex: {
      const Part::Published* published =
          part.Find(set.publisher, part.segment->prompt ? Budget{plan.prefill.min, 0} : set.k);
      BATON_CHECK(published != nullptr);
      keys.kind = KeySet::Kind::kIndex;
      keys.index = &published->sets;
      keys.rows_per_set = part.rows_per_set;
      // A scan layer reads its own ranking, head by head: maps are for other layers' rankings.
      if (plan.scope == Scope::kHeadMap && set.publisher != layer)
        keys.head_map = plan.head_map[static_cast<size_t>(layer)].data();
      return keys;
    }
  }
  return keys;
}

Status Attention::Run(int layer, StoreParams store, View<float> o) {
  store_segments_.clear();
  int64_t score_size = 0;
  for (Part& p : parts_) {
    const int64_t length = p.rows.position + p.rows.count;
    store_segments_.push_back({p.rows, p.segment->kv->View(layer, length)});
    p.stored_scores = p.Publishes(layer, Publish::Ranking::kExact) && !p.RanksItself(layer) &&
                      !p.segment->prompt && p.rows.count <= kStoredScoreRows;
    p.score_stride = RoundUp(length, 16);
    if (p.stored_scores) score_size += p.rows.count * shape_.heads * p.score_stride;
  }
  store.segments = store_segments_;
  ops_.Store(store);

  const View<float>& q = store.q;
  BATON_TRY(Rank(layer, Publish::Ranking::kLowBit, false, q));

  lse_.resize(static_cast<size_t>(q.dim(0) * shape_.heads));
  const View<float> lse(lse_.data(), {q.dim(0), shape_.heads});
  attend_segments_.clear();
  for (size_t i = 0; i < parts_.size(); ++i) {
    if (!parts_[i].RanksItself(layer)) continue;
    attend_segments_.push_back(
        {.rows = parts_[i].rows, .kv = store_segments_[i].kv, .keys = ModelKeys(layer)});
  }
  if (!attend_segments_.empty()) {
    ops_.Attend({.q = q, .scale = scale_, .segments = attend_segments_, .o = o, .lse = lse});
    BATON_TRY(Rank(layer, Publish::Ranking::kExact, true, q));
  }

  if (static_cast<int64_t>(scores_.size()) < score_size)
    scores_.resize(static_cast<size_t>(score_size));
  attend_segments_.clear();
  int64_t offset = 0;
  for (size_t i = 0; i < parts_.size(); ++i) {
    Part& p = parts_[i];
    if (p.stored_scores) {
      p.scores = scores_.data() + offset;
      offset += p.rows.count * shape_.heads * p.score_stride;
    }
    attend_segments_.push_back({.rows = p.rows,
                                .kv = store_segments_[i].kv,
                                .keys = Keys(layer, p),
                                .scores = p.stored_scores ? p.scores : nullptr,
                                .score_stride = p.score_stride});
  }
  ops_.Attend({.q = q, .scale = scale_, .segments = attend_segments_, .o = o, .lse = lse});

  BATON_TRY(Rank(layer, Publish::Ranking::kExact, false, q));
  SampleWatch(layer, q);
  if (observer_) {
    for (size_t i = 0; i < parts_.size(); ++i) {
      const Part& p = parts_[i];
      if (!p.segment->prompt) observer_->OnLayer({layer, p.rows, q, lse, store_segments_[i].kv});
    }
  }
  return Status::Ok();
}

void Attention::SampleWatch(int layer, const View<float>& q) {
  for (Part& p : parts_) {
    Watch* watch = p.segment->watch;
    if (!p.planned || p.segment->prompt || !watch || watch->interval == 0 ||
        watch->steps % watch->interval != 0)
      continue;
    if (p.layer(layer).role != Role::kReuse || p.Promoted(layer)) continue;
    watch_o_.resize(static_cast<size_t>(q.size()));
    watch_lse_.resize(static_cast<size_t>(q.dim(0) * shape_.heads));
    const View<float> lse(watch_lse_.data(), {q.dim(0), shape_.heads});
    AttendParams::Segment segment{.rows = p.rows,
                                  .kv = p.segment->kv->View(layer, p.rows.position + p.rows.count),
                                  .keys = ModelKeys(layer)};
    ops_.Attend({.q = q,
                 .scale = scale_,
                 .segments = std::span(&segment, 1),
                 .o = View<float>(watch_o_.data(), {q.dim(0), q.dim(1), q.dim(2)}),
                 .lse = lse});
    double captured = 0;
    for (int64_t t = p.rows.first; t < p.rows.first + p.rows.count; ++t) {
      for (int h = 0; h < shape_.heads; ++h) {
        captured += std::exp(static_cast<double>(lse_[static_cast<size_t>(t * shape_.heads + h)]) -
                             lse.row(t)[h]);
      }
    }
    captured /= static_cast<double>(p.rows.count * shape_.heads);
    Watch::Layer& state = watch->layers[static_cast<size_t>(layer)];
    state.sampled = true;
    state.smallest = std::min(state.smallest, captured);
    if (captured < watch->threshold) state.promoted = true;
  }
}

}  // namespace baton
