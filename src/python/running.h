// An engine that several Python threads use at once. Whoever waits for something steps the engine,
// one thread at a time; what a step brings goes to the requests that it is for.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "baton/engine.h"

namespace baton::python {

class Running;

// One request. All members may be called from any thread, without the interpreter's lock.
class Answer {
 public:
  // The next piece of text; none at the end. `interrupted` is asked after each step: true cancels
  // the request, which then ends as cancelled.
  std::optional<std::string> Next(const std::function<bool()>& interrupted);
  void Cancel();
  // Once Next returned none. Its error ends this request alone.
  const Result<Generation>& result() const { return *done_; }

 private:
  friend class Running;
  explicit Answer(std::shared_ptr<Running> running) : running_(std::move(running)) {}

  const std::shared_ptr<Running> running_;
  RequestId id_ = 0;
  // Guarded by the mutex of running_.
  std::deque<std::string> pieces_;
  std::optional<Result<Generation>> done_;
};

class Running : public std::enable_shared_from_this<Running> {
 public:
  explicit Running(std::unique_ptr<Engine> engine) : engine_(std::move(engine)) {}

  Engine& engine() { return *engine_; }
  Result<std::shared_ptr<Answer>> Submit(Request request);

  // Holds the engine for what does not go through requests: no other thread steps meanwhile.
  class Alone {
   public:
    explicit Alone(Running& running) : running_(running) { running_.Take(); }
    ~Alone() { running_.Give(); }
    Alone(const Alone&) = delete;

   private:
    Running& running_;
  };

 private:
  friend class Answer;
  void Take();
  void Give();

  const std::unique_ptr<Engine> engine_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool taken_ = false;  // some thread steps, or holds the engine
};

}  // namespace baton::python
