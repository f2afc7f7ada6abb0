// Routing decided before the prompt is processed, in a cache of its own that is thrown away: from
// the prompt's first and last rows alone (probe), or by an exact pass (two_pass). The prompt then
// runs in chunks under decided layers.
#pragma once

#include <memory>
#include <vector>

#include "engine/prompt/prompt_run.h"
#include "engine/prompt/routing.h"

namespace baton {

class RoutingAhead {
 public:
  // `tokens`: the whole prompt. Errors: no memory for the cache.
  static Result<std::unique_ptr<RoutingAhead>> Create(Engine::Impl& engine,
                                                      const RouteOptions& options,
                                                      std::span<const int32_t> tokens,
                                                      const ResolvedPlan& plan);
  // Nothing is left to decide, or no layer.
  bool done() const { return run_->done() || !routing_->open(); }
  Status Step(int64_t row_layers = kWholePass);  // PromptRun::Step
  PromptPart ran() const { return run_->ran(); }
  const Routing& routing() const { return *routing_; }

 private:
  RoutingAhead() = default;

  std::vector<int32_t> tokens_;
  ResolvedPlan plan_;
  std::shared_ptr<KvStore> store_;
  KvSequence kv_;
  std::unique_ptr<Routing> routing_;
  std::unique_ptr<PromptRun> run_;
};

}  // namespace baton
