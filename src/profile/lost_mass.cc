#include "profile/lost_mass.h"

#include <algorithm>
#include <cmath>

#include "profile/kinds.h"

namespace baton {
namespace {

constexpr int64_t kOverlapBudget = 512;

// Common members of two ascending lists, and how many of them lie in [low, high).
std::pair<int64_t, int64_t> Common(std::span<const int32_t> a, std::span<const int32_t> b,
                                   int64_t low, int64_t high) {
  int64_t all = 0, inner = 0;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    if (a[i] == b[j]) {
      all++;
      inner += a[i] >= low && a[i] < high;
      ++i, ++j;
    } else {
      a[i] < b[j] ? ++i : ++j;
    }
  }
  return {all, inner};
}

}  // namespace

LostMass::LostMass(Ops& ops, const ProfileOptions& options, const ModelInfo& info, float scale,
                   size_t kinds)
    : ops_(ops),
      options_(options),
      info_(info),
      scale_(scale),
      pooled_(ops.device()),
      mass_(ops.device()) {
  const size_t n = static_cast<size_t>(info.layers);
  answers_.lost.assign(options.budgets.size(), std::vector<double>(n * n, 0));
  answers_.worst = answers_.lost;
  answers_.scan.assign(options.budgets.size(), std::vector<double>(n, 0));
  text_.assign(kinds, answers_);
  overlap_.assign(n * n, 0);
  overlap_unforced_.assign(n * n, 0);
  groups_ = options.scope == Scope::kAll ? 1 : info.kv_heads;
}

void LostMass::BeginRows(bool answer, int64_t first, int64_t count) {
  answer_ = answer;
  first_ = first;
  count_ = count;
  published_.clear();
  published_.resize(static_cast<size_t>(info_.layers));
}

// Index sets of the measured rows for every budget, ranked by exact probabilities or by the low-bit
// copy.
Status LostMass::Rank(const Tap& tap, MassParams::Source source, std::vector<IndexSets>& sets) {
  const Rows rows{tap.rows.first + first_, count_, tap.rows.position + first_};
  MassParams::Segment segment{
      .rows = rows, .kv = tap.kv, .rows_per_set = 1, .mass_stride = stride_};
  segment.mass = pooled_.Reserve(count_ * groups_ * stride_);
  ops_.Mass({.source = source,
             .q = tap.q,
             .scale = scale_,
             .lse = tap.lse,
             .scope = groups_ == 1 ? MassScope::kAll : MassScope::kGroup,
             .pool = options_.pool,
             .segments = std::span(&segment, 1)});
  const size_t budgets = options_.budgets.size();
  std::vector<IndexSets> made;
  std::vector<int64_t> visible(static_cast<size_t>(count_)),
      recent(visible.size(), options_.recent);
  for (int64_t t = 0; t < count_; ++t) visible[static_cast<size_t>(t)] = rows.position + t + 1;
  std::vector<std::vector<int64_t>> k;
  std::vector<SelectParams::Segment> segments;
  SegmentFailure failure;
  Array<int64_t> bad(ops_.device());
  bad.Reserve(1);
  bad.Upload({&failure.position, 1});
  for (int64_t budget : options_.budgets) {
    k.emplace_back(visible.size(), budget);
    made.emplace_back(ops_.device());
  }
  for (size_t b = 0; b < budgets; ++b) {
    made[b].Reset(count_, groups_, options_.budgets[b] + options_.block);
    segments.push_back({.mass = pooled_.data(),
                        .mass_stride = stride_,
                        .sets = count_,
                        .visible = visible,
                        .k = k[b],
                        .recent = recent,
                        .out = &made[b],
                        .bad_position = bad.data()});
  }
  ops_.Select(
      {.groups = groups_, .sink = options_.sink, .block = options_.block, .segments = segments});
  bad.Download({&failure.position, 1});
  sets.clear();
  for (IndexSets& s : made) sets.push_back(std::move(s).OnHost());
  if (failure.position < 0) return Status::Ok();
  failure.layer = tap.layer;
  return failure.ToError();
}

// Adds 1 - recovered mass of layer j (its head_mass_) over `sets`, averaged over heads, one entry
// per budget; the worst head's with `worst`.
void LostMass::Accumulate(Table& table, int i, int j, const std::vector<IndexSets>& sets,
                          std::vector<std::vector<double>>& lost, bool worst) {
  const int64_t heads = info_.heads;
  const size_t at =
      lost[0].size() == static_cast<size_t>(info_.layers)
          ? static_cast<size_t>(j)
          : static_cast<size_t>(i) * static_cast<size_t>(info_.layers) + static_cast<size_t>(j);
  for (size_t b = 0; b < sets.size(); ++b) {
    double sum = 0, worst_sum = 0;
    for (int64_t t = 0; t < count_; ++t) {
      double largest = 0;
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t group = h * groups_ / heads;
        const int32_t* list = sets[b].list(t, group);
        const float* p = head_mass_.data() + (t * heads + h) * stride_;
        float captured = 0;
        for (int32_t n = 0; n < sets[b].count(t, group); ++n) captured += p[list[n]];
        const double missed = std::clamp(1.0 - static_cast<double>(captured), 0.0, 1.0);
        sum += missed / static_cast<double>(heads);
        largest = std::max(largest, missed);
      }
      worst_sum += largest;
    }
    lost[b][at] += sum;
    if (worst) table.worst[b][at] += worst_sum;
  }
}

void LostMass::AddOverlap(int i, int j) {
  const auto& budgets = options_.budgets;
  const auto found = std::find(budgets.begin(), budgets.end(), kOverlapBudget);
  const auto b = static_cast<size_t>(found == budgets.end() ? 0 : found - budgets.begin());
  const IndexSets& si = published_[static_cast<size_t>(i)][b];
  const IndexSets& sj = published_[static_cast<size_t>(j)][b];
  const auto at = static_cast<size_t>(i * info_.layers + j);
  const auto forced = static_cast<double>(options_.sink + options_.recent);
  for (int64_t t = 0; t < count_; ++t) {
    for (int64_t g = 0; g < groups_; ++g) {
      const std::span a(si.list(t, g), static_cast<size_t>(si.count(t, g)));
      const std::span c(sj.list(t, g), static_cast<size_t>(sj.count(t, g)));
      const int64_t visible = a.empty() ? 0 : a.back() + 1;
      const auto [all, inner] = Common(a, c, options_.sink, visible - options_.recent);
      const auto k = static_cast<double>(a.size());
      overlap_[at] += static_cast<double>(all) / k / static_cast<double>(groups_);
      overlap_unforced_[at] +=
          static_cast<double>(inner) / std::max(1.0, k - forced) / static_cast<double>(groups_);
    }
  }
}

void LostMass::OnLayer(const Tap& tap) {
  if (!status_.ok() || !Eligible(tap.layer) || tap.rows.count <= first_) return;
  const int j = tap.layer;
  Table& table = answer_ ? answers_ : text_[kind_];
  const Rows rows{tap.rows.first + first_, count_, tap.rows.position + first_};
  stride_ = (rows.position + rows.count + 15) / 16 * 16;
  std::vector<IndexSets>& own = published_[static_cast<size_t>(j)];
  status_ = Rank(tap, MassParams::Source::kExact, own);
  if (!status_.ok()) return;
  std::vector<IndexSets> scan;
  if (tap.kv.layout.low_bit) {
    status_ = Rank(tap, MassParams::Source::kLowBit, scan);
    if (!status_.ok()) return;
  }
  const int64_t masses = count_ * info_.heads * stride_;
  MassParams::Segment segment{.rows = rows,
                              .kv = tap.kv,
                              .rows_per_set = 1,
                              .mass = mass_.Reserve(masses),
                              .mass_stride = stride_};
  ops_.Mass({.source = MassParams::Source::kExact,
             .q = tap.q,
             .scale = scale_,
             .lse = tap.lse,
             .scope = MassScope::kHead,
             .segments = std::span(&segment, 1)});
  head_mass_ = mass_.OnHost(masses, copy_);
  ops_.threads().For(j + 2, [&](int64_t i, int) {
    if (i == j + 1) {
      if (!scan.empty()) Accumulate(table, j, j, scan, table.scan, false);
    } else if (Eligible(static_cast<int>(i))) {
      Accumulate(table, static_cast<int>(i), j, published_[static_cast<size_t>(i)], table.lost,
                 answer_);
      if (!answer_) AddOverlap(static_cast<int>(i), j);
    }
  });
  if (j + 1 == info_.layers || std::none_of(info_.window.begin() + j + 1, info_.window.end(),
                                            [](int64_t w) { return w == 0; })) {
    table.rows += static_cast<double>(count_);  // the last layer that is measured
    if (!answer_) overlap_rows_ += static_cast<double>(count_);
  }
}

Status LostMass::Finish(Profile& profile) const {
  if (!status_.ok()) return status_;
  const auto mean = [](const std::vector<std::vector<double>>& sums, double rows) {
    std::vector<std::vector<float>> m;
    for (const auto& s : sums) {
      m.emplace_back();
      for (double v : s) m.back().push_back(static_cast<float>(rows > 0 ? v / rows : 0));
    }
    return m;
  };
  for (size_t k = 0; k < text_.size(); ++k) {
    profile.kinds[k].text = mean(text_[k].lost, text_[k].rows);
    profile.kinds[k].scan_text = mean(text_[k].scan, text_[k].rows);
  }
  profile.text = MeanOverKinds(profile.kinds, &KindLoss::text);
  profile.answer = mean(answers_.lost, answers_.rows);
  profile.worst = mean(answers_.worst, answers_.rows);
  profile.scan_text = MeanOverKinds(profile.kinds, &KindLoss::scan_text);
  profile.scan_answer = mean(answers_.scan, answers_.rows);
  profile.overlap = mean({overlap_}, overlap_rows_)[0];
  profile.overlap_unforced = mean({overlap_unforced_}, overlap_rows_)[0];
  return Status::Ok();
}

}  // namespace baton
