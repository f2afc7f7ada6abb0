#include "python/running.h"

#include <chrono>

namespace baton::python {
namespace {

// While another thread steps, an interrupt is noticed within this time.
constexpr std::chrono::milliseconds kPatience(100);

}  // namespace

Result<std::shared_ptr<Answer>> Running::Submit(Request request) {
  std::shared_ptr<Answer> answer(new Answer(shared_from_this()));
  RequestCallbacks callbacks;
  // The engine keeps the callbacks, and the answer keeps the engine: only a weak link back.
  const std::weak_ptr<Answer> weak = answer;
  callbacks.on_text = [this, weak](std::string_view text) {
    const auto to = weak.lock();
    if (!to) return false;  // nobody reads it any more
    const std::lock_guard lock(mutex_);
    to->pieces_.emplace_back(text);
    return true;
  };
  callbacks.on_done = [this, weak](Result<Generation> result) {
    const auto to = weak.lock();
    if (!to) return;
    const std::lock_guard lock(mutex_);
    to->done_.emplace(std::move(result));
  };
  BATON_ASSIGN(answer->id_, engine_->Submit(std::move(request), std::move(callbacks)));
  return answer;
}

void Running::Take() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !taken_; });
  taken_ = true;
}

void Running::Give() {
  const std::lock_guard lock(mutex_);
  taken_ = false;
  changed_.notify_all();
}

std::optional<std::string> Answer::Next(const std::function<bool()>& interrupted) {
  for (;;) {
    {
      std::unique_lock lock(running_->mutex_);
      const auto ready = [&] { return !pieces_.empty() || done_ || !running_->taken_; };
      while (!running_->changed_.wait_for(lock, kPatience, ready)) {
        lock.unlock();
        if (interrupted()) Cancel();
        lock.lock();
      }
      if (!pieces_.empty()) {
        std::string piece = std::move(pieces_.front());
        pieces_.pop_front();
        return piece;
      }
      if (done_) return std::nullopt;
      running_->taken_ = true;
    }
    running_->engine_->Step();
    running_->Give();
    if (interrupted()) Cancel();
  }
}

void Answer::Cancel() { running_->engine_->CancelRequest(id_); }

}  // namespace baton::python
