// Cutting text into words before byte-pair merging: the patterns of the tokenizer families.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "baton/error.h"

namespace baton {

class WordSplitter {
 public:
  // Patterns are applied one after the other: matches and the gaps between them become pieces, and
  // the next pattern sees each piece alone. No patterns: the text stays whole.
  static Result<WordSplitter> Make(const std::vector<std::string>& patterns);

  WordSplitter(WordSplitter&&) noexcept;
  WordSplitter& operator=(WordSplitter&&) noexcept;
  ~WordSplitter();

  // Words in order; together they are `text`. Bytes that are not UTF-8 become words of one byte.
  std::vector<std::string_view> Split(std::string_view text) const;

 private:
  class Pattern;
  explicit WordSplitter(std::vector<Pattern> patterns);
  std::vector<Pattern> patterns_;
};

// What a GGUF file means by tokenizer.ggml.pre.
struct PreTokenizer {
  std::vector<std::string> patterns;
  bool ignore_merges = false;  // a word that is a token is not merged from its bytes
  bool adds_bos = false;       // unless the file says otherwise
};

// An unknown name is an error that lists the known ones.
Result<PreTokenizer> PreTokenizerOf(std::string_view name);

// The GPT-2 pattern, which Hugging Face files name by a flag instead of spelling it out.
std::string Gpt2Pattern();

}  // namespace baton
