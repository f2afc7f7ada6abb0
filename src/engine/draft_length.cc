#include "engine/draft_length.h"

#include <algorithm>

namespace baton {
namespace {

constexpr double kDecay = 0.98;    // of counts, per verification
constexpr double kRowGuess = 0.1;  // what another row adds, until some was seen
// Times are noisy: what is expected to save less than this is not worth it.
constexpr double kLeastGain = 0.02;
constexpr int64_t kDenseAtFirst = 2, kDenseEvery = 32;  // see PassTimes::dense_due
// A neighbour of the best number is tried once in so many turns, if it costs at most so much more.
constexpr int64_t kNeighbourEvery = 24;
constexpr double kNeighbourCost = 1.15;
// Of the time without drafts, what tries of them may lose.
constexpr double kTryShare = 0.004;
constexpr double kRemembered = 12;  // drafts of earlier requests that count in a new one

double TokensOfTurn(double accepted, int64_t n) {
  double tokens = 0, likely = 1;
  for (int64_t i = 0; i <= n; ++i, likely *= accepted) tokens += likely;
  return tokens;
}

double CostOfTurn(const PassTimes& times, bool free, double accepted, int64_t n, double verify) {
  const double drafts = free ? 0 : static_cast<double>(n) * times.draft();
  return (drafts + verify) / TokensOfTurn(accepted, n);
}

}  // namespace

void RecentMedian::Add(double value) {
  latest_[static_cast<size_t>(count_++ % std::ssize(latest_))] = value;
  std::array<double, 5> sorted = latest_;
  const int64_t n = std::min(count_, std::ssize(sorted));
  std::sort(sorted.begin(), sorted.begin() + n);
  median_ = sorted[static_cast<size_t>((n - 1) / 2)];
}

void PassTimes::Drafted(double seconds) {
  if (dense_known()) draft_.Add(seconds / dense_seconds());
}

void PassTimes::Verified(int64_t rows, double seconds) {
  since_dense_ = rows == 1 ? 0 : since_dense_ + 1;
  if (rows == 1) return dense_.Add(seconds);
  if (dense_known()) verify_[static_cast<size_t>(rows)].Add(seconds / dense_seconds());
}

bool PassTimes::dense_due() const {
  return dense_.count() < kDenseAtFirst || since_dense_ >= kDenseEvery;
}

int64_t PassTimes::Untried() const {
  int64_t rows = std::ssize(verify_) - 1;
  while (rows > 1 && Seen(rows) < 2) --rows;
  return rows + 1;
}

double PassTimes::Verify(int64_t rows) const {
  int64_t below = 1, above = 0;
  double low = 1, slope = kRowGuess;
  for (int64_t r = 2; r < std::ssize(verify_) && above == 0; ++r) {
    if (Seen(r) == 0) continue;
    const double seen = verify_[static_cast<size_t>(r)].value();
    slope = (seen - low) / static_cast<double>(r - below);
    if (r > rows) above = r;
    if (r <= rows) below = r, low = seen;
  }
  if (above == 0 && below > 1) slope = std::max(slope, (low - 1) / static_cast<double>(below - 1));
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
  if (times_.dense_due()) return 0;  // what all is measured by
  if (!free_ && !times_.draft_known()) return 1;
  const int64_t most = std::min(most_, 1 + static_cast<int64_t>(acceptance_.seen / 2));
  const int64_t best = BestOrTry(most);
  return best > 0 ? OrNeighbour(best, most) : OrTry(most);
}

int64_t DraftLength::OrTry(int64_t most) {
  saved_ += kTryShare;
  const double share = acceptance_.share();
  int64_t best = 1;
  for (int64_t n = 2; n <= most; ++n) {
    if (DraftCost(times_, free_, share, n) < DraftCost(times_, free_, share, best)) best = n;
  }
  // Of its turn, beside dense passes for the same tokens.
  const double loss = (DraftCost(times_, free_, share, best) - 1) * TokensOfTurn(share, best);
  if (saved_ < loss) return 0;
  saved_ = 0;
  return best;
}

int64_t DraftLength::OrNeighbour(int64_t best, int64_t most) {
  if (++turns_ % kNeighbourEvery != 0) return best;
  const int64_t other = best + (turns_ / kNeighbourEvery % 2 == 0 ? 1 : -1);
  if (other < 1 || other > most) return best;
  const double share = acceptance_.share();
  const double least = DraftCost(times_, free_, share, best);
  return DraftCost(times_, free_, share, other) < kNeighbourCost * least ? other : best;
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
