#include "engine/scheduler.h"

#include <algorithm>
#include <chrono>
#include <numeric>

namespace baton {
namespace {

// Rows of one decode pass. The kernels give a row the same bits for any number of rows up to this
// one (ops/linear_test).
constexpr size_t kDecodeRows = 16;

using Clock = std::chrono::steady_clock;
double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

ActiveRequest::ActiveRequest(const Engine::Impl& engine, const Request& request,
                             std::vector<int32_t> prompt, std::optional<ResolvedPlan> plan,
                             std::shared_ptr<KvStore> store, Engine::OnText on_text)
    : engine_(engine),
      request_(request),
      prompt_(std::move(prompt)),
      plan_(std::move(plan)),
      store_(std::move(store)),
      sequence_(store_->NewSequence()),
      on_text_(std::move(on_text)),
      sampler_(request.sampling),
      decoder_(*engine.tokenizer) {
  watch_.interval = plan_ ? request.watch.interval : 0;
  watch_.threshold = request.watch.threshold;
  if (watch_.interval > 0) watch_.layers.resize(static_cast<size_t>(engine.info.layers));
  result_.stats.prompt_tokens = static_cast<int64_t>(prompt_.size());
}

void ActiveRequest::Adopt(KvSequence sequence, int64_t tokens) {
  sequence_ = std::move(sequence);
  sequence_.Truncate(tokens);
  prompted_ = tokens;
  result_.stats.reused_tokens = tokens;
}

std::vector<int32_t> ActiveRequest::AllTokens() const {
  std::vector<int32_t> all = prompt_;
  all.insert(all.end(), result_.tokens.begin(), result_.tokens.end());
  all.resize(
      static_cast<size_t>(std::min<int64_t>(static_cast<int64_t>(all.size()), sequence_.length())));
  return all;
}

void ActiveRequest::Stop(Generation::Stop why) {
  if (done_) return;
  result_.stop = why;
  done_ = true;
}

// Passes text on, except a tail that could still become a stop string.
void ActiveRequest::Emit(std::string piece, bool last) {
  held_ += piece;
  size_t end = held_.size();
  bool stopped = false;
  for (const std::string& stop : request_.stop) {
    const size_t at = stop.empty() ? std::string::npos : held_.find(stop);
    if (at != std::string::npos && at <= end) {
      end = at;
      stopped = true;
    }
  }
  size_t send = end;
  if (!stopped && !last) {
    for (const std::string& stop : request_.stop) {
      for (size_t n = std::min(stop.size(), held_.size()); n > 0; --n) {
        if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) {
          send = std::min(send, held_.size() - n);
          break;
        }
      }
    }
  }
  const std::string text = held_.substr(0, send);
  held_ = stopped ? "" : held_.substr(send);
  result_.text += text;
  if (!text.empty() && on_text_ && !on_text_(text)) {
    on_text_ = nullptr;  // the reader has left
    Stop(Generation::Stop::kCancelled);
  }
  if (stopped) Stop(Generation::Stop::kStopString);
}

void ActiveRequest::Accept(std::span<const float> logits) {
  result_.stats.logits_hash = HashLogits(logits.data(), static_cast<int64_t>(logits.size()));
  std::vector<int32_t> history;
  if (request_.sampling.repetition_penalty != 1) {
    history = prompt_;
    history.insert(history.end(), result_.tokens.begin(), result_.tokens.end());
  }
  const int32_t token = sampler_.Sample(logits, history);
  if (!request_.ignore_end && engine_.tokenizer->IsEndOfGeneration(token))
    return Stop(Generation::Stop::kEndOfText);
  result_.tokens.push_back(token);
  Emit(decoder_.Push(token), false);
  if (static_cast<int64_t>(result_.tokens.size()) >= request_.max_tokens)
    return Stop(Generation::Stop::kLength);
  if (sequence_.length() + 1 > engine_.options.context) return Stop(Generation::Stop::kContext);
}

Generation ActiveRequest::Finish() {
  if (result_.stop != Generation::Stop::kStopString) Emit(decoder_.Flush(), true);
  RequestStats& s = result_.stats;
  s.generated_tokens = static_cast<int64_t>(result_.tokens.size());
  s.kv_bytes_per_token = decode_steps_ > 0 ? kv_bytes_ / static_cast<double>(decode_steps_) : 0;
  for (size_t l = 0; l < watch_.layers.size(); ++l) {
    const Watch::Layer& w = watch_.layers[l];
    if (w.sampled) s.watched.push_back({static_cast<int>(l), w.smallest, w.promoted});
  }
  return std::move(result_);
}

Status Scheduler::Run() {
  std::vector<ActiveRequest*> decoding;
  for (;;) {
    if (engine_.cancelled.load(std::memory_order_relaxed)) {
      for (ActiveRequest* r : requests_) r->Stop(Generation::Stop::kCancelled);
    }
    decoding.clear();
    bool prompts = false;
    for (ActiveRequest* r : requests_) {
      if (r->done()) continue;
      if (r->in_prompt()) {
        BATON_TRY(PromptStep(*r));
        prompts = true;
      } else {
        decoding.push_back(r);
      }
    }
    if (decoding.empty() && !prompts) return Status::Ok();
    for (size_t first = 0; first < decoding.size(); first += kDecodeRows) {
      BATON_TRY(DecodeStep(
          std::span(decoding).subspan(first, std::min(kDecodeRows, decoding.size() - first))));
    }
  }
}

Status Scheduler::PromptStep(ActiveRequest& r) {
  const auto start = Clock::now();
  const auto total = static_cast<int64_t>(r.prompt_.size());
  const int64_t count = std::min(engine_.options.prompt_chunk, total - r.prompted_);
  BATON_TRY(r.sequence_.Reserve(r.prompted_ + count));
  const AttentionSegment segment{.rows = {0, count, r.prompted_},
                                 .kv = &r.sequence_,
                                 .plan = r.plan(),
                                 .prompt = true,
                                 .watch = nullptr};
  const int64_t last_row = count - 1;
  ForwardBatch batch;
  batch.tokens =
      std::span(r.prompt_).subspan(static_cast<size_t>(r.prompted_), static_cast<size_t>(count));
  batch.segments = std::span(&segment, 1);
  if (r.prompted_ + count == total) {
    batch.logit_rows = std::span(&last_row, 1);
    batch.on_logits = [&](int64_t, View<const float> logits) {
      r.Accept(std::span(logits.data(), static_cast<size_t>(logits.dim(1))));
    };
  }
  r.prompted_ += count;
  BATON_TRY(engine_.model->Forward(batch));
  r.result_.stats.prompt_seconds += Since(start);
  return Status::Ok();
}

Status Scheduler::DecodeStep(std::span<ActiveRequest* const> rows) {
  const auto start = Clock::now();
  std::vector<int32_t> tokens;
  std::vector<AttentionSegment> segments;
  std::vector<int64_t> logit_rows(rows.size());
  std::iota(logit_rows.begin(), logit_rows.end(), int64_t{0});
  for (size_t i = 0; i < rows.size(); ++i) {
    ActiveRequest& r = *rows[i];
    const int64_t position = r.sequence_.length();
    BATON_TRY(r.sequence_.Reserve(position + 1));
    tokens.push_back(r.result_.tokens.back());
    segments.push_back({.rows = {static_cast<int64_t>(i), 1, position},
                        .kv = &r.sequence_,
                        .plan = r.plan(),
                        .prompt = false,
                        .watch = r.watch_.interval > 0 ? &r.watch_ : nullptr});
    r.kv_bytes_ +=
        static_cast<double>(r.plan_ ? KvBytesPerToken(*r.plan_, engine_.shape(), position + 1)
                                    : DenseKvBytesPerToken(engine_.shape(), position + 1));
    r.decode_steps_++;
    r.watch_.steps++;
  }
  ForwardBatch batch;
  batch.tokens = tokens;
  batch.segments = segments;
  batch.logit_rows = logit_rows;
  batch.on_logits = [&](int64_t first, View<const float> logits) {
    for (int64_t i = 0; i < logits.dim(0); ++i) {
      rows[static_cast<size_t>(first + i)]->Accept(
          std::span(logits.row(i), static_cast<size_t>(logits.dim(1))));
    }
  };
  BATON_TRY(engine_.model->Forward(batch));
  const double seconds = Since(start);
  for (ActiveRequest* r : rows) r->result_.stats.decode_seconds += seconds;
  return Status::Ok();
}

}  // namespace baton
