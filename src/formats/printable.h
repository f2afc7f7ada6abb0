// Names from untrusted files, made fit for a one-line message.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

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

}  // namespace baton
