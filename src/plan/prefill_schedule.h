// How a prompt is processed: forward passes over some rows and some layers, in order. Pure; every
// schedule gives what one pass over all rows and layers gives (tests/engine/schedule_test).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plan/layer_plan.h"

namespace baton {

struct Pass {
  int first_layer = 0, end_layer = 0;
  int64_t first_row = 0, end_row = 0;  // positions in the sequence
  // The caches that the stream entering first_layer feeds are already written.
  bool fed = false;
  // The stream entering end_layer still feeds its caches, though its rows go no further here.
  bool feed_end = false;

  int64_t rows() const { return end_row - first_row; }
  // Whether this pass writes a cache.
  bool Writes(const CacheSpec& cache) const {
    const bool entered = cache.kv_input >= first_layer && cache.kv_input < end_layer;
    return (entered && !(fed && cache.kv_input == first_layer)) ||
           (feed_end && cache.kv_input == end_layer);
  }
  bool operator==(const Pass&) const = default;
};

enum class PrefillOrder {
  kTokenMajor,  // a chunk of rows through all layers, then the next chunk
  kLayerMajor,  // all rows through one layer, then the next layer: a router sees the whole prompt
                // before its layer runs (arXiv 2604.07394), and a layer can free its cache early.
                // Layers that read lists run in one pass with those that publish them
};

struct PrefillRequest {
  int64_t begin = 0, end = 0;  // new positions
  int64_t wanted = 0;          // the first position whose logits are wanted, begin..end - 1
  int64_t chunk = 512;         // rows of a pass
  PrefillOrder order = PrefillOrder::kTokenMajor;
  // Rows [begin, done) are in the caches already, as the passes over [begin, end) leave them: the
  // passes are cut as if they were not, and then go without them. At most MostDone.
  int64_t done = 0;
};

struct PrefillSchedule {
  std::vector<Pass> passes;
  // Rows whose residual stream lives from one pass to the next: [keep_from, end).
  int64_t keep_from = 0;
};

// Where the model lets rows go whose logits nobody wants (exit_layer), token-major schedules use
// it: layers before it see every row, later ones the wanted rows alone (exact: arXiv 2606.06467,
// 2609.26368). Where, further down, only sliding windows lie between the last layer that feeds a
// shared cache and the exit, these see just the rows that a wanted row can still feel. Lists live
// for one pass: an exit between a publisher and a reader moves down behind the reader.
PrefillSchedule MakePrefillSchedule(const ModelShape& model, const PrefillRequest& request);

// Lists live for one forward pass: whether one may begin at `layer`, because neither it nor a later
// layer of `plan` reads a list that an earlier one publishes.
bool MayBeginAt(std::span<const LayerPlan> plan, int layer);

// The most rows from `begin` on that caches can hold beforehand: later ones are wanted, or go on
// from a pass over all rows to one over the last.
int64_t MostDone(const ModelShape& model, const PrefillRequest& request);

// [caches] Whether a schedule writes every row of a cache; others start inside the prompt.
std::vector<bool> WholeCaches(const ModelShape& model, const PrefillRequest& request);

// Rows at the end of a prompt, for `wanted` wanted ones, that layers from `from` (returned) up to
// the exit must see; -1: all rows (no exit, a layer that looks further than a window between,
// caches fed at the exit itself, or a layer `from` that writes a ring or reads an earlier list).
int64_t SuffixRows(const ModelShape& model, int64_t wanted, int* from);

// The first row that enters `layer` as in a pass over all rows, where a suffix starts at `row` of
// layer `from`: a window of w tokens spoils w - 1 rows more.
int64_t FirstExactRow(const ModelShape& model, int from, int64_t row, int layer);

}  // namespace baton
