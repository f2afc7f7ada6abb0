#include "formats/char_set.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <memory>

#include "base/check.h"
#include "formats/unicode.h"

namespace baton {
namespace {

constexpr char32_t kLast = 0x10FFFF;
constexpr char32_t kLastBefore = 0xD7FF, kPastSurrogates = 0xE000;  // the surrogates

// Every code point that UTF-8 can write, ascending.
std::string AllCharacters() {
  std::string text;
  text.reserve(4 << 20);
  for (char32_t c = 0; c <= kLast; ++c) {
    if (c == kLastBefore + 1) c = kPastSurrogates;
    AppendUtf8(text, c);
  }
  return text;
}

struct CodeFree {
  void operator()(pcre2_code* c) const { pcre2_code_free(c); }
};
struct MatchDataFree {
  void operator()(pcre2_match_data* d) const { pcre2_match_data_free(d); }
};
using Code = std::unique_ptr<pcre2_code, CodeFree>;

Result<Code> Compile(std::string_view pcre2_class, bool caseless) {
  const std::string pattern = fmt::format("[{}]+", pcre2_class);
  int error = 0;
  PCRE2_SIZE at = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                          PCRE2_UTF | PCRE2_UCP | (caseless ? PCRE2_CASELESS : 0), &error, &at,
                          nullptr));
  if (code != nullptr) return code;
  PCRE2_UCHAR message[256] = {};
  pcre2_get_error_message(error, message, sizeof(message));
  return Error::Unsupported("pre-tokenizer pattern has a class that is not known: {}",
                            reinterpret_cast<const char*>(message));
}

}  // namespace

bool CharSet::IsKnown(std::string_view pcre2_class) { return Compile(pcre2_class, false).ok(); }

// One search over all characters finds a class's ranges as the runs that it matches.
Result<CharSet> CharSet::OfClass(std::string_view pcre2_class, bool caseless) {
  BATON_ASSIGN(const Code code, Compile(pcre2_class, caseless));
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  const std::unique_ptr<pcre2_match_data, MatchDataFree> data(
      pcre2_match_data_create_from_pattern(code.get(), nullptr));
  BATON_CHECK(data != nullptr);
  static const std::string text = AllCharacters();
  CharSet set;
  for (size_t pos = 0; pos < text.size();) {
    const int rc = pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                               pos, PCRE2_NO_UTF_CHECK, data.get(), nullptr);
    if (rc < 0) break;
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
    const std::string_view run = std::string_view(text).substr(range[0], range[1] - range[0]);
    size_t last = run.size() - 1;
    while ((static_cast<unsigned char>(run[last]) & 0xC0) == 0x80) --last;
    set.ranges_.emplace_back(DecodeUtf8(run).code, DecodeUtf8(run.substr(last)).code);
    pos = range[1];
  }
  return set;
}

CharSet CharSet::Inverted() const {
  CharSet out;
  char32_t next = 0;
  for (const auto& [first, last] : ranges_) {
    if (first > next) out.ranges_.emplace_back(next, first - 1);
    next = last + 1;
  }
  if (next <= kLast) out.ranges_.emplace_back(next, kLast);
  return out;
}

CharSet CharSet::Intersection(const CharSet& a, const CharSet& b) {
  CharSet out;
  for (size_t i = 0, j = 0; i < a.ranges_.size() && j < b.ranges_.size();) {
    const char32_t first = std::max(a.ranges_[i].first, b.ranges_[j].first);
    const char32_t last = std::min(a.ranges_[i].second, b.ranges_[j].second);
    if (first <= last) out.ranges_.emplace_back(first, last);
    (a.ranges_[i].second < b.ranges_[j].second ? i : j) += 1;
  }
  return out;
}

CharSet CharSet::Union(const CharSet& a, const CharSet& b) {
  return Intersection(a.Inverted(), b.Inverted()).Inverted();
}

std::string CharSet::ToPcre2() const {
  std::string text;
  const auto put = [&](char32_t first, char32_t last) {
    if (first > last) return;
    text += first == last ? fmt::format("\\x{{{:x}}}", static_cast<uint32_t>(first))
                          : fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", static_cast<uint32_t>(first),
                                        static_cast<uint32_t>(last));
  };
  for (const auto& [first, last] : ranges_) {
    // PCRE2 refuses a class that begins or ends inside the surrogates, which no text has.
    put(first, std::min(last, kLastBefore));
    put(std::max(first, kPastSurrogates), last);
  }
  return text.empty() ? "(?!)" : "[" + text + "]";
}

}  // namespace baton
