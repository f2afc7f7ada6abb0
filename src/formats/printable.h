// Makes text from untrusted files safe for a message or a terminal.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

#include "formats/unicode.h"

namespace baton {

// Control and non-ASCII bytes escaped, long names cut.
inline std::string Printable(std::string_view text) {
  constexpr size_t kMaxBytes = 100;
  std::string out;
  for (char c : text.substr(0, kMaxBytes)) {
    if (c >= 0x20 && c < 0x7f) {
      out += c;
    } else {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
  if (text.size() > kMaxBytes) out += "...";
  return out;
}

// UTF-8 text, with everything escaped that a terminal would act on: control characters (C0 with
// newlines, DEL, C1), marks that reorder text, and bytes that are not UTF-8.
inline std::string Displayable(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text.substr(pos));
    const bool valid = c.kind == Utf8Char::Kind::kValid;
    const bool control = c.code < 0x20 || (c.code >= 0x7F && c.code < 0xA0);
    const bool reorders = c.code == 0x61C || c.code == 0x200E || c.code == 0x200F ||
                          (c.code >= 0x2028 && c.code <= 0x202E) ||
                          (c.code >= 0x2066 && c.code <= 0x2069);
    const std::string_view bytes = text.substr(pos, static_cast<size_t>(c.length));
    if (valid && !control && !reorders) {
      out += bytes;
    } else {
      for (char b : bytes) out += fmt::format("\\x{:02x}", static_cast<unsigned char>(b));
    }
    pos += bytes.size();
  }
  return out;
}

}  // namespace baton
