#include "profile/exact_price.h"

#include <algorithm>

#include "engine/engine_impl.h"
#include "profile/measure.h"
#include "profile/time_pass.h"

namespace baton {
namespace {

constexpr int kRounds = 5;

}  // namespace

Result<ExactPricer> ExactPricer::Create(Engine& engine, int64_t keys) {
  std::vector<CacheSpec> caches = engine.impl().model_plan.caches;
  for (CacheSpec& c : caches) c.low_bit = engine.info().head_dim % 32 == 0;
  BATON_ASSIGN(Session session, Session::Create(engine, caches, keys + kMostDrafts + 1));
  BATON_TRY(session.FillSynthetic(keys, 1));
  ExactPricer pricer(engine, std::move(session));
  std::vector<double> dense, rows;
  std::array<std::vector<double>, std::size(kVerifyRows)> seconds;
  for (int round = -1; round < kRounds; ++round) {  // -1 warms up
    BATON_ASSIGN(const double one, TimePass(engine, pricer.session_, nullptr, 1));
    if (round >= 0) dense.push_back(one);
    for (size_t i = 0; i < seconds.size(); ++i) {
      BATON_ASSIGN(const double several,
                   TimePass(engine, pricer.session_, nullptr, kVerifyRows[i]));
      if (round >= 0) seconds[i].push_back(several);
    }
  }
  pricer.times_.Verified(1, Median(dense));
  for (size_t i = 0; i < seconds.size(); ++i)
    pricer.times_.Verified(kVerifyRows[i], Median(seconds[i]));
  return pricer;
}

Result<double> ExactPricer::Price(const ResolvedPlan& plan, double accepted) {
  std::vector<double> share;
  for (int round = -1; round < kRounds; ++round) {
    BATON_ASSIGN(const double dense, TimePass(*engine_, session_, nullptr, 1));
    BATON_ASSIGN(const double planned, TimePass(*engine_, session_, &plan, 1));
    if (round >= 0) share.push_back(planned / dense);
  }
  return Expect(Median(share), accepted);
}

double ExactPricer::Expect(double draft, double accepted) const {
  PassTimes times = times_;
  times.Drafted(times.dense_seconds() * draft);
  const int64_t drafts = CheapestDrafts(times, /*free=*/false, accepted, kMostDrafts);
  return DraftCost(times, /*free=*/false, accepted, drafts);
}

}  // namespace baton
