// The user's texts as three disjoint token streams. Files that share passages (licence families,
// versions of one document) stay in one split, so that a plan is never verified on what it was
// fitted to.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "baton/engine.h"
#include "baton/error.h"

namespace baton {

struct Corpus {
  enum Split { kProfile, kSearch, kTest, kSplits };
  std::vector<int32_t> tokens[kSplits];
  std::vector<std::string> sha256;  // of each file
  int families = 0;
  bool cut = false;  // fewer than three families: one of them was cut into consecutive parts
};

constexpr const char* kSplitNames[] = {"profile", "search", "test"};

Result<std::string> ReadText(const std::string& path);
// Half of the tokens go to profile, a quarter each to search and test, whole families at a time.
Result<Corpus> LoadCorpus(const Engine& engine, const std::vector<std::string>& paths);

}  // namespace baton
