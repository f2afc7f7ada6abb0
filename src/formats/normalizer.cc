#include "formats/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "formats/unicode.h"

namespace baton {
namespace {

// Most text is below U+0300: it is composed already and has no marks to sort.
constexpr char32_t kFirstMark = 0x300;

utf8proc_option_t Options(NormalForm form) {
  int options = UTF8PROC_STABLE;
  const bool composes = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  options |= composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == NormalForm::kNfkc || form == NormalForm::kNfkd) options |= UTF8PROC_COMPAT;
  return static_cast<utf8proc_option_t>(options);
}

int ClassOf(utf8proc_int32_t code) { return utf8proc_get_property(code)->combining_class; }

// utf8proc's own sort of marks compares neighbours, which is quadratic in a run of them.
void SortMarks(std::vector<utf8proc_int32_t>& codes) {
  for (size_t i = 0; i < codes.size();) {
    size_t end = i;
    while (end < codes.size() && ClassOf(codes[end]) != 0) ++end;
    if (end - i > 1) {
      std::stable_sort(
          codes.begin() + static_cast<std::ptrdiff_t>(i),
          codes.begin() + static_cast<std::ptrdiff_t>(end),
          [](utf8proc_int32_t a, utf8proc_int32_t b) { return ClassOf(a) < ClassOf(b); });
    }
    i = std::max(end, i + 1);
  }
}

void AppendNormal(std::vector<utf8proc_int32_t>& codes, NormalForm form, std::string& out) {
  SortMarks(codes);
  const utf8proc_ssize_t n = utf8proc_normalize_utf32(
      codes.data(), static_cast<utf8proc_ssize_t>(codes.size()), Options(form));
  for (utf8proc_ssize_t i = 0; i < n; ++i) {
    AppendUtf8(out, static_cast<char32_t>(codes[static_cast<size_t>(i)]));
  }
  codes.clear();
}

bool IsNormal(std::string_view text, NormalForm form) {
  const bool ascii_only = form != NormalForm::kNfc;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text.substr(pos));
    if (c.kind == Utf8Char::Kind::kValid && c.code >= (ascii_only ? 0x80 : kFirstMark)) {
      return false;
    }
    pos += c.length;
  }
  return true;
}

}  // namespace

std::string Normalize(std::string_view text, NormalForm form) {
  if (IsNormal(text, form)) return std::string(text);
  constexpr int kMaxDecomposed = 32;  // Unicode's longest has 18
  std::string out;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> codes;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text.substr(pos));
    if (c.kind == Utf8Char::Kind::kValid) {
      utf8proc_int32_t parts[kMaxDecomposed];
      int boundary = 0;
      const int decompose = (Options(form) & ~UTF8PROC_COMPOSE) | UTF8PROC_DECOMPOSE;
      const utf8proc_ssize_t n =
          utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.code), parts, kMaxDecomposed,
                                  static_cast<utf8proc_option_t>(decompose), &boundary);
      if (n > 0 && n <= kMaxDecomposed) codes.insert(codes.end(), parts, parts + n);
    } else {
      AppendNormal(codes, form, out);
      out.append(text.substr(pos, static_cast<size_t>(c.length)));
    }
    pos += static_cast<size_t>(c.length);
  }
  AppendNormal(codes, form, out);
  return out;
}

bool IsSpace(char32_t c) {
  return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool IsWordCharacter(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      // Joiners, and circled and squared letters, whose category is symbol.
      return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
             (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
             (c >= 0x1F170 && c <= 0x1F189);
  }
}

}  // namespace baton
