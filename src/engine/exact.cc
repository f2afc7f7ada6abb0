#include "engine/exact.h"

#include <algorithm>

#include "base/check.h"

namespace baton {
namespace {

constexpr double kDecay = 0.98;   // of counts, per verification
constexpr double kSmooth = 0.25;  // weight of the newest time

void Smooth(double& mean, double value) {
  mean = mean == 0 ? value : mean + kSmooth * (value - mean);
}

}  // namespace

uint64_t Lookup::Key(std::span<const int32_t> gram) {
  uint64_t key = 0;
  for (const int32_t token : gram) key = key << 21 | static_cast<uint64_t>(token);
  return key;
}

void Lookup::Update(std::span<const int32_t> tokens) {
  for (int64_t i = std::max(seen_, kGram); i < std::ssize(tokens); ++i) {
    next_[Key(tokens.subspan(static_cast<size_t>(i - kGram), kGram))] = static_cast<int32_t>(i);
  }
  seen_ = std::ssize(tokens);
}

std::vector<int32_t> Lookup::Continue(std::span<const int32_t> tokens, int64_t n) const {
  if (std::ssize(tokens) < kGram) return {};
  const auto found = next_.find(Key(tokens.last(kGram)));
  if (found == next_.end()) return {};
  const auto from = tokens.begin() + found->second;
  return {from, from + std::min<int64_t>(n, tokens.end() - from)};
}

void DraftLength::Drafted(double seconds) { Smooth(draft_seconds_, seconds); }

void DraftLength::Timed(int64_t rows, double seconds) {
  if (rows >= 1 && rows <= kMostDrafts + 1)
    Smooth(verify_seconds_[static_cast<size_t>(rows)], seconds);
}

void DraftLength::Verified(int64_t drafts, int64_t accepted) {
  accepted_ = accepted_ * kDecay + static_cast<double>(accepted);
  rejected_ = rejected_ * kDecay + (accepted < drafts ? 1 : 0);
}

// Row counts that were not seen yet: a few percent more for each row than the next smaller one.
double DraftLength::VerifySeconds(int64_t rows) const {
  for (int64_t r = rows; r >= 1; --r) {
    const double seen = verify_seconds_[static_cast<size_t>(r)];
    if (seen > 0) return seen * (1 + 0.04 * static_cast<double>(rows - r));
  }
  return 0;
}

double DraftLength::SecondsPerToken(int64_t n) const {
  const double p = accepted_ / (accepted_ + rejected_);
  double tokens = 0, likely = 1;
  for (int64_t i = 0; i <= n; ++i, likely *= p) tokens += likely;
  return (static_cast<double>(n) * draft_seconds_ + VerifySeconds(n + 1)) / tokens;
}

int64_t DraftLength::Next() {
  if (!adaptive_) return most_;
  int64_t best = 0;
  if (VerifySeconds(1) == 0) return 0;  // a dense step first: what all is measured against
  for (int64_t n = 1; n <= most_; ++n)
    if (SecondsPerToken(n) < SecondsPerToken(best)) best = n;
  if (best > 0) {
    idle_ = 0;
    patience_ = 64;
    return best;
  }
  if (++idle_ < patience_) return 0;
  idle_ = 0;
  patience_ = std::min<int64_t>(2 * patience_, 1024);
  return std::min<int64_t>(2, most_);
}

ExactDrafts::ExactDrafts(const ExactOptions& options, bool plan)
    : options_(options),
      plan_(plan),
      plan_length_(options.most_drafts, options.adaptive),
      lookup_length_(options.most_drafts, options.adaptive) {
  report_.accepted_at.resize(static_cast<size_t>(options.most_drafts));
  report_.drafted_at.resize(report_.accepted_at.size());
}

void ExactDrafts::Begin(std::span<const int32_t> tokens, int64_t room) {
  BATON_CHECK(!begun_);
  begun_ = true;
  drafts_.clear();
  planned_ = 0;
  looked_up_ = false;
  room = std::min(room, options_.most_drafts);
  if (options_.lookup) {
    lookup_.Update(tokens);
    drafts_ = lookup_.Continue(tokens, room);
    if (!drafts_.empty()) {
      drafts_.resize(std::min(drafts_.size(), static_cast<size_t>(lookup_length_.Next())));
      looked_up_ = !drafts_.empty();
    }
  }
  if (plan_ && !looked_up_) planned_ = std::min(room, plan_length_.Next());
}

void ExactDrafts::Drafted(double seconds) {
  plan_length_.Drafted(seconds);
  report_.draft_seconds += seconds;
}

void ExactDrafts::Verified(int64_t accepted, double seconds) {
  BATON_CHECK(begun_);
  begun_ = false;
  const int64_t drafts = std::ssize(drafts_);
  for (DraftLength* length : {&plan_length_, &lookup_length_}) length->Timed(drafts + 1, seconds);
  if (drafts > 0) (looked_up_ ? lookup_length_ : plan_length_).Verified(drafts, accepted);
  (looked_up_ ? report_.looked_up : report_.drafted) += drafts;
  report_.accepted += accepted;
  report_.verifications++;
  report_.verify_seconds += seconds;
  for (int64_t i = 0; i < drafts; ++i) {
    report_.drafted_at[static_cast<size_t>(i)]++;
    if (i < accepted) report_.accepted_at[static_cast<size_t>(i)]++;
  }
}

}  // namespace baton
