// Rankings: the index sets that a publisher makes for later layers.
#include <algorithm>

#include "attention/part.h"
#include "base/check.h"

namespace baton {
namespace {

// Parts whose scores one call of Mass can pool, and whose sets one call of Select can find.
bool Alike(const Publish& a, const Publish& b) {
  return a.scope == b.scope && a.pool == b.pool && a.score == b.score && a.block == b.block &&
         a.sink == b.sink && a.index_scale == b.index_scale;
}

// How large the list of a set with `visible` keys is, in tokens, a multiple of the block.
struct ListSize {
  int64_t k = 0, recent = 0;
};

ListSize ModelList(const Publish& r, const Budget& k, int64_t visible) {
  const int64_t forced = std::min(visible, r.sink + r.recent);
  const int64_t chosen = RoundUp(k.At(visible), r.block);
  return {RoundUp(std::min(visible, chosen + forced), r.block), r.recent};
}

}  // namespace

// Calls Mass and then Select for the parts whose layer publishes with `ranking`, those that pool
// alike together.
void Attention::Rank(int layer, Publish::Ranking ranking, bool itself, const View<const float>& q) {
  std::vector<Part*> todo;
  for (Part& p : parts_) {
    if (p.Publishes(layer, ranking) && p.RanksItself(layer) == itself) todo.push_back(&p);
  }
  while (!todo.empty()) {
    const Publish& first = *todo.front()->Publishes(layer, ranking);
    const bool stored = todo.front()->stored_scores;
    std::vector<Part*> now, later;
    int64_t stride = 0, sets = 0;
    for (Part* p : todo) {
      const int64_t wider = std::max(stride, RoundUp(p->end(), 16));
      const bool fits =
          now.empty() || (sets + p->sets()) * Lists(first, shape_) * wider <= kMassElements;
      const bool alike = Alike(*p->Publishes(layer, ranking), first) && p->stored_scores == stored;
      (alike && fits ? now : later).push_back(p);
      if (alike && fits) stride = wider, sets += p->sets();
    }
    mass_stride_ = stride;
    RankAlike(layer, now, q);
    SelectSets(layer, now);
    todo = std::move(later);
  }
}

void Attention::RankAlike(int layer, std::span<Part* const> parts, const View<const float>& q) {
  const Publish& r = *parts.front()->layer(layer).publish;
  const bool stored = parts.front()->stored_scores;
  const bool indexer = r.ranking == Publish::Ranking::kIndexer;
  mass_segments_.clear();
  int64_t size = 0;
  for (Part* p : parts) {
    p->mass_offset = size;
    size += p->sets() * Lists(r, shape_) * mass_stride_;
  }
  float* mass = Shaped(mass_, {size}).data();
  for (Part* p : parts) {
    const int cache = indexer ? r.index_cache : p->layer(layer).branches[0].cache;
    mass_segments_.push_back({.rows = p->rows,
                              .kv = CacheOf(*p, cache),
                              .scores = stored ? p->scores : nullptr,
                              .score_stride = p->score_stride,
                              .rows_per_set = p->rows_per_set,
                              .mass = mass + p->mass_offset,
                              .mass_stride = mass_stride_});
  }
  // An indexer's scores rank as they are: log-probabilities with a log-sum-exp of zero.
  View<const float> lse;
  if (!indexer) lse = View<const float>(lse_[0].data(), {q.dim(0), shape_.heads});
  ops_.Mass({.source = r.ranking == Publish::Ranking::kLowBit ? MassParams::Source::kLowBit
                       : stored                               ? MassParams::Source::kScores
                                                              : MassParams::Source::kExact,
             .score = r.score == Publish::Score::kMass && !indexer
                          ? MassParams::Score::kProbability
                          : MassParams::Score::kLogProbability,
             .q = q,
             .scale = indexer ? r.index_scale : scale_,
             .lse = lse,
             .scope = r.scope == Scope::kAll ? MassScope::kAll : MassScope::kGroup,
             .pool = r.pool,
             .block = r.score == Publish::Score::kMass ? 1 : r.block,
             .segments = mass_segments_});
}

// Index sets of a publisher's ranking, one for each budget that it or a later layer uses.
void Attention::SelectSets(int layer, std::span<Part* const> parts) {
  const Publish& first = *parts.front()->layer(layer).publish;
  size_t sets = 0, lists = 0;
  for (const Part* part : parts) {
    const auto own = static_cast<size_t>(part->sets());
    sets += own;
    lists += own * part->layer(layer).publish->budgets.size();
  }
  visible_.resize(sets);
  recent_.resize(sets);
  k_.resize(lists);
  GrowBadPositions(std::ssize(parts));
  select_segments_.clear();
  sets = lists = 0;
  for (Part* part : parts) {
    const auto own = static_cast<size_t>(part->sets());
    lists += AskForSets(layer, *part, std::span(visible_).subspan(sets, own),
                        std::span(recent_).subspan(sets, own), std::span(k_).subspan(lists));
    sets += own;
  }
  ops_.Select({.groups = Lists(first, shape_),
               .sink = first.sink,
               .block = first.block,
               .block_score = first.score == Publish::Score::kMass ? SelectParams::BlockScore::kSum
                                                                   : SelectParams::BlockScore::kMax,
               .segments = select_segments_});
}

// Adds a segment for each of a part's budgets. `k` has room for all; the result is what they took.
size_t Attention::AskForSets(int layer, Part& part, std::span<int64_t> visible,
                             std::span<int64_t> recent, std::span<int64_t> k) {
  const Publish& r = *part.layer(layer).publish;
  const PrefillMode& prefill = part.segment->plan->prefill;
  const bool tiles = part.tiles();
  asked_.clear();
  for (const Budget& b : r.budgets) {
    if (const Budget own = part.ListBudget(b);
        std::find(asked_.begin(), asked_.end(), own) == asked_.end())
      asked_.push_back(own);
  }
  int64_t largest = 0;
  for (size_t a = 0; a < asked_.size(); ++a) {
    for (size_t i = 0; i < visible.size(); ++i) {
      const auto s = static_cast<int64_t>(i);
      visible[i] = part.Visible(s);
      const int64_t rows = std::min(part.rows_per_set, part.rows.count - s * part.rows_per_set);
      ListSize size = ModelList(r, asked_[a], visible[i]);
      if (r.forced_inside) {
        // A tile's own keys are always selected, as are the recent ones of its first query (which
        // counts itself), so that a tile of one query has the sets of decode.
        size.recent = tiles ? rows - 1 + std::max<int64_t>(r.recent, 1) : r.recent;
        const int64_t budget =
            tiles ? std::max(prefill.min,
                             static_cast<int64_t>(
                                 prefill.fraction * static_cast<double>(visible[i]) + 0.5))
                  : asked_[a].At(visible[i]);
        // Whole blocks within the budget; a budget that covers every key also takes the last,
        // partial block.
        const int64_t tokens =
            budget >= visible[i]
                ? visible[i]
                : std::min(visible[i], std::max(budget / r.block * r.block, r.sink + size.recent));
        size.k = RoundUp(tokens, r.block);
      }
      recent[i] = size.recent;
      k[a * visible.size() + i] = size.k;
      largest = std::max(largest, size.k);
    }
  }
  int64_t* bad_position = BadPosition(layer, *part.segment);
  for (size_t a = 0; a < asked_.size(); ++a) {
    if (part.live == part.published.size())
      part.published.push_back(std::make_unique<Part::Published>(ops_.device()));
    Part::Published& published = *part.published[part.live++];
    published.publisher = layer;
    published.k = asked_[a];
    published.gathered = -1;
    published.sets.Reset(part.sets(), Lists(r, shape_), largest + r.block);
    select_segments_.push_back({.mass = mass_.data() + part.mass_offset,
                                .mass_stride = mass_stride_,
                                .sets = part.sets(),
                                .visible = visible,
                                .k = k.subspan(a * visible.size(), visible.size()),
                                .recent = recent,
                                .out = &published.sets,
                                .bad_position = bad_position});
  }
  return asked_.size() * visible.size();
}

// Growing keeps the reports made so far, but moves them.
void Attention::GrowBadPositions(int64_t more) {
  const auto used = static_cast<int64_t>(rankings_.size());
  if (used + more <= bad_positions_.capacity()) return;
  std::vector<int64_t> all(static_cast<size_t>(std::max<int64_t>(256, 2 * (used + more))), -1);
  if (used > 0) bad_positions_.Download(std::span(all).first(rankings_.size()));
  bad_positions_.Reserve(std::ssize(all));
  bad_positions_.Upload(all);
}

// Where Select reports a NaN in a ranking. There must be room.
int64_t* Attention::BadPosition(int layer, const AttentionSegment& segment) {
  const auto used = static_cast<int64_t>(rankings_.size());
  rankings_.push_back({layer, &segment});
  return bad_positions_.data() + used;
}

void Attention::Finish() {
  if (rankings_.empty()) return;
  std::vector<int64_t> bad(rankings_.size());
  bad_positions_.Download(bad);
  bool any = false;
  for (size_t i = 0; i < bad.size(); ++i) {
    if (bad[i] < 0) continue;
    any = true;
    SegmentFailure* failure = rankings_[i].segment->failure;
    const int layer = rankings_[i].layer;
    if (failure == nullptr || (failure->failed() && failure->layer < layer)) continue;
    // The lowest position, whatever the order in which a segment's parts are ranked.
    failure->position = failure->failed() ? std::min(failure->position, bad[i]) : bad[i];
    failure->layer = layer;
  }
  rankings_.clear();
  if (any) bad_positions_.Upload(std::vector<int64_t>(bad.size(), -1));
}

}  // namespace baton
