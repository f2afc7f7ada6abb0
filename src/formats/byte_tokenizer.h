// The smallest complete vocabulary: one token per byte, BOS and EOS, then fillers. For synthetic
// models, so that every path that needs a tokenizer runs without a download.
#pragma once

#include <cstdint>
#include <string>

#include "formats/gguf.h"

namespace baton {

inline constexpr int64_t kByteTokens = 256;  // token i is byte i
inline constexpr int64_t kByteBos = 256;
inline constexpr int64_t kByteEos = 257;
inline constexpr int64_t kMinByteVocab = 258;

// The tokenizer.ggml.* keys of a GGUF file; vocab >= kMinByteVocab.
Metadata ByteTokenizerMetadata(int64_t vocab);

// The same tokenizer as files of a Hugging Face folder.
std::string ByteTokenizerJson(int64_t vocab);  // tokenizer.json
std::string ByteTokenizerConfigJson();         // tokenizer_config.json

}  // namespace baton
