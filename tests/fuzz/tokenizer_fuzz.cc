// First byte: what the rest is. Whatever parses must encode and decode without a crash, and lose
// nothing where the vocabulary has every byte.
#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "formats/bpe_split.h"
#include "formats/tokenizer.h"
#include "formats/tokenizer_spec.h"

namespace baton {
namespace {

constexpr std::string_view kSample = "It's 1234  <s>\n caf\xC3\xA9 \xFF aaaa\xE2\x96\x81";

void Use(const TokenizerSpec& spec) {
  const auto tokenizer = Tokenizer::FromSpec(spec);
  if (!tokenizer.ok()) return;
  StreamDecoder stream(*tokenizer);
  for (int32_t id : tokenizer->Encode(kSample, {.bos = true, .special = true})) stream.Push(id);
  stream.Flush();
  tokenizer->Decode(tokenizer->Encode(kSample));
}

Tokenizer PieceTokenizer() {
  TokenizerSpec spec;
  spec.kind = TokenizerSpec::Kind::kPieces;
  spec.by_score = true;
  for (int b = 0; b < 256; ++b) {
    spec.tokens.push_back({.text = fmt::format("<0x{:02X}>", b), .type = TokenType::kByte});
  }
  for (const char* text : {"aa", "\xE2\x96\x81\x61", "in", "th", "\xC3\xA9"}) {
    spec.tokens.push_back({.text = text, .score = -1});
  }
  spec.tokens.push_back({.text = "<s>", .type = TokenType::kControl});
  spec.tokens.push_back({.text = "<b>", .type = TokenType::kUserDefined});
  return std::move(Tokenizer::FromSpec(spec)).value();
}

void Encode(std::string_view text) {
  static const Tokenizer kPieces = PieceTokenizer();
  if (text.find("\xE2\x96\x81") == text.npos) {
    BATON_CHECK(kPieces.Decode(kPieces.Encode(text, {.special = true}), true) == text);
  }
  static const std::vector<WordSplitter> kSplitters = [] {
    std::vector<WordSplitter> all;
    for (const char* name : {"gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"}) {
      all.push_back(std::move(WordSplitter::Make(PreTokenizerOf(name)->rules)).value());
    }
    return all;
  }();
  for (const WordSplitter& splitter : kSplitters) {
    size_t bytes = 0;
    for (std::string_view word : splitter.Split(text)) bytes += word.size();
    BATON_CHECK_EQ(bytes, text.size());
  }
}

}  // namespace
}  // namespace baton

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace baton;
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      if (auto spec = SpecFromJson(rest); spec.ok()) Use(*spec);
      break;
    case 1:
      if (auto spec = SpecFromSentencePiece(rest); spec.ok()) Use(*spec);
      break;
    case 2: {
      TokenizerSpec spec;
      spec.tokens.resize(3, {.text = "a"});
      if (ApplyTokenizerConfig(rest, spec).ok()) Use(spec);
      break;
    }
    default:
      Encode(rest);
  }
  return 0;
}
