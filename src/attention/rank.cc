// Rankings: what a publisher leaves behind for the layers after it.
#include <algorithm>

#include "attention/part.h"
#include "base/check.h"

namespace baton {
namespace {

// Scores of one call; more parts go in further calls.
constexpr int64_t kMassElements = int64_t{16} << 20;

int64_t Lists(const Publish& r, const ModelShape& shape) {
  return r.scope == Scope::kAll ? 1 : shape.kv_heads;
}

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
  float* mass = Scratch(mass_, {size}).data();
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

// Index sets of a publisher's ranking, one for each budget that it or a later layer asks for.
void Attention::SelectSets(int layer, std::span<Part* const> parts) {
  for (Part* part : parts) {
    const Publish& r = *part->layer(layer).publish;
    const PrefillMode& prefill = part->segment->plan->prefill;
    const bool tiles = part->tiles();
    const int64_t lists = Lists(r, shape_);
    const int64_t sets = part->sets();
    std::vector<Budget> asked;
    for (const Budget& k : r.budgets) {
      if (const Budget own = part->ListBudget(k);
          std::find(asked.begin(), asked.end(), own) == asked.end())
        asked.push_back(own);
    }
    std::vector<int64_t> visible(static_cast<size_t>(sets)), recent(visible),
        k(visible.size() * asked.size());
    int64_t largest = 0;
    for (size_t a = 0; a < asked.size(); ++a) {
      for (int64_t s = 0; s < sets; ++s) {
        const auto i = static_cast<size_t>(s);
        visible[i] = part->Visible(s);
        const int64_t rows =
            std::min(part->rows_per_set, part->rows.count - s * part->rows_per_set);
        ListSize size = ModelList(r, asked[a], visible[i]);
        if (r.forced_inside) {
          // A tile's own keys are always in, and what is recent for its first query (which counts
          // itself), so that a tile of one query has the sets of decode.
          size.recent = tiles ? rows - 1 + std::max<int64_t>(r.recent, 1) : r.recent;
          const int64_t budget =
              tiles ? std::max(prefill.min,
                               static_cast<int64_t>(
                                   prefill.fraction * static_cast<double>(visible[i]) + 0.5))
                    : asked[a].At(visible[i]);
          // Whole blocks within the budget, except that a budget for every key gets the last one.
          const int64_t tokens = budget >= visible[i]
                                     ? visible[i]
                                     : std::min(visible[i], std::max(budget / r.block * r.block,
                                                                     r.sink + size.recent));
          size.k = RoundUp(tokens, r.block);
        }
        recent[i] = size.recent;
        k[a * visible.size() + i] = size.k;
        largest = std::max(largest, size.k);
      }
    }
    std::vector<SelectParams::Segment> segments;
    int64_t bad = -1;
    for (size_t a = 0; a < asked.size(); ++a) {
      if (part->live == part->published.size())
        part->published.push_back(std::make_unique<Part::Published>());
      Part::Published& published = *part->published[part->live++];
      published.publisher = layer;
      published.k = asked[a];
      published.gathered = -1;
      published.sets.Reset(sets, lists, largest + r.block);
      segments.push_back({.mass = mass_.data() + part->mass_offset,
                          .mass_stride = mass_stride_,
                          .sets = sets,
                          .visible = visible,
                          .k = std::span(k).subspan(a * visible.size(), visible.size()),
                          .recent = recent,
                          .out = &published.sets,
                          .bad_position = &bad});
    }
    ops_.Select({.groups = lists,
                 .sink = r.sink,
                 .block = r.block,
                 .block_score = r.score == Publish::Score::kMass ? SelectParams::BlockScore::kSum
                                                                 : SelectParams::BlockScore::kMax,
                 .segments = segments});
    SegmentFailure* failure = part->segment->failure;
    if (bad < 0 || failure == nullptr || (failure->failed() && failure->layer < layer)) continue;
    // The lowest position, whatever the order in which a segment's parts are ranked.
    failure->position = failure->failed() ? std::min(failure->position, bad) : bad;
    failure->layer = layer;
  }
}

}  // namespace baton
