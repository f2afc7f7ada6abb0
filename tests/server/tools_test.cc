// Calls of functions: how they are asked for, what a model may write, and how its text is taken
// apart.
#include "server/tools.h"

#include <gmock/gmock.h>

#include <random>

#include "formats/byte_tokenizer.h"
#include "formats/grammar.h"
#include "server/call.h"
#include "server/tool_parser.h"

namespace baton::server {
namespace {

using testing::HasSubstr;

const std::string kTools = R"("tools": [
  {"type": "function", "function": {"name": "weather", "description": "d", "parameters":
    {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer"}},
     "required": ["city"], "$defs": {"City": {"type": "string"}}}}},
  {"type": "function", "function": {"name": "now"}}])";
const std::string kChat = R"("messages": [{"role": "user", "content": "Hi"}])";

Call Asked(const std::string& more, Api api = Api::kChat) {
  Call call;
  const auto error = ParseCall(api, "{" + kChat + ", " + kTools + more + "}", call);
  EXPECT_FALSE(error) << error->message;
  return call;
}

std::string ErrorOf(const std::string& fields, Api api = Api::kChat) {
  Call call;
  const auto error = ParseCall(api, "{" + kChat + ", " + fields + "}", call);
  return error ? error->message : "";
}

// What a parser makes of a text that comes in pieces of `size`: "text" and "[name arguments]".
std::string Taken(ToolStyle style, const Tools& tools, const std::string& text, size_t size) {
  ToolParser parser(style, tools);
  std::vector<AnswerPart> parts;
  const auto add = [&](std::vector<AnswerPart> more) {
    for (AnswerPart& part : more) {
      if (parts.empty() || parts.back().call != part.call) parts.push_back({.call = part.call});
      parts.back().text += part.text;
      parts.back().name += part.name;
      parts.back().arguments += part.arguments;
    }
  };
  for (size_t i = 0; i < text.size(); i += size) add(parser.Push(text.substr(i, size)));
  add(parser.End());
  std::string taken;
  for (const AnswerPart& part : parts)
    taken += part.call < 0 ? part.text : "[" + part.name + " " + part.arguments + "]";
  return taken;
}

void ExpectTaken(ToolStyle style, const std::string& text, const std::string& expected) {
  const Tools tools = Asked("").tools;
  for (size_t size = 1; size <= text.size() + 1; ++size)
    ASSERT_EQ(Taken(style, tools, text, size), expected) << "in pieces of " << size;
}

bool Accepts(const Tools& tools, ToolStyle style, const std::string& text,
             const GrammarSpec& format = {}) {
  static const Tokenizer tokenizer = *Tokenizer::FromGguf(ByteTokenizerMetadata(280));
  static GrammarCompiler compiler(tokenizer, 280);
  const auto constraint = compiler.Compile(GrammarOf(tools, style, format));
  EXPECT_TRUE(constraint.ok()) << constraint.error().ToString();
  if (!constraint.ok()) return false;
  auto state = (*constraint)->Begin();
  for (const char c : text)
    if (!state->Accept(static_cast<unsigned char>(c))) return false;
  return state->Accept(kByteEos);
}

TEST(ToolsTest, TheFieldsOfAChatAreRead) {
  Call call = Asked("");
  ASSERT_EQ(call.tools.list.size(), 2u);
  EXPECT_EQ(call.tools.list[0].name, "weather");
  EXPECT_EQ(call.tools.choice, Tools::Choice::kAuto);
  EXPECT_TRUE(call.tools.parallel);
  EXPECT_THAT(call.chat_options.tools, HasSubstr(R"("description":"d")"));
  EXPECT_EQ(Asked(R"(, "tool_choice": "none")").tools.on(), false);
  EXPECT_NE(Asked(R"(, "tool_choice": "none")").chat_options.tools, "") << "the prompt is the same";
  EXPECT_EQ(Asked(R"(, "tool_choice": "required")").tools.choice, Tools::Choice::kRequired);
  call = Asked(R"(, "tool_choice": {"type": "function", "function": {"name": "now"}},
                  "parallel_tool_calls": false)");
  EXPECT_EQ(call.tools.only, "now");
  EXPECT_FALSE(call.tools.parallel);
}

TEST(ToolsTest, BadFieldsAreNamed) {
  EXPECT_THAT(ErrorOf(R"("tools": 3)"), HasSubstr("tools: expected an array"));
  EXPECT_THAT(ErrorOf(R"("tools": [{"type": "function"}])"), HasSubstr("tools[0]: expected"));
  EXPECT_THAT(ErrorOf(R"("tools": [{"type": "web_search"}])"), HasSubstr("of type function"));
  EXPECT_THAT(ErrorOf(kTools + R"(, "tool_choice": "now")"), HasSubstr("tool_choice: expected"));
  EXPECT_THAT(ErrorOf(R"("tool_choice": "required")"), HasSubstr("got no tools"));
  EXPECT_THAT(
      ErrorOf(kTools + R"(, "tool_choice": {"type": "function", "function": {"name": "no"}})"),
      HasSubstr("expected one of tools, got no"));
  EXPECT_THAT(ErrorOf(R"("response_format": {"type": "json_schema"})"), HasSubstr("a schema"));
  EXPECT_THAT(ErrorOf(R"("response_format": {"type": "xml"})"), HasSubstr("a type"));
}

TEST(ToolsTest, ConversationsWithCallsGoToTheTemplateWhole) {
  Call call;
  const std::string turns = R"({"messages": [{"role": "user", "content": "Hi"},
    {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function",
      "function": {"name": "now", "arguments": "{\"zone\": \"UTC\"}"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "12:00"}]})";
  ASSERT_FALSE(ParseCall(Api::kChat, turns, call));
  const Json calls = Json::parse(call.chat[1].members)["tool_calls"];
  EXPECT_EQ(calls[0]["function"]["arguments"]["zone"], "UTC") << "an object, as templates want it";
  EXPECT_EQ(Json::parse(call.chat[2].members)["tool_call_id"], "1");
  const std::vector<ChatTurn> chat = call.chat;

  Call messages;
  ASSERT_FALSE(ParseCall(Api::kMessages, R"({"max_tokens": 9, "messages": [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "now",
      "input": {"zone": "UTC"}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1",
      "content": [{"type": "text", "text": "12:00"}]}]}]})",
                         messages));
  Call responses;
  ASSERT_FALSE(ParseCall(Api::kResponses, R"({"input": [
    {"role": "user", "content": "Hi"},
    {"type": "function_call", "call_id": "1", "name": "now", "arguments": "{\"zone\": \"UTC\"}"},
    {"type": "function_call_output", "call_id": "1", "output": "12:00"}]})",
                         responses));
  for (const Call* other : {&messages, &responses}) {
    ASSERT_EQ(other->chat.size(), chat.size());
    for (size_t i = 0; i < chat.size(); ++i) {
      EXPECT_EQ(other->chat[i].role, chat[i].role);
      EXPECT_EQ(other->chat[i].content, chat[i].content);
      EXPECT_EQ(other->chat[i].members, chat[i].members);
    }
  }
  EXPECT_THAT(ErrorOf(R"("messages": [{"role": "assistant", "tool_calls": [{"function":
              {"name": "f", "arguments": "no"}}]}])"),
              HasSubstr("messages[0]: expected tool_calls"));
}

TEST(ToolsTest, OtherApisDescribeTheSameTools) {
  const std::string city = R"({"type": "object", "properties": {"city": {"type": "string"}}})";
  Call chat, messages, responses;
  ASSERT_FALSE(ParseCall(Api::kChat,
                         "{" + kChat + R"(, "tool_choice": {"type": "function",
    "function": {"name": "f"}}, "parallel_tool_calls": false, "tools": [{"type": "function",
    "function": {"name": "f", "description": "d", "parameters": )" +
                             city + "}}]}",
                         chat));
  ASSERT_FALSE(ParseCall(Api::kMessages,
                         "{" + kChat + R"(, "max_tokens": 5, "tool_choice":
    {"type": "tool", "name": "f", "disable_parallel_tool_use": true}, "tools": [{"name": "f",
    "description": "d", "input_schema": )" +
                             city + "}]}",
                         messages));
  ASSERT_FALSE(ParseCall(Api::kResponses,
                         R"({"input": "Hi", "tool_choice": {"type": "function",
    "name": "f"}, "parallel_tool_calls": false, "tools": [{"type": "function", "name": "f",
    "description": "d", "parameters": )" +
                             city + "}]}",
                         responses));
  for (const Call* other : {&messages, &responses}) {
    EXPECT_EQ(other->chat_options.tools, chat.chat_options.tools);
    EXPECT_EQ(other->tools.only, "f");
    EXPECT_FALSE(other->tools.parallel);
    EXPECT_EQ(GrammarOf(other->tools, ToolStyle::kHermes).schema,
              GrammarOf(chat.tools, ToolStyle::kHermes).schema);
  }
}

TEST(ToolsTest, AModelMayWriteTextAndCallsOfKnownFunctions) {
  const Tools tools = Asked("").tools;
  const std::string call =
      "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";
  const auto hermes = [&](const std::string& text) {
    return Accepts(tools, ToolStyle::kHermes, text);
  };
  EXPECT_TRUE(hermes("It is <b>warm</b>."));
  EXPECT_TRUE(hermes("Let me see. " + call));
  EXPECT_TRUE(hermes(call + "\n" + call));
  EXPECT_FALSE(hermes("<tool_call>\n{\"name\": \"other\", \"arguments\": {}}\n</tool_call>"));
  EXPECT_FALSE(hermes("<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>"));
  EXPECT_FALSE(
      hermes("<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": 1}}\n</tool_call>"));
  EXPECT_TRUE(hermes("<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"));
  const Tools one = Asked(R"(, "parallel_tool_calls": false)").tools;
  EXPECT_FALSE(Accepts(one, ToolStyle::kHermes, call + call));
}

TEST(ToolsTest, ARequiredCallIsAllThereIs) {
  const Tools any = Asked(R"(, "tool_choice": "required")").tools;
  const Tools named =
      Asked(R"(, "tool_choice": {"type": "function", "function": {"name": "now"}})").tools;
  const std::string now = R"({"name": "now", "arguments": {}})";
  const std::string hermes = "<tool_call>" + now + "</tool_call>";
  EXPECT_FALSE(Accepts(any, ToolStyle::kHermes, "text"));
  EXPECT_FALSE(Accepts(any, ToolStyle::kHermes, ""));
  EXPECT_TRUE(Accepts(any, ToolStyle::kHermes, hermes));
  EXPECT_TRUE(Accepts(any, ToolStyle::kHermes, hermes + "\n" + hermes));
  EXPECT_TRUE(Accepts(named, ToolStyle::kHermes, hermes));
  const std::string weather = R"({"name": "weather", "parameters": {"city": "Rome"}})";
  EXPECT_TRUE(Accepts(any, ToolStyle::kLlama, weather));
  EXPECT_FALSE(Accepts(named, ToolStyle::kLlama, weather));
}

TEST(ToolsTest, AMistralWritesAListOfCalls) {
  const std::string weather = R"({"name": "weather", "arguments": {"city": "Rome"}})";
  const std::string now = R"({"name": "now", "arguments": {}, "id": "a1B2c3D4e"})";
  const auto accepts = [](const std::string& more, const std::string& text) {
    return Accepts(Asked(more).tools, ToolStyle::kMistral, text);
  };
  EXPECT_TRUE(accepts("", "It is warm [there]."));
  EXPECT_TRUE(accepts("", "[TOOL_CALLS][" + weather + "]"));
  EXPECT_TRUE(accepts("", "Let me see. [TOOL_CALLS] [" + weather + ", " + now + "]"));
  EXPECT_FALSE(accepts("", "[TOOL_CALLS][]"));
  EXPECT_FALSE(accepts("", "[TOOL_CALLS][" + weather + "] done"));
  EXPECT_FALSE(accepts("", R"([TOOL_CALLS][{"name": "other", "arguments": {}}])"));
  EXPECT_FALSE(accepts("", R"([TOOL_CALLS][{"name": "now", "arguments": {}, "id": "1"}])"));
  const std::string required = R"(, "tool_choice": "required")";
  EXPECT_FALSE(accepts(required, "text"));
  EXPECT_TRUE(accepts(required, "[TOOL_CALLS] [" + now + "," + weather + "]"));
  const std::string one = required + R"(, "parallel_tool_calls": false)";
  EXPECT_TRUE(accepts(one, "[TOOL_CALLS][" + now + "]"));
  EXPECT_FALSE(accepts(one, "[TOOL_CALLS][" + now + ", " + weather + "]"));
}

TEST(ToolsTest, AnAnswerWithAFormIsOfThatFormOrCalls) {
  GrammarSpec format{.schema = R"({"type": "object", "properties": {"warm": {"type": "boolean"}},
                                   "required": ["warm"], "additionalProperties": false})"};
  const std::string form = R"({"warm": true})";
  const std::string arguments = R"({"name": "weather", "arguments": {"city": "Rome"}})";
  const std::string parameters = R"({"name": "weather", "parameters": {"city": "Rome"}})";
  const std::pair<ToolStyle, std::string> calls[] = {
      {ToolStyle::kHermes, "<tool_call>" + arguments + "</tool_call>"},
      {ToolStyle::kLlama, parameters},
      {ToolStyle::kMistral, "[TOOL_CALLS][" + arguments + "]"}};
  for (const auto& [style, call] : calls) {
    const Tools any = Asked("").tools;
    EXPECT_TRUE(Accepts(any, style, form, format));
    EXPECT_TRUE(Accepts(any, style, call, format));
    EXPECT_FALSE(Accepts(any, style, "text", format));
    EXPECT_FALSE(Accepts(any, style, form + call, format));
    EXPECT_FALSE(Accepts(any, style, R"({"warm": 1})", format));
    const Tools required = Asked(R"(, "tool_choice": "required")").tools;
    EXPECT_FALSE(Accepts(required, style, form, format));
    EXPECT_TRUE(Accepts(required, style, call, format));
  }
}

TEST(ToolsTest, ATemplateSaysHowCallsAreWritten) {
  EXPECT_EQ(StyleOf("{{ messages }}"), ToolStyle::kNone);
  EXPECT_EQ(StyleOf("{% for t in tools %} <tool_call>"), ToolStyle::kHermes);
  EXPECT_EQ(StyleOf("tools <tool_call> <function=f>"), ToolStyle::kNone);
  EXPECT_EQ(StyleOf(R"(tools Environment: ipython "parameters": )"), ToolStyle::kLlama);
  EXPECT_EQ(StyleOf("tools [TOOL_CALLS] ["), ToolStyle::kMistral);
  EXPECT_EQ(StyleOf("tools [TOOL_CALLS]name[ARGS]"), ToolStyle::kNone);
}

TEST(ToolParserTest, HermesCallsAreTakenOutOfTheText) {
  const auto hermes = [](const std::string& text, const std::string& expected) {
    ExpectTaken(ToolStyle::kHermes, text, expected);
  };
  const std::string now = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
  hermes("a < b, <tool_, \n done \n", "a < b, <tool_, \n done \n");
  hermes(now, "[now {}]");
  hermes("So:\n" + now, "So:[now {}]");
  hermes(now + "\n" + now + "\n", "[now {}][now {}]");
  hermes(now + " and then " + now, "[now {}]and then[now {}]");
  hermes(
      R"(<tool_call>{"arguments": {"city": "a}\"</tool_call>{"}, "name": "weather"}</tool_call>)",
      R"([weather {"city": "a}\"</tool_call>{"}])");
  hermes(R"(<tool_call>{"name": "now"}</tool_call>)", "[now {}]");
  hermes(R"(<tool_call>{"name": "now"}<tool_call>{"name": "now"})", "[now {}][now {}]");
}

TEST(ToolParserTest, WhatIsNoCallStaysText) {
  const auto hermes = [](const std::string& text) { ExpectTaken(ToolStyle::kHermes, text, text); };
  hermes(R"(<tool_call>{"name": "other", "arguments": {}}</tool_call>)");
  hermes("<tool_call>now()</tool_call>");
  hermes("Write \n <tool_call>[1] there");
  hermes("<tool_call>]}");
  hermes(R"(<tool_call>{"name": "no)");
  hermes(R"(<tool_call>{"a": 1}</tool_call> x)");
  const auto llama = [](const std::string& text) { ExpectTaken(ToolStyle::kLlama, text, text); };
  llama("It is {\"name\": \"now\"}");
  llama(R"({"answer": 1})");
  llama(R"({"name": "other", "parameters": {}})");
  ExpectTaken(ToolStyle::kNone, "<tool_call>{\"name\": \"now\"}", "<tool_call>{\"name\": \"now\"}");
}

TEST(ToolParserTest, ALlamaCallIsTheWholeAnswer) {
  ExpectTaken(ToolStyle::kLlama, R"({"name": "weather", "parameters": {"city": "Rome"}})",
              R"([weather {"city": "Rome"}])");
  ExpectTaken(ToolStyle::kLlama,
              "\n{\"type\": \"function\", \"name\": \"now\", \"parameters\": {}}; "
              "{\"name\": \"now\", \"parameters\": {}}",
              "[now {}][now {}]");
}

TEST(ToolParserTest, MistralCallsAreAListBehindATag) {
  const auto mistral = [](const std::string& text, const std::string& expected) {
    ExpectTaken(ToolStyle::kMistral, text, expected);
  };
  const std::string now = R"({"name": "now", "arguments": {}})";
  const std::string weather =
      R"({"name": "weather", "arguments": {"city": "a]}, [TOOL_CALLS]"}, "id": "123456789"})";
  mistral("[TOOL_CALLS][" + now + "]", "[now {}]");
  mistral("So:\n[TOOL_CALLS] [\n" + weather + ",\n" + now + "\n] ",
          R"(So:[weather {"city": "a]}, [TOOL_CALLS]"}][now {}])");
  mistral("[TOOL_CALLS][" + now + "] done", "[now {}]done");
  for (const char* text : {"a [list] of [TOOL_, \n", "[TOOL_CALLS][]", "[TOOL_CALLS]now{}",
                           R"([TOOL_CALLS]{"name": "now", "arguments": {}})",
                           R"([TOOL_CALLS][[{"name": "now", "arguments": {}}]])",
                           R"([TOOL_CALLS][{"name": "other", "arguments": {}}])"})
    mistral(text, text);
}

TEST(ToolParserTest, ArgumentsArriveAsTheyAreWritten) {
  ToolParser parser(ToolStyle::kHermes, Asked("").tools);
  EXPECT_TRUE(parser.Push("<tool_call>{\"name\": \"wea").empty());
  std::vector<AnswerPart> parts = parser.Push("ther\", \"arguments\": {\"city\": \"Ro");
  ASSERT_EQ(parts.size(), 1u);
  EXPECT_EQ(parts[0].name, "weather");
  EXPECT_EQ(parts[0].arguments, R"({"city": "Ro)");
  parts = parser.Push("me\"}}");
  ASSERT_EQ(parts.size(), 1u);
  EXPECT_EQ(parts[0].name, "");
  EXPECT_EQ(parts[0].arguments, R"(me"})");
}

}  // namespace
}  // namespace baton::server
