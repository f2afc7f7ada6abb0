// One request from submission to its last token: its sequence, its sampler and its text.
#pragma once

#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/conversation.h"
#include "engine/decode_step.h"
#include "engine/engine_impl.h"
#include "engine/exact.h"
#include "engine/prompt/request_prompt.h"
#include "engine/sampler.h"
#include "engine/sequence.h"

namespace baton {

// A request that passed its checks.
struct PreparedRequest {
  Request request;
  std::vector<int32_t> tokens;  // of the prompt
  ResolvedPlan plan;
  int64_t kv_tokens = 0;  // the most positions of cache it may use
  int64_t rollback = 0;   // tokens by which its cache is cut back
  // Continues from, and becomes, the engine's conversation (chat requests of Engine::Generate).
  bool conversation = false;
};

class ActiveRequest {
 public:
  ActiveRequest(Engine::Impl& engine, RequestId id, PreparedRequest prepared,
                RequestCallbacks callbacks);

  RequestId id() const { return id_; }
  Sequence& sequence() { return sequence_; }
  // What its store must offer: the plan's caches as they were submitted.
  const std::vector<CacheSpec>& caches() const { return caches_; }
  int64_t rollback() const { return rollback_; }
  // The plan as it was submitted, and how it is routed.
  const std::string& plan_hash() const { return plan_hash_; }
  // Pages of cache that are set aside for it from admission on: all that it may ever use.
  int64_t claimed_pages() const { return PagesOf(sequence_.kv_limit); }
  bool conversation() const { return conversation_; }

  bool done() const { return done_; }
  bool failed() const { return error_.has_value(); }
  bool admitted() const { return admitted_; }
  bool in_prompt() const { return !prompt_ || !prompt_->done(); }

  // Gives it a cache: an empty one of `store`, or one that already holds the first `length` tokens
  // of its prompt.
  void Admit(std::shared_ptr<KvStore> store);
  void Admit(Conversation::Start start);

  // RequestPrompt::Step. A failure ends the request.
  void PromptPass(int64_t row_layers);
  // Once admitted.
  RequestPrompt& prompt() { return *prompt_; }

  // Its rows of the next decode pass: the newest token, or, where it drafts, the newest draft or
  // all rows of a verification. The part points into this object.
  DecodeStep::Part NextPart();
  // Before the pass: how the rows of that part pick their tokens, each as if the drafts before it
  // were right. The rows point into this object.
  void PrepareRows(std::span<SampleRow> rows);
  // After the pass: what they picked, and the rows' logits, [n, vocab] on the host, where the
  // request wants them. Runs no callbacks.
  void Accept(std::span<const SampledRow> sampled, View<const float> logits);
  // The pass could not compute its part.
  void FailPart(Error error);
  // After the pass: picked tokens become text, one of them perhaps the last. `share`: its rows of
  // the pass's.
  void Advance(double seconds, double share);

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
  // A token, and what the logits that it was picked from were.
  struct Picked {
    int32_t token = 0;  // kNothing: the constraint says that the answer is complete
    std::string hash;
    Generation::Logprobs logprobs;
  };
  // What may follow the newest token and some drafts, as the constraint has it.
  struct Choice {
    // kStuck: the answer is not complete, and no token can follow. kRuledOut: a draft is not what
    // the constraint allows.
    enum class State { kOpen, kComplete, kStuck, kRuledOut };
    State state = State::kOpen;
    std::optional<Error> error;  // kStuck
    std::vector<uint32_t> mask;  // kOpen, with a constraint
    std::vector<SampleEntry> entries;
  };
  void Emit(std::string piece, bool last);
  void CountDecode(double seconds, const ResolvedPlan& plan);
  void PrepareChoices(size_t count);
  Choice Constrain(size_t drafts);
  SampleRow RowAfter(size_t drafts);
  bool TellPick(size_t drafts, int32_t token);
  // `logits` may be empty where the request wants no log-probabilities.
  void Pick(size_t drafts, const SampledRow& sampled, std::span<const float> logits);
  void FailPick(Error error);
  void PromptLogits(int64_t first, View<const float> logits);
  void AdvanceByPicked();
  void AdvanceBy(Picked& picked);
  int64_t DraftRoom() const;
  void Draft(const SampledRow& sampled);
  // Whether a control token, which has no text of its own in the answer, completes a stop string;
  // what that string had held back is dropped.
  bool CompletesStop(int32_t token);
  void Send(const std::string& text);
  void Begin(std::shared_ptr<KvStore> store, KvSequence kv, int64_t length);

  Engine::Impl& engine_;
  const RequestId id_;
  const Request request_;
  const std::vector<CacheSpec> caches_;
  const int64_t rollback_;
  const std::string plan_hash_;
  const bool conversation_;
  RequestCallbacks callbacks_;
  Sequence sequence_;
  bool admitted_ = false;
  std::optional<RequestPrompt> prompt_;  // points at this
  Sampler sampler_;
  StreamDecoder decoder_;
  std::vector<Picked> picked_;                   // by Accept, not yet seen by Advance
  std::unique_ptr<ConstraintState> constraint_;  // has seen what was picked, and told_ drafts
  int told_ = 0;
  std::deque<Choice> choices_;  // of this turn, by the number of drafts; rows point into them
  std::optional<ExactDrafts> exact_;
  std::vector<int32_t> rows_;  // of the pass at hand: a draft's, or a verification's
  bool verifying_ = false;
  int64_t base_ = 0;  // positions of the cache that are dense decoding's own
  Generation result_;
  std::optional<Error> error_;
  std::string held_;  // text that may turn out to be the start of a stop string
  double kv_bytes_ = 0, dense_kv_bytes_ = 0;
  int64_t decode_steps_ = 0;
  bool done_ = false;
};

}  // namespace baton
