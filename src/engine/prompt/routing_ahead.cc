#include "engine/prompt/routing_ahead.h"

namespace baton {

Result<std::unique_ptr<RoutingAhead>> RoutingAhead::Create(Engine::Impl& engine,
                                                           const RouteOptions& options,
                                                           std::span<const int32_t> tokens,
                                                           const ResolvedPlan& plan) {
  auto ahead = std::unique_ptr<RoutingAhead>(new RoutingAhead());
  const int64_t pool = engine.router ? engine.router->settings.pool : 1;
  const auto total = static_cast<int64_t>(tokens.size());
  const bool probe = options.mode == RouteOptions::Mode::kProbe && total > 2 * pool;
  if (probe) {
    ahead->tokens_.assign(tokens.begin(), tokens.begin() + pool);
    ahead->tokens_.insert(ahead->tokens_.end(), tokens.end() - pool, tokens.end());
  } else {
    ahead->tokens_.assign(tokens.begin(), tokens.end());
  }
  ahead->plan_ = plan;
  // Passes are layers here, and lists live for one pass: layers that are not routed attend as the
  // model defines them.
  ahead->plan_.prefill = {};
  BATON_ASSIGN(ahead->store_,
               engine.NewStore(plan.caches, static_cast<int64_t>(ahead->tokens_.size())));
  ahead->kv_ = ahead->store_->NewSequence();
  RouteOptions exact = options;
  exact.mode = RouteOptions::Mode::kExact;
  const Router* router = engine.router ? &*engine.router : nullptr;
  ahead->routing_ =
      std::make_unique<Routing>(engine, router, exact, ahead->tokens_, &ahead->plan_, &ahead->kv_);
  // The rows of a probe keep the positions that they have in the prompt.
  PromptParams params{.tokens = ahead->tokens_,
                      .kv = &ahead->kv_,
                      .plan = &ahead->plan_,
                      .order = PrefillOrder::kLayerMajor,
                      .routing = ahead->routing_.get(),
                      .only_decide = true};
  if (probe) params.gap_at = pool, params.gap = total - 2 * pool;
  ahead->run_ = std::make_unique<PromptRun>(engine, std::move(params));
  return ahead;
}

Status RoutingAhead::Step(int64_t row_layers) { return run_->Step(row_layers); }

}  // namespace baton
