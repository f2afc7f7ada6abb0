// What every source of a tokenizer (GGUF keys, tokenizer.json, tokenizer.model) is read into; one
// place turns it into a Tokenizer and checks it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "baton/error.h"
#include "formats/bpe_split.h"
#include "formats/normalizer.h"
#include "formats/tokenizer.h"
#include "formats/tokenizer_vocab.h"

namespace baton {

struct TokenSpec {
  std::string text;  // as the file writes it
  float score = 0;
  TokenType type = TokenType::kNormal;
  // False: the token is found in texts as it stands, and no merge makes it.
  bool in_model = true;

  // Of control and user-defined tokens, which are found in the text before words are cut.
  bool lstrip = false, rstrip = false;  // takes the white space before, behind it along
  bool single_word = false;             // not where a letter or digit touches it
  // Found in the normalised text, or in the text as given; unset: user-defined ones in the former.
  std::optional<bool> normalized;
};

struct TokenizerSpec {
  // kByteLevel: tokens are spelt in the byte alphabet, merging starts from bytes.
  // kPieces: tokens are spelt with U+2581 for a space, merging starts from characters and what has
  //          no token falls back to <0xXX>.
  enum class Kind { kByteLevel, kPieces };
  // Whether a space goes in front of the text (kFirst) or also behind each control token (kAlways).
  enum class Prefix { kNone, kFirst, kAlways };
  // Where it does: before user-defined tokens are found, even if the text begins with one
  // (SentencePiece, Prepend), or afterwards and only if it does not (Metaspace, ByteLevel).
  enum class PrefixStep { kNormalizer, kPreTokenizer };

  Kind kind = Kind::kByteLevel;
  std::vector<TokenSpec> tokens;  // by id
  // Lowest rank first. Byte-level models have them; pieces merge by these or by score.
  std::vector<std::pair<std::string, std::string>> merges;
  bool by_score = false;
  std::vector<NormalForm> normal_forms;  // of the text between added tokens, in order
  std::vector<SplitRule> rules;          // of the WordSplitter; kByteLevel only
  bool ignore_merges = false;
  Prefix prefix = Prefix::kNone;
  PrefixStep prefix_step = PrefixStep::kNormalizer;
  bool split_words = false;  // kPieces only: no token reaches across the space before a word
  // What the vocabulary lacks becomes <0xXX> tokens where those exist, else the unknown token.
  bool byte_fallback = true;
  bool fuse_unknown = false;  // neighbours become one unknown token
  // kByteLevel: a byte without a token becomes the unknown token and is not dropped.
  bool keeps_unknown_bytes = false;

  int64_t bos = -1;
  int64_t eos = -1;
  int64_t unknown = -1;
  std::vector<int64_t> more_end_ids;  // end of generation besides eos and the well-known texts
  bool adds_bos = false;
  std::vector<std::string> notes;  // what the user should know of this file
};

inline constexpr int64_t kMaxTokens = int64_t{1} << 22;

// The readers. Each checks what it reads; what they share is checked by Tokenizer::FromSpec.
Result<TokenizerSpec> SpecFromGguf(const Metadata& metadata);
Result<TokenizerSpec> SpecFromJson(std::string_view tokenizer_json);
Result<TokenizerSpec> SpecFromSentencePiece(std::string_view tokenizer_model);
// Adds {"text": id}: the added tokens of folders without tokenizer.json. Those that
// special_tokens_map.json names ("" where there is none) or that end an answer are control tokens.
Status ApplyAddedTokens(std::string_view added_tokens_json,
                        std::string_view special_tokens_map_json, TokenizerSpec& spec);
// Adds what tokenizer_config.json knows: special tokens, BOS and EOS.
Status ApplyTokenizerConfig(std::string_view tokenizer_config_json, TokenizerSpec& spec);
// Takes away the tokens from `rows` on, for which a model has no embedding: texts then become other
// tokens.
void KeepFirstTokens(TokenizerSpec& spec, int64_t rows);

}  // namespace baton
