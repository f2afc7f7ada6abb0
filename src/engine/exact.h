// Exact requests: a cheap draft proposes tokens, one dense pass over their rows decides. What is
// accepted is what dense decoding would have produced, bit for bit; a draft only changes how long
// it takes (docs/exact.md).
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "baton/engine.h"
#include "engine/draft_length.h"

namespace baton {

// Prompt lookup: what followed the latest earlier occurrence of the newest tokens.
class Lookup {
 public:
  // Takes in the tokens that were appended since the last call. Tokens are below 2^21.
  void Update(std::span<const int32_t> tokens);
  // Where the newest tokens stood before.
  struct Found {
    int64_t next = 0;    // index of what followed them; 0: they stand nowhere else
    int64_t length = 0;  // how many are the same, kGram to kMostCompared
  };
  Found Find(std::span<const int32_t> tokens) const;

 private:
  static constexpr int64_t kGram = 3, kMostCompared = 16;
  static uint64_t Key(std::span<const int32_t> gram);

  std::unordered_map<uint64_t, int32_t> next_;  // n-gram -> index of the token after it
  int64_t seen_ = 0;                            // tokens that have an entry for what precedes them
};

// One exact request's drafts. A turn: Begin, then drafts of the plan while drafting(), then one
// verification of drafts().
class ExactDrafts {
 public:
  // `history`: of earlier requests of this plan.
  ExactDrafts(const ExactOptions& options, const DraftHistory& history);
  ExactDrafts(const ExactDrafts&) = delete;  // lengths look at the history

  // `tokens`: the prompt and what was generated. `room`: drafts that may be made at most.
  void Begin(std::span<const int32_t> tokens, int64_t room);
  bool begun() const { return begun_; }
  bool drafting() const { return static_cast<int64_t>(drafts_.size()) < planned_; }
  std::span<const int32_t> drafts() const { return drafts_; }
  void AddDraft(int32_t token) { drafts_.push_back(token); }
  void StopDrafting() { planned_ = std::ssize(drafts_); }
  // After a pass of the plan, and after the verification, which ends the turn. `share`: of the
  // pass, where other requests took part in it.
  void Drafted(double seconds, double share);
  void Verified(int64_t accepted, double seconds, double share);

  const ExactReport& report() const { return report_; }
  const DraftHistory& history() const { return history_; }

 private:
  void LookUp(std::span<const int32_t> tokens, int64_t room);

  const ExactOptions options_;
  DraftHistory history_;
  Lookup lookup_;
  // A long match is continued rightly far more often than a short one.
  DraftLength plan_length_, short_match_, long_match_;
  DraftLength* source_ = nullptr;  // of this turn's drafts
  bool begun_ = false;
  int64_t planned_ = 0;  // drafts that the plan is to make
  std::vector<int32_t> drafts_;
  ExactReport report_;
};

}  // namespace baton
