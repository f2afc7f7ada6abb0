// The tokenizer.ggml.* keys of GGUF.
#include <optional>
#include <string>
#include <utility>

#include "base/parse.h"
#include "formats/bpe_split.h"
#include "formats/end_tokens.h"
#include "formats/gguf.h"
#include "formats/printable.h"
#include "formats/tokenizer_spec.h"

namespace baton {
namespace {

// A number, perhaps written as text; absent: nothing.
Result<std::optional<int64_t>> IntegerOf(const Metadata& m, const std::string& key) {
  const auto it = m.values.find(key);
  if (it == m.values.end()) return std::optional<int64_t>();
  if (const auto* i = std::get_if<int64_t>(&it->second)) return std::optional<int64_t>(*i);
  const auto* text = std::get_if<std::string>(&it->second);
  if (const auto number = text ? ParseWhole<int64_t>(*text) : std::nullopt) return number;
  return Error::Corrupt("{} is no integer", key);
}

Result<bool> FlagOf(const Metadata& m, const std::string& key, bool absent) {
  const auto it = m.values.find(key);
  if (it == m.values.end()) return absent;
  if (const auto* b = std::get_if<bool>(&it->second)) return *b;
  if (const auto* text = std::get_if<std::string>(&it->second)) {
    if (*text == "true") return true;
    if (*text == "false") return false;
  }
  BATON_ASSIGN(const std::optional<int64_t> number, IntegerOf(m, key));
  if (number == 0 || number == 1) return number == 1;
  return Error::Corrupt("{} is {}, expected true or false", key, *number);
}

Status ReadTokens(const Metadata& m, TokenizerSpec& spec) {
  const auto* texts = m.Strings("tokenizer.ggml.tokens");
  if (texts == nullptr) {
    return Error::Corrupt("tokenizer.ggml.tokens is missing or not an array of strings");
  }
  spec.tokens.reserve(texts->size());
  for (const std::string& text : *texts) spec.tokens.push_back({.text = text});

  if (const auto* types = m.Ints("tokenizer.ggml.token_type")) {
    if (types->size() != texts->size()) {
      return Error::Corrupt("tokenizer.ggml.token_type has {} entries, expected {} as tokens has",
                            types->size(), texts->size());
    }
    for (size_t i = 0; i < types->size(); ++i) {
      const int64_t type = (*types)[i];
      if (type < 0 || type > 6) {
        return Error::Corrupt("tokenizer.ggml.token_type of token {} is {}, expected 0 to 6", i,
                              type);
      }
      // GGUF's type 0 is "undefined".
      if (type != 0) spec.tokens[i].type = static_cast<TokenType>(type);
    }
  }
  return Status::Ok();
}

Status ReadScores(const Metadata& m, TokenizerSpec& spec) {
  const auto* scores = m.Floats("tokenizer.ggml.scores");
  if (scores == nullptr) {
    return Error::Corrupt("tokenizer.ggml.scores is missing, a 'llama' tokenizer merges by it");
  }
  if (scores->size() != spec.tokens.size()) {
    return Error::Corrupt("tokenizer.ggml.scores has {} entries, expected {} as tokens has",
                          scores->size(), spec.tokens.size());
  }
  for (size_t i = 0; i < scores->size(); ++i) {
    spec.tokens[i].score = static_cast<float>((*scores)[i]);
  }
  return Status::Ok();
}

Status ReadMerges(const Metadata& m, TokenizerSpec& spec) {
  const auto* merges = m.Strings("tokenizer.ggml.merges");
  if (merges == nullptr) {
    return Error::Corrupt("tokenizer.ggml.merges is missing or not an array of strings");
  }
  spec.merges.reserve(merges->size());
  for (size_t i = 0; i < merges->size(); ++i) {
    const std::string& text = (*merges)[i];
    // Searches from 1: the left side is never empty, and may be a space in odd vocabularies.
    const size_t space = text.find(' ', 1);
    if (space == std::string::npos || space + 1 == text.size()) {
      return Error::Corrupt("tokenizer.ggml.merges[{}] is '{}', expected two tokens and a space", i,
                            text);
    }
    spec.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return Status::Ok();
}

}  // namespace

Result<TokenizerSpec> SpecFromGguf(const Metadata& m) {
  const std::string* model = m.String("tokenizer.ggml.model");
  if (model == nullptr) return Error::Corrupt("tokenizer.ggml.model is missing");
  TokenizerSpec spec;
  BATON_TRY(ReadTokens(m, spec));
  if (*model == "gpt2") {
    const std::string* pre = m.String("tokenizer.ggml.pre");
    const std::string name = pre == nullptr || pre->empty() ? "default" : *pre;
    BATON_ASSIGN(PreTokenizer words, PreTokenizerOf(name));
    if (name == "default") {
      spec.notes.push_back(
          fmt::format("tokenizer.ggml.pre is {}: text is cut by a pattern that may not be the "
                      "model's, which costs quality; convert the model again, or write the name",
                      pre == nullptr ? "missing" : fmt::format("'{}'", Printable(*pre))));
    }
    spec.kind = TokenizerSpec::Kind::kByteLevel;
    spec.rules = std::move(words.rules);
    if (words.nfc) spec.normal_forms = {NormalForm::kNfc};
    spec.ignore_merges = words.ignore_merges;
    spec.adds_bos = words.adds_bos;
    BATON_TRY(ReadMerges(m, spec));
  } else if (*model == "llama") {
    spec.kind = TokenizerSpec::Kind::kPieces;
    spec.by_score = true;
    spec.adds_bos = true;
    BATON_ASSIGN(const bool space, FlagOf(m, "tokenizer.ggml.add_space_prefix", true));
    spec.prefix = space ? TokenizerSpec::Prefix::kAlways : TokenizerSpec::Prefix::kNone;
    BATON_TRY(ReadScores(m, spec));
  } else {
    return Error::Unsupported("tokenizer.ggml.model is '{}', expected gpt2 or llama",
                              Printable(*model));
  }
  const auto id = [&](const char* name, int64_t absent) -> Result<int64_t> {
    BATON_ASSIGN(const auto given, IntegerOf(m, std::string("tokenizer.ggml.") + name));
    return given.value_or(absent);
  };
  BATON_ASSIGN(spec.bos, id("bos_token_id", -1));
  BATON_ASSIGN(spec.eos, id("eos_token_id", -1));
  // In byte-level files this key names a control token, which text never becomes, so it is not
  // used. Without the key, SentencePiece's default is 0.
  if (spec.kind == TokenizerSpec::Kind::kPieces) {
    BATON_ASSIGN(spec.unknown, id("unknown_token_id", 0));
  }
  for (const char* name : {"eot_token_id", "eom_token_id"}) {
    BATON_ASSIGN(const int64_t end, id(name, -1));
    spec.more_end_ids.push_back(end);
  }
  BATON_ASSIGN(spec.adds_bos, FlagOf(m, "tokenizer.ggml.add_bos_token", spec.adds_bos));
  MarkEndTexts(spec);
  return spec;
}

}  // namespace baton
