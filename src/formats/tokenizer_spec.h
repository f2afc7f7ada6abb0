// The form that every source of a tokenizer (GGUF keys, tokenizer.json, tokenizer.model) is read
// into. Tokenizer::FromSpec checks it and builds the tokenizer.
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
  // False: the token is searched literally in the text, and no merge produces it.
  bool in_model = true;

  // For control and user-defined tokens, which are searched before the text is cut into words.
  bool lstrip = false, rstrip = false;  // absorbs the white space before, after it
  bool single_word = false;             // does not match next to a word character
  // True: searched in the normalised text; false: in the original. Unset: true for user-defined
  // tokens.
  std::optional<bool> normalized;
};

struct TokenizerSpec {
  // kByteLevel: tokens are spelt in the byte alphabet, merging starts from bytes.
  // kPieces: tokens are spelt with U+2581 for a space, merging starts from characters and what has
  //          no token falls back to <0xXX>.
  enum class Kind { kByteLevel, kPieces };
  // Whether a space is put in front of the text (kFirst) or also after each control token
  // (kAlways).
  enum class Prefix { kNone, kFirst, kAlways };
  // When the space is added: before user-defined tokens are searched, even if the text begins with
  // one (SentencePiece, Prepend), or afterwards and only if it does not (Metaspace, ByteLevel).
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
  // Characters that the vocabulary lacks become <0xXX> tokens if those exist, else the unknown
  // token.
  bool byte_fallback = true;
  bool fuse_unknown = false;  // neighbours become one unknown token
  // kByteLevel: a byte without a token becomes the unknown token and is not dropped.
  bool keeps_unknown_bytes = false;

  int64_t bos = -1;
  int64_t eos = -1;
  int64_t unknown = -1;
  std::vector<int64_t> more_end_ids;  // end of generation besides eos and the well-known texts
  bool adds_bos = false;
  std::vector<std::string> notes;  // remarks on this file for the user
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
// Removes the tokens from `rows` on, for which a model has no embedding: their texts then become
// other tokens.
void KeepFirstTokens(TokenizerSpec& spec, int64_t rows);

}  // namespace baton
