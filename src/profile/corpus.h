// The user's texts by kind, each as three disjoint token streams. Files that share passages
// (licence families, versions of one document) stay in one split, so that a plan is never verified
// on what it was fitted to.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "baton/engine.h"
#include "baton/error.h"

namespace baton {

struct Corpus {
  enum Split { kProfile, kSearch, kTest, kSplits };
  struct Kind {
    std::string name;
    std::vector<int32_t> tokens[kSplits];
    bool cut =
        false;  // its files do not fill the splits: their text was cut into consecutive parts
  };
  std::vector<Kind> kinds;          // at least one, in the order of their first files
  std::vector<std::string> texts;   // every file as KIND=PATH
  std::vector<std::string> sha256;  // of each file
  std::vector<std::string> warnings;
  int families = 0;

  int64_t Tokens(Split split) const;  // of all kinds
  // The kinds of these names alone; an error that lists the kinds where a name is none of them.
  Status Keep(const std::vector<std::string>& names);
};

constexpr const char* kSplitNames[] = {"profile", "search", "test"};

// `texts` as GatherTexts takes them. Of each kind half of the tokens go to profile, a quarter each
// to search and test, whole families at a time. A kind that nobody named and that is too short for
// splits of its own joins the longest one. Errors: too little text in all or of a named kind, text
// that repeats itself, too many kinds.
Result<Corpus> LoadCorpus(const Engine& engine, const std::vector<std::string>& texts);

}  // namespace baton
