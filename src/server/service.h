// The server without its sockets: what a request is answered with, whose turn it is, and who is
// still waiting. Everything here runs on the network's thread; long work (parsing, templates,
// tokens) goes to a worker, forward passes to the engine's thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/engine_thread.h"
#include "server/http.h"
#include "server/metrics.h"

namespace baton::server {

// The way back to one client for one request. The network implements it.
class Exchange {
 public:
  virtual ~Exchange() = default;
  // One whole answer; or a stream of events. Nothing follows Reply or EndStream.
  virtual void Reply(HttpReply reply) = 0;
  virtual void BeginStream() = 0;
  virtual void Write(std::string_view events) = 0;
  virtual void EndStream() = 0;
  // Called once if the client is gone before the answer has ended, never from within the calls
  // above. What is written afterwards goes nowhere.
  std::function<void()> on_gone;
};

struct ServiceOptions {
  std::vector<std::string> keys;                // of clients; none: everybody may ask
  int64_t parallel = 0;                         // answers in the engine; 0: a decode pass's rows
  int queue = 512;                              // calls that may wait behind them
  std::chrono::milliseconds keep_alive{10000};  // silence in a stream before a comment breaks it
};

class Service {
 public:
  using Task = std::function<void()>;
  // `work` runs a task on the worker, `back` on the network's thread; both may be called from any
  // thread. The service outlives the worker's last task.
  Service(ServiceOptions options, EngineThread& engine, std::function<void(Task)> work,
          std::function<void(Task)> back);
  ~Service();

  void Handle(HttpRequest request, std::shared_ptr<Exchange> exchange);
  void TakeEvents();                  // when the engine's thread has some
  void Tick(Clock::time_point now);   // now and then: keep-alive comments
  void Drain() { draining_ = true; }  // from now on nothing new; what is there goes on
  void Abort();                       // ends what is there with an error
  bool idle() const { return preparing_ == 0 && calls_.empty() && running_ == 0; }

  Metrics& metrics() { return metrics_; }
  int64_t connections = 0;  // kept by the network

 private:
  struct Active;
  struct Route;
  static const std::vector<Route>& Routes();

  void Reply(Exchange& exchange, HttpReply reply);
  void Refuse(Exchange& exchange, const ApiError& error);
  bool Allowed(const std::string& key) const;
  Gauges Now() const;
  void Health(const HttpRequest&, std::shared_ptr<Exchange> exchange);
  void Models(const HttpRequest&, std::shared_ptr<Exchange> exchange);
  void WriteMetrics(const HttpRequest&, std::shared_ptr<Exchange> exchange);
  int64_t Places() const;  // for answers in the engine
  // Answers 429, and returns true, where as many calls wait as may.
  bool RefuseFull(Exchange& exchange);
  void Generate(HttpRequest request, std::shared_ptr<Exchange> exchange, Api api);
  void ReplyFromWorker(HttpRequest request, std::shared_ptr<Exchange> exchange,
                       HttpReply (*answer)(const Model&, const HttpRequest&));
  // RefuseFull; or `work` on the worker, unless the client is gone by then, and `done` here.
  void OnWorker(const std::shared_ptr<Exchange>& exchange, Task work,
                std::function<void(bool gone)> done);

  void Start(std::shared_ptr<Exchange> exchange, Prepared prepared, Clock::time_point arrived);
  void SubmitWaiting();
  void Submit(Active& call);
  void OnEvent(Event& event);
  void OnPiece(Active& call, Choice& choice, Event& event);
  std::string WritePieces(Active& call, Choice& choice, std::vector<Piece> pieces);
  void OnDone(Active& call, Choice& choice, Event& event);
  void EndCall(Active& call);
  void FailCall(Active& call, const ApiError& error);
  void Drop(int64_t id);  // forgets a call, cancels what it has in the engine
  void Write(Active& call, const std::string& events);

  const ServiceOptions options_;
  EngineThread& engine_;
  const std::function<void(Task)> work_, back_;
  Metrics metrics_;
  bool draining_ = false;
  int64_t last_id_ = 0;
  std::map<int64_t, std::unique_ptr<Active>> calls_;
  std::deque<int64_t> turns_;  // calls with answers that are not in the engine yet
  int running_ = 0;            // answers in the engine
  int preparing_ = 0;          // calls at the worker
};

}  // namespace baton::server
