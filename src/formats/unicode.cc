#include "formats/unicode.h"

#include <array>

namespace baton {
namespace {

struct Lead {
  int length = 0;  // 0: cannot begin a character
  unsigned char second_min = 0x80;
  unsigned char second_max = 0xBF;
};

// Table 3-7 of the Unicode standard: only the second byte has bounds that depend on the first.
Lead LeadOf(unsigned char b) {
  if (b < 0x80) return {1};
  if (b < 0xC2) return {0};
  if (b < 0xE0) return {2};
  if (b == 0xE0) return {3, 0xA0, 0xBF};
  if (b == 0xED) return {3, 0x80, 0x9F};
  if (b < 0xF0) return {3};
  if (b == 0xF0) return {4, 0x90, 0xBF};
  if (b < 0xF4) return {4};
  if (b == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

constexpr int kAlphabetEnd = 324;  // 256 + the 68 bytes that do not print

bool Prints(int byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

std::array<int16_t, kAlphabetEnd> MakeByteOfCode() {
  std::array<int16_t, kAlphabetEnd> byte_of{};
  byte_of.fill(-1);
  int next = 256;
  for (int b = 0; b < 256; ++b) byte_of[Prints(b) ? b : next++] = static_cast<int16_t>(b);
  return byte_of;
}

}  // namespace

Utf8Char DecodeUtf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const Lead lead = LeadOf(byte(0));
  if (lead.length == 1) return {Utf8Char::Kind::kValid, 1, byte(0)};
  if (lead.length == 0) return {Utf8Char::Kind::kInvalid, 1, 0};
  char32_t code = byte(0) & (0x7F >> lead.length);
  for (int i = 1; i < lead.length; ++i) {
    if (static_cast<size_t>(i) == text.size()) return {Utf8Char::Kind::kTruncated, i, 0};
    const unsigned char min = i == 1 ? lead.second_min : 0x80;
    const unsigned char max = i == 1 ? lead.second_max : 0xBF;
    if (byte(i) < min || byte(i) > max) return {Utf8Char::Kind::kInvalid, i, 0};
    code = code << 6 | (byte(i) & 0x3F);
  }
  return {Utf8Char::Kind::kValid, lead.length, code};
}

void AppendUtf8(std::string& out, char32_t code) {
  const auto put = [&](char32_t b) { out.push_back(static_cast<char>(b)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

std::string ByteLevelBytes(std::string_view text) {
  static const std::array<int16_t, kAlphabetEnd> kByteOf = MakeByteOfCode();
  std::string bytes;
  bytes.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text.substr(pos));
    if (c.kind != Utf8Char::Kind::kValid || c.code >= kAlphabetEnd || kByteOf[c.code] < 0) {
      return std::string(text);
    }
    bytes.push_back(static_cast<char>(kByteOf[c.code]));
    pos += c.length;
  }
  return bytes;
}

}  // namespace baton
