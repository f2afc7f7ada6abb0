// Unicode's normal forms, and the two questions about characters that added tokens ask.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace baton {

enum class NormalForm : uint8_t { kNfc, kNfd, kNfkc, kNfkd };

// Bytes that are not UTF-8 stay as they are and end what composes. Linear time, whatever the text.
std::string Normalize(std::string_view text, NormalForm form);

// Unicode's White_Space.
bool IsSpace(char32_t code);
// What \w matches: letters, marks, decimal digits, connectors.
bool IsWordCharacter(char32_t code);

}  // namespace baton
