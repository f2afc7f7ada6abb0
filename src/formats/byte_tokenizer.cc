#include "formats/byte_tokenizer.h"

#include <nlohmann/json.hpp>

#include "base/check.h"
#include "formats/unicode.h"

namespace baton {
namespace {

using nlohmann::json;

// GPT-2's alphabet: printable Latin-1 characters represent themselves, the other bytes follow from
// U+0100 on.
std::vector<std::string> ByteAlphabet() {
  std::vector<std::string> out;
  char32_t next = 0x100;
  for (char32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    std::string text;
    AppendUtf8(text, printable ? b : next++);
    out.push_back(std::move(text));
  }
  return out;
}

std::vector<std::string> Tokens(int64_t vocab) {
  BATON_CHECK_GE(vocab, kMinByteVocab);
  std::vector<std::string> tokens = ByteAlphabet();
  tokens.push_back("<s>");
  tokens.push_back("</s>");
  for (int64_t i = kMinByteVocab; i < vocab; ++i)
    tokens.push_back(fmt::format("<unused{}>", i - kMinByteVocab));
  return tokens;
}

}  // namespace

Metadata ByteTokenizerMetadata(int64_t vocab) {
  constexpr int64_t kNormal = 1, kControl = 3;
  std::vector<int64_t> types(static_cast<size_t>(vocab), kNormal);
  types[kByteBos] = types[kByteEos] = kControl;
  Metadata m;
  m.values = {{"tokenizer.ggml.model", std::string("gpt2")},
              {"tokenizer.ggml.pre", std::string("gpt-2")},
              {"tokenizer.ggml.tokens", Tokens(vocab)},
              {"tokenizer.ggml.token_type", std::move(types)},
              {"tokenizer.ggml.merges", std::vector<std::string>()},
              {"tokenizer.ggml.bos_token_id", kByteBos},
              {"tokenizer.ggml.eos_token_id", kByteEos},
              {"tokenizer.ggml.add_bos_token", true}};
  return m;
}

std::string ByteTokenizerJson(int64_t vocab) {
  const std::vector<std::string> tokens = Tokens(vocab);
  json ids = json::object();
  for (size_t i = 0; i < tokens.size(); ++i) ids[tokens[i]] = i;
  const auto added = [&](int64_t id) {
    return json{{"id", id},           {"content", tokens[static_cast<size_t>(id)]},
                {"special", true},    {"single_word", false},
                {"lstrip", false},    {"rstrip", false},
                {"normalized", false}};
  };
  const json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  const json j = {{"version", "1.0"},
                  {"truncation", nullptr},
                  {"padding", nullptr},
                  {"added_tokens", json::array({added(kByteBos), added(kByteEos)})},
                  {"normalizer", nullptr},
                  {"pre_tokenizer", byte_level},
                  {"post_processor", nullptr},
                  {"decoder", byte_level},
                  {"model",
                   {{"type", "BPE"},
                    {"dropout", nullptr},
                    {"unk_token", nullptr},
                    {"continuing_subword_prefix", nullptr},
                    {"end_of_word_suffix", nullptr},
                    {"fuse_unk", false},
                    {"byte_fallback", false},
                    {"vocab", ids},
                    {"merges", json::array()}}}};
  return j.dump() + "\n";
}

std::string ByteTokenizerConfigJson() {
  const json j = {{"add_bos_token", true},
                  {"add_eos_token", false},
                  {"bos_token", "<s>"},
                  {"eos_token", "</s>"}};
  return j.dump(2) + "\n";
}

}  // namespace baton
