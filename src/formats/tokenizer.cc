#include "formats/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "base/check.h"
#include "formats/bpe.h"
#include "formats/bpe_split.h"
#include "formats/end_tokens.h"
#include "formats/printable.h"
#include "formats/tokenizer_spec.h"
#include "formats/tokenizer_vocab.h"
#include "formats/unicode.h"

namespace baton {
namespace {

constexpr std::string_view kSpacePiece = "\xE2\x96\x81";  // U+2581
// Symbols are linked by 32-bit indexes; longer text is merged in parts.
constexpr size_t kMaxMergeBytes = size_t{1} << 30;

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t pos = 0;
  for (size_t hit; (hit = text.find(from, pos)) != text.npos; pos = hit + from.size()) {
    out.append(text.substr(pos, hit - pos)).append(to);
  }
  return out.append(text.substr(pos));
}

// "<0x0A>" -> 10; -1 for other texts.
int ByteOfPiece(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  int value = 0;
  for (char c : text.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

// "a b" or "a ": a space after another character.
bool HoldsSpaceInside(std::string_view bytes) {
  const size_t word = bytes.find_first_not_of(' ');
  return word != bytes.npos && bytes.find(' ', word) != bytes.npos;
}

bool HasNoText(TokenType type) {
  return type == TokenType::kControl || type == TokenType::kUnknown;
}

}  // namespace

void KeepFirstTokens(TokenizerSpec& spec, int64_t rows) {
  if (rows < 0 || std::ssize(spec.tokens) <= rows) return;
  std::set<std::string, std::less<>> gone;
  for (size_t i = static_cast<size_t>(rows); i < spec.tokens.size(); ++i)
    gone.insert(spec.tokens[i].text);
  spec.notes.push_back(
      fmt::format("the tokenizer has {} tokens more than the model has rows ('{}' first); texts "
                  "never become those",
                  spec.tokens.size() - static_cast<size_t>(rows),
                  Printable(spec.tokens[static_cast<size_t>(rows)].text)));
  spec.tokens.resize(static_cast<size_t>(rows));
  std::erase_if(spec.merges, [&](const auto& merge) {
    return gone.contains(merge.first) || gone.contains(merge.second) ||
           gone.contains(merge.first + merge.second);
  });
  for (int64_t* id : {&spec.bos, &spec.eos, &spec.unknown}) {
    if (*id >= rows) *id = -1;
  }
  std::erase_if(spec.more_end_ids, [&](int64_t id) { return id >= rows; });
}

struct Tokenizer::Impl {
  using Kind = TokenizerSpec::Kind;
  using Prefix = TokenizerSpec::Prefix;

  Impl() : index(vocab) { byte_ids.fill(-1); }

  // Steps of building, in this order.
  Status AddTokens(const TokenizerSpec& spec);
  Status AddMerges(const TokenizerSpec& spec);
  void RankScores(const TokenizerSpec& spec);
  Status AddSpecials(const TokenizerSpec& spec);

  std::string BytesOfText(std::string_view text, TokenType type) const;
  std::string AddedText(const TokenSpec& token, bool normalized) const;

  struct Work {
    BpeMerger merger;
    std::vector<BpeSymbol> symbols;
    std::vector<int32_t>& out;
    bool special = false;
  };
  // Encodes text between added tokens that were found in the original text. `first`: nothing
  // precedes it.
  void EncodeSegment(std::string_view text, bool first, Work& work) const;
  void EncodePart(std::string_view text, bool first, Work& work) const;
  void EncodePlain(std::string_view text, Work& work) const;
  void EncodeBytes(std::string_view word, Work& work) const;
  void EncodePieces(std::string_view text, Work& work) const;
  void EmitMerged(Work& work) const;
  bool Prefixes(bool first) const {
    return prefix == Prefix::kAlways || (prefix == Prefix::kFirst && first);
  }
  const TokenFinder& finder(bool normalized, bool special) const {
    return *finders[normalized ? 1 : 0][special ? 1 : 0];
  }

  Kind kind = Kind::kByteLevel;
  Vocab vocab;
  TokenIndex index;  // of the tokens that plain text may become
  std::array<int32_t, 256> byte_ids;
  MergeTable merges;
  std::vector<uint32_t> score_rank;  // by id; empty unless pieces merge by score
  std::optional<WordSplitter> splitter;
  std::vector<NormalForm> normal_forms;
  bool ignore_merges = false;
  Prefix prefix = Prefix::kNone;
  TokenizerSpec::PrefixStep prefix_step = TokenizerSpec::PrefixStep::kNormalizer;
  bool split_words = false;
  bool cuts_at_spaces = false;  // no token has a space after another character
  bool byte_fallback = true;
  bool fuse_unknown = false;
  bool keeps_unknown_bytes = false;

  // Added tokens: [in the normalised text][with control tokens].
  std::optional<TokenFinder> finders[2][2];
  int32_t bos = -1;
  int32_t eos = -1;
  int32_t unknown = -1;
  int32_t tool_calls = -1;  // the control token that opens Mistral's calls
  bool adds_bos = false;
  std::vector<bool> ends;  // by id
  std::vector<std::string> notes;
};

std::string Tokenizer::Impl::BytesOfText(std::string_view text, TokenType type) const {
  if (HasNoText(type)) return std::string(text);
  if (kind == Kind::kPieces) {
    if (type == TokenType::kByte) return std::string(1, static_cast<char>(ByteOfPiece(text)));
    return ReplaceAll(text, kSpacePiece, " ");
  }
  return type == TokenType::kUserDefined ? std::string(text) : ByteLevelBytes(text);
}

Status Tokenizer::Impl::AddTokens(const TokenizerSpec& spec) {
  if (spec.tokens.empty() || std::ssize(spec.tokens) > kMaxTokens) {
    return Error::Corrupt("vocabulary has {} tokens, expected 1 to {}", spec.tokens.size(),
                          kMaxTokens);
  }
  kind = spec.kind;
  cuts_at_spaces = kind == Kind::kPieces;
  for (size_t i = 0; i < spec.tokens.size(); ++i) {
    const TokenSpec& t = spec.tokens[i];
    if (t.type == TokenType::kByte && ByteOfPiece(t.text) < 0) {
      return Error::Corrupt("byte token {} is '{}', expected the form <0x41>", i,
                            Printable(t.text));
    }
    if (std::isnan(t.score)) return Error::Corrupt("token {} has score NaN", i);
    vocab.Add(BytesOfText(t.text, t.type), t.type);
  }
  index.Reserve(spec.tokens.size());
  for (int32_t id = 0; id < vocab.size(); ++id) {
    const TokenType type = vocab.type(id);
    if (HasNoText(type) || vocab.Bytes(id).empty() || !spec.tokens[id].in_model) continue;
    if (HoldsSpaceInside(vocab.Bytes(id))) cuts_at_spaces = false;
    if (type == TokenType::kByte) {
      int32_t& slot = byte_ids[static_cast<unsigned char>(vocab.Bytes(id)[0])];
      if (slot < 0) slot = id;
    } else {
      index.Add(id);
    }
  }
  if (kind == Kind::kByteLevel) {
    for (int b = 0; b < 256; ++b) {
      const char byte = static_cast<char>(b);
      byte_ids[b] = index.Find({&byte, 1});
    }
  }
  return Status::Ok();
}

// A merge with a control token is left out: plain text never becomes one.
Status Tokenizer::Impl::AddMerges(const TokenizerSpec& spec) {
  merges.Reserve(spec.merges.size());
  TokenIndex control(vocab);
  control.Reserve(spec.tokens.size());
  for (int32_t id = 0; id < vocab.size(); ++id) {
    if (HasNoText(vocab.type(id))) control.Add(id);
  }
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const auto& [left_text, right_text] = spec.merges[rank];
    const std::string left = BytesOfText(left_text, TokenType::kNormal);
    const std::string right = BytesOfText(right_text, TokenType::kNormal);
    const int32_t a = index.Find(left);
    const int32_t b = index.Find(right);
    const int32_t both = index.Find(left + right);
    if (a < 0 || b < 0 || both < 0) {
      const auto skipped = [&](int32_t id, const std::string& text) {
        return id >= 0 || control.Find(text) >= 0;
      };
      if (skipped(a, left_text) && skipped(b, right_text) &&
          skipped(both, left_text + right_text)) {
        continue;
      }
      return Error::Corrupt("merge {} is '{}' + '{}', but {} is not in the vocabulary", rank,
                            Printable(left_text), Printable(right_text),
                            a < 0   ? "its left side"
                            : b < 0 ? "its right side"
                                    : "their union");
    }
    merges.Add(a, b, {static_cast<uint32_t>(rank), both});
  }
  return Status::Ok();
}

// Equal scores share a rank, so that the leftmost of them merges first.
void Tokenizer::Impl::RankScores(const TokenizerSpec& spec) {
  std::vector<float> scores;
  scores.reserve(spec.tokens.size());
  for (const TokenSpec& t : spec.tokens) scores.push_back(t.score);
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
  score_rank.reserve(spec.tokens.size());
  for (const TokenSpec& t : spec.tokens) {
    const auto at = std::lower_bound(scores.begin(), scores.end(), t.score, std::greater<>());
    score_rank.push_back(static_cast<uint32_t>(at - scores.begin()));
  }
}

Status Tokenizer::Impl::AddSpecials(const TokenizerSpec& spec) {
  const auto check = [&](const char* what, int64_t id) -> Status {
    if (id == -1 || vocab.Has(id)) return Status::Ok();
    return Error::Corrupt("{} token id is {}, the vocabulary has {} tokens", what, id,
                          vocab.size());
  };
  BATON_TRY(check("bos", spec.bos));
  BATON_TRY(check("eos", spec.eos));
  BATON_TRY(check("unknown", spec.unknown));
  for (int64_t id : spec.more_end_ids) BATON_TRY(check("end-of-turn", id));
  bos = static_cast<int32_t>(spec.bos);
  eos = static_cast<int32_t>(spec.eos);
  unknown = static_cast<int32_t>(spec.unknown);
  adds_bos = spec.adds_bos && bos >= 0;

  ends.assign(vocab.size(), false);
  for (int32_t id = 0; id < vocab.size(); ++id) {
    if (vocab.type(id) != TokenType::kControl) continue;
    if (IsEndText(vocab.Bytes(id))) ends[id] = true;
    if (vocab.Bytes(id) == "[TOOL_CALLS]") tool_calls = id;
  }
  if (spec.eos >= 0) ends[spec.eos] = true;
  for (int64_t id : spec.more_end_ids) {
    if (id >= 0) ends[id] = true;
  }
  for (bool normalized : {false, true}) {
    std::vector<AddedToken> all;
    std::vector<AddedToken> visible;
    for (int32_t id = 0; id < vocab.size(); ++id) {
      const TokenSpec& t = spec.tokens[id];
      const bool user = t.type == TokenType::kUserDefined;
      if (!user && !HasNoText(t.type)) continue;
      if (t.normalized.value_or(user) != normalized) continue;
      const AddedToken token{AddedText(t, normalized), id, t.lstrip, t.rstrip, t.single_word};
      all.push_back(token);
      if (user) visible.push_back(token);
    }
    const bool piece_spaces = normalized && kind == Kind::kPieces &&
                              prefix_step == TokenizerSpec::PrefixStep::kNormalizer;
    finders[normalized][0].emplace(std::move(visible), piece_spaces);
    finders[normalized][1].emplace(std::move(all), piece_spaces);
  }
  return Status::Ok();
}

// A token's text in the form in which it is searched: as the file writes it, or normalised like the
// text around it.
std::string Tokenizer::Impl::AddedText(const TokenSpec& token, bool normalized) const {
  if (!normalized) return token.text;
  std::string text = token.text;
  for (NormalForm form : normal_forms) text = Normalize(text, form);
  if (kind != Kind::kPieces || prefix_step == TokenizerSpec::PrefixStep::kPreTokenizer) return text;
  // With Prepend, a token that the file marks as normalised also gets the space; SentencePiece does
  // not do that.
  const bool put = token.normalized.has_value() && prefix == Prefix::kAlways;
  return fmt::format("{}{}", put ? " " : "", ReplaceAll(text, kSpacePiece, " "));
}

void Tokenizer::Impl::EmitMerged(Work& work) const {
  bool after_unknown = false;
  for (int32_t i = work.symbols.empty() ? -1 : 0; i >= 0; i = work.symbols[i].next) {
    const BpeSymbol& s = work.symbols[i];
    if (s.id >= 0) {
      work.out.push_back(s.id);
      after_unknown = false;
      continue;
    }
    const bool bytes = byte_fallback && std::ranges::all_of(s.text, [&](char c) {
                         return byte_ids[static_cast<unsigned char>(c)] >= 0;
                       });
    if (bytes) {
      for (char c : s.text) work.out.push_back(byte_ids[static_cast<unsigned char>(c)]);
      after_unknown = false;
    } else if (unknown >= 0) {
      if (!fuse_unknown || !after_unknown) work.out.push_back(unknown);
      after_unknown = true;
    }
  }
}

void Tokenizer::Impl::EncodeBytes(std::string_view word, Work& work) const {
  if (ignore_merges) {
    const int32_t id = index.Find(word);
    if (id >= 0) {
      work.out.push_back(id);
      return;
    }
  }
  work.symbols.clear();
  for (size_t i = 0; i < word.size(); ++i) {
    const int32_t id = byte_ids[static_cast<unsigned char>(word[i])];
    if (id >= 0 || (keeps_unknown_bytes && unknown >= 0)) {
      work.symbols.push_back({.id = id, .text = word.substr(i, 1)});
    }
  }
  work.merger.Run(work.symbols,
                  [&](const BpeSymbol& a, const BpeSymbol& b) { return merges.Find(a.id, b.id); });
  EmitMerged(work);
}

void Tokenizer::Impl::EncodePieces(std::string_view text, Work& work) const {
  work.symbols.clear();
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text.substr(pos));
    const int length = c.kind == Utf8Char::Kind::kValid ? c.length : 1;
    const std::string_view symbol = text.substr(pos, length);
    work.symbols.push_back({.id = index.Find(symbol), .text = symbol});
    pos += length;
  }
  if (score_rank.empty()) {
    work.merger.Run(work.symbols, [&](const BpeSymbol& a, const BpeSymbol& b) {
      return merges.Find(a.id, b.id);
    });
  } else {
    work.merger.Run(work.symbols, [&](const BpeSymbol& a, const BpeSymbol& b) -> Merge {
      const int32_t id = index.Find({a.text.data(), a.text.size() + b.text.size()});
      return id < 0 ? Merge{} : Merge{score_rank[id], id};
    });
  }
  EmitMerged(work);
}

void Tokenizer::Impl::EncodePlain(std::string_view text, Work& work) const {
  while (text.size() > kMaxMergeBytes) {
    size_t cut = kMaxMergeBytes;
    while (cut > kMaxMergeBytes - 4 && (text[cut] & 0xC0) == 0x80) --cut;
    EncodePlain(text.substr(0, cut), work);
    text.remove_prefix(cut);
  }
  if (kind == Kind::kByteLevel) {
    for (std::string_view word : splitter->Split(text)) EncodeBytes(word, work);
    return;
  }
  if (!split_words && !cuts_at_spaces) return EncodePieces(text, work);
  for (size_t pos = 0; pos < text.size();) {
    size_t end = pos + 1;
    // Runs of spaces stay whole where tokens may hold several of them.
    while (!split_words && end < text.size() && text[end] == ' ') ++end;
    end = std::min(text.find(' ', end), text.size());
    EncodePieces(text.substr(pos, end - pos), work);
    pos = end;
  }
}

void Tokenizer::Impl::EncodePart(std::string_view text, bool first, Work& work) const {
  if (prefix_step == TokenizerSpec::PrefixStep::kNormalizer) return EncodePlain(text, work);
  const bool pieces = kind == Kind::kPieces;
  const bool put =
      Prefixes(first) && !text.starts_with(' ') && !(pieces && text.starts_with(kSpacePiece));
  if (!put && !(pieces && text.find(kSpacePiece) != text.npos)) return EncodePlain(text, work);
  std::string spaced(put ? " " : "");
  spaced += pieces ? ReplaceAll(text, kSpacePiece, " ") : std::string(text);
  EncodePlain(spaced, work);
}

// The normaliser's space comes before the search for user-defined tokens, as in SentencePiece: it
// can be part of one (Gemma's runs of spaces).
void Tokenizer::Impl::EncodeSegment(std::string_view text, bool first, Work& work) const {
  if (text.empty()) return;
  std::string normal;
  for (NormalForm form : normal_forms) {
    normal = Normalize(text, form);
    text = normal;
  }
  std::string spaced;
  if (kind == Kind::kPieces && prefix_step == TokenizerSpec::PrefixStep::kNormalizer) {
    const bool put = Prefixes(first);
    // These models treat a literal U+2581 as a space.
    if (put || text.find(kSpacePiece) != text.npos) {
      if (put) spaced = ' ';
      spaced += ReplaceAll(text, kSpacePiece, " ");
      text = spaced;
    }
  }
  finder(true, work.special).ForParts(text, [&](const TokenFinder::Part& part) {
    if (part.id >= 0) {
      work.out.push_back(part.id);
    } else {
      EncodePart(text.substr(part.begin, part.end - part.begin), first && part.begin == 0, work);
    }
  });
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::FromSpec(const TokenizerSpec& spec) {
  auto impl = std::make_unique<Impl>();
  impl->normal_forms = spec.normal_forms;
  impl->ignore_merges = spec.ignore_merges;
  impl->prefix = spec.prefix;
  impl->prefix_step = spec.prefix_step;
  impl->split_words = spec.split_words;
  impl->byte_fallback = spec.byte_fallback;
  impl->fuse_unknown = spec.fuse_unknown;
  impl->keeps_unknown_bytes = spec.keeps_unknown_bytes;
  impl->notes = spec.notes;
  BATON_TRY(impl->AddTokens(spec));
  BATON_TRY(impl->AddMerges(spec));
  if (spec.by_score) impl->RankScores(spec);
  BATON_TRY(impl->AddSpecials(spec));
  BATON_ASSIGN(impl->splitter, WordSplitter::Make(spec.rules));
  return Tokenizer(std::move(impl));
}

const std::vector<std::string>& Tokenizer::notes() const { return impl_->notes; }

Tokenizer Tokenizer::None() { return Tokenizer(std::make_unique<Impl>()); }

Result<Tokenizer> Tokenizer::FromGguf(const Metadata& metadata) {
  BATON_ASSIGN(const TokenizerSpec spec, SpecFromGguf(metadata));
  return FromSpec(spec);
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, const EncodeOptions& options) const {
  if (impl_->vocab.size() == 0) return {};
  std::vector<int32_t> ids;
  if (options.bos && impl_->adds_bos) ids.push_back(impl_->bos);
  Impl::Work work{.merger = {}, .symbols = {}, .out = ids, .special = options.special};
  impl_->finder(false, options.special).ForParts(text, [&](const TokenFinder::Part& part) {
    if (part.id >= 0) {
      ids.push_back(part.id);
    } else {
      impl_->EncodeSegment(text.substr(part.begin, part.end - part.begin), part.begin == 0, work);
    }
  });
  // A prompt from a model card may begin with the text of BOS; a second BOS degrades the output.
  if (options.bos && impl_->adds_bos && ids.size() > 1 && ids[1] == impl_->bos) {
    ids.erase(ids.begin());
  }
  return ids;
}

std::string Tokenizer::Bytes(int32_t id, bool special) const {
  const bool hidden = IsControl(id) && !special && id != impl_->tool_calls;
  if (!impl_->vocab.Has(id) || hidden) return "";
  return std::string(impl_->vocab.Bytes(id));
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool special) const {
  std::string text;
  bool first = true;
  bool boundary = true;
  for (int32_t id : ids) {
    if (!impl_->vocab.Has(id)) continue;
    const bool prefixed = impl_->prefix == Impl::Prefix::kAlways  ? boundary
                          : impl_->prefix == Impl::Prefix::kFirst ? first
                                                                  : false;
    boundary = IsControl(id);
    std::string_view bytes = impl_->vocab.Bytes(id);
    if (boundary) {
      if (special) text += bytes;
      if (id != impl_->bos) first = false;
      continue;
    }
    first = false;
    if (prefixed && bytes.starts_with(' ')) bytes.remove_prefix(1);
    text += bytes;
  }
  return text;
}

int32_t Tokenizer::vocab_size() const { return impl_->vocab.size(); }
int32_t Tokenizer::bos() const { return impl_->bos; }
int32_t Tokenizer::eos() const { return impl_->eos; }
int32_t Tokenizer::unknown() const { return impl_->unknown; }
bool Tokenizer::adds_bos() const { return impl_->adds_bos; }
bool Tokenizer::IsEndOfGeneration(int32_t id) const {
  return impl_->vocab.Has(id) && impl_->ends[id];
}
bool Tokenizer::IsControl(int32_t id) const {
  return impl_->vocab.Has(id) && HasNoText(impl_->vocab.type(id));
}

std::string StreamDecoder::Push(int32_t id) {
  pending_ += tokenizer_.Bytes(id);
  std::string text;
  size_t pos = 0;
  while (pos < pending_.size()) {
    const Utf8Char c = DecodeUtf8(std::string_view(pending_).substr(pos));
    if (c.kind == Utf8Char::Kind::kTruncated) break;
    if (c.kind == Utf8Char::Kind::kValid) {
      text.append(pending_, pos, c.length);
    } else {
      text += kReplacementCharacter;
    }
    pos += c.length;
  }
  pending_.erase(0, pos);
  return text;
}

std::string StreamDecoder::Flush() {
  // After Push, only the beginning of one character can be pending.
  const bool unfinished = !pending_.empty();
  pending_.clear();
  return unfinished ? std::string(kReplacementCharacter) : "";
}

}  // namespace baton
