#include "server/engine_thread.h"

#include <iterator>
#include <memory>
#include <utility>

namespace baton::server {

EngineThread::EngineThread(Loader load, std::function<void()> wake)
    : wake_(std::move(wake)), thread_([this, load = std::move(load)] { Run(load); }) {}

EngineThread::~EngineThread() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

const Model* EngineThread::model() const {
  const std::lock_guard lock(mutex_);
  return model_ ? &*model_ : nullptr;
}

std::optional<Error> EngineThread::load_error() const {
  const std::lock_guard lock(mutex_);
  return load_error_;
}

void EngineThread::Run(const Loader& load) {
  Result<Model> model = load();
  Engine* engine = model.ok() ? model->engine.get() : nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (model.ok()) {
      model_ = std::move(model).value();
    } else {
      load_error_ = std::move(model).error();
    }
  }
  wake_();
  if (!engine) return;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stop_ || work_; });
    if (stop_) return;
    work_ = false;
    lock.unlock();
    const bool more = engine->Step();
    Publish();
    lock.lock();
    work_ = work_ || more;
  }
}

RequestCallbacks EngineThread::CallbacksFor(int64_t call, int choice, bool progress) {
  // Tokens whose text is held back wait here for the piece that has it.
  auto tokens = std::make_shared<std::vector<Generation::Logprobs>>();
  const auto event = [this, call, choice]() -> Event& {
    return step_events_.emplace_back(Event{.call = call, .choice = choice, .at = Clock::now()});
  };
  RequestCallbacks callbacks;
  callbacks.on_token = [tokens](const Generation::Logprobs& t) { tokens->push_back(t); };
  callbacks.on_text = [tokens, event](std::string_view text) {
    event().piece = Piece{std::string(text), std::exchange(*tokens, {})};
    return true;
  };
  callbacks.on_done = [tokens, event](Result<Generation> g) {
    if (g.ok()) {
      // Tokens without a text of their own; of a stop string there is nothing to show.
      if (!tokens->empty() && g->stop != Generation::Stop::kStopString)
        event().piece = Piece{"", std::move(*tokens)};
      g->text.clear();
      g->tokens.clear();
      g->logprobs.clear();
    }
    event().done = std::move(g);
  };
  if (progress)
    callbacks.on_prompt = [event](int64_t done, int64_t total) {
      event().progress = {done, total};
    };
  return callbacks;
}

Result<RequestId> EngineThread::Submit(int64_t call, int choice, Request request, bool progress) {
  Engine* engine = model()->engine.get();
  BATON_ASSIGN(const RequestId id,
               engine->Submit(std::move(request), CallbacksFor(call, choice, progress)));
  {
    const std::lock_guard lock(mutex_);
    work_ = true;
  }
  changed_.notify_one();
  return id;
}

void EngineThread::Cancel(RequestId id) { model()->engine->CancelRequest(id); }

void EngineThread::Publish() {
  if (step_events_.empty()) return;
  bool first = false;
  {
    const std::lock_guard lock(mutex_);
    first = events_.empty();
    std::move(step_events_.begin(), step_events_.end(), std::back_inserter(events_));
  }
  step_events_.clear();
  if (first) wake_();
}

std::vector<Event> EngineThread::TakeEvents() {
  const std::lock_guard lock(mutex_);
  return std::exchange(events_, {});
}

}  // namespace baton::server
