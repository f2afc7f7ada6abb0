// What exact requests take (docs/exact.md), from passes timed on a synthetic cache.
#pragma once

#include "engine/draft_length.h"
#include "engine/session.h"

namespace baton {

// Of verifications that are timed; what lies between them is expected on straight lines.
constexpr int64_t kVerifyRows[] = {2, 3, 4, 6, 8};

class ExactPricer {
 public:
  // Times dense passes with so many keys. Memory: one cache of that length.
  static Result<ExactPricer> Create(Engine& engine, int64_t keys);

  // Expected time per token, in dense passes, where a draft takes this share of one and this share
  // of the drafts is accepted. 1: no number of drafts pays.
  double Expect(double draft, double accepted) const;
  // The same of a plan whose steps are timed beside dense ones.
  Result<double> Price(const ResolvedPlan& plan, double accepted);

 private:
  ExactPricer(Engine& engine, Session session) : engine_(&engine), session_(std::move(session)) {}

  Engine* engine_;
  Session session_;
  PassTimes times_;  // without drafts
};

}  // namespace baton
