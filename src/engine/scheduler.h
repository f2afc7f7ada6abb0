// Requests in progress and the steps that serve them. A step is one forward pass: either a chunk of
// one request's prompt or one decode token of every request that is past its prompt. Prompts and
// decode never share a pass, so a request's logits do not depend on its neighbours.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine_impl.h"
#include "engine/sampler.h"

namespace baton {

// One request from submission to its last token.
class ActiveRequest {
 public:
  ActiveRequest(const Engine::Impl& engine, const Request& request, std::vector<int32_t> prompt,
                std::optional<ResolvedPlan> plan, std::shared_ptr<KvStore> store,
                Engine::OnText on_text);

  bool done() const { return done_; }
  bool in_prompt() const { return prompted_ < static_cast<int64_t>(prompt_.size()); }

  // Continues from a cache that already holds the first `tokens` of this prompt.
  void Adopt(KvSequence sequence, int64_t tokens);
  KvSequence ReleaseSequence() { return std::move(sequence_); }
  std::vector<int32_t> AllTokens() const;
  Generation Finish();

 private:
  friend class Scheduler;
  const ResolvedPlan* plan() const { return plan_ ? &*plan_ : nullptr; }
  void Accept(std::span<const float> logits);
  void Emit(std::string piece, bool last);
  void Stop(Generation::Stop why);

  const Engine::Impl& engine_;
  Request request_;
  std::vector<int32_t> prompt_;
  std::optional<ResolvedPlan> plan_;
  std::shared_ptr<KvStore> store_;
  KvSequence sequence_;
  Engine::OnText on_text_;
  Sampler sampler_;
  StreamDecoder decoder_;
  Watch watch_;
  Generation result_;
  std::string held_;  // text that may turn out to be the start of a stop string
  int64_t prompted_ = 0;
  double kv_bytes_ = 0;
  int64_t decode_steps_ = 0;
  bool done_ = false;
};

class Scheduler {
 public:
  explicit Scheduler(Engine::Impl& engine) : engine_(engine) {}
  void Add(ActiveRequest* request) { requests_.push_back(request); }
  // Until every request is done, or cancelled.
  Status Run();

 private:
  Status PromptStep(ActiveRequest& r);
  Status DecodeStep(std::span<ActiveRequest* const> rows);

  Engine::Impl& engine_;
  std::vector<ActiveRequest*> requests_;
};

}  // namespace baton
