// Answers that a grammar allows: whatever tokens are picked among the allowed ones, the text is
// what the schema describes, and it ends only where it may.
#include "formats/grammar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "formats/byte_tokenizer.h"

namespace baton {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;

// Every byte, BOS, EOS, and some tokens of several bytes.
struct Vocabulary {
  Tokenizer tokenizer = *Tokenizer::FromGguf(ByteTokenizerMetadata(280));
  int32_t end = kByteEos;
};

constexpr const char* kPerson =
    R"({"type": "object", "properties": {"name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}},
        "required": ["name", "age"], "additionalProperties": false})";

class GrammarTest : public ::testing::Test {
 protected:
  std::shared_ptr<const Constraint> Compile(const GrammarSpec& spec) {
    auto constraint = compiler_.Compile(spec);
    EXPECT_TRUE(constraint.ok()) << constraint.error().ToString();
    return constraint.ok() ? *constraint : nullptr;
  }
  std::string ErrorOf(const GrammarSpec& spec) {
    auto constraint = compiler_.Compile(spec);
    return constraint.ok() ? "" : constraint.error().ToString();
  }
  std::vector<int32_t> Allowed(ConstraintState& state) {
    std::vector<uint32_t> mask(static_cast<size_t>(kVocab + 31) / 32);
    const Result<bool> some = state.Next(mask);
    EXPECT_TRUE(some.ok()) << some.error().ToString();
    std::vector<int32_t> allowed;
    for (int32_t t = 0; some.ok() && *some && t < kVocab; ++t)
      if (mask[static_cast<size_t>(t) / 32] >> (t % 32) & 1) allowed.push_back(t);
    return allowed;
  }
  // The text of random allowed tokens, until one ends it; none after `most`.
  std::optional<std::string> RandomText(const Constraint& constraint, uint32_t seed, int most) {
    std::mt19937 random(seed);
    auto state = constraint.Begin();
    StreamDecoder decoder(vocabulary_.tokenizer);  // as answers are decoded: always UTF-8
    std::string text;
    for (int i = 0; i < most; ++i) {
      const std::vector<int32_t> allowed = Allowed(*state);
      const int32_t token = allowed.at(random() % allowed.size());
      EXPECT_TRUE(state->Accept(token));
      if (token == vocabulary_.end) {
        EXPECT_TRUE(Allowed(*state).empty()) << "nothing follows the end";
        return text + decoder.Flush();
      }
      text += decoder.Push(token);
    }
    return std::nullopt;
  }
  bool Accepts(const Constraint& constraint, const std::string& text) {
    auto state = constraint.Begin();
    for (const char c : text) {
      if (!state->Accept(static_cast<int32_t>(static_cast<unsigned char>(c)))) return false;
    }
    return state->Accept(vocabulary_.end);
  }

  static constexpr int32_t kVocab = 300;  // more rows than tokens: padding is never allowed
  Vocabulary vocabulary_;
  GrammarCompiler compiler_{vocabulary_.tokenizer, kVocab};
};

TEST_F(GrammarTest, WhateverIsPickedIsWhatTheSchemaDescribes) {
  const auto constraint = Compile({.schema = kPerson, .around = ""});
  int whole = 0;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    const auto text = RandomText(*constraint, seed, 400);
    if (!text) continue;
    ++whole;
    const Json person = Json::parse(*text, nullptr, false);
    ASSERT_TRUE(person.is_object()) << *text;
    EXPECT_TRUE(person["name"].is_string());
    EXPECT_GE(person["age"].get<int>(), 0);
    EXPECT_LE(person["age"].get<int>(), 120);
    for (const Json& tag : person.value("tags", Json::array()))
      EXPECT_TRUE(tag == "a" || tag == "b");
  }
  EXPECT_GT(whole, 30);
}

// Whatever a schema says of strings and numbers, what comes is JSON.
TEST_F(GrammarTest, StringsAndNumbersOfEveryKindAreJson) {
  for (const char* value :
       {R"("type": "string", "minLength": 1, "maxLength": 3)",
        R"("type": "string", "pattern": ".{1,4}")",
        R"("type": "string", "pattern": "^[^a-z]{1,3}$")",
        R"("type": "string", "format": "date-time")", R"("type": "string", "format": "email")",
        R"("type": "number", "minimum": -2.5, "maximum": 7)", R"("type": "integer", "minimum": 10)",
        R"("enum": ["a\"b", "\u0001", "\n", 1.5, null])", R"("const": {"a": ["\\"]})",
        R"("type": ["boolean", "null"])"}) {
    const auto constraint =
        Compile({.schema = std::string(R"({"type": "object", "properties": {"v": {)") + value +
                           R"(}}, "required": ["v"]})",
                 .around = ""});
    ASSERT_TRUE(constraint) << value;
    int whole = 0;
    for (uint32_t seed = 0; seed < 20; ++seed) {
      const auto text = RandomText(*constraint, seed, 400);
      if (!text) continue;
      ++whole;
      EXPECT_TRUE(Json::accept(*text)) << value << ": " << *text;
    }
    EXPECT_GT(whole, 0) << value;
  }
}

TEST_F(GrammarTest, AnAnswerEndsOnlyWhereItIsComplete) {
  const auto constraint = Compile({.schema = kPerson, .around = ""});
  const std::string text = R"({"name":"Ada","age":36})";
  auto state = constraint->Begin();
  for (const char c : text) {
    const std::vector<int32_t> allowed = Allowed(*state);
    EXPECT_THAT(allowed, testing::Not(testing::Contains(vocabulary_.end)));
    EXPECT_FALSE(state->Accept(vocabulary_.end));
    ASSERT_TRUE(state->Accept(static_cast<int32_t>(c))) << c;
  }
  EXPECT_EQ(Allowed(*state), std::vector<int32_t>{vocabulary_.end});
}

TEST_F(GrammarTest, RollbackReturnsToTheSameMask) {
  const auto constraint = Compile({.schema = kPerson, .around = ""});
  std::mt19937 random(1);
  auto state = constraint->Begin();
  for (int i = 0; i < 40; ++i) {
    const std::vector<int32_t> before = Allowed(*state);
    if (before.empty()) break;
    int ahead = 0;
    for (; ahead < 5; ++ahead) {
      const std::vector<int32_t> allowed = Allowed(*state);
      if (allowed.empty()) break;
      ASSERT_TRUE(state->Accept(allowed[random() % allowed.size()]));
    }
    state->Rollback(ahead);
    ASSERT_EQ(Allowed(*state), before);
    ASSERT_TRUE(state->Accept(before[random() % before.size()]));
  }
}

TEST_F(GrammarTest, ControlTokensAreNeverAllowed) {
  const auto constraint =
      Compile({.schema = "true", .around = "answer ::= TagDispatch((\"<x>\", root))"});
  auto state = constraint->Begin();
  for (const int32_t t : Allowed(*state)) {
    EXPECT_LT(t, vocabulary_.tokenizer.vocab_size());
    EXPECT_TRUE(t == vocabulary_.end || !vocabulary_.tokenizer.IsControl(t)) << t;
  }
}

TEST_F(GrammarTest, TextMayStandAroundTheSchema) {
  const auto constraint =
      Compile({.schema = R"({"const": 1})",
               .around = "answer ::= TagDispatch((\"<t>\", call))\ncall ::= root \"</t>\"\n"});
  EXPECT_TRUE(Accepts(*constraint, "no call, a < b, <t"));
  EXPECT_TRUE(Accepts(*constraint, "so <t>1</t> and <t>1</t>."));
  EXPECT_FALSE(Accepts(*constraint, "so <t>2</t>"));
  EXPECT_FALSE(Accepts(*constraint, "so <t>1"));
}

TEST_F(GrammarTest, MembersComeInTheirOrderAndNoOthersCome) {
  const auto constraint =
      Compile({.schema = R"({"properties": {"b": {"type": "integer"}, "a": {"type": "array"}},
                     "required": ["b"], "type": "object"})",
               .around = ""});
  EXPECT_TRUE(Accepts(*constraint, R"({"b": 1, "a": [{"x": 1}, 2]})"));
  EXPECT_FALSE(Accepts(*constraint, R"({"a": [], "b": 1})"));
  EXPECT_FALSE(Accepts(*constraint, R"({"b": 1, "c": 1})"));
  const auto anything = Compile({.schema = R"({"type": "object"})", .around = ""});
  EXPECT_TRUE(Accepts(*anything, R"({"c": {"d": null}})"));
  EXPECT_FALSE(Accepts(*anything, "[]"));
  EXPECT_FALSE(Accepts(*anything, "{" + std::string(GrammarSpec::kMostSpaces + 1, ' ') + "}"));
}

TEST_F(GrammarTest, BadSchemasAreErrorsOfOneLine) {
  for (const char* schema : {"", "7", "[]", "{", R"({"type": "nonsense"})", R"({"enum": 3})",
                             R"({"$ref": "#/$defs/none"})", R"({"minLength": 3, "maxLength": 1,
                             "type": "string"})"}) {
    const std::string error = ErrorOf({.schema = schema, .around = ""});
    EXPECT_THAT(error, HasSubstr("JSON schema: ")) << schema;
    EXPECT_EQ(error.find('\n'), error.npos) << error;
  }
  std::string deep = "true";
  for (int i = 0; i < 100; ++i) deep = R"({"type": "array", "items": )" + deep + "}";
  EXPECT_THAT(ErrorOf({.schema = deep, .around = ""}), HasSubstr("nested"));
  EXPECT_THAT(ErrorOf({.schema = '"' + std::string(300000, 'a') + '"', .around = ""}),
              HasSubstr("bytes"));
}

TEST_F(GrammarTest, StrictRefusesWhatCannotBeEnforced) {
  GrammarSpec spec{
      .schema = R"({"type": "array", "items": {"type": "integer"}, "uniqueItems": true})",
      .around = ""};
  EXPECT_EQ(ErrorOf(spec), "");
  spec.strict = true;
  EXPECT_THAT(ErrorOf(spec), HasSubstr("uniqueItems cannot be enforced"));
  spec.schema = R"({"type": "object", "properties": {"not": {"const": {"if": 1}}}})";
  EXPECT_EQ(ErrorOf(spec), "") << "a name, and data, are no keywords";
  spec.schema = R"({"type": "string", "pattern": "^[^a]+$"})";
  EXPECT_THAT(ErrorOf(spec), HasSubstr("negated class"));
  spec.schema = R"({"type": "string", "pattern": "^a+$", "maxLength": 3})";
  EXPECT_THAT(ErrorOf(spec), HasSubstr("pattern"));
}

}  // namespace
}  // namespace baton
