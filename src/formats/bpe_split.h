// Cutting text into words before byte-pair merging: the patterns of the tokenizer families.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "baton/error.h"

namespace baton {

// One step of a pre-tokenizer. Matches and the gaps between them become pieces.
struct SplitRule {
  enum class Behavior {
    kIsolated,            // each match is a piece
    kRemoved,             // matches are left out
    kMergedWithPrevious,  // a match belongs to the gap before it
    kMergedWithNext,      // to the gap after it
    kContiguous,          // neighbouring matches are one piece
  };
  std::string pattern;  // Oniguruma's syntax, as tokenizer.json has it
  Behavior behavior = Behavior::kIsolated;
  bool invert = false;  // gaps count as matches, matches as gaps
};

class WordSplitter {
 public:
  // Rules are applied one after the other; the next one sees each piece alone. No rules: the text
  // stays whole. Unsupported: a pattern that PCRE2 cannot run (formats/split_pattern.h).
  static Result<WordSplitter> Make(const std::vector<SplitRule>& rules);

  WordSplitter(WordSplitter&&) noexcept;
  WordSplitter& operator=(WordSplitter&&) noexcept;
  ~WordSplitter();

  // Words in order; together they are `text` unless a rule removes some. Bytes that are not UTF-8
  // become words of one byte. Takes time linear in the text: once a pattern has used up its share
  // of steps, the rest of the text is cut into characters.
  std::vector<std::string_view> Split(std::string_view text) const;

 private:
  class Pattern;
  explicit WordSplitter(std::vector<Pattern> patterns);
  std::vector<Pattern> patterns_;
};

// The meaning of a GGUF file's tokenizer.ggml.pre.
struct PreTokenizer {
  std::vector<SplitRule> rules;
  bool ignore_merges = false;  // words that are tokens need no merging
  bool adds_bos = false;       // unless the file says otherwise
  bool nfc = false;            // the text is normalised to NFC first
};
// Unsupported: a name that is not known; the error lists those that are.
Result<PreTokenizer> PreTokenizerOf(std::string_view name);
std::vector<std::string> PreTokenizerNames();
std::string Gpt2Pattern();  // of tokenizer.json's ByteLevel with use_regex

}  // namespace baton
