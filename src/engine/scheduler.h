// Requests in progress and the steps that serve them. A step is one forward pass: either one pass
// of one request's prompt, or a part of it, or one decode token of up to Ops::most_decode_rows()
// requests. Prompts and decode never share a pass, so a request's logits do not depend on its
// neighbours.
//
// Turns: in a round every request past its prompt gets one token; between two rounds runs one
// prompt pass, of the request that has waited longest, so that several prompts advance together.
// Where others decode, it runs in parts with rounds between them (engine/prompt/prompt_pace.h): a
// prompt of any length delays the tokens of others by a share of the time.
//
// Admission: a request starts when all the cache that it may ever need can be set aside for it,
// in order of arrival. What it needs does not depend on others, so no request fails because of its
// neighbours.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "baton/engine.h"
#include "engine/conversation.h"
#include "engine/prompt/prompt_pace.h"

namespace baton {

class ActiveRequest;
class KvStore;
struct PreparedRequest;

class Scheduler {
 public:
  explicit Scheduler(Engine::Impl& engine);
  ~Scheduler();  // requests in progress go without a callback
  Scheduler(const Scheduler&) = delete;

  // From any thread, callbacks included; seen by the next step.
  RequestId Submit(PreparedRequest prepared, RequestCallbacks callbacks);
  void Cancel(RequestId id);  // unknown and finished requests are ignored

  // At most one forward pass. False when no request is left. Callbacks run on the calling thread,
  // never within a forward pass. Not reentrant, one thread at a time.
  bool Step();
  bool stepping() const { return stepping_; }
  CacheUse cache_use() const;  // from any thread

  // Most pages that all requests together may use.
  int64_t max_pages() const;

 private:
  void TakeInbox();
  void AdmitWaiting();
  // False when the request has to wait for others to end. A store that cannot be made fails it.
  bool Admit(ActiveRequest& r, int64_t used_pages);
  Result<std::shared_ptr<KvStore>> StoreFor(ActiveRequest& r);
  void RunPass();
  ActiveRequest* NextPrompt();
  void PromptPass(ActiveRequest& r, bool others_decode);
  void DecodePass(std::span<ActiveRequest* const> requests);
  void FinishDone();
  CacheUse CountUse() const;
  // What the prefix cache may hold beside requests.
  void TrimPrefixes();

  Engine::Impl& engine_;
  // In order of arrival; those that are not admitted wait for cache.
  std::vector<std::unique_ptr<ActiveRequest>> requests_;
  int64_t round_ = 0, prompt_turn_ = 0;
  PromptPace pace_;
  Conversation conversation_;
  bool stepping_ = false;

  mutable std::mutex mutex_;  // guards what follows
  RequestId last_id_ = 0;
  std::vector<std::unique_ptr<ActiveRequest>> submitted_;
  std::vector<RequestId> cancelled_;
  CacheUse use_;
};

}  // namespace baton
