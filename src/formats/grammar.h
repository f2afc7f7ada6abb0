// Grammars of answers, compiled for a vocabulary by xgrammar (scripts/get-xgrammar): for each state
// which tokens may come next.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "baton/constraint.h"
#include "formats/tokenizer.h"

namespace baton {

class GrammarCompiler {
 public:
  // `vocab`: rows of logits. The tokenizer outlives this.
  GrammarCompiler(const Tokenizer& tokenizer, int64_t vocab);
  ~GrammarCompiler();
  GrammarCompiler(const GrammarCompiler&) = delete;

  // Compiled before, where it is among the latest. Errors: a schema that is no JSON Schema, that
  // nothing satisfies, or that is too large; with `strict`, one that cannot be enforced wholly.
  // Safe from any thread; one compiles at a time.
  Result<std::shared_ptr<const Constraint>> Compile(const GrammarSpec& spec);

 private:
  struct Impl;
  const Tokenizer& tokenizer_;
  const int64_t vocab_;
  std::mutex mutex_;            // guards what follows
  std::unique_ptr<Impl> impl_;  // made when it is first needed: it sorts the vocabulary
};

}  // namespace baton
