#include "profile/kinds.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "profile/measure.h"

namespace baton {
namespace {

double LossWithTextKl(const Candidate& c, double text_kl) {
  const double lost = c.dense_found > 0 ? 1 - static_cast<double>(c.found) / c.dense_found : 0;
  return text_kl + c.answer_kl + 0.2 * std::max(0.0, lost);
}

double LossWithout(const Candidate& c, size_t kind) {
  const double all = std::accumulate(c.kind_kl.begin(), c.kind_kl.end(), 0.0);
  return LossWithTextKl(c, (all - c.kind_kl[kind]) / static_cast<double>(c.kind_kl.size() - 1));
}

constexpr double kMostSpread = 100;  // contexts that differ so much tell nothing

// Student's t that one draw in ten exceeds, by Cornish and Fisher.
double OneInTen(double freedom) {
  constexpr double kNormal = 1.2816, kFirst = 0.8467, kSecond = 0.5709;
  return kNormal + (kFirst + kSecond / freedom) / freedom;
}

double Largest(const std::vector<double>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

}  // namespace

double Candidate::WorstKl() const { return Largest(kind_kl); }
double Candidate::LeftOutKl() const { return Largest(left_out_kl); }

std::vector<float> MeanOverKinds(const std::vector<KindLoss>& kinds,
                                 std::vector<float> KindLoss::*list) {
  std::vector<float> mean((kinds.front().*list).size(), 0);
  for (const KindLoss& kind : kinds) {
    for (size_t i = 0; i < mean.size(); ++i)
      mean[i] += (kind.*list)[i] / static_cast<float>(kinds.size());
  }
  return mean;
}

std::vector<std::vector<float>> MeanOverKinds(const std::vector<KindLoss>& kinds,
                                              std::vector<std::vector<float>> KindLoss::*table) {
  std::vector<std::vector<float>> mean(kinds.front().*table);
  for (size_t r = 0; r < mean.size(); ++r) {
    std::fill(mean[r].begin(), mean[r].end(), 0.0f);
    for (const KindLoss& kind : kinds) {
      for (size_t i = 0; i < mean[r].size(); ++i)
        mean[r][i] += (kind.*table)[r][i] / static_cast<float>(kinds.size());
    }
  }
  return mean;
}

double MeasuredLoss(const Candidate& c) { return LossWithTextKl(c, c.kl); }

const Candidate* BestWithout(const std::vector<Candidate>& candidates, size_t kind,
                             double max_share) {
  const Candidate* best = nullptr;
  for (const Candidate& c : candidates) {
    if (c.bounded_share > max_share) continue;
    if (best == nullptr || LossWithout(c, kind) < LossWithout(*best, kind)) best = &c;
  }
  return best;
}

void SetFigures(const std::vector<PlanMeasure>& contexts, size_t kinds, Candidate& c) {
  PlanMeasure all;
  std::vector<PlanMeasure> of_kind(kinds);
  std::vector<std::vector<double>> context_kl(kinds);
  for (size_t i = 0; i < contexts.size(); ++i) {
    all.Add(contexts[i]);
    of_kind[i % kinds].Add(contexts[i]);
    context_kl[i % kinds].push_back(MeanOf(contexts[i].text_kl).mean);
  }
  for (const PlanMeasure& m : of_kind) c.kind_kl.push_back(MeanOf(m.text_kl).mean);
  c.kl = MeanOf(c.kind_kl).mean;
  c.spread = SpreadOf(context_kl);
  c.answer_kl = MeanOf(all.answer_kl).mean;
  c.top1 = all.text_kl.empty()
               ? 1
               : static_cast<double>(all.same_best) / static_cast<double>(all.text_kl.size());
  c.found = all.found;
  c.dense_found = all.dense_found;
}

double SpreadOf(const std::vector<std::vector<double>>& kinds) {
  double square = 0, freedom = 0, contexts = 0;
  for (const std::vector<double>& kl : kinds) {
    if (kl.size() < 2 || *std::min_element(kl.begin(), kl.end()) <= 0) continue;
    std::vector<double> logs;
    for (const double one : kl) logs.push_back(std::log(one));
    const double mean = MeanOf(logs).mean;
    for (const double one : logs) square += (one - mean) * (one - mean);
    freedom += static_cast<double>(kl.size() - 1);
    contexts = std::max(contexts, static_cast<double>(kl.size()));
  }
  if (freedom == 0) return 1;
  // Of the mean of log-normal values, as a share; twice: the other text's has the same error.
  const double variance = std::expm1(square / freedom) / contexts;
  return std::min(kMostSpread, std::exp(OneInTen(freedom) * std::sqrt(2 * variance)));
}

void LeaveEachKindOut(std::vector<Candidate>& candidates) {
  for (Candidate& c : candidates) {
    const size_t kinds = c.kind_kl.size();
    c.left_out_kl.clear();
    for (size_t k = 0; kinds > 1 && k < kinds; ++k)
      c.left_out_kl.push_back(BestWithout(candidates, k, c.bounded_share)->kind_kl[k]);
  }
}

}  // namespace baton
