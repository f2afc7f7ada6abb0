// UTF-8 one character at a time, and the byte alphabet of byte-level vocabularies.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace baton {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Char {
  enum class Kind : uint8_t { kValid, kInvalid, kTruncated };
  Kind kind = Kind::kInvalid;
  // Bytes taken: the character; the longest prefix that could have begun one (kInvalid, at least
  // 1); or all that is left, an unfinished but so far correct character (kTruncated).
  int length = 1;
  char32_t code = 0;
};

// The first character of a non-empty text. Surrogates, overlong forms and codes past U+10FFFF are
// invalid.
Utf8Char DecodeUtf8(std::string_view text);

void AppendUtf8(std::string& out, char32_t code);

// Byte-level vocabularies write each byte as a printable character (GPT-2: space is U+0120).
// ByteLevelBytes converts a token's text back to bytes; a text with a character outside that
// alphabet is returned unchanged.
std::string ByteLevelBytes(std::string_view text);

}  // namespace baton
