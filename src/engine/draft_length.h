// How many tokens an exact request drafts for each verification: as many as make the expected time
// per token least, by what passes took and by what became of earlier drafts.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace baton {

// The median of the latest few values; of an even number, the lower one. What a machine does beside
// makes single passes long, none short.
class RecentMedian {
 public:
  void Add(double value);
  void Clear() { count_ = 0; }
  bool empty() const { return count_ == 0; }
  int64_t count() const { return count_; }  // of all that were added
  double value() const { return median_; }  // not empty

 private:
  std::array<double, 5> latest_{};
  int64_t count_ = 0;
  double median_ = 0;
};

// Rows of one verification: the newest token and the drafts after it.
constexpr int64_t kMostDrafts = 15;

// What passes took, in dense passes of one row.
class PassTimes {
 public:
  void Drafted(double seconds);                 // one pass of the plan
  void Verified(int64_t rows, double seconds);  // a dense pass of so many rows
  void ForgetDense() { dense_.Clear(); }

  double dense_seconds() const { return dense_known() ? dense_.value() : 0; }
  bool dense_known() const { return !dense_.empty(); }
  // Few dense passes of one row were seen, or none for long: all else is measured by them.
  bool dense_due() const;
  bool draft_known() const { return !draft_.empty(); }
  double draft() const { return draft_known() ? draft_.value() : 0; }
  // Between row counts that were seen on straight lines. Beyond them rows go on to cost what they
  // cost so far, the latest ones or all of them, whichever is more.
  double Verify(int64_t rows) const;
  // Passes of so many rows that were seen.
  int64_t Seen(int64_t rows) const { return verify_[static_cast<size_t>(rows)].count(); }
  // The fewest rows beyond all that were seen twice: only a try tells what they take.
  int64_t Untried() const;

 private:
  RecentMedian dense_, draft_;                          // seconds; dense passes
  std::array<RecentMedian, kMostDrafts + 2> verify_{};  // by rows, in dense passes
  int64_t since_dense_ = 0;                             // passes of several rows
};

// What became of the drafts of one source: decayed counts, which begin with a guess that tries
// drafts, and gives up after few rejections.
struct Acceptance {
  double accepted = 1.5, rejected = 0.3;
  double seen = 0;  // of `accepted`, without the guess

  double share() const { return accepted / (accepted + rejected); }
  void Add(int64_t drafts, int64_t drafts_accepted);
  // For a new request, whose own drafts are to count more.
  Acceptance Faded() const;
};

// Requests of one engine and plan hand it on, so that each begins with what earlier ones saw; what
// a dense pass takes is each one's own.
struct DraftHistory {
  PassTimes times;
  Acceptance plan, short_match, long_match;

  DraftHistory ForNext() const;
};

// Expected time per token with n drafts for each verification, in dense passes: each draft is
// accepted with this probability after the one before, so a turn makes (1 - p^(n+1)) / (1 - p)
// tokens. `free`: drafts take no pass of the plan.
double DraftCost(const PassTimes& times, bool free, double accepted, int64_t n);
// The n from 0 to `most` of least cost.
int64_t CheapestDrafts(const PassTimes& times, bool free, double accepted, int64_t most);

class DraftLength {
 public:
  // `times` and `acceptance` outlive it.
  DraftLength(int64_t most, bool adaptive, bool free, const PassTimes& times,
              Acceptance& acceptance)
      : most_(most), adaptive_(adaptive), free_(free), times_(times), acceptance_(acceptance) {}

  // 0: drafting does not pay, or a dense pass is to be timed. Drafts that do not pay are tried the
  // more seldom the more they lose, so that a change is noticed. Long drafts are made once some
  // were accepted.
  int64_t Next();
  void Verified(int64_t drafts, int64_t accepted) { acceptance_.Add(drafts, accepted); }

 private:
  // The best number, or one more than was tried where a cheap further row would make that better.
  int64_t BestOrTry(int64_t most) const;
  // Now and then a neighbour that is nearly as good: what it takes may have changed, or been seen
  // in a bad moment.
  int64_t OrNeighbour(int64_t best, int64_t most);
  // What loses least, once dense passes have paid for it; else 0.
  int64_t OrTry(int64_t most);

  const int64_t most_;
  const bool adaptive_, free_;
  const PassTimes& times_;
  Acceptance& acceptance_;
  double saved_ = 0;   // for tries, in dense passes
  int64_t turns_ = 0;  // with drafts
};

}  // namespace baton
