// The thread that owns the engine: it loads the model, then steps while there are requests. Other
// threads hand it requests and take what happened to them; neither side waits for the other.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "server/answer.h"
#include "server/model.h"

namespace baton::server {

using Clock = std::chrono::steady_clock;

// What happened to one answer of one call. One of the three is set.
struct Event {
  int64_t call = 0;
  int choice = 0;
  Clock::time_point at;
  std::optional<Piece> piece;
  std::optional<std::pair<int64_t, int64_t>> progress;  // prompt tokens done, of all
  std::optional<Result<Generation>> done;               // without text and tokens
};

class EngineThread {
 public:
  using Loader = std::function<Result<Model>()>;
  // `wake` is called from the thread when there is something to take: the model or its error, or
  // events. Once for as many as come before TakeEvents.
  EngineThread(Loader load, std::function<void()> wake);
  ~EngineThread();  // ends after the current step; requests in progress are dropped
  EngineThread(const EngineThread&) = delete;

  // Null while the model loads, or when it could not be loaded.
  const Model* model() const;
  std::optional<Error> load_error() const;

  // Any thread, once there is a model.
  Result<RequestId> Submit(int64_t call, int choice, Request request, bool progress);
  void Cancel(RequestId id);
  std::vector<Event> TakeEvents();

 private:
  void Run(const Loader& load);
  RequestCallbacks CallbacksFor(int64_t call, int choice, bool progress);
  void Publish();

  const std::function<void()> wake_;
  std::vector<Event> step_events_;  // of the current step; the engine thread's

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  bool stop_ = false, work_ = false;
  std::optional<Model> model_;  // once set, unchanged until the thread has ended
  std::optional<Error> load_error_;
  std::vector<Event> events_;

  std::thread thread_;
};

}  // namespace baton::server
