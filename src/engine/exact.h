// Exact requests: a cheap draft proposes tokens, one dense pass over their rows decides. What is
// accepted is what dense decoding would have produced, bit for bit; a draft only changes how long
// it takes (docs/exact.md).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "baton/engine.h"

namespace baton {

// Rows of one verification: the newest token and the drafts after it.
constexpr int64_t kMostDrafts = 15;

// Prompt lookup: what followed the latest earlier occurrence of the newest tokens.
class Lookup {
 public:
  // Takes in the tokens that were appended since the last call. Tokens are below 2^21.
  void Update(std::span<const int32_t> tokens);
  // At most n tokens; none where the newest kGram tokens stand nowhere else.
  std::vector<int32_t> Continue(std::span<const int32_t> tokens, int64_t n) const;

 private:
  static constexpr int64_t kGram = 3;
  static uint64_t Key(std::span<const int32_t> gram);

  std::unordered_map<uint64_t, int32_t> next_;  // n-gram -> index of the token after it
  int64_t seen_ = 0;                            // tokens that have an entry for what precedes them
};

// How many tokens of one source to draft, from the acceptance and the times seen. With n drafts,
// each accepted with probability p after the one before, a turn makes (1 - p^(n+1)) / (1 - p)
// tokens.
class DraftLength {
 public:
  DraftLength(int64_t most, bool adaptive) : most_(most), adaptive_(adaptive) {}

  // The n of least expected time per token; 0: drafting does not pay. Then a short draft is tried
  // again at growing intervals, so that a change is noticed.
  int64_t Next();

  void Drafted(double seconds);  // one pass of the plan
  void Verified(int64_t drafts, int64_t accepted);
  // Of any dense pass of so many rows, whoever drafted them.
  void Timed(int64_t rows, double seconds);

 private:
  double VerifySeconds(int64_t rows) const;
  double SecondsPerToken(int64_t n) const;

  const int64_t most_;
  const bool adaptive_;
  double accepted_ = 4, rejected_ = 1;  // decayed counts; where they begin is a guess
  double draft_seconds_ = 0;            // 0: drafts cost nothing, or none was timed
  std::array<double, kMostDrafts + 2> verify_seconds_{};  // by rows; 0: not seen
  int64_t idle_ = 0, patience_ = 64;  // turns without drafts, and after how many to try
};

// One exact request's drafts. A turn: Begin, then drafts of the plan while drafting(), then one
// verification of drafts().
class ExactDrafts {
 public:
  ExactDrafts(const ExactOptions& options, bool plan);

  // `tokens`: the prompt and what was generated. `room`: drafts that may be made at most.
  void Begin(std::span<const int32_t> tokens, int64_t room);
  bool begun() const { return begun_; }
  bool drafting() const { return static_cast<int64_t>(drafts_.size()) < planned_; }
  std::span<const int32_t> drafts() const { return drafts_; }
  void AddDraft(int32_t token) { drafts_.push_back(token); }
  void StopDrafting() { planned_ = std::ssize(drafts_); }
  // After a pass of the plan, and after the verification, which ends the turn.
  void Drafted(double seconds);
  void Verified(int64_t accepted, double seconds);

  const ExactReport& report() const { return report_; }

 private:
  const ExactOptions options_;
  const bool plan_;
  Lookup lookup_;
  DraftLength plan_length_, lookup_length_;
  bool begun_ = false, looked_up_ = false;
  int64_t planned_ = 0;  // drafts that the plan is to make
  std::vector<int32_t> drafts_;
  ExactReport report_;
};

}  // namespace baton
