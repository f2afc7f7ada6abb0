#include "plan/prefill_schedule.h"

#include <algorithm>

#include "base/check.h"

namespace baton {

bool MayBeginAt(std::span<const LayerPlan> plan, int layer) {
  for (const LayerPlan& reader : plan.subspan(static_cast<size_t>(layer))) {
    for (const Branch& b : reader.branches) {
      if (b.set.kind == TokenSet::Kind::kIndex && b.set.publisher < layer) return false;
    }
  }
  return true;
}

namespace {

// Calls f(first, end) for chunks of [begin, end).
template <typename F>
void ForChunks(int64_t begin, int64_t end, int64_t chunk, F&& f) {
  for (int64_t a = begin; a < end; a += chunk) f(a, std::min(end, a + chunk));
}

bool IsPlainWindow(const LayerPlan& layer) {
  return layer.branches.size() == 1 && layer.branches[0].set.kind == TokenSet::Kind::kWindow &&
         layer.branches[0].set.sink == 0 && !layer.publish;
}

// The first layer from `layer` on where a pass may begin; model.layers: none.
int NextBegin(const ModelShape& model, int layer) {
  while (layer < model.layers && !MayBeginAt(model.plan, layer)) ++layer;
  return layer;
}

// Where rows nobody wants leave: the model's exit, or further down where a list crosses it.
int ExitOf(const ModelShape& model) {
  return model.exit_layer < 0 ? model.layers : NextBegin(model, model.exit_layer);
}

// The layer writes a ring. What a pass over all rows wrote of it ends with the last window, and a
// later pass over some of these rows would find the windows of the first gone.
bool WritesRing(const ModelShape& model, int layer) {
  return std::any_of(model.caches.begin(), model.caches.end(),
                     [&](const CacheSpec& c) { return c.owner == layer && c.ring(); });
}

}  // namespace

int64_t SuffixRows(const ModelShape& model, int64_t wanted, int* from) {
  const int exit = ExitOf(model);
  if (exit == model.layers) return -1;
  int last_fed = -1;
  for (const CacheSpec& c : model.caches) {
    if (c.owner == CacheSpec::kMemory || c.owner >= exit) last_fed = std::max(last_fed, c.kv_input);
  }
  if (last_fed < 0 || last_fed >= exit) return -1;
  if (!MayBeginAt(model.plan, last_fed) || WritesRing(model, last_fed)) return -1;
  int64_t rows = wanted;
  for (int l = last_fed + 1; l < exit; ++l) {
    const LayerPlan& layer = model.plan[static_cast<size_t>(l)];
    if (!IsPlainWindow(layer)) return -1;
    rows += layer.branches[0].set.recent - 1;
  }
  *from = last_fed;
  return rows;
}

int64_t FirstExactRow(const ModelShape& model, int from, int64_t row, int layer) {
  for (int l = from + 1; l < layer; ++l)
    row += model.plan[static_cast<size_t>(l)].branches[0].set.recent - 1;
  return row;
}

namespace {

// Of all rows, as if none were done.
PrefillSchedule WholeSchedule(const ModelShape& model, const PrefillRequest& r) {
  BATON_CHECK(r.begin < r.end && r.chunk > 0 && r.wanted >= r.begin && r.wanted < r.end);
  PrefillSchedule s{.passes = {}, .keep_from = r.end};
  const auto add = [&](int first, int end, int64_t begin, int64_t stop, bool fed, bool feed_end) {
    ForChunks(begin, stop, r.chunk, [&](int64_t a, int64_t z) {
      s.passes.push_back({first, end, a, z, fed, feed_end});
    });
  };
  if (r.order == PrefillOrder::kLayerMajor) {
    for (int l = 0; l < model.layers;) {
      const int next = NextBegin(model, l + 1);
      // Of the last layer's rows, only wanted ones go on to the logits; its cache needs all.
      add(l, next, r.begin, r.end, false, false);
      l = next;
    }
    s.keep_from = r.begin;
    return s;
  }
  const int exit = ExitOf(model);
  if (exit == model.layers || r.wanted == r.begin) {
    add(0, model.layers, r.begin, r.end, false, false);
    return s;
  }
  int cut = exit;
  const int64_t suffix = SuffixRows(model, r.end - r.wanted, &cut);
  const int64_t tail = suffix < 0 ? r.wanted : std::max(r.begin, r.end - suffix);
  if (tail == r.begin) cut = exit;
  add(0, cut, r.begin, r.end, false, true);
  if (cut < exit) add(cut, exit, tail, r.end, true, false);
  add(exit, model.layers, r.wanted, r.end, true, false);
  s.keep_from = cut < exit ? tail : r.wanted;
  return s;
}

}  // namespace

PrefillSchedule MakePrefillSchedule(const ModelShape& model, const PrefillRequest& r) {
  PrefillSchedule s = WholeSchedule(model, r);
  if (r.done <= r.begin) return s;
  BATON_CHECK_LE(r.done, MostDone(model, r));
  std::erase_if(s.passes, [&](const Pass& p) { return p.end_row <= r.done; });
  for (Pass& p : s.passes) p.first_row = std::max(p.first_row, r.done);
  s.keep_from = std::max(s.keep_from, r.done);
  return s;
}

int64_t MostDone(const ModelShape& model, const PrefillRequest& r) {
  if (r.order == PrefillOrder::kLayerMajor) return r.wanted;
  return std::min(r.wanted, WholeSchedule(model, r).keep_from);
}

std::vector<bool> WholeCaches(const ModelShape& model, const PrefillRequest& r) {
  std::vector<bool> whole(model.caches.size());
  for (const Pass& p : WholeSchedule(model, r).passes) {
    for (size_t c = 0; c < whole.size(); ++c)
      if (p.first_row == r.begin && p.Writes(model.caches[c])) whole[c] = true;
  }
  return whole;
}

}  // namespace baton
