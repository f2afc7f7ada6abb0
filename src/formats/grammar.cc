#include "formats/grammar.h"

#include <fmt/format.h>
#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/printable.h"

namespace {

thread_local std::string warning;  // of the library, while a grammar is compiled

}  // namespace

// What the library would print: errors are thrown, warnings kept for who asks.
namespace xgrammar {
[[noreturn]] void LogFatalImpl(const std::string&, int, const std::string& message) {
  throw XGrammarError(message);
}
void LogMessageImpl(const std::string&, int, int, const std::string& message) { warning = message; }
}  // namespace xgrammar

namespace baton {
namespace {

using Json = nlohmann::ordered_json;  // members are generated in their order

constexpr size_t kMostBytes = size_t{1} << 18;
constexpr int kMostLevels = 64;
constexpr int64_t kCacheBytes = int64_t{64} << 20;

// Keywords of JSON Schema that xgrammar reads over.
constexpr std::array kIgnored = {
    "not",         "if",       "then",        "else",       "dependentRequired", "dependentSchemas",
    "uniqueItems", "contains", "minContains", "maxContains"};
// Members of a schema whose values are no schemas.
constexpr std::array kData = {"const", "default", "enum", "example", "examples"};

// A class of all characters but some holds quotes and control characters, which are no part of a
// JSON string as they stand.
bool IsNegated(const std::string& pattern) {
  for (const char* negated : {"[^", "\\S", "\\D", "\\W"})
    if (pattern.find(negated) != pattern.npos) return true;
  return false;
}

bool Holds(const auto& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Prepares a schema for xgrammar: arrays whose items nothing is said of hold anything. `names`:
// whether the members of `j` are names that the schema's author chose.
Status Prepare(Json& j, bool strict, int level, bool names) {
  if (level > kMostLevels)
    return Error::InvalidArgument("JSON schema: nested more than {} deep", kMostLevels);
  if (j.is_array()) {
    for (Json& item : j) BATON_TRY(Prepare(item, strict, level + 1, false));
  }
  if (!j.is_object()) return Status::Ok();
  if (const Json pattern = names ? Json() : j.value("pattern", Json());
      pattern.is_string() && IsNegated(pattern.get<std::string>())) {
    if (strict)
      return Error::Unsupported("JSON schema: a pattern with a negated class cannot be enforced")
          .Hint("name the characters that may come");
    j.erase("pattern");
  }
  for (auto& [key, value] : j.items()) {
    if (!names && strict && Holds(kIgnored, key))
      return Error::Unsupported("JSON schema: {} cannot be enforced", key)
          .Hint("leave it out, or strict");
    if (!names && Holds(kData, key)) continue;
    const bool chosen = !names && (key == "properties" || key == "$defs" || key == "definitions" ||
                                   key == "patternProperties");
    BATON_TRY(Prepare(value, strict, level + 1, chosen));
  }
  if (!names && j.value("type", Json()) == "array" && !j.contains("items") &&
      !j.contains("prefixItems"))
    j["items"] = Json::object();
  return Status::Ok();
}

Error GrammarError(const std::exception& e) {
  const std::string_view what = e.what();
  return Error::InvalidArgument("JSON schema: {}", Printable(what.substr(0, what.find('\n'))));
}

class Matcher final : public ConstraintState {
 public:
  Matcher(const xgrammar::CompiledGrammar& grammar) : matcher_(grammar) {}

  Result<bool> Next(std::span<uint32_t> mask) override {
    if (matcher_.IsTerminated()) return false;
    auto shape = static_cast<int64_t>(mask.size());
    DLTensor tensor{.data = mask.data(),
                    .device = {kDLCPU, 0},
                    .ndim = 1,
                    .dtype = xgrammar::GetBitmaskDLType(),
                    .shape = &shape,
                    .strides = nullptr,
                    .byte_offset = 0};
    try {
      matcher_.FillNextTokenBitmask(&tensor);
    } catch (const std::exception& e) {
      return GrammarError(e);
    }
    if (std::any_of(mask.begin(), mask.end(), [](uint32_t word) { return word != 0; })) return true;
    if (matcher_.IsCompleted()) return false;
    return Error::Unsupported("grammar: no token of the vocabulary goes on with the answer");
  }

  bool Accept(int32_t token) override {
    try {
      return !matcher_.IsTerminated() && matcher_.AcceptToken(token);
    } catch (const std::exception&) {
      return false;
    }
  }

  void Rollback(int tokens) override {
    if (tokens > 0) matcher_.Rollback(tokens);
  }

 private:
  xgrammar::GrammarMatcher matcher_;
};

class CompiledConstraint final : public Constraint {
 public:
  explicit CompiledConstraint(xgrammar::CompiledGrammar grammar) : grammar_(std::move(grammar)) {}
  std::unique_ptr<ConstraintState> Begin() const override {
    return std::make_unique<Matcher>(grammar_);
  }

 private:
  const xgrammar::CompiledGrammar grammar_;
};

// Control tokens have no text: only those that end an answer may ever come.
xgrammar::TokenizerInfo InfoOf(const Tokenizer& tokenizer, int64_t vocab) {
  std::vector<std::string> bytes;
  std::vector<int32_t> ends;
  const auto known = static_cast<int32_t>(std::min<int64_t>(tokenizer.vocab_size(), vocab));
  for (int32_t t = 0; t < known; ++t) {
    const bool end = tokenizer.IsEndOfGeneration(t);
    if (end) ends.push_back(t);
    bytes.push_back(end ? "" : tokenizer.Bytes(t));
  }
  return {bytes, xgrammar::VocabType::RAW, static_cast<int>(vocab), ends};
}

Result<xgrammar::Grammar> GrammarOf(const GrammarSpec& spec) {
  if (spec.schema.size() + spec.around.size() > kMostBytes)
    return Error::InvalidArgument("JSON schema: {} bytes, expected at most {}",
                                  spec.schema.size() + spec.around.size(), kMostBytes);
  Json schema = Json::parse(spec.schema, nullptr, /*allow_exceptions=*/false);
  if (!schema.is_object() && !schema.is_boolean())
    return Error::InvalidArgument("JSON schema: expected a JSON object");
  BATON_TRY(Prepare(schema, spec.strict, 0, /*names=*/false));
  warning.clear();
  try {
    xgrammar::Grammar grammar = xgrammar::Grammar::FromJSONSchema(
        schema.dump(), /*any_whitespace=*/true, std::nullopt, std::nullopt, /*strict_mode=*/true,
        GrammarSpec::kMostSpaces);
    if (!spec.around.empty())
      grammar = xgrammar::Grammar::FromEBNF(grammar.ToString() + "\n" + spec.around, "answer");
    if (spec.strict && !warning.empty())
      return Error::Unsupported("JSON schema: {}", Printable(warning));
    for (const GrammarSpec& other : spec.or_else) {
      BATON_ASSIGN(const xgrammar::Grammar more, GrammarOf(other));
      grammar = xgrammar::Grammar::Union({grammar, more});
    }
    return grammar;
  } catch (const std::exception& e) {
    return GrammarError(e);
  }
}

}  // namespace

struct GrammarCompiler::Impl {
  Impl(const Tokenizer& tokenizer, int64_t vocab)
      // One thread: requests that are being answered have the others.
      : compiler(InfoOf(tokenizer, vocab), /*max_threads=*/1, /*cache_enabled=*/true, kCacheBytes) {
  }
  xgrammar::GrammarCompiler compiler;
};

GrammarCompiler::GrammarCompiler(const Tokenizer& tokenizer, int64_t vocab)
    : tokenizer_(tokenizer), vocab_(vocab) {}
GrammarCompiler::~GrammarCompiler() = default;

Result<std::shared_ptr<const Constraint>> GrammarCompiler::Compile(const GrammarSpec& spec) {
  BATON_ASSIGN(const xgrammar::Grammar grammar, GrammarOf(spec));
  const std::lock_guard lock(mutex_);
  try {
    if (!impl_) impl_ = std::make_unique<Impl>(tokenizer_, vocab_);
    std::shared_ptr<const Constraint> constraint =
        std::make_shared<CompiledConstraint>(impl_->compiler.CompileGrammar(grammar));
    return constraint;
  } catch (const std::exception& e) {
    return GrammarError(e);
  }
}

}  // namespace baton
