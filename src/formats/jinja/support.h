// What scripts/patch-jinja calls from the template engine: limits on what a template may use, and
// strings that behave as in Python. Errors are exceptions, as everywhere in that engine;
// formats/chat.cc turns them into values.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace baton::jinja_support {

// Steps and bytes that one parse or render may still use. A template and a conversation of ordinary
// size take thousands of steps.
struct Budget {
  int depth = 0;
  int64_t steps = 0;
  int64_t bytes = 0;  // of strings and lists made, freed ones included
};
inline thread_local Budget budget;

inline constexpr int kMaxDepth = 400;

struct Step {
  Step() {
    if (budget.depth >= kMaxDepth)
      throw std::runtime_error("the template calls itself or nests too deeply");
    if (--budget.steps < 0) throw std::runtime_error("the template takes too many steps");
    ++budget.depth;
  }
  ~Step() { --budget.depth; }
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;
};

inline void Charge(size_t bytes, size_t strings = 1) {
  constexpr size_t kPerString = 40;
  const auto cost = static_cast<int64_t>(std::min(bytes + kPerString * strings, size_t{1} << 40));
  if ((budget.bytes -= cost) < 0) throw std::runtime_error("the template makes too much text");
}

// Charges for a list of the numbers from `start` to `stop`.
inline void ChargeRange(int64_t start, int64_t stop, int64_t step) {
  const double count = (static_cast<double>(stop) - static_cast<double>(start)) / step;
  if (count > 0) Charge(static_cast<size_t>(std::min(count, 1e9) * 256));
}

inline int64_t Width(int64_t width) {
  constexpr int64_t kMost = 1000;
  if (width > kMost) throw std::runtime_error("an indent is wider than 1000 characters");
  return width < 0 ? 0 : width;
}

inline int64_t Whole(double x) {
  if (!(std::fabs(x) < 0x1p63)) throw std::runtime_error("a number is not within 64 bits");
  return static_cast<int64_t>(x);
}

// One string for each character; bytes that are no UTF-8 stand alone.
inline std::vector<std::string> Characters(std::string_view text) {
  std::vector<std::string> characters;
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    for (size_t k = 1; k < length; ++k) {
      if (i + k >= text.size() || (text[i + k] & 0xC0) != 0x80) length = 1;
    }
    characters.emplace_back(text.substr(i, length));
    i += length;
  }
  return characters;
}

inline std::string Joined(const std::vector<std::string>& characters) {
  std::string text;
  for (const std::string& c : characters) text += c;
  return text;
}

// Python's str.isspace for one character.
inline bool IsSpace(std::string_view c) {
  if (c.size() == 1) return (c[0] >= '\t' && c[0] <= '\r') || (c[0] >= 0x1c && c[0] <= ' ');
  static constexpr std::string_view kSpaces[] = {"\u0085", "\u00a0", "\u1680", "\u2000", "\u2001",
                                                 "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",
                                                 "\u2007", "\u2008", "\u2009", "\u200a", "\u2028",
                                                 "\u2029", "\u202f", "\u205f", "\u3000"};
  for (std::string_view space : kSpaces) {
    if (c == space) return true;
  }
  return false;
}

inline std::string Stripped(std::string_view text, bool left, bool right) {
  std::vector<std::string> c = Characters(text);
  size_t begin = 0, end = c.size();
  while (left && begin < end && IsSpace(c[begin])) ++begin;
  while (right && end > begin && IsSpace(c[end - 1])) --end;
  return Joined(
      {c.begin() + static_cast<ptrdiff_t>(begin), c.begin() + static_cast<ptrdiff_t>(end)});
}

inline std::vector<std::string> Words(std::string_view text) {
  std::vector<std::string> words(1);
  for (const std::string& c : Characters(text)) {
    if (!IsSpace(c)) {
      words.back() += c;
    } else if (!words.back().empty()) {
      words.emplace_back();
    }
  }
  if (words.back().empty()) words.pop_back();
  return words;
}

// Python's repr: the shortest digits that read back as the same number.
inline std::string PythonFloat(double x) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto scientific =
      std::to_chars(buffer, buffer + sizeof buffer, x, std::chars_format::scientific);
  std::string text(buffer, scientific.ptr);
  const int exponent = std::stoi(text.substr(text.find('e') + 1));
  if (x == 0 || (exponent >= -4 && exponent < 16)) {
    const auto fixed = std::to_chars(buffer, buffer + sizeof buffer, x, std::chars_format::fixed);
    text.assign(buffer, fixed.ptr);
    return text.find('.') == std::string::npos ? text + ".0" : text;
  }
  return text;
}

// The code point of one character of valid UTF-8.
inline uint32_t CodePoint(std::string_view c) {
  if (c.size() == 1) return static_cast<unsigned char>(c[0]);
  uint32_t code = static_cast<unsigned char>(c[0]) & (0xFFu >> (c.size() + 1));
  for (size_t i = 1; i < c.size(); ++i)
    code = code << 6 | (static_cast<unsigned char>(c[i]) & 0x3F);
  return code;
}

// Whether Python's repr prints a character as it is. It escapes controls, formats, private use and
// all spaces except the ordinary one.
inline bool IsPrintable(uint32_t c) {
  struct Range {
    uint32_t first, last;
  };
  static constexpr Range kNot[] = {
      {0, 0x1f},        {0x7f, 0xa0},     {0xad, 0xad},       {0x600, 0x605},     {0x61c, 0x61c},
      {0x6dd, 0x6dd},   {0x70f, 0x70f},   {0x1680, 0x1680},   {0x180e, 0x180e},   {0x2000, 0x200f},
      {0x2028, 0x202f}, {0x205f, 0x206f}, {0x3000, 0x3000},   {0xd800, 0xf8ff},   {0xfeff, 0xfeff},
      {0xfff0, 0xfffb}, {0xfffe, 0xffff}, {0xe0000, 0xe00ff}, {0xe01f0, 0x10ffff}};
  for (const Range& r : kNot) {
    if (c >= r.first && c <= r.last) return false;
  }
  return true;
}

// repr() of a string.
inline std::string PythonRepr(std::string_view text) {
  const bool single = text.find('\'') == text.npos || text.find('"') != text.npos;
  const char quote = single ? '\'' : '"';
  std::string out(1, quote);
  for (const std::string& c : Characters(text)) {
    const uint32_t code = CodePoint(c);
    if (c[0] == quote || c[0] == '\\') {
      out += '\\';
      out += c;
    } else if (c == "\n" || c == "\r" || c == "\t") {
      out += c == "\n" ? "\\n" : c == "\r" ? "\\r" : "\\t";
    } else if (IsPrintable(code)) {
      out += c;
    } else {
      char escape[16];
      const char* form = code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x";
      std::snprintf(escape, sizeof escape, form, code);
      out += escape;
    }
  }
  return out + quote;
}

inline void AppendUtf8(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
  } else if (c < 0x10000) {
    out += {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3F)),
            static_cast<char>(0x80 | (c & 0x3F))};
  } else {
    out += {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 0x3F)),
            static_cast<char>(0x80 | (c >> 6 & 0x3F)), static_cast<char>(0x80 | (c & 0x3F))};
  }
}

// The text of the escape with the letter `kind` in a literal. `pos` is just after the letter and
// moves past the escape. Text that is not an escape is returned unchanged.
inline std::string Escape(const std::string& source, char kind, size_t& pos) {
  const size_t digits = kind == 'x' ? 2 : kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
  if (kind == 'a') return "\a";
  if (kind == '\n') return "";
  std::string text;
  uint32_t code = 0;
  if (digits > 0 && pos + digits <= source.size()) {
    const char* const begin = source.data() + pos;
    const auto read = std::from_chars(begin, begin + digits, code, 16);
    if (read.ec == std::errc() && read.ptr == begin + digits && code < 0x110000) {
      pos += digits;
      AppendUtf8(text, code);
      return text;
    }
  }
  return {'\\', kind};
}

// text.replace(old, with), where each part of the result keeps the mark of its origin. False where
// `old` is empty or spans several parts. `Text` is the engine's string.
template <typename Text>
bool ReplaceInParts(const Text& text, const std::string& old, const Text& with, Text& result) {
  if (old.empty()) return false;
  const auto count = [&](const std::string& s) {
    size_t n = 0;
    for (size_t at = 0; (at = s.find(old, at)) != s.npos; at += old.size()) ++n;
    return n;
  };
  size_t in_parts = 0;
  for (const auto& part : text.parts) in_parts += count(part.val);
  if (in_parts != count(text.str())) return false;
  for (const auto& part : text.parts) {
    size_t from = 0;
    for (size_t at; (at = part.val.find(old, from)) != part.val.npos; from = at + old.size()) {
      result.append(Text(part.val.substr(from, at - from), part.is_input));
      result.append(with);
    }
    result.append(Text(part.val.substr(from), part.is_input));
  }
  return true;
}

}  // namespace baton::jinja_support
