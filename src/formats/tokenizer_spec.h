// What every source of a tokenizer (GGUF keys, tokenizer.json, tokenizer.model) is read into; one
// place turns it into a Tokenizer and checks it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "baton/error.h"
#include "formats/tokenizer.h"
#include "formats/tokenizer_vocab.h"

namespace baton {

struct TokenSpec {
  std::string text;  // as the file writes it
  float score = 0;
  TokenType type = TokenType::kNormal;
};

struct TokenizerSpec {
  // kByteLevel: tokens are spelt in the byte alphabet, merging starts from bytes.
  // kPieces: tokens are spelt with U+2581 for a space, merging starts from characters and what has
  //          no token falls back to <0xXX>.
  enum class Kind { kByteLevel, kPieces };
  // Whether a space goes in front of the text (kFirst) or also behind each control token (kAlways).
  enum class Prefix { kNone, kFirst, kAlways };

  Kind kind = Kind::kByteLevel;
  std::vector<TokenSpec> tokens;  // by id
  // Lowest rank first. Byte-level models have them; pieces merge by these or by score.
  std::vector<std::pair<std::string, std::string>> merges;
  bool by_score = false;
  std::vector<std::string> patterns;  // of the WordSplitter; kByteLevel only
  bool ignore_merges = false;
  Prefix prefix = Prefix::kNone;  // kPieces only
  bool split_words = false;       // kPieces only: no token reaches across the space before a word

  int64_t bos = -1;
  int64_t eos = -1;
  int64_t unknown = -1;
  std::vector<int64_t> more_end_ids;  // end of generation besides eos and the well-known texts
  bool adds_bos = false;
};

inline constexpr int64_t kMaxTokens = int64_t{1} << 22;

// The readers. Each checks what it reads; what they share is checked by Tokenizer::FromSpec.
Result<TokenizerSpec> SpecFromGguf(const Metadata& metadata);
Result<TokenizerSpec> SpecFromJson(std::string_view tokenizer_json);
Result<TokenizerSpec> SpecFromSentencePiece(std::string_view tokenizer_model);
// Adds what tokenizer_config.json knows: special tokens, BOS and EOS.
Status ApplyTokenizerConfig(std::string_view tokenizer_config_json, TokenizerSpec& spec);

}  // namespace baton
