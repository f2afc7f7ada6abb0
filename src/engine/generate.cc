// Requests of the public API: checked, then run by the scheduler.
#include <algorithm>

#include "baton/engine.h"
#include "engine/active_request.h"
#include "engine/engine_impl.h"
#include "engine/prompt/routing.h"

namespace baton {
namespace {

Result<std::vector<int32_t>> PromptTokens(const Engine& engine, const Engine::Impl& impl,
                                          const Request& r) {
  const int given = !r.prompt.empty() + !r.tokens.empty() + !r.chat.empty();
  if (given != 1) {
    return Error::InvalidArgument("a request needs one of prompt, tokens or chat, got {}", given)
        .Hint("an empty prompt gives the model nothing to continue");
  }
  if (r.tokens.empty() && !impl.info.has_tokenizer)
    return Error::NotFound("{}: the model has no tokenizer", impl.info.path)
        .Hint("give token ids instead of text");
  std::vector<int32_t> tokens = r.tokens;
  if (!r.prompt.empty()) tokens = engine.Tokenize(r.prompt, true, true);
  if (!r.chat.empty()) {
    BATON_ASSIGN(ChatPrompt prompt, engine.MakeChatPrompt(r.chat, r.chat_options));
    tokens = std::move(prompt.tokens);
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

// The plan that a request runs under; its routed layers are still open.
Result<ResolvedPlan> PlanOf(const Engine::Impl& impl, const Request& r) {
  if (!r.plan && !r.route) return impl.model_plan;
  Plan plan = r.plan ? *r.plan : Plan::Dense(impl.info.layers);
  const bool names = std::any_of(plan.layers.begin(), plan.layers.end(),
                                 [](const LayerRole& l) { return l.role == Role::kRoute; });
  if (!r.route) return impl.ResolveUnrouted(plan);
  BATON_TRY(CheckRouteOptions(*r.route, impl.info.layers));
  if (impl.shape().trained_sparse())
    return Error::Unsupported("a {} model has its own attention; its layers cannot be routed",
                              impl.info.architecture);
  if (!names && r.plan)
    return Error::InvalidArgument("the plan names no layer of role route")
        .Hint("leave out --plan to route every layer");
  if (!names)
    plan = RouteEveryLayer(impl.shape(), impl.router ? impl.router->settings : RouterSettings{});
  if (!impl.router && (r.route->mask.empty() || r.route->mask.find('?') != std::string::npos))
    return Error::InvalidArgument("routing needs a router, or a mask that decides every layer")
        .Hint("give --router FILE");
  const std::string& mask = r.route->mask;
  for (size_t l = 0; l < std::min(mask.size(), plan.layers.size()); ++l) {
    if (mask[l] == 'S' && plan.layers[l].role != Role::kRoute)
      return Error::InvalidArgument(
                 "routing: the mask makes layer {} a window, which is {} and not routed", l,
                 r.plan ? ToString(plan.layers[l].role) : "limited by the model")
          .Hint("give F or ? there");
  }
  const bool layer_major =
      r.route->mode == RouteOptions::Mode::kExact || r.route->mode == RouteOptions::Mode::kDense;
  if (plan.prefill.sparse && layer_major)
    return Error::Unsupported("a plan with sparse prompts cannot be routed layer by layer")
        .Hint("use the prompt mode two_pass or probe");
  return impl.ResolvePlan(plan, nullptr);
}

// Dense decoding decides: prompts are dense, and routed layers keep their caches.
Status PrepareExact(const Engine::Impl& impl, Request* r) {
  ExactOptions& exact = *r->exact;
  if (exact.most_drafts < 1 || exact.most_drafts > kMostDrafts)
    return Error::InvalidArgument("exact: drafts per verification are 1 to {}, got {}", kMostDrafts,
                                  exact.most_drafts);
  exact.plan = exact.plan && (r->plan || r->route);
  if (!exact.plan && !exact.lookup)
    return Error::InvalidArgument("exact: nothing drafts")
        .Hint("give a plan (--plan FILE), routed layers, or --draft lookup");
  if (exact.lookup && impl.info.vocab >= int64_t{1} << 21)
    return Error::Unsupported("prompt lookup needs a vocabulary below 2^21, got {}",
                              impl.info.vocab);
  if (r->route) r->route->mode = RouteOptions::Mode::kDense;
  return Status::Ok();
}

Result<PreparedRequest> Prepare(const Engine& engine, const Engine::Impl& impl, Request r) {
  PreparedRequest p;
  if (!impl.options.weights)
    return Error::InvalidArgument("the engine was loaded without weights, it cannot generate");
  BATON_TRY(CheckSampling(r.sampling, impl.info.vocab));
  if (r.max_tokens < 0)
    return Error::InvalidArgument("max tokens must be 0 or more, got {}", r.max_tokens);
  BATON_ASSIGN(p.tokens, PromptTokens(engine, impl, r));
  if (r.exact) BATON_TRY(PrepareExact(impl, &r));
  BATON_ASSIGN(p.plan, PlanOf(impl, r));
  const auto prompt = static_cast<int64_t>(p.tokens.size());
  const int64_t most = impl.options.kv_tokens;
  if (prompt > most) {
    return Error::Resource("KV cache: the prompt has {} tokens, the cache holds {}", prompt, most)
        .Hint("shorten the prompt or raise the engine's kv_tokens");
  }
  p.kv_tokens = std::min(most, prompt + std::min(impl.options.context - prompt, r.max_tokens));
  if (r.exact) p.rollback = kMostDrafts + 1;
  p.request = std::move(r);
  return p;
}

Status CheckNotStepping(const Scheduler& scheduler) {
  if (!scheduler.stepping()) return Status::Ok();
  return Error::InvalidArgument("a request's callback cannot wait for another request")
      .Hint("submit the request instead");
}

}  // namespace

Result<RequestId> Engine::Submit(Request request, RequestCallbacks callbacks) {
  BATON_ASSIGN(PreparedRequest p, Prepare(*this, *impl_, std::move(request)));
  return impl_->scheduler.Submit(std::move(p), std::move(callbacks));
}

Status Engine::CheckRequest(const Request& request) const {
  BATON_ASSIGN([[maybe_unused]] PreparedRequest p, Prepare(*this, *impl_, request));
  return Status::Ok();
}

Result<std::shared_ptr<const Constraint>> Engine::CompileGrammar(const GrammarSpec& spec) const {
  if (!impl_->info.has_tokenizer)
    return Error::NotFound("{}: the model has no tokenizer", impl_->info.path)
        .Hint("a grammar needs the texts of tokens");
  return impl_->grammars->Compile(spec);
}

CacheUse Engine::cache_use() const { return impl_->scheduler.cache_use(); }
bool Engine::Step() { return impl_->scheduler.Step(); }
void Engine::CancelRequest(RequestId id) { impl_->scheduler.Cancel(id); }

Result<Generation> Engine::Generate(const Request& request, const OnText& on_text) {
  BATON_TRY(CheckNotStepping(impl_->scheduler));
  BATON_ASSIGN(PreparedRequest p, Prepare(*this, *impl_, request));
  // Prompt scores are those of every row, cached ones too.
  p.conversation = !request.chat.empty() && request.prompt_logprobs < 0;
  std::optional<Result<Generation>> result;
  RequestCallbacks callbacks{.on_text = on_text,
                             .on_done = [&](Result<Generation> r) { result = std::move(r); }};
  impl_->scheduler.Submit(std::move(p), std::move(callbacks));
  while (!result) impl_->scheduler.Step();
  return *std::move(result);
}

Result<std::vector<Generation>> Engine::GenerateBatch(std::span<const Request> requests) {
  std::vector<std::optional<Result<Generation>>> results(requests.size());
  std::vector<RequestCallbacks> callbacks(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    callbacks[i].on_done = [&results, i](Result<Generation> r) { results[i] = std::move(r); };
  }
  BATON_TRY(GenerateBatch(requests, callbacks));
  std::vector<Generation> generations;
  for (size_t i = 0; i < results.size(); ++i) {
    Result<Generation>& r = *results[i];
    if (!r.ok()) return std::move(r).error().At(fmt::format("request {}", i));
    generations.push_back(std::move(r).value());
  }
  return generations;
}

Status Engine::GenerateBatch(std::span<const Request> requests,
                             std::span<const RequestCallbacks> callbacks) {
  BATON_TRY(CheckNotStepping(impl_->scheduler));
  if (!callbacks.empty() && callbacks.size() != requests.size()) {
    return Error::InvalidArgument("{} requests need {} callbacks or none, got {}", requests.size(),
                                  requests.size(), callbacks.size());
  }
  std::vector<PreparedRequest> prepared;
  for (size_t i = 0; i < requests.size(); ++i) {
    Result<PreparedRequest> p = Prepare(*this, *impl_, requests[i]);
    if (!p.ok()) return std::move(p).error().At(fmt::format("request {}", i));
    prepared.push_back(std::move(p).value());
  }
  size_t left = requests.size();
  for (size_t i = 0; i < requests.size(); ++i) {
    RequestCallbacks mine = callbacks.empty() ? RequestCallbacks{} : callbacks[i];
    mine.on_done = [&left, then = std::move(mine.on_done)](Result<Generation> r) {
      --left;
      if (then) then(std::move(r));
    };
    impl_->scheduler.Submit(std::move(prepared[i]), std::move(mine));
  }
  while (left > 0) impl_->scheduler.Step();
  return Status::Ok();
}

}  // namespace baton
