#include "formats/split_pattern.h"

#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "formats/char_set.h"
#include "formats/printable.h"
#include "formats/unicode.h"

namespace baton {
namespace {

constexpr int kMaxDepth = 100;
constexpr size_t kMaxPatternBytes = 64 << 10;
constexpr size_t kMaxSets = 64;

// Insides of classes. PCRE2 counts U+180E as a space, Unicode does not.
constexpr std::string_view kSpace = R"(\t-\r\x{85}\p{Z})";
constexpr std::string_view kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
constexpr std::string_view kDigit = R"(\p{Nd})";
constexpr std::string_view kHex = "0-9a-fA-F";

struct Name {
  std::string_view onig;  // lower case, without spaces, '_' and '-'
  std::string_view pcre2;
};
constexpr Name kProperties[] = {
    {"letter", "\\p{L}"},
    {"casedletter", "\\p{L&}"},
    {"uppercaseletter", "\\p{Lu}"},
    {"lowercaseletter", "\\p{Ll}"},
    {"titlecaseletter", "\\p{Lt}"},
    {"modifierletter", "\\p{Lm}"},
    {"otherletter", "\\p{Lo}"},
    {"mark", "\\p{M}"},
    {"nonspacingmark", "\\p{Mn}"},
    {"spacingmark", "\\p{Mc}"},
    {"enclosingmark", "\\p{Me}"},
    {"number", "\\p{N}"},
    {"decimalnumber", "\\p{Nd}"},
    {"letternumber", "\\p{Nl}"},
    {"othernumber", "\\p{No}"},
    {"punctuation", "\\p{P}"},
    {"punct", "\\p{P}$+<=>\\^`|~"},
    {"symbol", "\\p{S}"},
    {"mathsymbol", "\\p{Sm}"},
    {"currencysymbol", "\\p{Sc}"},
    {"separator", "\\p{Z}"},
    {"spaceseparator", "\\p{Zs}"},
    {"other", "\\p{C}"},
    {"control", "\\p{Cc}"},
    {"alpha", "\\p{Alphabetic}"},
    {"alnum", "\\p{Alphabetic}\\p{Nd}"},
    {"digit", "\\p{Nd}"},
    {"xdigit", "0-9a-fA-F"},
    {"upper", "\\p{Uppercase}"},
    {"lower", "\\p{Lowercase}"},
    {"space", kSpace},
    {"blank", "\\t\\p{Zs}"},
    {"cntrl", "\\p{Cc}"},
    {"ascii", "\\x{0}-\\x{7f}"},
    {"word", kWord},
};

bool IsHex(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

// One class, or one escape that is a class: text to put between PCRE2's brackets, and a set of
// characters for what PCRE2 cannot express.
struct Class {
  std::string text;            // the inside; together with
  std::optional<CharSet> set;  // what the text cannot express
};

class Translator {
 public:
  explicit Translator(std::string_view in) : in_(in) {}

  Result<std::string> Run() {
    if (in_.size() > kMaxPatternBytes) {
      return Error::Unsupported("pre-tokenizer pattern has {} bytes, expected at most {}",
                                in_.size(), kMaxPatternBytes);
    }
    // Without the lookbehind, a run of spaces in mid-line would be searched again from each of
    // them.
    if (in_ == R"(\s+$)") return fmt::format("(?<![{0}])[{0}]+$", kSpace);
    while (pos_ < in_.size()) BATON_TRY(Step());
    if (!groups_.empty()) return Error::Unsupported("pre-tokenizer pattern has an open group");
    out_.append(static_cast<size_t>(implicit_), ')');
    return std::move(out_);
  }

 private:
  static constexpr size_t kNoAtom = std::string::npos;
  struct Group {
    size_t begin;
    bool caseless;  // of what follows the group
    bool lookaround;
    int implicit = 0;  // groups inside it that end with it
  };

  bool Eat(std::string_view text) {
    if (!in_.substr(pos_).starts_with(text)) return false;
    pos_ += text.size();
    return true;
  }
  Error NotDone(std::string_view what) const {
    return Error::Unsupported("pre-tokenizer pattern uses {} at byte {}, which is not done",
                              Printable(what), pos_);
  }
  void Put(std::string_view atom) {
    atom_ = out_.size();
    quantified_ = false;
    out_ += atom;
  }

  Status Step() {
    const char c = in_[pos_];
    switch (c) {
      case '(':
        return OpenGroup();
      case ')':
        return CloseGroup();
      case '[': {
        ++pos_;
        BATON_ASSIGN(const std::string text, ReadClass());
        Put(text);
        return Status::Ok();
      }
      case '\\':
        return Escape();
      case '*':
      case '+':
      case '?':
        ++pos_;
        return Quantify(std::string(1, c), /*interval=*/false);
      case '{':
        return Interval();
      case '|':
      case '^':
      case '$':
        ++pos_;
        out_ += c;
        atom_ = kNoAtom;
        return Status::Ok();
      case '.':
        ++pos_;
        Put(".");
        return Status::Ok();
      default:
        return Literal();
    }
  }

  Status Literal() {
    const Utf8Char c = DecodeUtf8(in_.substr(pos_));
    if (c.kind != Utf8Char::Kind::kValid) return NotDone("bytes that are not UTF-8");
    Put(Quoted(c.code));
    pos_ += c.length;
    return Status::Ok();
  }

  static std::string Quoted(char32_t code) {
    if (code < 0x80 && ((code >= '0' && code <= '9') || (code >= 'a' && code <= 'z') ||
                        (code >= 'A' && code <= 'Z'))) {
      return std::string(1, static_cast<char>(code));
    }
    return fmt::format("\\x{{{:x}}}", static_cast<uint32_t>(code));
  }

  Status OpenGroup() {
    if (std::ssize(groups_) == kMaxDepth) return NotDone("groups nested this deep");
    const size_t begin = out_.size();
    const bool outer = caseless_;
    ++pos_;
    if (!Eat("?")) {
      out_ += "(?:";
      groups_.push_back({begin, outer, false});
    } else if (Eat("#")) {
      const size_t end = in_.find(')', pos_);
      if (end == in_.npos) return NotDone("an open comment");
      pos_ = end + 1;
      return Status::Ok();
    } else {
      bool found = false;
      for (std::string_view head : {":", ">", "=", "!", "<=", "<!"}) {
        if (found || !Eat(head)) continue;
        found = true;
        out_ += fmt::format("(?{}", head);
        groups_.push_back({begin, outer, head != ":" && head != ">"});
      }
      if (!found) BATON_TRY(OpenFlags(begin));
    }
    atom_ = kNoAtom;
    return Status::Ok();
  }

  // (?i:...) and (?i), which reaches to the end of the group around it, alternatives included;
  // Ruby's m lets the point match a newline, which is s elsewhere.
  Status OpenFlags(size_t begin) {
    const bool outer = caseless_;
    std::string flags;
    bool on = true;
    for (; pos_ < in_.size() && in_[pos_] != ':' && in_[pos_] != ')'; ++pos_) {
      const char c = in_[pos_];
      if (c == '-' && on) {
        on = false;
        flags += c;
      } else if (c == 'i') {
        caseless_ = on;
        flags += c;
      } else if (c == 'm') {
        flags += 's';
      } else {
        return NotDone(fmt::format("(?{}", c));
      }
    }
    if (pos_ == in_.size()) return NotDone("an open group");
    out_ += fmt::format("(?{}:", flags);
    if (in_[pos_++] == ':') {
      groups_.push_back({begin, outer, false});
    } else {
      ++(groups_.empty() ? implicit_ : groups_.back().implicit);
    }
    return Status::Ok();
  }

  Status CloseGroup() {
    ++pos_;
    if (groups_.empty()) return NotDone("')' without a group");
    out_.append(static_cast<size_t>(groups_.back().implicit) + 1, ')');
    atom_ = groups_.back().lookaround ? kNoAtom : groups_.back().begin;
    quantified_ = false;
    caseless_ = groups_.back().caseless;
    groups_.pop_back();
    return Status::Ok();
  }

  // After an interval, + and ? do not make it possessive or lazy but repeat it, as in Ruby.
  Status Quantify(std::string quantifier, bool interval) {
    if (atom_ == kNoAtom) return NotDone("a repetition of nothing");
    if (quantified_) {
      out_.insert(atom_, "(?:");
      out_ += ')';
    }
    if (!interval && Eat("?")) {
      quantifier += '?';
    } else if (!interval && Eat("+")) {
      quantifier += '+';
    } else if (interval && pos_ < in_.size() && in_[pos_] == '?') {
      if (quantifier.find(',') == std::string::npos) return NotDone("{n}?");
      ++pos_;
      quantifier += '?';
    }
    out_ += quantifier;
    quantified_ = true;
    return Status::Ok();
  }

  Status Interval() {
    size_t end = pos_ + 1;
    const auto digits = [&] {
      const size_t begin = end;
      while (end < in_.size() && in_[end] >= '0' && in_[end] <= '9') ++end;
      return in_.substr(begin, end - begin);
    };
    const std::string low(digits());
    const bool comma = end < in_.size() && in_[end] == ',';
    if (comma) ++end;
    const std::string high(comma ? digits() : "");
    if (end >= in_.size() || in_[end] != '}' || (low.empty() && high.empty()) || low.size() > 5 ||
        high.size() > 5) {
      return Literal();
    }
    pos_ = end + 1;
    return Quantify(fmt::format("{{{}{}{}}}", low.empty() ? "0" : low, comma ? "," : "", high),
                    /*interval=*/true);
  }

  Status Escape() {
    if (pos_ + 1 == in_.size()) return NotDone("a backslash at the end");
    const char e = in_[pos_ + 1];
    if (e == 'b' || e == 'B') {
      pos_ += 2;
      const char* form = e == 'b' ? "(?:(?<=[{0}])(?![{0}])|(?<![{0}])(?=[{0}]))"
                                  : "(?:(?<=[{0}])(?=[{0}])|(?<![{0}])(?![{0}]))";
      out_ += fmt::format(fmt::runtime(form), kWord);
      atom_ = kNoAtom;
      return Status::Ok();
    }
    if (e == 'A' || e == 'z' || e == 'Z') {
      pos_ += 2;
      out_ += {'\\', e};
      atom_ = kNoAtom;
      return Status::Ok();
    }
    std::string inside;
    bool negated = false;
    if (ClassEscape(inside, negated)) {
      Put(fmt::format("[{}{}]", negated ? "^" : "", inside));
      return Status::Ok();
    }
    BATON_ASSIGN(const char32_t code, CharEscape());
    Put(Quoted(code));
    return Status::Ok();
  }

  // \s, \W, \p{Lu}: its text between brackets. Reads nothing if no such escape is here.
  bool ClassEscape(std::string& inside, bool& negated) {
    const char e = in_[pos_ + 1];
    const char lower = static_cast<char>(e | 0x20);
    if (lower == 'p') return PropertyEscape(inside, negated);
    std::string_view text;
    if (lower == 's') text = kSpace;
    if (lower == 'w') text = kWord;
    if (lower == 'd') text = kDigit;
    if (lower == 'h') text = kHex;
    if (text.empty()) return false;
    pos_ += 2;
    inside = text;
    negated = e != lower;
    return true;
  }

  bool PropertyEscape(std::string& inside, bool& negated) {
    const size_t end = in_.find('}', pos_);
    if (pos_ + 2 >= in_.size() || in_[pos_ + 2] != '{' || end == in_.npos) return false;
    std::string_view name = in_.substr(pos_ + 3, end - pos_ - 3);
    negated = in_[pos_ + 1] == 'P';
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    inside = Property(name);
    pos_ = end + 1;
    return true;
  }

  static std::string Property(std::string_view name) {
    std::string plain;
    for (char c : name) {
      if (c == ' ' || c == '_' || c == '-') continue;
      plain += c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    }
    for (const Name& n : kProperties) {
      if (n.onig == plain) return std::string(n.pcre2);
    }
    std::string safe;
    for (char c : name) {
      const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '&';
      safe += letter ? c : '?';
    }
    // A script's name alone would include the characters that it shares with others.
    const std::string script = fmt::format("\\p{{sc:{}}}", safe);
    if (safe.size() > 2 && CharSet::IsKnown(script)) return script;
    return fmt::format("\\p{{{}}}", safe);  // a category's short name, or an error of PCRE2
  }

  Result<char32_t> CharEscape() {
    const char e = in_[pos_ + 1];
    constexpr std::string_view kFrom = "ntrfvae0", kTo("\n\t\r\f\v\a\x1b\0", 8);
    if (const size_t i = kFrom.find(e); i != kFrom.npos) {
      pos_ += 2;
      return static_cast<char32_t>(kTo[i]);
    }
    if (e == 'u' || e == 'x') return CodeEscape();
    if ((e >= 'a' && e <= 'z') || (e >= 'A' && e <= 'Z') || (e >= '0' && e <= '9')) {
      return NotDone(fmt::format("\\{}", e));
    }
    ++pos_;
    const Utf8Char c = DecodeUtf8(in_.substr(pos_));
    if (c.kind != Utf8Char::Kind::kValid) return NotDone("bytes that are not UTF-8");
    pos_ += c.length;
    return c.code;
  }

  // \uHHHH, \xHH, \x{H...}.
  Result<char32_t> CodeEscape() {
    const bool braces = in_.substr(pos_).starts_with("\\x{");
    size_t at = pos_ + (braces ? 3 : 2);
    const size_t most = in_[pos_ + 1] == 'u' ? 4 : braces ? 8 : 2;
    uint64_t code = 0;
    size_t digits = 0;
    for (; digits < most && at < in_.size() && IsHex(in_[at]); ++digits, ++at) {
      const char c = in_[at];
      code = code * 16 + static_cast<uint64_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    if (braces && (at >= in_.size() || in_[at++] != '}')) return NotDone("\\x{");
    // In Ruby, \xHH above 7F is a byte of UTF-8, not a character.
    const bool byte = in_[pos_ + 1] == 'x' && !braces && code > 0x7F;
    if (digits == 0 || byte || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
      return NotDone("an escaped code that is no character");
    }
    pos_ = at;
    return static_cast<char32_t>(code);
  }

  // Reads from after the opening bracket to after the closing one. The result is one atom.
  Result<std::string> ReadClass() {
    const bool negated = Eat("^");
    BATON_ASSIGN(Class c, ReadSet(0));
    if (!c.set) {
      if (c.text.empty()) return std::string(negated ? "(?s:.)" : "(?!)");
      return fmt::format("[{}{}]", negated ? "^" : "", c.text);
    }
    BATON_ASSIGN(const CharSet set, SetOf(c));
    return (negated ? set.Inverted() : set).ToPcre2();
  }

  // A set costs milliseconds, and a malicious pattern may contain thousands.
  Result<CharSet> SetOfClass(const std::string& inside, bool caseless) {
    const auto known = sets_.find({inside, caseless});
    if (known != sets_.end()) return known->second;
    if (sets_.size() == kMaxSets) return NotDone("more nested and intersected classes than 64");
    BATON_ASSIGN(CharSet set, CharSet::OfClass(inside, caseless));
    return sets_.emplace(std::pair(inside, caseless), std::move(set)).first->second;
  }

  Result<CharSet> SetOf(const Class& c) {
    CharSet set;
    if (!c.text.empty()) {
      BATON_ASSIGN(set, SetOfClass(c.text, caseless_));
    }
    return c.set ? CharSet::Union(set, *c.set) : set;
  }

  static void Join(Class& c, const CharSet& set) {
    c.set = c.set ? CharSet::Union(*c.set, set) : set;
  }

  // Reads items up to the closing bracket; && intersects what stands left and right of it.
  Result<Class> ReadSet(int depth) {
    if (depth == kMaxDepth) return NotDone("classes nested this deep");
    std::optional<CharSet> left;
    Class items;
    bool first = true;
    for (;; first = false) {
      if (pos_ >= in_.size()) return NotDone("an open class");
      if (in_[pos_] == ']' && !first) break;
      if (Eat("&&")) {
        BATON_ASSIGN(const CharSet set, SetOf(items));
        left = left ? CharSet::Intersection(*left, set) : set;
        items = {};
        continue;
      }
      BATON_TRY(ReadItem(depth, items));
    }
    ++pos_;
    if (!left) return items;
    BATON_ASSIGN(const CharSet set, SetOf(items));
    return Class{"", CharSet::Intersection(*left, set)};
  }

  Status ReadItem(int depth, Class& items) {
    if (in_.substr(pos_).starts_with("[:")) return PosixItem(items);
    std::string inside;
    bool negated = false;
    if (Eat("[")) {
      negated = Eat("^");
      BATON_ASSIGN(const Class nested, ReadSet(depth + 1));
      BATON_ASSIGN(const CharSet set, SetOf(nested));
      Join(items, negated ? set.Inverted() : set);
      return Status::Ok();
    }
    if (in_[pos_] == '\\' && pos_ + 1 < in_.size() && ClassEscape(inside, negated)) {
      if (!negated) {
        items.text += inside;
        return Status::Ok();
      }
      if (inside.starts_with("\\p{") && inside.find('\\', 1) == inside.npos) {
        items.text.append("\\P").append(inside, 2);
        return Status::Ok();
      }
      BATON_ASSIGN(const CharSet set, SetOfClass(inside, caseless_));
      Join(items, set.Inverted());
      return Status::Ok();
    }
    BATON_ASSIGN(const char32_t low, ClassChar());
    items.text += Quoted(low);
    const std::string_view rest = in_.substr(pos_);
    if (rest.size() < 2 || rest[0] != '-' || rest[1] == ']' || rest.starts_with("-[")) {
      return Status::Ok();
    }
    ++pos_;
    BATON_ASSIGN(const char32_t high, ClassChar());
    if (high < low) return NotDone("a range that descends");
    items.text.append("-").append(Quoted(high));
    return Status::Ok();
  }

  Status PosixItem(Class& items) {
    const size_t end = in_.find(":]", pos_ + 2);
    if (end == in_.npos) return NotDone("[:");
    std::string_view name = in_.substr(pos_ + 2, end - pos_ - 2);
    const bool negated = name.starts_with('^');
    if (negated) name.remove_prefix(1);
    const std::string inside = Property(name);
    pos_ = end + 2;
    if (!negated) {
      items.text += inside;
      return Status::Ok();
    }
    BATON_ASSIGN(const CharSet set, SetOfClass(inside, caseless_));
    Join(items, set.Inverted());
    return Status::Ok();
  }

  Result<char32_t> ClassChar() {
    if (in_[pos_] == '\\') {
      if (pos_ + 1 == in_.size()) return NotDone("a backslash at the end");
      if (in_[pos_ + 1] == 'b') {
        pos_ += 2;
        return char32_t{'\b'};
      }
      return CharEscape();
    }
    const Utf8Char c = DecodeUtf8(in_.substr(pos_));
    if (c.kind != Utf8Char::Kind::kValid) return NotDone("bytes that are not UTF-8");
    pos_ += c.length;
    return c.code;
  }

  std::string_view in_;
  size_t pos_ = 0;
  std::string out_;
  std::vector<Group> groups_;
  int implicit_ = 0;
  size_t atom_ = kNoAtom;  // where the last atom begins in out_, which a quantifier repeats
  bool quantified_ = false;
  bool caseless_ = false;
  std::map<std::pair<std::string, bool>, CharSet> sets_;
};

}  // namespace

Result<std::string> ToPcre2(std::string_view pattern) { return Translator(pattern).Run(); }

}  // namespace baton
