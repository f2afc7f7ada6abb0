#include "server/service.h"

#include <fmt/format.h>
#include <openssl/crypto.h>

#include <algorithm>
#include <atomic>
#include <ctime>
#include <utility>

#include "server/page.h"
#include "server/state.h"

namespace baton::server {

// A call whose answers are being made.
struct Service::Active {
  int64_t id = 0;
  Prepared prepared;
  Answer answer;
  std::shared_ptr<Exchange> exchange;
  Clock::time_point arrived, wrote;
  std::vector<std::optional<RequestId>> in_engine;       // [choices] while they are
  std::vector<std::optional<Clock::time_point>> latest;  // [choices] of the latest piece
  size_t submitted = 0, ended = 0;

  const Call& call() const { return prepared.call; }
  const Writer& writer() const { return WriterOf(call().api); }
};

struct Service::Route {
  std::string_view method, path;
  bool open;  // needs no key, and no model
  void (*run)(Service&, HttpRequest&, std::shared_ptr<Exchange>);
};

namespace {

std::string ReplyText(const std::optional<ApiError>& error, std::string text) {
  return error ? WriteError(*error) : std::move(text);
}

template <typename Work>
HttpReply TokenReply(const Model& model, const HttpRequest& request,
                     std::optional<ApiError> (*parse)(std::string_view, TokenCall&), Work work) {
  TokenCall call;
  std::string text;
  std::optional<ApiError> error = parse(request.body, call);
  if (!error) error = work(model, call, text);
  return {.status = error ? error->status : 200, .body = ReplyText(error, std::move(text))};
}

std::string_view PrefixOf(Api api) {
  switch (api) {
    case Api::kChat:
      return "chatcmpl";
    case Api::kCompletions:
      return "cmpl";
    case Api::kResponses:
      return "resp";
    case Api::kMessages:
      return "msg";
  }
  return "";
}

const ApiError kStopping{.status = 503, .message = "the server is stopping", .code = "stopping"};

}  // namespace

Service::Service(ServiceOptions options, EngineThread& engine, std::function<void(Task)> work,
                 std::function<void(Task)> back)
    : options_(std::move(options)),
      engine_(engine),
      work_(std::move(work)),
      back_(std::move(back)) {}

Service::~Service() = default;

const std::vector<Service::Route>& Service::Routes() {
  using E = std::shared_ptr<Exchange>;
  using R = HttpRequest;
  static const std::vector<Route> routes = {
      {"GET", "/health", true, [](Service& s, R& r, E e) { s.Health(r, std::move(e)); }},
      {"GET", "/metrics", true, [](Service& s, R& r, E e) { s.WriteMetrics(r, std::move(e)); }},
      {"GET", "/", true,
       [](Service& s, R&, E e) { s.Reply(*e, PageReply(kPageHtml, "text/html; charset=utf-8")); }},
      {"GET", "/page.css", true,
       [](Service& s, R&, E e) { s.Reply(*e, PageReply(kPageCss, "text/css")); }},
      {"GET", "/page.js", true,
       [](Service& s, R&, E e) { s.Reply(*e, PageReply(kPageJs, "text/javascript")); }},
      {"GET", "/state", false,
       [](Service& s, R&, E e) {
         s.Reply(*e, {.body = WriteState(*s.engine_.model(), s.metrics_, s.Now())});
       }},
      {"GET", "/v1/models", false, [](Service& s, R& r, E e) { s.Models(r, std::move(e)); }},
      {"GET", "/tokenizer_info", false,
       [](Service& s, R&, E e) {
         s.Reply(*e, {.body = server::TokenizerInfo(*s.engine_.model())});
       }},
      {"POST", "/v1/chat/completions", false,
       [](Service& s, R& r, E e) { s.Generate(std::move(r), std::move(e), Api::kChat); }},
      {"POST", "/v1/completions", false,
       [](Service& s, R& r, E e) { s.Generate(std::move(r), std::move(e), Api::kCompletions); }},
      {"POST", "/v1/responses", false,
       [](Service& s, R& r, E e) { s.Generate(std::move(r), std::move(e), Api::kResponses); }},
      {"POST", "/v1/messages", false,
       [](Service& s, R& r, E e) { s.Generate(std::move(r), std::move(e), Api::kMessages); }},
      {"POST", "/v1/messages/count_tokens", false,
       [](Service& s, R& r, E e) {
         s.ReplyFromWorker(std::move(r), std::move(e), [](const Model& m, const R& request) {
           return TokenReply(m, request, ParseCountTokens, CountTokens);
         });
       }},
      {"POST", "/tokenize", false,
       [](Service& s, R& r, E e) {
         s.ReplyFromWorker(std::move(r), std::move(e), [](const Model& m, const R& request) {
           return TokenReply(m, request, ParseTokenize, Tokenize);
         });
       }},
      {"POST", "/detokenize", false,
       [](Service& s, R& r, E e) {
         s.ReplyFromWorker(std::move(r), std::move(e), [](const Model& m, const R& request) {
           return TokenReply(m, request, ParseDetokenize, Detokenize);
         });
       }},
  };
  return routes;
}

void Service::Reply(Exchange& exchange, HttpReply reply) {
  metrics_.replies[reply.status]++;
  exchange.Reply(std::move(reply));
}

void Service::Refuse(Exchange& exchange, const ApiError& error) { Reply(exchange, ReplyOf(error)); }

// In a time that does not tell how much of a key was right.
bool Service::Allowed(const std::string& key) const {
  bool allowed = options_.keys.empty();
  for (const std::string& k : options_.keys)
    allowed |= k.size() == key.size() && CRYPTO_memcmp(k.data(), key.data(), k.size()) == 0;
  return allowed;
}

void Service::Handle(HttpRequest request, std::shared_ptr<Exchange> exchange) {
  const Route* found = nullptr;
  const Route* elsewhere = nullptr;
  for (const Route& route : Routes()) {
    if (route.path != request.path) continue;
    const bool same =
        route.method == request.method || (request.method == "HEAD" && route.method == "GET");
    (same ? found : elsewhere) = &route;
  }
  if (!found && elsewhere) {
    HttpReply reply = ReplyOf({.status = 405,
                               .message = fmt::format("{} {}: expected {}", request.method,
                                                      request.path, elsewhere->method)});
    reply.allow = elsewhere->method;
    return Reply(*exchange, std::move(reply));
  }
  if (!found)
    return Refuse(*exchange, {.status = 404,
                              .message = fmt::format("{}: there is no such path",
                                                     request.path.substr(0, 200))});
  if (!found->open && !Allowed(request.key))
    return Refuse(*exchange, {.status = 401,
                              .message = "an API key is needed: Authorization: Bearer KEY",
                              .code = "invalid_api_key"});
  if (!found->open && !engine_.model()) {
    const auto error = engine_.load_error();
    return Refuse(*exchange, {.status = 503,
                              .message = error ? error->ToString() : "the model is being loaded",
                              .code = error ? "load_failed" : "loading"});
  }
  if (draining_ && !found->open) return Refuse(*exchange, kStopping);
  found->run(*this, request, std::move(exchange));
}

void Service::Health(const HttpRequest&, std::shared_ptr<Exchange> exchange) {
  const Model* model = engine_.model();
  const char* status = draining_ ? "stopping" : model ? "ok" : "loading";
  Json body{{"status", status}};
  if (model) body["model"] = model->name;
  Reply(*exchange, {.status = model && !draining_ ? 200 : 503, .body = Dump(body)});
}

void Service::Models(const HttpRequest&, std::shared_ptr<Exchange> exchange) {
  const Model& m = *engine_.model();
  Json plans = Json::array({"dense"});
  for (const auto& [name, _] : m.plans) plans.push_back(name);
  const Json model{{"id", m.name},
                   {"object", "model"},
                   {"created", std::time(nullptr)},
                   {"owned_by", "baton"},
                   {"max_model_len", m.engine->options().context},
                   {"plans", std::move(plans)}};
  Reply(*exchange, {.body = Dump({{"object", "list"}, {"data", Json::array({model})}})});
}

Gauges Service::Now() const {
  Gauges g{.connections = connections, .running = running_, .waiting = preparing_};
  for (const int64_t id : turns_) {
    const Active& call = *calls_.at(id);
    g.waiting += static_cast<int64_t>(call.prepared.requests.size() - call.submitted);
  }
  if (const Model* model = engine_.model()) {
    g.cache = model->engine->cache_use();
    g.prefix = model->engine->prefix_cache_use();
  }
  return g;
}

void Service::WriteMetrics(const HttpRequest&, std::shared_ptr<Exchange> exchange) {
  const Model* model = engine_.model();
  Reply(*exchange, {.body = server::WriteMetrics(metrics_, Now(), model ? model->name : ""),
                    .type = "text/plain; version=0.0.4"});
}

int64_t Service::Places() const {
  if (options_.parallel > 0) return options_.parallel;
  const Model* model = engine_.model();
  return model ? model->engine->info().decode_rows : 1;
}

bool Service::RefuseFull(Exchange& exchange) {
  // Calls at the worker do not wait where the engine has a place for them.
  const int64_t places = std::max<int64_t>(0, Places() - running_);
  if (std::ssize(turns_) + preparing_ < options_.queue + places) return false;
  Reply(exchange,
        ReplyOf({.status = 429,
                 .message = fmt::format("{} requests are waiting already", options_.queue),
                 .code = "queue_full"}));
  return true;
}

void Service::OnWorker(const std::shared_ptr<Exchange>& exchange, Task work,
                       std::function<void(bool gone)> done) {
  if (RefuseFull(*exchange)) return;
  ++preparing_;
  auto gone = std::make_shared<std::atomic<bool>>(false);
  exchange->on_gone = [gone] { *gone = true; };
  work_([this, work = std::move(work), done = std::move(done), gone]() mutable {
    if (!*gone) work();
    back_([this, done = std::move(done), gone] {
      --preparing_;
      done(*gone);
    });
  });
}

void Service::ReplyFromWorker(HttpRequest request, std::shared_ptr<Exchange> exchange,
                              HttpReply (*answer)(const Model&, const HttpRequest&)) {
  auto reply = std::make_shared<HttpReply>();
  OnWorker(
      exchange,
      [reply, answer, model = engine_.model(), request = std::move(request)] {
        *reply = answer(*model, request);
      },
      [this, reply, exchange](bool gone) {
        if (!gone) Reply(*exchange, std::move(*reply));
      });
}

void Service::Generate(HttpRequest request, std::shared_ptr<Exchange> exchange, Api api) {
  auto prepared = std::make_shared<Prepared>();
  auto error = std::make_shared<std::optional<ApiError>>();
  OnWorker(
      exchange,
      [prepared, error, model = engine_.model(), request = std::move(request), api] {
        Call call;
        *error = ParseCall(api, request.body, call);
        if (!*error) *error = Prepare(*model, std::move(call), *prepared);
      },
      [this, prepared, error, &writer = WriterOf(api), arrived = Clock::now(),
       exchange](bool gone) {
        if (gone) {
          metrics_.disconnects++;
        } else if (*error) {
          HttpReply reply = ReplyOf(**error);
          reply.body = writer.error(**error);
          Reply(*exchange, std::move(reply));
        } else {
          Start(exchange, std::move(*prepared), arrived);
        }
      });
}

void Service::Start(std::shared_ptr<Exchange> exchange, Prepared prepared,
                    Clock::time_point arrived) {
  auto active = std::make_unique<Active>();
  Active& a = *active;
  a.id = ++last_id_;
  a.prepared = std::move(prepared);
  a.exchange = std::move(exchange);
  a.arrived = a.wrote = arrived;
  const size_t choices = a.prepared.choices.size();
  a.in_engine.resize(choices);
  a.latest.resize(choices);
  const Model* model = engine_.model();
  a.answer = {.call = &a.prepared.call,
              .id = fmt::format("{}-{:x}-{}", PrefixOf(a.call().api), std::time(nullptr), a.id),
              .model = model->name,
              .created = std::time(nullptr),
              .choices = std::move(a.prepared.choices),
              .token_bytes = [model](int32_t t) { return model->engine->TokenBytes(t); }};
  a.exchange->on_gone = [this, id = a.id] {
    metrics_.disconnects++;
    Drop(id);
    SubmitWaiting();
  };
  turns_.push_back(a.id);
  calls_.emplace(a.id, std::move(active));
  if (a.call().stream) {
    metrics_.replies[200]++;
    a.exchange->BeginStream();
    Write(a, a.writer().begin(a.answer));
  }
  SubmitWaiting();
}

// One answer of each waiting call in turn, so that a call of many prompts does not hold up others.
void Service::SubmitWaiting() {
  while (running_ < Places() && !turns_.empty()) {
    const int64_t id = turns_.front();
    turns_.pop_front();
    Active& a = *calls_.at(id);
    if (a.submitted + 1 < a.prepared.requests.size()) turns_.push_back(id);
    Submit(a);
  }
}

void Service::Submit(Active& a) {
  const size_t i = a.submitted++;
  Result<RequestId> id = engine_.Submit(a.id, static_cast<int>(i),
                                        std::move(a.prepared.requests[i]), a.call().progress);
  // It was checked before; what can still fail is nothing that the client did.
  if (!id.ok()) return FailCall(a, ApiError::From(id.error()));
  a.in_engine[i] = *id;
  ++running_;
}

void Service::TakeEvents() {
  for (Event& event : engine_.TakeEvents()) OnEvent(event);
  SubmitWaiting();
}

void Service::OnEvent(Event& event) {
  if (event.done) --running_;
  const auto found = calls_.find(event.call);
  if (found == calls_.end()) return;  // its client has left
  Active& a = *found->second;
  Choice& choice = a.answer.choices[static_cast<size_t>(event.choice)];
  if (event.piece) return OnPiece(a, choice, event);
  if (event.done) return OnDone(a, choice, event);
  if (a.call().stream)
    Write(a, a.writer().progress(a.answer, choice, event.progress->first, event.progress->second));
}

void Service::OnPiece(Active& a, Choice& choice, Event& event) {
  std::optional<Clock::time_point>& latest = a.latest[static_cast<size_t>(choice.index)];
  (latest ? metrics_.inter_token : metrics_.first_token)
      .Add(std::chrono::duration<double>(event.at - latest.value_or(a.arrived)).count());
  latest = event.at;
  metrics_.streamed_tokens += std::ssize(event.piece->tokens);
  Write(a, WritePieces(a, choice, TakePiece(a.answer, choice, std::move(*event.piece))));
}

// What a stream says of them; without one their tokens are kept.
std::string Service::WritePieces(Active& a, Choice& choice, std::vector<Piece> pieces) {
  std::string events;
  for (Piece& piece : pieces) {
    if (a.call().stream) {
      events += a.writer().piece(a.answer, choice, piece);
    } else {
      std::move(piece.tokens.begin(), piece.tokens.end(), std::back_inserter(choice.tokens));
    }
  }
  return events;
}

void Service::OnDone(Active& a, Choice& choice, Event& event) {
  a.in_engine[static_cast<size_t>(choice.index)].reset();
  if (!event.done->ok()) {
    metrics_.finished["error"]++;
    return FailCall(a, ApiError::From(event.done->error()));
  }
  choice.ended = std::move(*event.done).value();
  const Model& m = *engine_.model();
  const std::string& plan = a.call().plan.empty() ? m.plan : a.call().plan;
  metrics_.CountAnswer(*choice.ended, plan.empty() && !m.route ? "dense" : plan);
  std::string events = WritePieces(a, choice, TakeEnd(a.answer, choice));
  metrics_.finished[std::string(FinishReason(choice))]++;
  metrics_.whole_answer.Add(std::chrono::duration<double>(event.at - a.arrived).count());
  if (a.call().stream) Write(a, events + a.writer().end_choice(a.answer, choice));
  if (++a.ended == a.answer.choices.size()) EndCall(a);
}

void Service::EndCall(Active& a) {
  const std::shared_ptr<Exchange> exchange = a.exchange;
  exchange->on_gone = nullptr;
  if (a.call().stream) {
    exchange->Write(a.writer().end(a.answer));
    exchange->EndStream();
  } else {
    Reply(*exchange, {.body = a.writer().whole(a.answer)});
  }
  Drop(a.id);
}

void Service::FailCall(Active& a, const ApiError& error) {
  const std::shared_ptr<Exchange> exchange = a.exchange;
  exchange->on_gone = nullptr;
  if (a.call().stream) {
    exchange->Write(a.writer().fail(error));
    exchange->EndStream();
  } else {
    HttpReply reply = ReplyOf(error);
    reply.body = a.writer().error(error);
    Reply(*exchange, std::move(reply));
  }
  Drop(a.id);
}

void Service::Drop(int64_t id) {
  const auto found = calls_.find(id);
  if (found == calls_.end()) return;
  for (const auto& request : found->second->in_engine) {
    if (!request) continue;
    engine_.Cancel(*request);
    metrics_.finished["abort"]++;
  }
  std::erase(turns_, id);
  calls_.erase(found);
}

// The client may turn out to be too slow, and its call be gone, when this returns.
void Service::Write(Active& a, const std::string& events) {
  if (events.empty()) return;
  a.wrote = Clock::now();
  const std::shared_ptr<Exchange> exchange = a.exchange;
  exchange->Write(events);
}

void Service::Tick(Clock::time_point now) {
  std::vector<Active*> silent;
  for (const auto& [_, a] : calls_)
    if (a->call().stream && now - a->wrote >= options_.keep_alive) silent.push_back(a.get());
  for (Active* a : silent) Write(*a, std::string(kSseKeepAlive));
}

void Service::Abort() {
  std::vector<Active*> all;
  for (const auto& [_, a] : calls_) all.push_back(a.get());
  for (Active* a : all) FailCall(*a, kStopping);
}

}  // namespace baton::server
