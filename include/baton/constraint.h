// What an answer must look like, held to while its tokens are picked.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "baton/error.h"

namespace baton {

// One answer's place in what is allowed.
class ConstraintState {
 public:
  virtual ~ConstraintState() = default;
  // Which tokens may come next: token t may if bit t % 32 of mask[t / 32] is set; `mask` has a word
  // for each 32 tokens of the vocabulary. An end token may where the answer is complete. False: the
  // answer is complete and nothing may follow. Errors: it is not complete, and no token goes on.
  virtual Result<bool> Next(std::span<uint32_t> mask) = 0;
  // False, and nothing changes, for a token that may not come next.
  virtual bool Accept(int32_t token) = 0;
  // Takes back the latest `tokens` that were accepted.
  virtual void Rollback(int tokens) = 0;
};

// Shared by any number of answers, on any threads.
class Constraint {
 public:
  virtual ~Constraint() = default;
  virtual std::unique_ptr<ConstraintState> Begin() const = 0;
};

// Answers that are JSON, and what may stand around it.
struct GrammarSpec {
  // JSON Schema. Objects have no members but those it names, where it names any; they come in its
  // order. White space is at most kMostSpaces characters in a row.
  std::string schema;
  // EBNF (xgrammar's) in which the rule `root` is what the schema describes and the rule `answer`
  // is the answer. Empty: the answer is what the schema describes.
  std::string around;
  // Keywords of the schema that cannot be enforced are errors; otherwise they are ignored.
  bool strict = false;
  // The answer may as well be what one of these describes.
  std::vector<GrammarSpec> or_else;

  static constexpr int kMostSpaces = 16;
};

}  // namespace baton
