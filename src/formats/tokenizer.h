// Text to token ids and back: byte-level BPE (GPT-2 kind) and SentencePiece-style models with
// scores and byte fallback.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "baton/error.h"
#include "formats/gguf.h"

namespace baton {

struct TokenizerSpec;  // formats/tokenizer_spec.h

struct EncodeOptions {
  // Put BOS in front where the model adds one and the text does not begin with it.
  bool bos = false;
  bool special =
      false;  // parse control tokens ("<|im_start|>") in the text; otherwise they are plain text
};

class Tokenizer {
 public:
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // From the tokenizer.ggml.* keys of a GGUF file.
  static Result<Tokenizer> FromGguf(const Metadata& metadata);
  // From tokenizer.json or tokenizer.model (+ added_tokens.json, tokenizer_config.json) in a
  // Hugging Face folder. Tokens from `rows` on, for which the model has no embedding, are left out
  // (-1: none are), so that their texts become other tokens.
  static Result<Tokenizer> FromFolder(const std::string& folder, int64_t rows = -1);
  // For a model without a tokenizer: no text becomes tokens, no token has text.
  static Tokenizer None();
  // From a spec, which all of those are read into; checks ids, types, merges and patterns.
  static Result<Tokenizer> FromSpec(const TokenizerSpec& spec);

  // Text may hold any bytes: those that are not UTF-8 are encoded one by one. Plain text never
  // becomes a control token. A byte that the vocabulary cannot express (SmolLM2 lacks 21) is
  // dropped by byte-level models, and becomes the unknown token in others.
  std::vector<int32_t> Encode(std::string_view text, const EncodeOptions& options = {}) const;
  // Exact bytes of one token; control tokens give their text only when asked, except [TOOL_CALLS]:
  // whoever reads an answer must see that a call follows. Unknown ids give "".
  std::string Bytes(int32_t id, bool special = false) const;
  // The inverse of Encode: where Encode puts a space in front of a text (Llama 2), Decode takes it
  // away again; use StreamDecoder for ids that continue a text.
  std::string Decode(std::span<const int32_t> ids, bool special = false) const;

  int32_t vocab_size() const;  // 0: None
  int32_t bos() const;         // -1: none
  int32_t eos() const;         // -1: none
  int32_t unknown() const;     // -1: none
  bool adds_bos() const;
  bool IsEndOfGeneration(int32_t id) const;  // eos, <|im_end|>, <end_of_turn>, <|eot_id|>, ...
  bool IsControl(int32_t id) const;          // control or unknown: no text of its own
  // Remarks on the tokenizer's file for the user, one sentence each.
  const std::vector<std::string>& notes() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Turns a stream of tokens into text, holding back bytes of an unfinished UTF-8 character.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  std::string Push(int32_t id);
  std::string Flush();  // what is left; invalid bytes become U+FFFD

 private:
  const Tokenizer& tokenizer_;
  std::string pending_;
};

}  // namespace baton
