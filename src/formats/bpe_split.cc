#include "formats/bpe_split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "formats/split_pattern.h"
#include "formats/unicode.h"

namespace baton {
namespace {

// Limits of PCRE2's backtracking steps. Patterns of real tokenizers backtrack over a run of
// characters once or twice. A search begins with a small limit, which grows as long as the text as
// a whole has steps left.
constexpr int64_t kFirstSteps = 4096, kStepsFactor = 16;
constexpr int64_t kFreeSteps = 10'000'000, kStepsPerByte = 64;
constexpr uint32_t kHeapKilobytes = 1 << 20;
constexpr size_t kJitStackBytes = 32 << 10, kJitStackMaxBytes = 8 << 20;

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
struct JitStackFree {
  void operator()(pcre2_jit_stack* s) const { pcre2_jit_stack_free(s); }
};

PCRE2_SPTR Units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

// State of one Split, shared by its patterns.
struct Run {
  explicit Run(size_t bytes) : steps(kFreeSteps + kStepsPerByte * static_cast<int64_t>(bytes)) {
    context.reset(pcre2_match_context_create(nullptr));
    data.reset(pcre2_match_data_create(1, nullptr));
    BATON_CHECK(context != nullptr && data != nullptr);
    pcre2_set_heap_limit(context.get(), kHeapKilobytes);
    stack.reset(pcre2_jit_stack_create(kJitStackBytes, kJitStackMaxBytes, nullptr));
    if (stack != nullptr) pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
  }

  std::unique_ptr<pcre2_match_context, MatchContextFree> context;
  std::unique_ptr<pcre2_match_data, MatchDataFree> data;
  std::unique_ptr<pcre2_jit_stack, JitStackFree> stack;
  int64_t steps;  // left for this text; negative: given up
};

}  // namespace

class WordSplitter::Pattern {
 public:
  static Result<Pattern> Compile(const SplitRule& rule) {
    BATON_ASSIGN(const std::string text, ToPcre2(rule.pattern));
    const std::unique_ptr<pcre2_compile_context, CompileContextFree> context(
        pcre2_compile_context_create(nullptr));
    BATON_CHECK(context != nullptr);
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    int code = 0;
    PCRE2_SIZE offset = 0;
    Pattern p;
    p.rule_ = rule;
    // \C would cut inside a character; matching then runs without PCRE2's own UTF-8 check.
    p.code_.reset(pcre2_compile(Units(text), text.size(),
                                PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                                &code, &offset, context.get()));
    if (p.code_ == nullptr) {
      PCRE2_UCHAR message[256] = {};
      pcre2_get_error_message(code, message, sizeof(message));
      return Error::Unsupported("pre-tokenizer pattern does not compile: {}",
                                reinterpret_cast<const char*>(message));
    }
    // Without JIT (some hardened systems) the interpreter gives the same matches, slower.
    pcre2_jit_compile(p.code_.get(), PCRE2_JIT_COMPLETE);
    return p;
  }

  // Appends the pieces of valid UTF-8 `text`.
  void Cut(std::string_view text, Run& run, std::vector<std::string_view>& out) const {
    Pieces pieces{rule_, text, out};
    size_t done = 0;                       // everything before is in `pieces`
    size_t start = 0;                      // where to look next
    size_t last = std::string_view::npos;  // the end of the last match
    while (start <= text.size()) {
      const Match m = Find(text, start, run);
      if (m.begin == std::string_view::npos) break;
      if (m.end <= m.begin && m.begin == last) {  // an empty match right after a match is ignored
        if (start == text.size()) break;
        start += DecodeUtf8(text.substr(start)).length;
        continue;
      }
      if (m.begin > done) pieces.Add(done, m.begin, false);
      pieces.Add(m.begin, m.end, true);
      start = done = last = m.end;
    }
    if (done < text.size()) pieces.Add(done, text.size(), false);
    pieces.Flush();
  }

 private:
  struct Match {
    size_t begin = std::string_view::npos;
    size_t end = 0;
  };

  // Joins matches and gaps, in order, into pieces as the rule says.
  struct Pieces {
    using Behavior = SplitRule::Behavior;
    const SplitRule& rule;
    std::string_view text;
    std::vector<std::string_view>& out;
    size_t begin = 0, end = 0;  // the current piece
    bool held_match = false;    // its last part is a match

    void Add(size_t from, size_t to, bool match) {
      match ^= rule.invert;
      const bool joins = rule.behavior == Behavior::kContiguous           ? match == held_match
                         : rule.behavior == Behavior::kMergedWithPrevious ? match && !held_match
                         : rule.behavior == Behavior::kMergedWithNext     ? !match && held_match
                                                                          : false;
      if (joins && begin < end) {
        end = to;
      } else {
        Flush();
        begin = from;
        end = rule.behavior == Behavior::kRemoved && match ? from : to;
      }
      held_match = match;
    }
    void Flush() {
      if (begin < end) out.push_back(text.substr(begin, end - begin));
      begin = end;
    }
  };

  // Searches with growing step limits, which are charged to the whole text. Once they are used up,
  // the rest of the text is cut into characters.
  Match Find(std::string_view text, size_t start, Run& run) const {
    for (int64_t limit = kFirstSteps;; limit *= kStepsFactor) {
      if (limit > kFirstSteps) run.steps -= limit;
      if (run.steps < 0) break;
      const int rc =
          Search(text, start, static_cast<uint32_t>(std::min<int64_t>(limit, INT32_MAX)), run);
      if (rc == PCRE2_ERROR_NOMATCH) return {};
      if (rc >= 0) {
        const PCRE2_SIZE* range = pcre2_get_ovector_pointer(run.data.get());
        return {range[0], std::max(range[0], range[1])};
      }
      if (rc != PCRE2_ERROR_MATCHLIMIT) run.steps = -1;
    }
    if (start == text.size()) return {};
    return {start, start + DecodeUtf8(text.substr(start)).length};
  }

  int Search(std::string_view text, size_t start, uint32_t limit, Run& run) const {
    pcre2_set_match_limit(run.context.get(), limit);
    const int rc = pcre2_match(code_.get(), Units(text), text.size(), start, PCRE2_NO_UTF_CHECK,
                               run.data.get(), run.context.get());
    if (rc != PCRE2_ERROR_JIT_STACKLIMIT) return rc;
    // The interpreter's stack is on the heap.
    return pcre2_match(code_.get(), Units(text), text.size(), start,
                       PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, run.data.get(), run.context.get());
  }

  SplitRule rule_;
  std::unique_ptr<pcre2_code, CodeFree> code_;
};

WordSplitter::WordSplitter(std::vector<Pattern> patterns) : patterns_(std::move(patterns)) {}
WordSplitter::WordSplitter(WordSplitter&&) noexcept = default;
WordSplitter& WordSplitter::operator=(WordSplitter&&) noexcept = default;
WordSplitter::~WordSplitter() = default;

Result<WordSplitter> WordSplitter::Make(const std::vector<SplitRule>& rules) {
  std::vector<Pattern> patterns;
  for (const SplitRule& rule : rules) {
    BATON_ASSIGN(Pattern p, Pattern::Compile(rule));
    patterns.push_back(std::move(p));
  }
  return WordSplitter(std::move(patterns));
}

std::vector<std::string_view> WordSplitter::Split(std::string_view text) const {
  std::vector<std::string_view> words;
  std::vector<std::string_view> pieces;
  std::vector<std::string_view> cut;
  Run run(text.size());
  const auto split_valid = [&](std::string_view valid) {
    if (valid.empty()) return;
    pieces.assign(1, valid);
    for (const Pattern& p : patterns_) {
      cut.clear();
      for (std::string_view piece : pieces) p.Cut(piece, run, cut);
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

}  // namespace baton
