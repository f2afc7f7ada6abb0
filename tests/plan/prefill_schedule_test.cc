// Schedules as values: every row meets every layer it must, in order, and every cache is fed once.
#include "plan/prefill_schedule.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <map>
#include <set>

namespace baton {
namespace {

constexpr int64_t kWindow = 4;

// Layers by letter: w window, f full, c full over a cache fed at layer 1, d reads the memory, which
// layer `exit` feeds.
ModelShape Shape(const std::string& layout, int exit) {
  ModelShape m;
  m.layers = static_cast<int>(layout.size());
  m.exit_layer = exit;
  bool memory = false;
  for (int l = 0; l < m.layers; ++l) {
    const char kind = layout[static_cast<size_t>(l)];
    memory |= kind == 'd';
    LayerPlan plan;
    plan.branches.resize(1);
    if (kind == 'w') plan.branches[0].set = {.kind = TokenSet::Kind::kWindow, .recent = kWindow};
    m.plan.push_back(plan);
    if (kind != 'd')
      m.caches.push_back({.owner = l,
                          .kv_input = kind == 'c' ? 1 : l,
                          .kv_heads = 1,
                          .head_dim = 16,
                          .recent = kind == 'w' ? kWindow : 0});
  }
  if (memory) m.caches.push_back({.kv_input = exit, .kv_heads = 1, .head_dim = 16});
  return m;
}

// Runs a schedule on counters: what would be wrong in the forward pass is wrong here.
void Check(const ModelShape& m, const PrefillRequest& r) {
  const PrefillSchedule s = MakePrefillSchedule(m, r);
  std::map<int64_t, int> reached;                // row -> layers run
  std::set<std::pair<size_t, int64_t>> written;  // cache, row
  for (const Pass& p : s.passes) {
    ASSERT_LT(p.first_row, p.end_row);
    ASSERT_LE(p.rows(), r.chunk);
    ASSERT_LE(p.first_layer, p.end_layer);
    for (int64_t row = p.first_row; row < p.end_row; ++row) {
      ASSERT_EQ(reached[row], p.first_layer) << "row " << row;
      if (p.first_layer > 0) {
        ASSERT_GE(row, s.keep_from);
      }
      reached[row] = p.end_layer;
      for (size_t c = 0; c < m.caches.size(); ++c) {
        if (p.Writes(m.caches[c])) {
          ASSERT_TRUE(written.insert({c, row}).second);
        }
      }
    }
  }
  for (int64_t row = r.begin; row < r.end; ++row) {
    if (row >= r.wanted) {
      ASSERT_EQ(reached[row], m.layers);
    }
    for (size_t c = 0; c < m.caches.size(); ++c) {
      const CacheSpec& cache = m.caches[c];
      const bool window =
          cache.owner >= 0 &&
          m.plan[static_cast<size_t>(cache.owner)].branches[0].set.kind == TokenSet::Kind::kWindow;
      if (!window || row > r.end - kWindow) {
        ASSERT_TRUE(written.contains({c, row}));
      }
    }
  }
}

RC_GTEST_PROP(PrefillSchedule, EveryRowMeetsWhatItMust, ()) {
  const std::vector<std::pair<std::string, int>> shapes = {
      {"ffff", -1},  {"wwfw", -1}, {"wwdd", 2},  {"wwwddd", 3},
      {"wfwwcc", 4}, {"wfc", 2},   {"fwwwcc", 4}};
  const auto [layout, exit] = *rc::gen::elementOf(shapes);
  const int64_t begin = *rc::gen::inRange<int64_t>(0, 20);
  const int64_t end = begin + *rc::gen::inRange<int64_t>(1, 60);
  Check(Shape(layout, exit),
        {.begin = begin,
         .end = end,
         .wanted = *rc::gen::inRange<int64_t>(begin, end),
         .chunk = *rc::gen::inRange<int64_t>(1, 30),
         .order = *rc::gen::element(PrefillOrder::kTokenMajor, PrefillOrder::kLayerMajor)});
}

TEST(PrefillSchedule, SuffixIsTheWindowsBetweenAndTheWantedRows) {
  int from = -1;
  EXPECT_EQ(SuffixRows(Shape("wfwwcc", 4), 1, &from), 2 * (kWindow - 1) + 1);
  EXPECT_EQ(from, 1);
  EXPECT_EQ(SuffixRows(Shape("wwdd", 2), 1, &from), -1) << "the memory needs every row";
  EXPECT_EQ(SuffixRows(Shape("ffff", -1), 1, &from), -1) << "no exit";
  ModelShape sinks = Shape("wfwwcc", 4);
  sinks.plan[3].branches[0].set.sink = 1;
  EXPECT_EQ(SuffixRows(sinks, 1, &from), -1) << "a sink is no window";
  EXPECT_EQ(SuffixRows(Shape("wffwcc", 4), 1, &from), -1) << "a layer that sees all is in the tail";
  EXPECT_EQ(SuffixRows(Shape("fwwwcc", 4), 1, &from), -1) << "the ring of layer 1 is gone by then";
}

TEST(PrefillSchedule, RowsThatNobodyWantsLeaveAtTheExit) {
  const PrefillSchedule s =
      MakePrefillSchedule(Shape("wwdd", 2), {.begin = 0, .end = 10, .wanted = 9, .chunk = 6});
  const std::vector<Pass> expected = {
      {0, 2, 0, 6, false, true}, {0, 2, 6, 10, false, true}, {2, 4, 9, 10, true, false}};
  EXPECT_EQ(s.passes, expected);
  EXPECT_EQ(s.keep_from, 9);
}

// Lists live for one pass.
TEST(PrefillSchedule, NoPassBeginsBetweenAListAndItsReader) {
  ModelShape m = Shape("wfccwc", 3);
  for (const int reader : {3, 4})
    m.plan[static_cast<size_t>(reader)].branches[0].set = {.kind = TokenSet::Kind::kIndex,
                                                           .publisher = 2};
  const PrefillSchedule exits = MakePrefillSchedule(m, {.begin = 0, .end = 10, .wanted = 9});
  EXPECT_EQ(exits.passes,
            (std::vector<Pass>{{0, 5, 0, 10, false, true}, {5, 6, 9, 10, true, false}}));
  const PrefillSchedule layers = MakePrefillSchedule(
      m, {.begin = 0, .end = 10, .wanted = 9, .order = PrefillOrder::kLayerMajor});
  EXPECT_EQ(layers.passes, (std::vector<Pass>{{0, 1, 0, 10, false, false},
                                              {1, 2, 0, 10, false, false},
                                              {2, 5, 0, 10, false, false},
                                              {5, 6, 0, 10, false, false}}));
}

TEST(PrefillSchedule, AllRowsWantedIsTheWholePass) {
  const PrefillSchedule s =
      MakePrefillSchedule(Shape("wwdd", 2), {.begin = 3, .end = 9, .wanted = 3, .chunk = 100});
  EXPECT_EQ(s.passes, (std::vector<Pass>{{0, 4, 3, 9, false, false}}));
}

}  // namespace
}  // namespace baton
