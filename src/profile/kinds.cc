#include "profile/kinds.h"

#include <algorithm>
#include <numeric>

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

void LeaveEachKindOut(std::vector<Candidate>& candidates) {
  for (Candidate& c : candidates) {
    const size_t kinds = c.kind_kl.size();
    c.left_out_kl.clear();
    for (size_t k = 0; kinds > 1 && k < kinds; ++k)
      c.left_out_kl.push_back(BestWithout(candidates, k, c.bounded_share)->kind_kl[k]);
  }
}

}  // namespace baton
