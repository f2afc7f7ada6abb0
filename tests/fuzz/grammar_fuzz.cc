// Any bytes as a JSON schema: an error of one line, or a grammar that is followed for some tokens,
// some of which are taken back.
#include <cstdint>
#include <string>
#include <vector>

#include "base/check.h"
#include "formats/byte_tokenizer.h"
#include "formats/grammar.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace baton;
  constexpr int32_t kVocab = 280;
  static const Tokenizer tokenizer = *Tokenizer::FromGguf(ByteTokenizerMetadata(kVocab));
  static GrammarCompiler compiler(tokenizer, kVocab);
  const std::string schema(reinterpret_cast<const char*>(data), size);
  const auto constraint =
      compiler.Compile({.schema = schema, .around = "", .strict = size % 2 == 1});
  if (!constraint.ok()) {
    BATON_CHECK(constraint.error().ToString().find('\n') == std::string::npos);
    return 0;
  }
  auto state = (*constraint)->Begin();
  std::vector<uint32_t> mask((kVocab + 31) / 32);
  for (size_t i = 0; i < 64; ++i) {
    const Result<bool> more = state->Next(mask);
    if (!more.ok() || !*more) break;
    // An allowed token, by the input's bytes.
    auto token = static_cast<int32_t>((data[i % size] + i) % kVocab);
    while (!(mask[static_cast<size_t>(token) / 32] >> (token % 32) & 1))
      token = (token + 1) % kVocab;
    BATON_CHECK(state->Accept(token));
    if (i % 5 == 4) {
      state->Rollback(1);
      BATON_CHECK(state->Accept(token));
    }
  }
  return 0;
}
