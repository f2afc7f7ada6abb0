#include "formats/bpe_split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/check.h"
#include "formats/printable.h"
#include "formats/unicode.h"

namespace baton {
namespace {

constexpr size_t kMaxPatternBytes = 16384;
// A hostile tokenizer.json may bring a pattern of exponential cost; real ones stay far below.
constexpr uint32_t kMatchLimit = 1000000;

constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
    R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDigit = R"(\p{N})";

// PCRE2 counts U+180E as a space, Unicode and the engines these patterns were written for do not.
std::string WithUnicodeSpaces(std::string_view pattern) {
  constexpr std::string_view kSpaces = R"(\t-\r\x{85}\p{Z})";
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char e = pattern[++i];
      if (e == 's') {
        out += in_class ? std::string(kSpaces) : fmt::format("[{}]", kSpaces);
      } else if (e == 'S' && !in_class) {
        out += fmt::format("[^{}]", kSpaces);
      } else {
        out += {c, e};
      }
      continue;
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

struct MatchDataFree {
  void operator()(pcre2_match_data* d) const { pcre2_match_data_free(d); }
};
struct MatchContextFree {
  void operator()(pcre2_match_context* c) const { pcre2_match_context_free(c); }
};
struct CompileContextFree {
  void operator()(pcre2_compile_context* c) const { pcre2_compile_context_free(c); }
};
struct CodeFree {
  void operator()(pcre2_code* c) const { pcre2_code_free(c); }
};

PCRE2_SPTR Units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

}  // namespace

class WordSplitter::Pattern {
 public:
  static Result<Pattern> Compile(std::string_view source) {
    std::unique_ptr<pcre2_compile_context, CompileContextFree> context(
        pcre2_compile_context_create(nullptr));
    BATON_CHECK(context != nullptr);
    pcre2_set_max_pattern_length(context.get(), kMaxPatternBytes);
    const std::string text = WithUnicodeSpaces(source);
    int code = 0;
    PCRE2_SIZE offset = 0;
    Pattern p;
    // \C would cut inside a character; matching then runs without PCRE2's own UTF-8 check.
    p.code_.reset(pcre2_compile(Units(text), text.size(),
                                PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &offset,
                                context.get()));
    if (p.code_ == nullptr) {
      PCRE2_UCHAR message[256] = {};
      pcre2_get_error_message(code, message, sizeof(message));
      return Error::Unsupported("pre-tokenizer pattern does not compile at byte {}: {}", offset,
                                reinterpret_cast<const char*>(message));
    }
    // Without JIT (some hardened systems) the interpreter gives the same matches, slower.
    pcre2_jit_compile(p.code_.get(), PCRE2_JIT_COMPLETE);
    p.limits_.reset(pcre2_match_context_create(nullptr));
    BATON_CHECK(p.limits_ != nullptr);
    pcre2_set_match_limit(p.limits_.get(), kMatchLimit);
    return p;
  }

  // Appends the pieces of valid UTF-8 `text`.
  void Cut(std::string_view text, std::vector<std::string_view>& out) const {
    std::unique_ptr<pcre2_match_data, MatchDataFree> data(
        pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    BATON_CHECK(data != nullptr);
    size_t done = 0;   // everything before is in out
    size_t start = 0;  // where to look next
    while (start < text.size()) {
      const Match m = Find(text, start, data.get());
      if (m.begin == std::string_view::npos) break;
      if (m.end <= m.begin || m.begin < start) {  // empty, or \K moved it
        start += DecodeUtf8(text.substr(start)).length;
        continue;
      }
      if (m.begin > done) out.push_back(text.substr(done, m.begin - done));
      out.push_back(text.substr(m.begin, m.end - m.begin));
      start = done = m.end;
    }
    if (done < text.size()) out.push_back(text.substr(done));
  }

 private:
  struct Match {
    size_t begin = std::string_view::npos;
    size_t end = 0;
  };

  Match Find(std::string_view text, size_t start, pcre2_match_data* data) const {
    // A match that needs more than the JIT's stack is tried again by the interpreter, whose stack
    // is on the heap.
    int rc = pcre2_match(code_.get(), Units(text), text.size(), start, PCRE2_NO_UTF_CHECK, data,
                         limits_.get());
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code_.get(), Units(text), text.size(), start,
                       PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, limits_.get());
    }
    if (rc == PCRE2_ERROR_NOMATCH) return {};
    // Over the limits: the character stands alone, nothing is lost.
    if (rc < 0) return {start, start + DecodeUtf8(text.substr(start)).length};
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data);
    return {range[0], range[1]};
  }

  std::unique_ptr<pcre2_code, CodeFree> code_;
  std::unique_ptr<pcre2_match_context, MatchContextFree> limits_;
};

WordSplitter::WordSplitter(std::vector<Pattern> patterns) : patterns_(std::move(patterns)) {}
WordSplitter::WordSplitter(WordSplitter&&) noexcept = default;
WordSplitter& WordSplitter::operator=(WordSplitter&&) noexcept = default;
WordSplitter::~WordSplitter() = default;

Result<WordSplitter> WordSplitter::Make(const std::vector<std::string>& sources) {
  std::vector<Pattern> patterns;
  for (const std::string& source : sources) {
    BATON_ASSIGN(Pattern p, Pattern::Compile(source));
    patterns.push_back(std::move(p));
  }
  return WordSplitter(std::move(patterns));
}

std::vector<std::string_view> WordSplitter::Split(std::string_view text) const {
  std::vector<std::string_view> words;
  std::vector<std::string_view> pieces;
  std::vector<std::string_view> cut;
  const auto split_valid = [&](std::string_view run) {
    if (run.empty()) return;
    pieces.assign(1, run);
    for (const Pattern& p : patterns_) {
      cut.clear();
      for (std::string_view piece : pieces) p.Cut(piece, cut);
      pieces.swap(cut);
    }
    words.insert(words.end(), pieces.begin(), pieces.end());
  };
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text.substr(pos));
    if (c.kind != Utf8Char::Kind::kValid) {
      split_valid(text.substr(begin, pos - begin));
      for (int i = 0; i < c.length; ++i) words.push_back(text.substr(pos + i, 1));
      begin = pos + c.length;
    }
    pos += c.length;
  }
  split_valid(text.substr(begin));
  return words;
}

std::string Gpt2Pattern() { return std::string(kGpt2); }

Result<PreTokenizer> PreTokenizerOf(std::string_view name) {
  struct Known {
    std::string_view name;
    std::vector<std::string_view> patterns;
    bool ignore_merges = false;
    bool adds_bos = false;
  };
  const std::vector<Known> known = {
      {"gpt-2", {kGpt2}},
      {"smollm", {kDigit, kGpt2}},
      {"starcoder", {kDigit, kGpt2}},
      {"llama-bpe", {kLlama3}, true, true},
      {"qwen2", {kQwen2}},
      {"deepseek-r1-qwen", {kQwen2}},
      {"tekken", {kTekken}, true, true},
  };
  const auto it =
      std::find_if(known.begin(), known.end(), [&](const Known& k) { return k.name == name; });
  if (it == known.end()) {
    std::string names;
    for (const Known& k : known) names += fmt::format("{}{}", names.empty() ? "" : ", ", k.name);
    return Error::Unsupported("pre-tokenizer '{}' is not known, expected one of {}",
                              Printable(name), names);
  }
  PreTokenizer pre{{}, it->ignore_merges, it->adds_bos};
  for (std::string_view p : it->patterns) pre.patterns.emplace_back(p);
  return pre;
}

}  // namespace baton
