// How many tokens an exact request drafts for each verification: as many as make the expected time
// per token least, by what passes took and by what became of earlier drafts.
#pragma once

#include <array>
#include <cstdint>

namespace baton {

// Rows of one verification: the newest token and the drafts after it.
constexpr int64_t kMostDrafts = 15;

// What passes took, in dense passes of one row.
class PassTimes {
 public:
  void Drafted(double seconds);                 // one pass of the plan
  void Verified(int64_t rows, double seconds);  // a dense pass of so many rows
  void ForgetDense() { dense_seconds_ = 0; }

  double dense_seconds() const { return dense_seconds_; }
  bool dense_known() const { return dense_seconds_ > 0; }
  bool draft_known() const { return draft_ > 0; }
  double draft() const { return draft_; }
  // Between row counts that were seen, and beyond them, on straight lines.
  double Verify(int64_t rows) const;
  // The fewest rows beyond all that were seen twice: only a try tells what they take.
  int64_t Untried() const;

 private:
  double dense_seconds_ = 0;                      // 0: no dense pass of one row was seen
  double draft_ = 0;                              // 0: none was seen
  std::array<double, kMostDrafts + 2> verify_{};  // by rows; 0: not seen
  std::array<int, kMostDrafts + 2> seen_{};       // passes, by rows
};

// What became of the drafts of one source: decayed counts, which begin with a guess that tries
// drafts, and gives up after few rejections.
struct Acceptance {
  double accepted = 3, rejected = 0.5;
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

  // 0: drafting does not pay, or no dense pass was timed yet. Then one draft is made at growing
  // intervals, so that a change is noticed. Long drafts are made once some were accepted.
  int64_t Next();
  void Verified(int64_t drafts, int64_t accepted) { acceptance_.Add(drafts, accepted); }

 private:
  // The best number, or one more than was tried where a cheap further row would make that better.
  int64_t BestOrTry(int64_t most) const;

  const int64_t most_;
  const bool adaptive_, free_;
  const PassTimes& times_;
  Acceptance& acceptance_;
  int64_t idle_ = 0, patience_ = 64;  // turns without drafts, and after how many to try
};

}  // namespace baton
