#include "engine/scheduler.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "engine/active_request.h"
#include "engine/decode_step.h"
#include "engine/engine_impl.h"

namespace baton {
Scheduler::Scheduler(Engine::Impl& engine) : engine_(engine) {}
Scheduler::~Scheduler() = default;

int64_t Scheduler::max_pages() const { return PagesOf(engine_.options.kv_tokens); }

RequestId Scheduler::Submit(PreparedRequest prepared, RequestCallbacks callbacks) {
  const std::lock_guard lock(mutex_);
  const RequestId id = ++last_id_;
  submitted_.push_back(
      std::make_unique<ActiveRequest>(engine_, id, std::move(prepared), std::move(callbacks)));
  return id;
}

void Scheduler::Cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  cancelled_.push_back(id);
}

bool Scheduler::Step() {
  BATON_CHECK(!stepping_);
  stepping_ = true;
  TakeInbox();
  FinishDone();  // frees the caches of cancelled requests for those that wait
  AdmitWaiting();
  TrimPrefixes();
  RunPass();
  FinishDone();
  TrimPrefixes();
  stepping_ = false;
  const CacheUse use = CountUse();
  const std::lock_guard lock(mutex_);
  use_ = use;
  return !requests_.empty() || !submitted_.empty();
}

CacheUse Scheduler::cache_use() const {
  const std::lock_guard lock(mutex_);
  return use_;
}

CacheUse Scheduler::CountUse() const {
  CacheUse use{.most_tokens = max_pages() * KvLayout::kSlots};
  for (const auto& r : requests_) {
    if (!r->admitted()) continue;
    ++use.requests;
    use.claimed_tokens += r->claimed_pages() * KvLayout::kSlots;
    use.held_bytes += r->sequence().kv.allocated_bytes();
  }
  return use;
}

void Scheduler::TakeInbox() {
  std::vector<std::unique_ptr<ActiveRequest>> submitted;
  std::vector<RequestId> cancelled;
  {
    const std::lock_guard lock(mutex_);
    submitted.swap(submitted_);
    cancelled.swap(cancelled_);
  }
  for (auto& r : submitted) requests_.push_back(std::move(r));
  const bool all = engine_.cancelled.load(std::memory_order_relaxed);
  for (auto& r : requests_) {
    if (all || std::find(cancelled.begin(), cancelled.end(), r->id()) != cancelled.end()) {
      r->Stop(Generation::Stop::kCancelled);
    }
  }
}

void Scheduler::AdmitWaiting() {
  int64_t used_pages = 0;
  for (const auto& r : requests_) {
    if (r->admitted()) used_pages += r->claimed_pages();
  }
  for (auto& r : requests_) {
    if (r->admitted()) continue;
    if (!Admit(*r, used_pages)) return;  // nobody overtakes: a large request gets its turn
    if (r->admitted()) used_pages += r->claimed_pages();
  }
}

// Admitted requests have pinned what they go on from.
void Scheduler::TrimPrefixes() {
  if (!engine_.prefix) return;
  int64_t pages = PagesOf(conversation_.length());
  for (const auto& r : requests_) {
    if (r->admitted()) pages += r->claimed_pages();
  }
  engine_.prefix->Trim(std::max<int64_t>(0, max_pages() - pages) * KvLayout::kSlots);
}

bool Scheduler::Admit(ActiveRequest& r, int64_t used_pages) {
  const int64_t pages = used_pages + r.claimed_pages();
  if (pages > max_pages()) {
    BATON_CHECK(used_pages > 0);  // alone, every request fits
    return false;
  }
  r.prompt_turn = ++prompt_turn_;
  if (r.conversation()) {
    if (auto start = conversation_.Take(r.plan_hash(), r.sequence().tokens)) {
      r.Admit(*std::move(start));
      return true;
    }
  }
  if (r.conversation() || pages + PagesOf(conversation_.length()) > max_pages())
    conversation_.Drop();
  Result<std::shared_ptr<KvStore>> store = StoreFor(r);
  if (store.ok()) {
    r.Admit(*std::move(store));
  } else {
    r.Fail(std::move(store).error());
  }
  return true;
}

// Requests whose plans need the same caches share a store; all stores together hold no more
// than max_pages(), and each could.
Result<std::shared_ptr<KvStore>> Scheduler::StoreFor(ActiveRequest& r) {
  if (engine_.prefix) {
    if (auto store = engine_.prefix->StoreOf(CachesKey(r.caches(), r.rollback()))) return store;
  }
  for (auto& other : requests_) {
    if (other->admitted() && other->caches() == r.caches() && other->rollback() == r.rollback())
      return other->sequence().store;
  }
  return engine_.Store(r.caches(), r.sequence().kv_limit, r.rollback());
}

// The prompt that has waited longest for its pass; null: none, or all of them wait for others.
ActiveRequest* Scheduler::NextPrompt() {
  ActiveRequest* next = nullptr;
  std::vector<RequestPrompt*> earlier;
  for (auto& r : requests_) {
    if (r->done() || !r->admitted() || !r->in_prompt()) continue;
    const bool waits = r->prompt().WaitsFor(earlier);
    if (!waits && (!next || r->prompt_turn < next->prompt_turn)) next = r.get();
    earlier.push_back(&r->prompt());
  }
  return next;
}

void Scheduler::RunPass() {
  std::vector<ActiveRequest*> decoding, rows;
  for (auto& r : requests_) {
    if (!r->done() && r->admitted() && !r->in_prompt()) decoding.push_back(r.get());
  }
  const int64_t most = engine_.ops->most_decode_rows();
  const auto take_rows = [&] {
    for (ActiveRequest* r : decoding) {
      if (std::ssize(rows) < most && r->decode_round < round_) rows.push_back(r);
    }
  };
  take_rows();
  if (rows.empty()) {  // everybody had a token in this round
    ++round_;
    ActiveRequest* prompt = NextPrompt();
    if (prompt) PromptPass(*prompt, !decoding.empty());
    pace_.BeginRound();
    if (prompt) return;
    take_rows();
  }
  for (ActiveRequest* r : rows) r->decode_round = round_;
  if (!rows.empty()) DecodePass(rows);
}

void Scheduler::PromptPass(ActiveRequest& r, bool others_decode) {
  const auto start = std::chrono::steady_clock::now();
  r.PromptPass(others_decode ? pace_.Budget(engine_.options.prompt_share) : kWholePass);
  if (others_decode) pace_.Ran(r.prompt().ran(), SecondsSince(start));
  if (!r.prompt().within_pass()) r.prompt_turn = ++prompt_turn_;
}

void Scheduler::DecodePass(std::span<ActiveRequest* const> requests) {
  const auto start = std::chrono::steady_clock::now();
  const int64_t most = engine_.ops->most_decode_rows();
  DecodeStep step;
  std::vector<ActiveRequest*> parts;
  for (ActiveRequest* r : requests) {
    Sequence& s = r->sequence();
    const DecodeStep::Part part = r->NextPart();
    const int64_t rows = std::ssize(part.tokens);
    if (step.rows() + rows > most) {  // its turn comes with the next pass
      r->decode_round--;
      continue;
    }
    Status room = s.CheckLimit(s.kv.length() + rows);
    if (room.ok()) room = step.Add(part);
    if (!room.ok()) {  // it ends and takes no part
      r->Fail(std::move(room).error());
      continue;
    }
    s.watch.steps++;
    parts.push_back(r);
  }
  if (parts.empty()) return;
  // Requests whose row failed end; the rows of others are what they would be without them.
  step.Sample(
      *engine_.model,
      {.before = [&](size_t part, std::span<SampleRow> rows) { parts[part]->PrepareRows(rows); },
       .after = [&](size_t part, std::span<const SampledRow> sampled,
                    View<const float> logits) { parts[part]->Accept(sampled, logits); }});
  const double seconds = SecondsSince(start);
  pace_.Decoded(seconds);
  for (size_t i = 0; i < parts.size(); ++i) {
    if (step.failure(i).failed()) parts[i]->FailPart(step.failure(i).ToError());
    const double share = static_cast<double>(step.rows(i)) / static_cast<double>(step.rows());
    if (!parts[i]->failed()) parts[i]->Advance(seconds, share);
  }
}

void Scheduler::FinishDone() {
  std::vector<std::unique_ptr<ActiveRequest>> done;
  for (auto& r : requests_) {
    if (r->done()) done.push_back(std::move(r));
  }
  std::erase(requests_, nullptr);
  for (auto& r : done) {
    r->CountCache();
    Sequence& s = r->sequence();
    if (r->conversation() && s.store && !r->failed()) {
      // Of a prompt that was interrupted, what its passes completed.
      const int64_t done = r->in_prompt() ? s.prompt_position : s.kv.length();
      conversation_.Keep(s, std::min(done, s.kv.length()), r->plan_hash(), r->routing());
    }
    r->Finish();
  }
}

}  // namespace baton
