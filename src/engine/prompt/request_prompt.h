// The prompt of one request, once it has a cache: routed, looked up in the prefix cache, and
// processed pass by pass.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine_impl.h"
#include "engine/prompt/prompt_run.h"
#include "engine/prompt/routing.h"
#include "engine/prompt/routing_ahead.h"
#include "engine/sequence.h"

namespace baton {

// The request's; all of it outlives the prompt.
struct RequestPromptParams {
  const Request* request = nullptr;
  RequestId id = 0;
  const std::vector<CacheSpec>* caches = nullptr;  // of its store
  int64_t rollback = 0;
  bool conversation = false;
  // Holds the first tokens of the prompt, or none. Its cache is filled, its plan routed, its
  // prompt_position kept up to date.
  Sequence* sequence = nullptr;
  // Logits of the last row, or of all rows where the request scores its prompt; as PromptParams's.
  std::function<void(int64_t first, View<const float> logits)> on_logits;
};

class RequestPrompt {
 public:
  RequestPrompt(Engine::Impl& engine, RequestPromptParams params);
  RequestPrompt(const RequestPrompt&) = delete;  // passes point at it

  // One of these first: in an empty cache, or in one that a conversation of `routes` has filled.
  // What the prefix cache has of the prompt is adopted by the first pass.
  Status Start();
  void Continue(std::optional<RoutingReport> routes);

  // Whether it should not step yet: one of `earlier` prompts, which are not done, begins like it
  // for at least a chunk more than is cached, and will keep that. Since prompts wait for earlier
  // ones alone, one of them always runs.
  bool WaitsFor(std::span<RequestPrompt* const> earlier);
  // One pass of the prompt or of what comes before it, or the part of it that PromptRun::Step runs
  // for `row_layers`. Errors: PromptRun::Step's.
  Status Step(int64_t row_layers);
  bool done() const { return run_ && run_->done(); }
  // The next step goes on within a pass.
  bool within_pass() const { return run_ && run_->within_pass(); }
  bool running() const { return run_.has_value(); }
  // What the latest step ran of a forward pass.
  PromptPart ran() const { return ran_; }

  // Tokens that were in the cache before, and what the prefix cache said of it.
  int64_t reused() const { return reused_; }
  const PrefixReport& prefix() const { return prefix_report_; }
  // How the layers were routed; none where nothing is.
  std::optional<RoutingReport> RoutesReport() const;

  // Lets go of its part in the prefix cache, where a prompt that came to its end has left what it
  // filled.
  void End();

 private:
  PrefillOrder DecidedOrder() const;
  void Find(PrefillOrder order);
  void FindPrefix();
  void FindRoutedPrefix(PrefixCache::Query query);
  bool RoutedByRows() const;
  std::string RoutedKey() const;
  void SetLifetimes(const std::string& bitmap);
  void Settle();
  Status Restart();
  Status StepOnce(int64_t row_layers);
  void MakeRun();

  Engine::Impl& engine_;
  const RequestPromptParams params_;
  const Request& request_;
  Sequence& sequence_;
  const ResolvedPlan plan_;  // of a routed request, before it is routed
  int64_t reused_ = 0;
  PromptPart ran_;
  PrefixReport prefix_report_;
  std::unique_ptr<Routing> routing_;          // where the prompt starts its cache
  std::optional<RoutingReport> kept_routes_;  // where it continues one
  std::unique_ptr<RoutingAhead> ahead_;       // decides before the prompt is processed
  std::optional<PrefixCache::Use> prefix_;    // what the prefix cache has of it
  std::string restarted_;                     // why it no longer goes on from there
  bool waited_ = false;                       // more of it may have been cached since
  PrefillOrder order_ = PrefillOrder::kTokenMajor;
  std::shared_ptr<const RoutedPrefix> routed_prefix_;  // that it goes on from
  bool routed_by_rows_ = false;   // its routed layers are decided as their turn comes
  std::optional<PromptRun> run_;  // points into sequence_
};

}  // namespace baton
