// Requests of the public API: checked, given a cache, run by the scheduler.
#include <algorithm>

#include "baton/engine.h"
#include "engine/scheduler.h"

namespace baton {
namespace {

Result<std::vector<int32_t>> PromptTokens(const Engine& engine, const Engine::Impl& impl,
                                          const Request& r) {
  const int given = !r.prompt.empty() + !r.tokens.empty() + !r.chat.empty();
  if (given != 1) {
    return Error::InvalidArgument("a request needs one of prompt, tokens or chat, got {}", given)
        .Hint("an empty prompt gives the model nothing to continue");
  }
  std::vector<int32_t> tokens = r.tokens;
  if (!r.prompt.empty()) tokens = engine.Tokenize(r.prompt, true, true);
  if (!r.chat.empty()) {
    BATON_ASSIGN(std::string text, engine.RenderChat(r.chat));
    tokens = engine.Tokenize(text, true, true);
  }
  if (tokens.empty())
    return Error::InvalidArgument("the prompt has no tokens").Hint("give some text");
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= impl.info.vocab) {
      return Error::InvalidArgument("token {} at position {} is outside the vocabulary of {}",
                                    tokens[i], i, impl.info.vocab);
    }
  }
  const auto n = static_cast<int64_t>(tokens.size());
  if (n > impl.options.context) {
    return Error::InvalidArgument("the prompt has {} tokens, the context holds {}", n,
                                  impl.options.context)
        .Hint(fmt::format("shorten the prompt or raise --context (the model was made for {})",
                          impl.info.context));
  }
  return tokens;
}

struct Prepared {
  std::vector<int32_t> tokens;
  std::optional<ResolvedPlan> plan;
  int64_t room = 0;  // tokens of cache it may need
};

Result<Prepared> Prepare(const Engine& engine, const Engine::Impl& impl, const Request& r) {
  Prepared p;
  BATON_TRY(CheckSampling(r.sampling));
  if (r.max_tokens < 0)
    return Error::InvalidArgument("max tokens must be 0 or more, got {}", r.max_tokens);
  BATON_ASSIGN(p.tokens, PromptTokens(engine, impl, r));
  if (r.plan) {
    BATON_ASSIGN(p.plan, impl.ResolvePlan(*r.plan, nullptr));
  }
  const auto prompt = static_cast<int64_t>(p.tokens.size());
  p.room = prompt + std::min(impl.options.context - prompt, r.max_tokens);
  return p;
}

}  // namespace

Result<Generation> Engine::Generate(const Request& request, const OnText& on_text) {
  BATON_ASSIGN(Prepared p, Prepare(*this, *impl_, request));
  const ResolvedPlan* plan = p.plan ? &*p.plan : nullptr;
  // A conversation continues in its own cache: the common prefix is kept when the same plan made
  // it.
  Impl::Conversation& last = impl_->conversation;
  const std::string plan_hash = plan ? plan->hash : "";
  const bool keep = !request.chat.empty() && last.store && last.plan_hash == plan_hash &&
                    last.store->free_tokens() + last.sequence.length() >= p.room;
  if (!keep) {
    last.sequence = {};  // before its store
    last = {};
  }
  std::shared_ptr<KvStore> store = last.store;
  if (!store) {
    BATON_ASSIGN(store, impl_->Store(impl_->LowBitLayers(plan), p.room));
  }
  ActiveRequest active(*impl_, request, p.tokens, p.plan, store, on_text);
  if (keep) {
    const size_t most = std::min(last.tokens.size(), p.tokens.size() - 1);
    size_t common = 0;
    while (common < most && last.tokens[common] == p.tokens[common]) ++common;
    active.Adopt(std::move(last.sequence), static_cast<int64_t>(common));
    last = {};  // a request that fails leaves no conversation behind
  }
  Scheduler scheduler(*impl_);
  if (request.max_tokens > 0) {
    scheduler.Add(&active);
    BATON_TRY(scheduler.Run());
  }
  if (!request.chat.empty()) {
    std::vector<int32_t> tokens = active.AllTokens();
    last.sequence = active.ReleaseSequence();
    last.store = store;
    last.tokens = std::move(tokens);
    last.plan_hash = plan_hash;
  }
  return active.Finish();
}

Result<std::vector<Generation>> Engine::GenerateBatch(std::span<const Request> requests) {
  std::vector<Prepared> prepared;
  std::vector<bool> low_bit(static_cast<size_t>(impl_->info.layers), false);
  int64_t room = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    Result<Prepared> p = Prepare(*this, *impl_, requests[i]);
    if (!p.ok()) return std::move(p).error().At(fmt::format("request {}", i));
    const std::vector<bool> needs = impl_->LowBitLayers(p->plan ? &*p->plan : nullptr);
    for (size_t l = 0; l < needs.size(); ++l) low_bit[l] = low_bit[l] || needs[l];
    room += (p->room + KvLayout::kSlots) / KvLayout::kSlots * KvLayout::kSlots;
    prepared.push_back(std::move(p).value());
  }
  BATON_ASSIGN(std::shared_ptr<KvStore> store, impl_->Store(low_bit, room));
  Scheduler scheduler(*impl_);
  std::vector<std::unique_ptr<ActiveRequest>> active;
  for (size_t i = 0; i < requests.size(); ++i) {
    active.push_back(std::make_unique<ActiveRequest>(*impl_, requests[i],
                                                     std::move(prepared[i].tokens),
                                                     std::move(prepared[i].plan), store, nullptr));
    if (requests[i].max_tokens > 0) scheduler.Add(active.back().get());
  }
  BATON_TRY(scheduler.Run());
  std::vector<Generation> results;
  for (auto& a : active) results.push_back(a->Finish());
  return results;
}

}  // namespace baton
