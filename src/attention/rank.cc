// Rankings: the index sets that a publisher makes for later layers.
#include <algorithm>

#include "attention/part.h"
#include "base/check.h"

namespace baton {
namespace {

// Parts whose scores one call of Mass can pool.
bool Alike(const Publish& a, const Publish& b) {
  return a.scope == b.scope && a.pool == b.pool && a.score == b.score && a.block == b.block &&
         a.index_scale == b.index_scale;
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
  for (Part* part : parts) {
    const Publish& r = *part->layer(layer).publish;
    const PrefillMode& prefill = part->segment->plan->prefill;
    const bool tiles = part->tiles();
    const int64_t lists = Lists(r, shape_);
    const int64_t sets = part->sets();
    asked_.clear();
    for (const Budget& k : r.budgets) {
      if (const Budget own = part->ListBudget(k);
          std::find(asked_.begin(), asked_.end(), own) == asked_.end())
        asked_.push_back(own);
    }
    visible_.resize(static_cast<size_t>(sets));
    recent_.resize(visible_.size());
    k_.resize(visible_.size() * asked_.size());
    int64_t largest = 0;
    for (size_t a = 0; a < asked_.size(); ++a) {
      for (int64_t s = 0; s < sets; ++s) {
        const auto i = static_cast<size_t>(s);
        visible_[i] = part->Visible(s);
        const int64_t rows =
            std::min(part->rows_per_set, part->rows.count - s * part->rows_per_set);
        ListSize size = ModelList(r, asked_[a], visible_[i]);
        if (r.forced_inside) {
          // A tile's own keys are always selected, as are the recent ones of its first query (which
          // counts itself), so that a tile of one query has the sets of decode.
          size.recent = tiles ? rows - 1 + std::max<int64_t>(r.recent, 1) : r.recent;
          const int64_t budget =
              tiles ? std::max(prefill.min,
                               static_cast<int64_t>(
                                   prefill.fraction * static_cast<double>(visible_[i]) + 0.5))
                    : asked_[a].At(visible_[i]);
          // Whole blocks within the budget; a budget that covers every key also takes the last,
          // partial block.
          const int64_t tokens = budget >= visible_[i]
                                     ? visible_[i]
                                     : std::min(visible_[i], std::max(budget / r.block * r.block,
                                                                      r.sink + size.recent));
          size.k = RoundUp(tokens, r.block);
        }
        recent_[i] = size.recent;
        k_[a * visible_.size() + i] = size.k;
        largest = std::max(largest, size.k);
      }
    }
    int64_t* bad_position = BadPosition(layer, *part->segment);
    select_segments_.clear();
    for (size_t a = 0; a < asked_.size(); ++a) {
      if (part->live == part->published.size())
        part->published.push_back(std::make_unique<Part::Published>(ops_.device()));
      Part::Published& published = *part->published[part->live++];
      published.publisher = layer;
      published.k = asked_[a];
      published.gathered = -1;
      published.sets.Reset(sets, lists, largest + r.block);
      select_segments_.push_back({.mass = mass_.data() + part->mass_offset,
                                  .mass_stride = mass_stride_,
                                  .sets = sets,
                                  .visible = visible_,
                                  .k = std::span(k_).subspan(a * visible_.size(), visible_.size()),
                                  .recent = recent_,
                                  .out = &published.sets,
                                  .bad_position = bad_position});
    }
    ops_.Select({.groups = lists,
                 .sink = r.sink,
                 .block = r.block,
                 .block_score = r.score == Publish::Score::kMass ? SelectParams::BlockScore::kSum
                                                                 : SelectParams::BlockScore::kMax,
                 .segments = select_segments_});
  }
}

// Where Select reports a NaN in a ranking.
int64_t* Attention::BadPosition(int layer, const AttentionSegment& segment) {
  const auto used = static_cast<int64_t>(rankings_.size());
  if (used == bad_positions_.capacity()) {
    // Growing keeps the reports made so far.
    std::vector<int64_t> all(static_cast<size_t>(std::max<int64_t>(256, 2 * used)), -1);
    if (used > 0) bad_positions_.Download(std::span(all).first(rankings_.size()));
    bad_positions_.Reserve(std::ssize(all));
    bad_positions_.Upload(all);
  }
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
