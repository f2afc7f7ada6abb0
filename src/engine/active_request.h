// One request from submission to its last token: its sequence, its sampler and its text.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine_impl.h"
#include "engine/prompt_run.h"
#include "engine/routing_ahead.h"
#include "engine/sampler.h"
#include "engine/sequence.h"

namespace baton {

// A request that passed its checks.
struct PreparedRequest {
  Request request;
  std::vector<int32_t> tokens;  // of the prompt
  ResolvedPlan plan;
  int64_t kv_tokens = 0;  // the most positions of cache it may use
  // Continues from, and becomes, the engine's conversation (chat requests of Engine::Generate).
  bool conversation = false;
};

// Not (tokens + 63) / 64: a request may ask for a count near the end of the range.
inline int64_t PagesOf(int64_t tokens) {
  return tokens / KvLayout::kSlots + (tokens % KvLayout::kSlots != 0);
}

class ActiveRequest {
 public:
  ActiveRequest(Engine::Impl& engine, RequestId id, PreparedRequest prepared,
                RequestCallbacks callbacks);

  RequestId id() const { return id_; }
  Sequence& sequence() { return sequence_; }
  // What its store must offer: the plan's caches as they were submitted.
  const std::vector<CacheSpec>& caches() const { return caches_; }
  // The plan as it was submitted, and how it is routed.
  const std::string& plan_hash() const { return plan_hash_; }
  // Pages of cache that are set aside for it from admission on: all that it may ever use.
  int64_t claimed_pages() const { return PagesOf(sequence_.kv_limit); }
  bool conversation() const { return conversation_; }
  bool chat() const { return !request_.chat.empty(); }

  bool done() const { return done_; }
  bool failed() const { return error_.has_value(); }
  bool admitted() const { return admitted_; }
  bool in_prompt() const { return ahead_ || (prompt_ && !prompt_->done()); }

  // Gives it a cache: an empty one of `store`, or one that already holds the first `length` tokens
  // of its prompt.
  void Admit(std::shared_ptr<KvStore> store);
  // `routed`: the plan that routing made of this request's plan when the cache was filled, which
  // `report` tells about; none for requests that are not routed.
  void Admit(std::shared_ptr<KvStore> store, KvSequence kv, int64_t length,
             const ResolvedPlan& routed, std::optional<RoutingReport> report);

  // One pass of its prompt. A failure ends the request.
  void PromptPass();
  // Hashes the logits of its newest position and picks a token. Calls nobody back, so it may run
  // within a forward pass.
  void Accept(std::span<const float> logits);
  // After the pass: the picked token becomes text and perhaps the last one.
  void Advance();
  // Of a decode pass that it was part of.
  void CountDecode(double seconds);

  void Stop(Generation::Stop why);  // no effect on a request that is done
  void Fail(Error error);           // likewise
  // What its cache holds, and how its layers were routed, goes into the statistics. Once, when
  // done, before a conversation takes the cache.
  void CountCache();
  const std::optional<RoutingReport>& routing() const { return result_.stats.routing; }
  // Hands out what it held back, frees the cache and calls on_done. Once, when done.
  void Finish();

  // Owned by the scheduler: the round of its latest token, and its place among prompts.
  int64_t decode_round = 0, prompt_turn = 0;

 private:
  void Emit(std::string piece, bool last);
  // Whether a control token, which has no text of its own in the answer, completes a stop string;
  // what that string had held back is dropped.
  bool CompletesStop(int32_t token);
  void Send(const std::string& text);
  void Begin(std::shared_ptr<KvStore> store, KvSequence kv, int64_t length);
  Status StartRouting();
  void StartPrompt(PrefillOrder order);
  Status StepPrompt();

  Engine::Impl& engine_;
  const RequestId id_;
  const Request request_;
  const std::vector<CacheSpec> caches_;
  const std::string plan_hash_;
  const bool conversation_;
  RequestCallbacks callbacks_;
  Sequence sequence_;
  bool admitted_ = false;
  std::unique_ptr<Routing> routing_;          // of a routed request whose prompt starts its cache
  std::optional<RoutingReport> kept_routes_;  // of one that continues a cache
  std::unique_ptr<RoutingAhead> ahead_;       // decides before the prompt is processed
  std::optional<PromptRun> prompt_;           // points into sequence_
  Sampler sampler_;
  StreamDecoder decoder_;
  std::optional<int32_t> picked_;  // by Accept, not yet seen by Advance
  Generation::Logprobs picked_logprobs_;
  Generation result_;
  std::optional<Error> error_;
  std::string held_;  // text that may turn out to be the start of a stop string
  double kv_bytes_ = 0, dense_kv_bytes_ = 0;
  int64_t decode_steps_ = 0;
  bool done_ = false;
};

}  // namespace baton
