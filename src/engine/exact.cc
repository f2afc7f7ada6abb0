#include "engine/exact.h"

#include <algorithm>

#include "base/check.h"

namespace baton {
namespace {

constexpr int64_t kLongMatch = 8;  // tokens

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

Lookup::Found Lookup::Find(std::span<const int32_t> tokens) const {
  if (std::ssize(tokens) < kGram) return {};
  const auto at = next_.find(Key(tokens.last(kGram)));
  if (at == next_.end()) return {};
  Found found{.next = at->second, .length = kGram};
  const auto same = [&](int64_t back) {
    return tokens[static_cast<size_t>(found.next - 1 - back)] ==
           tokens[tokens.size() - 1 - static_cast<size_t>(back)];
  };
  while (found.length < std::min<int64_t>(found.next, kMostCompared) && same(found.length))
    ++found.length;
  return found;
}

ExactDrafts::ExactDrafts(const ExactOptions& options, const DraftHistory& history)
    : options_(options),
      history_(history.ForNext()),
      plan_length_(options.most_drafts, options.adaptive, /*free=*/false, history_.times,
                   history_.plan),
      short_match_(options.most_drafts, options.adaptive, /*free=*/true, history_.times,
                   history_.short_match),
      long_match_(options.most_drafts, options.adaptive, /*free=*/true, history_.times,
                  history_.long_match) {
  report_.accepted_at.resize(static_cast<size_t>(options.most_drafts));
  report_.drafted_at.resize(report_.accepted_at.size());
}

void ExactDrafts::Begin(std::span<const int32_t> tokens, int64_t room) {
  BATON_CHECK(!begun_);
  begun_ = true;
  drafts_.clear();
  planned_ = 0;
  source_ = nullptr;
  room = std::min(room, options_.most_drafts);
  if (options_.lookup) LookUp(tokens, room);
  if (options_.plan && drafts_.empty()) {
    source_ = &plan_length_;
    planned_ = std::min(room, plan_length_.Next());
  }
}

void ExactDrafts::LookUp(std::span<const int32_t> tokens, int64_t room) {
  lookup_.Update(tokens);
  const Lookup::Found found = lookup_.Find(tokens);
  if (found.next == 0) return;
  source_ = found.length >= kLongMatch ? &long_match_ : &short_match_;
  const auto followed = tokens.subspan(static_cast<size_t>(found.next));
  const auto count = std::min({room, source_->Next(), std::ssize(followed)});
  drafts_.assign(followed.begin(), followed.begin() + count);
}

void ExactDrafts::Drafted(double seconds, double share) {
  history_.times.Drafted(seconds * share);
  report_.draft_seconds += seconds;
}

void ExactDrafts::Verified(int64_t accepted, double seconds, double share) {
  BATON_CHECK(begun_);
  begun_ = false;
  const int64_t drafts = std::ssize(drafts_);
  history_.times.Verified(drafts + 1, seconds * share);
  report_.dense_pass_seconds = history_.times.dense_seconds();
  if (drafts > 0) source_->Verified(drafts, accepted);
  (source_ == &plan_length_ ? report_.drafted : report_.looked_up) += drafts;
  report_.accepted += accepted;
  report_.verifications++;
  report_.verify_seconds += seconds;
  for (int64_t i = 0; i < drafts; ++i) {
    report_.drafted_at[static_cast<size_t>(i)]++;
    if (i < accepted) report_.accepted_at[static_cast<size_t>(i)]++;
  }
}

}  // namespace baton
