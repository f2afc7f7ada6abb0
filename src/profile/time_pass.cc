#include "profile/time_pass.h"

#include <chrono>
#include <numeric>
#include <vector>

#include "base/clock.h"
#include "engine/decode_step.h"
#include "engine/engine_impl.h"

namespace baton {

Result<double> TimePass(Engine& engine, Session& session, const ResolvedPlan* plan, int64_t rows) {
  std::vector<int32_t> tokens(static_cast<size_t>(rows));
  std::iota(tokens.begin(), tokens.end(), 1);
  const int64_t length = session.length();
  Engine::Impl& impl = engine.impl();
  const auto start = std::chrono::steady_clock::now();
  DecodeStep step;
  BATON_TRY(step.Add({.kv = &session.sequence(),
                      .plan = plan ? plan : &impl.model_plan,
                      .tokens = tokens,
                      .rows_alone = rows > 1}));
  step.Sample(*impl.model, {});
  const double seconds = SecondsSince(start);
  if (step.failure(0).failed()) return step.failure(0).ToError();
  session.Truncate(length);
  return seconds;
}

}  // namespace baton
