#include "engine/active_request.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/check.h"
#include "base/clock.h"

namespace baton {
namespace {

constexpr size_t kPlansTimed = 64;  // whose times an engine keeps
constexpr int32_t kNothing = -1;

// What fills the cache: a conversation goes on only where it is the same.
std::string HashOf(const Request& r, const ResolvedPlan& plan) {
  std::string hash = plan.hash;
  if (r.route)
    hash +=
        fmt::format(" {} {} {}", static_cast<int>(r.route->mode), r.route->margin, r.route->mask);
  if (r.exact) hash += " exact";
  return hash;
}

}  // namespace

ActiveRequest::ActiveRequest(Engine::Impl& engine, RequestId id, PreparedRequest prepared,
                             RequestCallbacks callbacks)
    : engine_(engine),
      id_(id),
      request_(std::move(prepared.request)),
      caches_(prepared.plan.caches),
      rollback_(prepared.rollback),
      plan_hash_(HashOf(request_, prepared.plan)),
      conversation_(prepared.conversation),
      callbacks_(std::move(callbacks)),
      sampler_(request_.sampling),
      decoder_(*engine.tokenizer) {
  sequence_.plan = std::move(prepared.plan);
  sequence_.tokens = std::move(prepared.tokens);
  sequence_.prompt_tokens = static_cast<int64_t>(sequence_.tokens.size());
  sequence_.kv_limit = prepared.kv_tokens;
  Watch& watch = sequence_.watch;
  watch.interval = sequence_.plan.changes_layers && !request_.exact ? request_.watch.interval : 0;
  watch.threshold = request_.watch.threshold;
  if (watch.interval > 0) watch.layers.resize(static_cast<size_t>(engine.info.layers));
  if (request_.constraint) constraint_ = request_.constraint->Begin();
  result_.stats.prompt_tokens = sequence_.prompt_tokens;
  if (request_.max_tokens == 0 && request_.prompt_logprobs < 0) Stop(Generation::Stop::kLength);
}

void ActiveRequest::Admit(std::shared_ptr<KvStore> store) {
  KvSequence kv = store->NewSequence();
  Begin(std::move(store), std::move(kv), 0);
  if (Status status = prompt_->Start(); !status.ok()) Fail(std::move(status).error());
}

void ActiveRequest::Admit(Conversation::Start start) {
  sequence_.plan = std::move(start.plan);  // its windows stay: what they dropped is gone
  Begin(std::move(start.store), std::move(start.kv), start.length);
  prompt_->Continue(std::move(start.routing));
}

void ActiveRequest::Begin(std::shared_ptr<KvStore> store, KvSequence kv, int64_t length) {
  BATON_CHECK(!admitted_);
  admitted_ = true;
  if (request_.exact) exact_.emplace(*request_.exact, engine_.draft_history[plan_hash_]);
  sequence_.store = std::move(store);
  sequence_.kv = std::move(kv);
  sequence_.kv.Truncate(length);
  prompt_.emplace(engine_,
                  RequestPromptParams{.request = &request_,
                                      .id = id_,
                                      .caches = &caches_,
                                      .rollback = rollback_,
                                      .conversation = conversation_,
                                      .sequence = &sequence_,
                                      .on_logits = [this](int64_t first, View<const float> logits) {
                                        PromptLogits(first, logits);
                                      }});
}

// Of wanted rows: the prompt's last one picks a token, the others score the token that follows.
void ActiveRequest::PromptLogits(int64_t first, View<const float> logits) {
  const bool score = request_.prompt_logprobs >= 0;
  for (int64_t i = 0; i < logits.dim(0); ++i) {
    const std::span row(logits.row(i), static_cast<size_t>(logits.dim(1)));
    const int64_t next = first + i + 1;  // where it scores, the first wanted row is row 0
    if (!score || next == sequence_.prompt_tokens) {
      PrepareChoices(1);
      Pick(0, HostSampler().Sample(row, RowAfter(0)), row);
      choices_.clear();
    } else {
      result_.prompt_logprobs.push_back(
          LogprobsOf(row, sequence_.tokens[static_cast<size_t>(next)], request_.prompt_logprobs));
    }
  }
}

void ActiveRequest::PromptPass(int64_t row_layers) {
  const auto start = std::chrono::steady_clock::now();
  Status status = prompt_->Step(row_layers);
  if (!status.ok()) return Fail(std::move(status).error());
  result_.stats.prompt_seconds += SecondsSince(start);
  if (!prompt_->running() || prompt_->within_pass()) return;
  if (callbacks_.on_prompt) {
    callbacks_.on_prompt(sequence_.prompt_position, sequence_.prompt_tokens);
  }
  if (prompt_->done()) AdvanceByPicked();
}

DecodeStep::Part ActiveRequest::NextPart() {
  DecodeStep::Part part{.kv = &sequence_.kv,
                        .plan = &sequence_.plan,
                        .tokens = std::span<const int32_t>(sequence_.tokens).last(1),
                        .watch = sequence_.watch_or_null(),
                        .logits = request_.logprobs >= 0};
  if (!exact_) return part;
  if (!exact_->begun()) {
    base_ = sequence_.kv.length();
    exact_->Begin(sequence_.tokens, DraftRoom());
  }
  verifying_ = !exact_->drafting();
  rows_.assign(1, sequence_.tokens.back());
  const std::span<const int32_t> drafts = exact_->drafts();
  if (verifying_) {
    // What the drafts left in the cache is the plan's.
    sequence_.kv.Truncate(base_);
    rows_.insert(rows_.end(), drafts.begin(), drafts.end());
    part.plan = &engine_.model_plan;
    part.rows_alone = true;
  } else {
    if (!drafts.empty()) rows_.assign(1, drafts.back());
    part.logits = false;
  }
  part.tokens = rows_;
  return part;
}

// Drafts that make no token past the request's or the cache's limit.
int64_t ActiveRequest::DraftRoom() const {
  const int64_t tokens = request_.max_tokens - std::ssize(result_.tokens) - 1;
  const int64_t positions = std::min(sequence_.kv_limit, engine_.options.context) - base_ - 1;
  return std::max<int64_t>(0, std::min({tokens, positions, kMostDrafts}));
}

void ActiveRequest::PrepareRows(std::span<SampleRow> rows) {
  const size_t first = exact_ && !verifying_ ? exact_->drafts().size() : 0;
  PrepareChoices(first + rows.size());
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = RowAfter(first + i);
}

void ActiveRequest::PrepareChoices(size_t count) {
  sampler_.Follow(sequence_.tokens);
  while (choices_.size() < count) choices_.push_back(Constrain(choices_.size()));
}

// Where no token can follow, only whether the logits hold a number counts.
SampleRow ActiveRequest::RowAfter(size_t drafts) {
  Choice& choice = choices_[drafts];
  if (choice.state != Choice::State::kOpen) return {};
  const auto before = drafts > 0 ? exact_->drafts().first(drafts) : std::span<const int32_t>();
  return sampler_.Row(sequence_.tokens, before, choice.mask, choice.entries);
}

// After the choice that has one draft less.
ActiveRequest::Choice ActiveRequest::Constrain(size_t drafts) {
  Choice choice;
  if (!constraint_) return choice;
  if (drafts > 0) {
    const Choice& before = choices_[drafts - 1];
    const auto draft = static_cast<uint32_t>(exact_->drafts()[drafts - 1]);
    const bool allowed =
        before.state == Choice::State::kOpen && (before.mask[draft / 32] >> draft % 32 & 1) != 0;
    if (!allowed || !constraint_->Accept(static_cast<int32_t>(draft))) {
      choice.state = Choice::State::kRuledOut;
      return choice;
    }
    ++told_;
  }
  const auto start = std::chrono::steady_clock::now();
  choice.mask.resize(static_cast<size_t>(engine_.info.vocab + 31) / 32);
  Result<bool> more = constraint_->Next(choice.mask);
  result_.stats.constraint_seconds += SecondsSince(start);
  if (!more.ok()) {
    choice.state = Choice::State::kStuck;
    choice.error = std::move(more).error();
  } else if (!*more) {
    choice.state = Choice::State::kComplete;
  }
  return choice;
}

// Tells the constraint what was picked after some drafts, which were right. Drafts that it was told
// and that were picked stay; the others are taken back.
bool ActiveRequest::TellPick(size_t drafts, int32_t token) {
  if (!constraint_) return true;
  if (told_ > static_cast<int>(drafts)) {
    if (exact_->drafts()[drafts] == token) return true;
    constraint_->Rollback(told_ - static_cast<int>(drafts));
    told_ = static_cast<int>(drafts);
    // A state may keep what Next found, for the token that follows.
    if (const Result<bool> more = constraint_->Next(choices_[drafts].mask); !more.ok() || !*more)
      return false;
  }
  return constraint_->Accept(token);
}

void ActiveRequest::Pick(size_t drafts, const SampledRow& sampled, std::span<const float> logits) {
  const auto no_number = [&](const char* what) {
    return Error::Corrupt("the logits after position {} hold no number{}",
                          sequence_.tokens.size() + drafts - 1, what)
        .Hint(
            "weights that are not numbers, or values that overflow the cache's type; compare "
            "with --backend ref");
  };
  if (sampled.token == SampledRow::kNoNumber) return FailPick(no_number(""));
  const Choice& choice = choices_[drafts];
  if (choice.state == Choice::State::kStuck) return FailPick(*choice.error);
  if (choice.state == Choice::State::kComplete) return picked_.push_back({.token = kNothing});
  if (sampled.token < 0 || !TellPick(drafts, sampled.token))
    return FailPick(no_number(constraint_ ? " among the tokens that the grammar allows"
                                          : " once biases and penalties are applied"));
  sampler_.Advance();
  Picked picked{.token = sampled.token, .hash = HashText(sampled.hash)};
  if (request_.logprobs >= 0) picked.logprobs = LogprobsOf(logits, picked.token, request_.logprobs);
  picked_.push_back(std::move(picked));
}

// What was picked in this turn goes out first: the next turn begins here, and fails.
void ActiveRequest::FailPick(Error error) {
  if (picked_.empty()) Fail(std::move(error));
}

// The plan's next token, drawn by what will draw dense decoding's.
void ActiveRequest::Draft(const SampledRow& sampled) {
  const bool open = choices_[exact_->drafts().size()].state == Choice::State::kOpen;
  if (sampled.token < 0 || !open) return exact_->StopDrafting();
  exact_->AddDraft(sampled.token);
}

void ActiveRequest::Accept(std::span<const SampledRow> sampled, View<const float> logits) {
  if (exact_ && !verifying_) return Draft(sampled[0]);
  // A row counts as long as every draft before it was what dense decoding picked.
  for (size_t i = 0; i < sampled.size() && picked_.size() == i; ++i) {
    if (i > 0 && picked_.back().token != exact_->drafts()[i - 1]) break;
    const std::span<const float> row =
        logits.empty()
            ? std::span<const float>()
            : std::span(logits.row(static_cast<int64_t>(i)), static_cast<size_t>(logits.dim(1)));
    Pick(i, sampled[i], row);
  }
  // Of the drafts that the constraint was told, those that were picked stay.
  const auto right = [&](size_t i) {
    return i < picked_.size() && picked_[i].token == exact_->drafts()[i];
  };
  int kept = 0;
  while (kept < told_ && right(static_cast<size_t>(kept))) ++kept;
  if (told_ > kept) constraint_->Rollback(told_ - kept);
  told_ = 0;
  choices_.clear();
}

void ActiveRequest::FailPart(Error error) {
  if (exact_ && !verifying_) return exact_->StopDrafting();  // a draft owes nothing
  Fail(std::move(error));
}

void ActiveRequest::Advance(double seconds, double share) {
  CountDecode(seconds, exact_ && verifying_ ? engine_.model_plan : sequence_.plan);
  if (exact_ && !verifying_) return exact_->Drafted(seconds, share);
  if (exact_) exact_->Verified(std::ssize(picked_) - 1, seconds, share);
  const int64_t before = std::ssize(sequence_.tokens);
  AdvanceByPicked();
  // What follows the newest token's predecessors was rejected, or came after the last one.
  if (exact_)
    sequence_.kv.Truncate(base_ + std::max<int64_t>(1, std::ssize(sequence_.tokens) - before));
}

void ActiveRequest::AdvanceByPicked() {
  if (request_.max_tokens == 0) Stop(Generation::Stop::kLength);
  for (size_t i = 0; i < picked_.size() && !done_; ++i) AdvanceBy(picked_[i]);
  picked_.clear();
}

void ActiveRequest::AdvanceBy(Picked& picked) {
  const int32_t token = picked.token;
  if (token == kNothing) return Stop(Generation::Stop::kEndOfText);
  result_.stats.logits_hash = std::move(picked.hash);
  if ((!request_.ignore_end || constraint_) && engine_.tokenizer->IsEndOfGeneration(token))
    return Stop(Generation::Stop::kEndOfText);
  if (CompletesStop(token)) return Stop(Generation::Stop::kStopString);
  result_.tokens.push_back(token);
  picked.logprobs.chosen.token = token;
  if (callbacks_.on_token) callbacks_.on_token(picked.logprobs);
  if (request_.logprobs >= 0) result_.logprobs.push_back(std::move(picked.logprobs));
  sequence_.tokens.push_back(token);
  Emit(decoder_.Push(token), false);
  if (static_cast<int64_t>(result_.tokens.size()) >= request_.max_tokens)
    return Stop(Generation::Stop::kLength);
  if (std::ssize(sequence_.tokens) > engine_.options.context)
    return Stop(Generation::Stop::kContext);
}

void ActiveRequest::CountDecode(double seconds, const ResolvedPlan& plan) {
  const int64_t visible = sequence_.kv.length();
  const ModelShape& shape = engine_.shape();
  const KvElement element = engine_.cache_element();
  result_.stats.decode_seconds += seconds;
  int64_t read = KvBytesPerToken(plan, shape, visible, element);
  // Layers that the watch promoted read what the model reads, where the plan holds at all.
  const std::vector<Watch::Layer>& watched = sequence_.watch.layers;
  for (int l = 0; l < std::ssize(watched) && visible > plan.min_context; ++l) {
    if (watched[static_cast<size_t>(l)].promoted)
      read += LayerKvBytes(engine_.model_plan, l, visible, element) -
              LayerKvBytes(plan, l, visible, element);
  }
  kv_bytes_ += static_cast<double>(read);
  dense_kv_bytes_ +=
      static_cast<double>(shape.trained_sparse() ? FullKvBytes(shape, visible, element)
                                                 : DenseKvBytesPerToken(shape, visible, element));
  decode_steps_++;
}

void ActiveRequest::Stop(Generation::Stop why) {
  if (done_) return;
  result_.stop = why;
  done_ = true;
}

void ActiveRequest::Fail(Error error) {
  if (done_) return;
  error_ = std::move(error);
  done_ = true;
}

bool ActiveRequest::CompletesStop(int32_t token) {
  if (request_.stop.empty() || !engine_.tokenizer->IsControl(token)) return false;
  const std::string special = engine_.tokenizer->Bytes(token, /*special=*/true);
  for (const std::string& stop : request_.stop) {
    if (special.empty() || !stop.ends_with(special)) continue;
    const size_t before = stop.size() - special.size();
    if (!held_.ends_with(stop.substr(0, before))) continue;
    std::string rest = held_.substr(0, held_.size() - before);
    held_.clear();
    Send(rest);
    return true;
  }
  return false;
}

void ActiveRequest::Send(const std::string& text) {
  result_.text += text;
  if (!text.empty() && callbacks_.on_text && !callbacks_.on_text(text)) {
    callbacks_.on_text = nullptr;  // the reader has left
    Stop(Generation::Stop::kCancelled);
  }
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
  Send(text);
  if (stopped) Stop(Generation::Stop::kStopString);
}

void ActiveRequest::CountCache() {
  BATON_CHECK(done_);
  if (!sequence_.store) return;
  // Cancelled among its drafts: their K and V are the plan's.
  if (exact_ && exact_->begun()) sequence_.kv.Truncate(base_);
  std::optional<RoutingReport>& routing = result_.stats.routing;
  result_.stats.reused_tokens = prompt_->reused();
  result_.stats.prefix = prompt_->prefix();
  result_.stats.kv_bytes_held = sequence_.kv.held_bytes();
  routing = prompt_->RoutesReport();
  if (routing) CountHeld(sequence_.plan, sequence_.kv, *routing);
  if (!exact_) return;
  result_.stats.exact = exact_->report();
  if (engine_.draft_history.size() > kPlansTimed) engine_.draft_history.clear();
  engine_.draft_history[plan_hash_] = exact_->history();
}

void ActiveRequest::Finish() {
  BATON_CHECK(done_);
  if (result_.stop != Generation::Stop::kStopString) Emit(decoder_.Flush(), true);
  sequence_.Release();
  if (prompt_) prompt_->End();
  RequestStats& s = result_.stats;
  s.generated_tokens = static_cast<int64_t>(result_.tokens.size());
  const double steps = static_cast<double>(std::max<int64_t>(1, decode_steps_));
  // The prompt's pass makes the first token; an exact request's others do not have a step each.
  const double tokens = static_cast<double>(std::max<int64_t>(1, s.generated_tokens - 1));
  s.kv_bytes_per_token = kv_bytes_ / (exact_ ? tokens : steps);
  s.kv_bytes_per_token_dense = dense_kv_bytes_ / steps;
  const std::vector<Watch::Layer>& layers = sequence_.watch.layers;
  for (size_t l = 0; l < layers.size(); ++l) {
    if (layers[l].sampled)
      s.watched.push_back({static_cast<int>(l), layers[l].smallest, layers[l].promoted});
  }
  if (!callbacks_.on_done) return;
  if (error_) return callbacks_.on_done(*std::move(error_));
  callbacks_.on_done(std::move(result_));
}

}  // namespace baton
