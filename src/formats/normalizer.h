// Unicode's normal forms, and the two character tests that added tokens need.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace baton {

enum class NormalForm : uint8_t { kNfc, kNfd, kNfkc, kNfkd };

// Bytes that are not UTF-8 stay unchanged, and nothing composes across them. Takes linear time.
std::string Normalize(std::string_view text, NormalForm form);

// Unicode's White_Space.
bool IsSpace(char32_t code);
// What \w matches: letters, marks, decimal digits, connectors.
bool IsWordCharacter(char32_t code);

}  // namespace baton
