#include "engine/draft_length.h"

#include <algorithm>

namespace baton {
namespace {

constexpr double kDecay = 0.98;    // of counts, per verification
constexpr double kSmooth = 0.15;   // weight of the newest time
constexpr double kRowGuess = 0.1;  // what another row adds, until some was seen
// Times are noisy: what is expected to save less than this is not worth it.
constexpr double kLeastGain = 0.02;
constexpr int64_t kMostPatience = 1024;
constexpr double kRemembered = 12;  // drafts of earlier requests that count in a new one

double CostOfTurn(const PassTimes& times, bool free, double accepted, int64_t n, double verify) {
  double tokens = 0, likely = 1;
  for (int64_t i = 0; i <= n; ++i, likely *= accepted) tokens += likely;
  const double drafts = free ? 0 : static_cast<double>(n) * times.draft();
  return (drafts + verify) / tokens;
}

void Smooth(double& mean, double value) {
  mean = mean == 0 ? value : mean + kSmooth * (value - mean);
}

}  // namespace

void PassTimes::Drafted(double seconds) {
  if (dense_known()) Smooth(draft_, seconds / dense_seconds_);
}

void PassTimes::Verified(int64_t rows, double seconds) {
  if (rows == 1) return Smooth(dense_seconds_, seconds);
  if (!dense_known()) return;
  Smooth(verify_[static_cast<size_t>(rows)], seconds / dense_seconds_);
  seen_[static_cast<size_t>(rows)]++;
}

int64_t PassTimes::Untried() const {
  int64_t rows = std::ssize(seen_) - 1;
  while (rows > 1 && seen_[static_cast<size_t>(rows)] < 2) --rows;
  return rows + 1;
}

double PassTimes::Verify(int64_t rows) const {
  int64_t below = 1, above = 0;
  double low = 1, slope = kRowGuess;
  for (int64_t r = 2; r < std::ssize(verify_) && above == 0; ++r) {
    const double seen = verify_[static_cast<size_t>(r)];
    if (seen == 0) continue;
    slope = (seen - low) / static_cast<double>(r - below);
    if (r > rows) above = r;
    if (r <= rows) below = r, low = seen;
  }
  return low + slope * static_cast<double>(rows - below);
}

double DraftCost(const PassTimes& times, bool free, double accepted, int64_t n) {
  return CostOfTurn(times, free, accepted, n, times.Verify(n + 1));
}

int64_t CheapestDrafts(const PassTimes& times, bool free, double accepted, int64_t most) {
  int64_t best = 0;
  double least = 1 - kLeastGain;
  for (int64_t n = 1; n <= most; ++n) {
    const double cost = DraftCost(times, free, accepted, n);
    if (cost < least) best = n, least = cost;
  }
  return best;
}

int64_t DraftLength::Next() {
  if (!adaptive_) return most_;
  if (!times_.dense_known()) return 0;  // what all is measured by
  if (!free_ && !times_.draft_known()) return 1;
  const int64_t best = BestOrTry(std::min(most_, 1 + static_cast<int64_t>(acceptance_.seen / 2)));
  if (best > 0) {
    idle_ = 0;
    patience_ = 64;
    return best;
  }
  if (++idle_ < patience_) return 0;
  idle_ = 0;
  patience_ = std::min(2 * patience_, kMostPatience);
  return 1;
}

int64_t DraftLength::BestOrTry(int64_t most) const {
  const double share = acceptance_.share();
  const int64_t best = CheapestDrafts(times_, free_, share, most);
  const int64_t untried = times_.Untried() - 1;  // drafts
  if (untried > most) return best;
  // With the further row as cheap as it may be.
  const double cost = CostOfTurn(times_, free_, share, untried, times_.Verify(untried) + kRowGuess);
  const bool better = cost < std::min(1 - kLeastGain, DraftCost(times_, free_, share, best));
  return better ? untried : best;
}

void Acceptance::Add(int64_t drafts, int64_t drafts_accepted) {
  accepted = accepted * kDecay + static_cast<double>(drafts_accepted);
  seen = seen * kDecay + static_cast<double>(drafts_accepted);
  rejected = rejected * kDecay + (drafts_accepted < drafts ? 1 : 0);
}

Acceptance Acceptance::Faded() const {
  const double fade = std::min(1.0, kRemembered / (accepted + rejected));
  return {.accepted = accepted * fade, .rejected = rejected * fade, .seen = seen * fade};
}

DraftHistory DraftHistory::ForNext() const {
  DraftHistory next{times, plan.Faded(), short_match.Faded(), long_match.Faded()};
  next.times.ForgetDense();
  return next;
}

}  // namespace baton
