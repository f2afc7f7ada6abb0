// tokenizer.json and tokenizer_config.json of a Hugging Face folder. Anything may be of any type.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "formats/bpe_split.h"
#include "formats/end_tokens.h"
#include "formats/printable.h"
#include "formats/python_json.h"
#include "formats/tokenizer_spec.h"

namespace baton {
namespace {

using Json = nlohmann::json;
using Kind = TokenizerSpec::Kind;
using Prefix = TokenizerSpec::Prefix;

constexpr std::string_view kSpacePiece = "\xE2\x96\x81";
// Most missing ids that are filled up below a token: one large id must not allocate memory.
constexpr int64_t kMaxGap = 65536;

const Json kNull;

// The member, or null if there is none or `j` is not an object.
const Json& At(const Json& j, const char* key) {
  if (!j.is_object()) return kNull;
  const auto it = j.find(key);
  return it == j.end() ? kNull : *it;
}
std::string_view Text(const Json& j) {
  return j.is_string() ? std::string_view(j.get_ref<const std::string&>()) : "";
}
bool Flag(const Json& j, bool absent) { return j.is_boolean() ? j.get<bool>() : absent; }
std::optional<int64_t> Integer(const Json& j) {
  if (!j.is_number_integer()) return std::nullopt;
  return j.get<int64_t>();
}

// The steps of a normalizer, pre-tokenizer or post-processor, which may be one step or a Sequence.
Result<std::vector<const Json*>> Steps(const Json& j, const char* what, const char* list) {
  if (j.is_null()) return std::vector<const Json*>{};
  if (Text(At(j, "type")) != "Sequence") return std::vector<const Json*>{&j};
  const Json& members = At(j, list);
  if (!members.is_array()) return Error::Corrupt("{} is a Sequence without '{}'", what, list);
  std::vector<const Json*> steps;
  for (const Json& m : members) steps.push_back(&m);
  return steps;
}

Error UnknownStep(const char* what, const Json& step) {
  return Error::Unsupported("{} '{}' with these settings is not known", what,
                            Printable(Text(At(step, "type"))));
}

// Stores an entry of added_tokens or added_tokens_decoder. Flags from the former are kept.
Status PutToken(TokenizerSpec& spec, int64_t id, const Json& entry) {
  const std::string_view text = Text(At(entry, "content"));
  const TokenType type =
      Flag(At(entry, "special"), false) ? TokenType::kControl : TokenType::kUserDefined;
  const int64_t size = std::ssize(spec.tokens);
  if (id < 0 || id >= std::min(size + kMaxGap, kMaxTokens)) {
    return Error::Corrupt("added token '{}' has id {}, expected 0 to {}", Printable(text), id,
                          std::min(size + kMaxGap, kMaxTokens) - 1);
  }
  if (id >= size) spec.tokens.resize(id + 1, {.type = TokenType::kUnused, .in_model = false});
  TokenSpec& token = spec.tokens[id];
  token.type = type;
  if (token.normalized && token.text == text) return Status::Ok();
  token.in_model = token.in_model && token.text == text;
  token.text = text;
  token.lstrip = Flag(At(entry, "lstrip"), false);
  token.rstrip = Flag(At(entry, "rstrip"), false);
  token.single_word = Flag(At(entry, "single_word"), false);
  token.normalized = Flag(At(entry, "normalized"), type == TokenType::kUserDefined);
  return Status::Ok();
}

int64_t FindToken(const TokenizerSpec& spec, std::string_view text) {
  if (text.empty()) return -1;
  const auto it = std::ranges::find(spec.tokens, text, &TokenSpec::text);
  return it == spec.tokens.end() ? -1 : it - spec.tokens.begin();
}

Status ReadVocab(const Json& model, TokenizerSpec& spec) {
  const Json& vocab = At(model, "vocab");
  if (!vocab.is_object()) return Error::Corrupt("tokenizer.json has no object model.vocab");
  const int64_t limit = std::min(2 * static_cast<int64_t>(vocab.size()) + kMaxGap, kMaxTokens);
  int64_t end = 0;
  for (const auto& [text, value] : vocab.items()) {
    const int64_t id = Integer(value).value_or(-1);
    if (id < 0 || id >= limit) {
      return Error::Corrupt("token '{}' in model.vocab has no id from 0 to {}", Printable(text),
                            limit - 1);
    }
    end = std::max(end, id + 1);
  }
  spec.tokens.assign(end, {.type = TokenType::kUnused});
  std::vector<bool> taken(end);
  for (const auto& [text, value] : vocab.items()) {
    const auto id = value.get<int64_t>();
    if (taken[id]) return Error::Corrupt("model.vocab has two tokens with id {}", id);
    taken[id] = true;
    spec.tokens[id] = {.text = text};
  }
  return Status::Ok();
}

Status ReadMerges(const Json& model, TokenizerSpec& spec) {
  const Json& merges = At(model, "merges");
  if (!merges.is_array()) return Error::Corrupt("tokenizer.json has no array model.merges");
  spec.merges.reserve(merges.size());
  for (const Json& m : merges) {
    std::string_view left;
    std::string_view right;
    if (m.is_string()) {
      const std::string_view both = Text(m);
      const size_t space = both.find(' ');
      if (space != both.npos) {
        left = both.substr(0, space);
        right = both.substr(space + 1);
      }
    } else if (m.is_array() && m.size() == 2) {
      left = Text(m[0]);
      right = Text(m[1]);
    }
    if (left.empty() || right.empty()) {
      return Error::Corrupt("model.merges[{}] is not a pair of tokens", spec.merges.size());
    }
    spec.merges.emplace_back(left, right);
  }
  return Status::Ok();
}

Status ReadAddedTokens(const Json& file, TokenizerSpec& spec) {
  const Json& added = At(file, "added_tokens");
  if (added.is_null()) return Status::Ok();
  if (!added.is_array()) return Error::Corrupt("added_tokens is not an array");
  for (const Json& t : added) {
    const auto id = Integer(At(t, "id"));
    if (!id || !At(t, "content").is_string()) {
      return Error::Corrupt("an entry of added_tokens lacks an integer id or a text content");
    }
    BATON_TRY(PutToken(spec, *id, t));
  }
  return Status::Ok();
}

std::string Quoted(std::string_view text) {
  std::string pattern;
  for (char c : text) {
    const bool plain = static_cast<unsigned char>(c) >= 0x80 || (c >= '0' && c <= '9') ||
                       (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (!plain) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

Result<SplitRule> ReadSplit(const Json& step) {
  constexpr std::pair<std::string_view, SplitRule::Behavior> kBehaviors[] = {
      {"Isolated", SplitRule::Behavior::kIsolated},
      {"Removed", SplitRule::Behavior::kRemoved},
      {"MergedWithPrevious", SplitRule::Behavior::kMergedWithPrevious},
      {"MergedWithNext", SplitRule::Behavior::kMergedWithNext},
      {"Contiguous", SplitRule::Behavior::kContiguous}};
  SplitRule rule{.invert = Flag(At(step, "invert"), false)};
  const auto it = std::ranges::find(kBehaviors, Text(At(step, "behavior")),
                                    &std::pair<std::string_view, SplitRule::Behavior>::first);
  if (it == std::end(kBehaviors)) return UnknownStep("pre_tokenizer", step);
  rule.behavior = it->second;
  const Json& pattern = At(step, "pattern");
  if (At(pattern, "Regex").is_string()) {
    rule.pattern = Text(At(pattern, "Regex"));
  } else if (!Text(At(pattern, "String")).empty()) {
    rule.pattern = Quoted(Text(At(pattern, "String")));
  } else {
    return Error::Corrupt("pre_tokenizer Split has no pattern");
  }
  return rule;
}

// Reads a step that is a rule, by its type.
Result<SplitRule> ReadRule(const Json& step) {
  const std::string_view type = Text(At(step, "type"));
  using Behavior = SplitRule::Behavior;
  if (type == "Split") return ReadSplit(step);
  if (type == "Digits") {
    const bool each = Flag(At(step, "individual_digits"), false);
    // Rust's is_numeric: Unicode's N.
    return SplitRule{.pattern = each ? R"(\p{N})" : R"(\p{N}+)"};
  }
  if (type == "WhitespaceSplit") return SplitRule{R"(\s)", Behavior::kRemoved};
  if (type == "Whitespace") return SplitRule{R"(\w+|[^\w\s]+)", Behavior::kRemoved, true};
  if (type == "Punctuation" && Text(At(step, "behavior")).empty()) {
    return SplitRule{R"([!-/:-@\[-`{-~\p{P}])"};
  }
  return UnknownStep("pre_tokenizer", step);
}

// Byte-level: the steps in front of ByteLevel cut words.
Status ReadWordSteps(const std::vector<const Json*>& steps, TokenizerSpec& spec) {
  for (size_t i = 0; i < steps.size(); ++i) {
    if (Text(At(*steps[i], "type")) != "ByteLevel") {
      BATON_ASSIGN(SplitRule rule, ReadRule(*steps[i]));
      spec.rules.push_back(std::move(rule));
      continue;
    }
    if (i + 1 < steps.size()) return UnknownStep("pre_tokenizer", *steps[i + 1]);
    if (Flag(At(*steps[i], "add_prefix_space"), true)) {
      if (i > 0) return UnknownStep("pre_tokenizer", *steps[i]);
      spec.prefix = Prefix::kAlways;
      spec.prefix_step = TokenizerSpec::PrefixStep::kPreTokenizer;
    }
    if (Flag(At(*steps[i], "use_regex"), true)) spec.rules.push_back({.pattern = Gpt2Pattern()});
  }
  return Status::Ok();
}

// True where the step is one of Unicode's forms.
bool ReadNormalForm(const Json& step, TokenizerSpec& spec) {
  constexpr std::pair<std::string_view, NormalForm> kForms[] = {{"NFC", NormalForm::kNfc},
                                                                {"NFD", NormalForm::kNfd},
                                                                {"NFKC", NormalForm::kNfkc},
                                                                {"NFKD", NormalForm::kNfkd}};
  for (const auto& [name, form] : kForms) {
    if (Text(At(step, "type")) != name) continue;
    spec.normal_forms.push_back(form);
    return true;
  }
  return false;
}

// Pieces: the steps say where spaces become U+2581 and whether one is put in front.
Status ReadPieceSteps(const std::vector<const Json*>& normal, const std::vector<const Json*>& pre,
                      TokenizerSpec& spec) {
  bool spaces = false;
  for (const Json* step : normal) {
    const std::string_view type = Text(At(*step, "type"));
    if (!spaces && spec.prefix == Prefix::kNone && ReadNormalForm(*step, spec)) continue;
    if (type == "Prepend" && Text(At(*step, "prepend")) == kSpacePiece) {
      spec.prefix = Prefix::kAlways;
    } else if (type == "Replace" && Text(At(At(*step, "pattern"), "String")) == " " &&
               Text(At(*step, "content")) == kSpacePiece) {
      spaces = true;
    } else {
      return UnknownStep("normalizer", *step);
    }
  }
  for (const Json* step : pre) {
    const std::string_view type = Text(At(*step, "type"));
    if (type == "Split" && spaces && Text(At(At(*step, "pattern"), "String")) == " ") {
      continue;  // Gemma: matches nothing, since the normalizer has replaced all spaces
    }
    if (type != "Metaspace" || Text(At(*step, "replacement")) != kSpacePiece || spaces) {
      return UnknownStep("pre_tokenizer", *step);
    }
    spaces = true;
    spec.prefix_step = TokenizerSpec::PrefixStep::kPreTokenizer;
    spec.split_words = Flag(At(*step, "split"), true);
    const std::string_view scheme = Text(At(*step, "prepend_scheme"));
    const bool prepends = scheme.empty() ? Flag(At(*step, "add_prefix_space"), true) : true;
    if (scheme == "first") {
      spec.prefix = Prefix::kFirst;
    } else if (scheme != "never" && prepends) {
      spec.prefix = Prefix::kAlways;
    }
  }
  if (!spaces) {
    return Error::Unsupported(
        "tokenizer.json neither cuts bytes (ByteLevel) nor marks spaces (Replace, Metaspace)");
  }
  if (!spec.byte_fallback) return Status::Ok();
  for (TokenSpec& t : spec.tokens) {
    if (t.type == TokenType::kNormal && t.text.size() == 6 && t.text.starts_with("<0x")) {
      t.type = TokenType::kByte;
    }
  }
  return Status::Ok();
}

Status ReadSteps(const Json& file, TokenizerSpec& spec) {
  BATON_ASSIGN(const auto pre, Steps(At(file, "pre_tokenizer"), "pre_tokenizer", "pretokenizers"));
  BATON_ASSIGN(const auto normal, Steps(At(file, "normalizer"), "normalizer", "normalizers"));
  const bool byte_level = std::ranges::any_of(
      pre, [](const Json* step) { return Text(At(*step, "type")) == "ByteLevel"; });
  if (!byte_level) {
    spec.kind = Kind::kPieces;
    return ReadPieceSteps(normal, pre, spec);
  }
  spec.kind = Kind::kByteLevel;
  for (const Json* step : normal) {
    if (!ReadNormalForm(*step, spec)) return UnknownStep("normalizer", *step);
  }
  return ReadWordSteps(pre, spec);
}

// A TemplateProcessing that puts a special token in front of a single text names BOS.
Status ReadBosTemplate(const Json& file, TokenizerSpec& spec) {
  BATON_ASSIGN(const auto steps, Steps(At(file, "post_processor"), "post_processor", "processors"));
  for (const Json* step : steps) {
    const Json& single = At(*step, "single");
    if (!single.is_array() || single.empty()) continue;
    const int64_t id = FindToken(spec, Text(At(At(single[0], "SpecialToken"), "id")));
    if (id < 0) continue;
    spec.bos = id;
    spec.adds_bos = true;
  }
  return Status::Ok();
}

// "<s>" or {"content": "<s>", ...}.
std::string_view TokenText(const Json& j) { return Text(j.is_object() ? At(j, "content") : j); }

}  // namespace

Result<TokenizerSpec> SpecFromJson(std::string_view text) {
  BATON_ASSIGN(const Json file, ParseJsonObject(text, "tokenizer.json"));
  const Json& model = At(file, "model");
  const std::string_view type = Text(At(model, "type"));
  // Old files leave the type out.
  if (type != "BPE" && !(type.empty() && At(model, "merges").is_array())) {
    return Error::Unsupported("tokenizer.json has a model of type '{}', expected BPE",
                              Printable(type));
  }
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!Text(At(model, affix)).empty()) {
      return Error::Unsupported("tokenizer.json uses model.{}", affix);
    }
  }
  TokenizerSpec spec;
  BATON_TRY(ReadVocab(model, spec));
  BATON_TRY(ReadMerges(model, spec));
  spec.byte_fallback = Flag(At(model, "byte_fallback"), false);
  spec.fuse_unknown = Flag(At(model, "fuse_unk"), false);
  spec.keeps_unknown_bytes = true;
  BATON_TRY(ReadSteps(file, spec));
  spec.ignore_merges = Flag(At(model, "ignore_merges"), false);
  spec.unknown = FindToken(spec, Text(At(model, "unk_token")));
  BATON_TRY(ReadAddedTokens(file, spec));
  BATON_TRY(ReadBosTemplate(file, spec));
  return spec;
}

Status ApplyAddedTokens(std::string_view text, std::string_view special, TokenizerSpec& spec) {
  BATON_ASSIGN(const Json added, ParseJsonObject(text, "added_tokens.json"));
  std::set<std::string, std::less<>> control;
  if (!special.empty()) {
    BATON_ASSIGN(const Json map, ParseJsonObject(special, "special_tokens_map.json"));
    for (const auto& [role, value] : map.items()) {
      control.emplace(TokenText(value));
      if (!value.is_array()) continue;
      for (const Json& t : value) control.emplace(TokenText(t));
    }
  }
  for (const auto& [content, value] : added.items()) {
    const auto id = Integer(value);
    if (!id) {
      return Error::Corrupt("added_tokens.json: '{}' is no integer id", Printable(content));
    }
    const bool is_control = control.contains(content) || IsEndText(content);
    BATON_TRY(PutToken(spec, *id,
                       {{"content", content}, {"special", is_control}, {"normalized", false}}));
  }
  return Status::Ok();
}

Status ApplyTokenizerConfig(std::string_view text, TokenizerSpec& spec) {
  BATON_ASSIGN(const Json config, ParseJsonObject(text, "tokenizer_config.json"));
  const Json& added = At(config, "added_tokens_decoder");
  if (added.is_object()) {
    for (const auto& [key, value] : added.items()) {
      // The keys are ids in decimal; seven digits hold every id we accept.
      const bool number = !key.empty() && key.size() <= 7 &&
                          std::ranges::all_of(key, [](char c) { return c >= '0' && c <= '9'; });
      if (!number || !At(value, "content").is_string()) {
        return Error::Corrupt("added_tokens_decoder['{}'] is not an id with a text content",
                              Printable(key));
      }
      BATON_TRY(PutToken(spec, std::stoll(key), value));
    }
  }
  const int64_t bos = FindToken(spec, TokenText(At(config, "bos_token")));
  const int64_t eos = FindToken(spec, TokenText(At(config, "eos_token")));
  if (bos >= 0) spec.bos = bos;
  if (eos >= 0) spec.eos = eos;
  spec.adds_bos = Flag(At(config, "add_bos_token"), spec.adds_bos);
  return Status::Ok();
}

}  // namespace baton
