#include "engine/exact.h"

#include <algorithm>

#include "base/check.h"

namespace baton {

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

ExactDrafts::ExactDrafts(const ExactOptions& options, const PassTimes& times)
    : options_(options),
      times_(times),
      plan_length_(options.most_drafts, options.adaptive, /*free=*/false, times_),
      lookup_length_(options.most_drafts, options.adaptive, /*free=*/true, times_) {
  times_.ForgetDense();
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
  if (options_.plan && !looked_up_) planned_ = std::min(room, plan_length_.Next());
}

void ExactDrafts::Drafted(double seconds, double share) {
  times_.Drafted(seconds * share);
  report_.draft_seconds += seconds;
}

void ExactDrafts::Verified(int64_t accepted, double seconds, double share) {
  BATON_CHECK(begun_);
  begun_ = false;
  const int64_t drafts = std::ssize(drafts_);
  times_.Verified(drafts + 1, seconds * share);
  report_.dense_pass_seconds = times_.dense_seconds();
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
