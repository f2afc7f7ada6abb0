#include "engine/prompt/request_prompt.h"

#include <utility>

#include "base/check.h"

namespace baton {

RequestPrompt::RequestPrompt(Engine::Impl& engine, RequestPromptParams params)
    : engine_(engine),
      params_(std::move(params)),
      request_(*params_.request),
      sequence_(*params_.sequence),
      plan_(request_.route ? sequence_.plan : ResolvedPlan{}),
      reused_(sequence_.kv.length()) {
  BATON_CHECK(sequence_.store && reused_ < sequence_.prompt_tokens);
  sequence_.prompt_position = reused_;
}

void RequestPrompt::Continue(std::optional<RoutingReport> routes) {
  kept_routes_ = std::move(routes);
  if (kept_routes_) kept_routes_->source = "cached";
  Find(PrefillOrder::kTokenMajor);
}

std::optional<RoutingReport> RequestPrompt::RoutesReport() const {
  return routing_ ? std::optional(routing_->Report()) : kept_routes_;
}

void RequestPrompt::End() {
  if (prefix_ && routed_by_rows_ && !done()) engine_.prefix->Forget(*prefix_);
  prefix_.reset();
}

// Layers have to be routed first, as the prompt runs or ahead of it.
Status RequestPrompt::Start() {
  if (!request_.route && DecidedOrder() == PrefillOrder::kTokenMajor) {
    Find(PrefillOrder::kTokenMajor);
    return Status::Ok();
  }
  const RouteOptions options = request_.route.value_or(RouteOptions{});
  const Router* router = engine_.router ? &*engine_.router : nullptr;
  routing_ = std::make_unique<Routing>(engine_, router, options,
                                       std::span<const int32_t>(sequence_.tokens), &sequence_.plan,
                                       &sequence_.kv);
  if (request_.exact) routing_->KeepCaches();
  using Mode = RouteOptions::Mode;
  // Nothing to ask: the prompt runs under decided layers.
  const bool decided = routing_->forced() && options.mode != Mode::kDense;
  if (decided) routing_->DecideForced();
  if (decided || options.mode == Mode::kExact || options.mode == Mode::kDense) {
    Find(decided ? DecidedOrder() : PrefillOrder::kLayerMajor);
    return Status::Ok();
  }
  BATON_ASSIGN(ahead_, RoutingAhead::Create(engine_, options, sequence_.tokens, sequence_.plan));
  return Status::Ok();
}

// Of a prompt whose layers are decided: in chunks, unless a layer's cache is to go before the next
// layer fills its own.
PrefillOrder RequestPrompt::DecidedOrder() const {
  return sequence_.plan.Evicts() && !request_.exact ? PrefillOrder::kLayerMajor
                                                    : PrefillOrder::kTokenMajor;
}

void RequestPrompt::Find(PrefillOrder order) {
  order_ = order;
  if (engine_.prefix && request_.prefix_cache && !params_.conversation) FindPrefix();
}

bool RequestPrompt::WaitsFor(std::span<RequestPrompt* const> earlier) {
  if (run_ || ahead_ || !prefix_ || prefix_->loading() || RoutedByRows()) return false;
  RequestPrompt* found = nullptr;
  int64_t most = prefix_->hit() + engine_.options.prompt_chunk - 1;
  for (RequestPrompt* other : earlier) {
    if (!other->prefix_ || other->order_ != PrefillOrder::kTokenMajor) continue;
    const int64_t common =
        PrefixCache::Common(*prefix_, sequence_.tokens, *other->prefix_, other->sequence_.tokens);
    if (common <= most || other->prefix_->kept() >= common) continue;
    most = common;
    found = other;
  }
  if (!found) return false;
  found->prefix_->KeepRingsAt(most);
  return waited_ = true;
}

void RequestPrompt::FindPrefix() {
  const bool dense = request_.exact.has_value();
  const ResolvedPlan& plan = dense ? engine_.model_plan : sequence_.plan;
  const int64_t wanted = request_.prompt_logprobs < 0 ? sequence_.prompt_tokens - 1 : 0;
  PrefixCache::Query query{.key = {CachesKey(*params_.caches, params_.rollback), PromptKey(plan)},
                           .store = &sequence_.store,
                           .kv = &sequence_.kv,
                           .tokens = sequence_.tokens,
                           .shape = &engine_.shape(),
                           .prefill = {.begin = 0,
                                       .end = sequence_.prompt_tokens,
                                       .wanted = wanted,
                                       .chunk = engine_.options.prompt_chunk,
                                       .order = order_},
                           .unit = engine_.PromptUnit(plan)};
  if (RoutedByRows()) return FindRoutedPrefix(std::move(query));
  prefix_ = engine_.prefix->Find(query);
}

// A prompt whose layers are decided one by one, by the stream of its first and its last rows. Those
// of the first are kept with the cache; the last are always processed. A window also hides keys
// from the rows of the prompt, unless that is dense: then K and V depend on the decisions, and go
// on only as long as these are the same.
void RequestPrompt::FindRoutedPrefix(PrefixCache::Query query) {
  const bool dense = request_.route->mode == RouteOptions::Mode::kDense;
  const int64_t pool = engine_.router->settings.pool;
  routing_->Record();
  const std::string open = fmt::format("routing {};", params_.id);  // until Settle
  const PrefixKey begins{query.key.caches, dense ? query.key.prompt + "|" : RoutedKey()};
  PrefixCache::Routed known =
      engine_.prefix->Nearest(begins, query.tokens, (pool - 1) / kPageTokens);
  auto state = std::static_pointer_cast<const RoutedPrefix>(known.state);
  std::string miss = "no cached prompt begins like it and was routed";
  if (state && restarted_.empty() && routing_->CanResume(*state)) {
    query.least = pool;
    query.most = sequence_.prompt_tokens - pool;
    if (!dense) {
      query.key.prompt = known.prompt;
      SetLifetimes(state->bitmap);
    }
    prefix_ = engine_.prefix->Find(query);
    if (prefix_->hit() > 0 && !prefix_->loading()) {
      routed_prefix_ = std::move(state);
      return;
    }
    miss = prefix_->report().miss;
    prefix_.reset();
    if (!dense) SetLifetimes("");
  }
  query.most = 0;
  query.key.prompt = dense ? query.key.prompt : open;
  prefix_ = engine_.prefix->Find(query);
  prefix_->Miss(restarted_.empty() ? miss : restarted_);
}

bool RequestPrompt::RoutedByRows() const {
  return routing_ && engine_.router && order_ == PrefillOrder::kLayerMajor && routing_->open() &&
         !routing_->forced();
}

std::string RequestPrompt::RoutedKey() const {
  return fmt::format("routed {} {} {};", sequence_.plan.hash, request_.route->margin,
                     request_.route->mask);
}

// Of the caches of routed layers, as the decisions make them; all of them, where there are none.
void RequestPrompt::SetLifetimes(const std::string& bitmap) {
  for (size_t l = 0; l < plan_.layers.size(); ++l) {
    const LayerPlan& layer = plan_.layers[l];
    if (layer.role != Role::kRoute) continue;
    const bool sparse = l < bitmap.size() && bitmap[l] == 'S';
    sequence_.kv.Keep(plan_.OwnCache(static_cast<int>(l)), sparse ? layer.route.sink : 0,
                      sparse ? layer.route.recent : 0);
  }
}

// The prompt is done: what it left stays in the cache.
void RequestPrompt::Settle() {
  if (!prefix_) return;
  engine_.prefix->Count(*prefix_);
  if (!routed_by_rows_) return engine_.prefix->Save(*prefix_);
  // The decisions are known: what was kept gets its key. It is not found again on disk.
  const bool dense = request_.route->mode == RouteOptions::Mode::kDense;
  PrefixKey key{CachesKey(*params_.caches, params_.rollback),
                dense ? "" : RoutedKey() + PromptKey(sequence_.plan)};
  engine_.prefix->Settle(*prefix_, key, (engine_.router->settings.pool - 1) / kPageTokens,
                         std::make_shared<const RoutedPrefix>(routing_->Recorded()));
}

// From the prompt's start, since the layers are routed otherwise than those of the cache.
Status RequestPrompt::Restart() {
  restarted_ = fmt::format("layer {} is routed otherwise", routing_->diverged());
  run_.reset();
  prefix_.reset();
  routing_.reset();
  routed_by_rows_ = false;
  sequence_.kv = sequence_.store->NewSequence();
  sequence_.plan = plan_;
  reused_ = sequence_.prompt_position = 0;
  return Start();
}

void RequestPrompt::MakeRun() {
  if (prefix_) {
    engine_.prefix->Adopt(*prefix_, sequence_.kv);
    routed_by_rows_ = RoutedByRows();
    if (routing_) routing_->Resume(prefix_->hit(), std::move(routed_prefix_));
    prefix_report_ = prefix_->report();
    reused_ = sequence_.prompt_position = prefix_->hit();
    sequence_.kv.KeepTokens(0,
                            std::span(sequence_.tokens).first(static_cast<size_t>(prefix_->hit())));
  }
  const auto length = static_cast<size_t>(sequence_.kv.length());
  run_.emplace(
      engine_,
      PromptParams{.tokens = std::span(sequence_.tokens).subspan(length),
                   .kv = &sequence_.kv,
                   .plan = request_.exact && !routing_ ? &engine_.model_plan : &sequence_.plan,
                   .on_logits = params_.on_logits,
                   .wanted = request_.prompt_logprobs < 0 ? 1 : sequence_.prompt_tokens,
                   .began = prefix_ ? 0 : -1,
                   .on_pass =
                       [this] {
                         if (prefix_)
                           engine_.prefix->Keep(*prefix_, sequence_.tokens, sequence_.kv);
                       },
                   .order = order_,
                   .routing = order_ == PrefillOrder::kLayerMajor ? routing_.get() : nullptr});
}

Status RequestPrompt::Step(int64_t row_layers) {
  ran_ = {};
  BATON_TRY(StepOnce(row_layers));
  if (!run_ || within_pass()) return Status::Ok();
  sequence_.prompt_position = reused_ + run_->tokens_done();
  if (done()) Settle();
  return Status::Ok();
}

// A piece of what comes from disk, a pass of the routing that runs ahead, or one of the prompt.
Status RequestPrompt::StepOnce(int64_t row_layers) {
  if (ahead_) {
    BATON_TRY(ahead_->Step(row_layers));
    ran_ = ahead_->ran();
    if (!ahead_->done()) return Status::Ok();
    routing_->DecideAs(ahead_->routing());
    ahead_.reset();
    Find(DecidedOrder());
    return Status::Ok();
  }
  if (std::exchange(waited_, false)) FindPrefix();
  if (prefix_ && prefix_->loading()) {
    engine_.prefix->Load(*prefix_, sequence_.tokens, sequence_.kv, engine_.options.prompt_chunk,
                         engine_.pool);
    return Status::Ok();
  }
  if (!run_) MakeRun();
  Status status = run_->Step(row_layers);
  ran_ = run_->ran();
  return status.ok() || !routing_ || routing_->diverged() < 0 ? std::move(status) : Restart();
}

}  // namespace baton
