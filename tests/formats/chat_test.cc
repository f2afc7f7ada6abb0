#include "formats/chat.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace baton {
namespace {

using testing::HasSubstr;

constexpr const char* kChatMl =
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\n' + m['content'] + "
    "'<|im_end|>\\n'}}{% endfor %}{{ '<|im_start|>assistant\\n' }}";

Result<ChatText> Render(const std::string& jinja,
                        const std::vector<ChatTurn>& turns = {{"user", "Hi", ""}},
                        const ChatOptions& options = {}) {
  BATON_ASSIGN(const ChatTemplate chat, ChatTemplate::Parse(jinja));
  return chat.Render(turns, options, {.bos = "<s>", .eos = "</s>", .unknown = "", .unix_time = 0});
}

std::string Text(const std::string& jinja, const std::string& content = "Hi") {
  const auto text = Render(jinja, {{"user", content, ""}});
  EXPECT_TRUE(text.ok()) << text.error().ToString();
  return text.ok() ? text->text : "";
}

std::string Problem(const std::string& jinja) {
  const auto text = Render(jinja);
  EXPECT_FALSE(text.ok()) << text->text;
  if (text.ok()) return "";
  EXPECT_THAT(text.error().hint(), HasSubstr("--raw"));
  EXPECT_EQ(text.error().ToString().find('\n'), std::string::npos);
  return text.error().message();
}

// The bytes that are marked as user input.
std::string Plain(const ChatText& chat) {
  std::string plain;
  for (const TextRange& r : chat.plain)
    plain.append("[").append(chat.text, r.begin, r.end - r.begin).append("]");
  return plain;
}

TEST(Chat, FormatIsPrintfsAsAFilterAndBracesAsAMethod) {
  EXPECT_EQ(Text("{{ '%s is %d, 100 %%' | format(messages[0].content, 3) }}"), "Hi is 3, 100 %");
  EXPECT_EQ(Text("{{ '{} of 5 %'.format(messages[0].content) }}"), "Hi of 5 %");
}

TEST(Chat, ConstructsThatCannotBeRunAreNamed) {
  EXPECT_THAT(Problem("{{ messages | groupby('role') }}"), HasSubstr("groupby"));
  EXPECT_THAT(Problem("{% include 'x' %}"), HasSubstr("include"));
  EXPECT_THAT(Problem("{{ messages | nofilter }}"), HasSubstr("nofilter"));
  EXPECT_THAT(Problem("{{ 1 is notest }}"), HasSubstr("notest"));
  EXPECT_THAT(Problem("a\nb {{ nofunction(1) }}"), HasSubstr("line 2"));
  EXPECT_THAT(Problem("{% if true %}"), HasSubstr("chat template"));
  EXPECT_THAT(Problem("{{ 'open"), HasSubstr("chat template"));
  EXPECT_THAT(Problem("{% for 1 in messages %}{% endfor %}"), HasSubstr("IntegerLiteral"));
  EXPECT_THAT(Problem("{{ dict('a' = 1) }}"), HasSubstr("StringLiteral"));
  EXPECT_THAT(Problem("{{ 1 | 2 }}"), HasSubstr("IntegerLiteral"));
  EXPECT_THAT(Problem("{{ @ }}"), HasSubstr("unexpected character"));
  EXPECT_THAT(Problem("{{ raise_exception('Not so.') }}"), HasSubstr("Not so."));
  EXPECT_THAT(Problem("{{ '%5d' | format(3) }}"), HasSubstr("format()"));
  EXPECT_THAT(Problem("{{ '%d' | format('x') }}"), HasSubstr("format()"));
  EXPECT_THAT(Problem("{{ '%s' | format(1, 2) }}"), HasSubstr("format()"));
}

TEST(Chat, ContentsAreMarkedAndControlSequencesAreNot) {
  const auto chat = Render(kChatMl, {{"user", "a<|im_end|>", ""}, {"assistant", "b", ""}});
  ASSERT_TRUE(chat.ok());
  EXPECT_EQ(chat->text,
            "<|im_start|>user\na<|im_end|><|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
            "<|im_start|>assistant\n");
  EXPECT_EQ(Plain(*chat), "[a<|im_end|>][b]");
}

TEST(Chat, MarksSurviveWhatTemplatesDoWithText) {
  for (const char* expression :
       {"m.content | trim", "m.content.strip()", "m.content.split('#')[0]",
        "m.content.split('#')[-1]", "m.content.replace('a', 'a')", "m.content[0:]",
        "(m.content ~ 'x') | replace('x', '')", "[m.content, m.content] | join('')",
        "m.content.split() | last", "m | tojson", "m.content | upper", "m.more.deep[0]",
        "m.content if true else ''", "m.content | default('')", "'' + m.content + ''"}) {
    const auto chat =
        Render(std::string("{% for m in messages %}<<{{ ") + expression + " }}>>{% endfor %}",
               {{"user", "<|im_end|>", R"({"more": {"deep": ["<|im_end|>"]}})"}});
    ASSERT_TRUE(chat.ok()) << expression << ": " << chat.error().ToString();
    std::string unmarked = chat->text;
    for (auto r = chat->plain.rbegin(); r != chat->plain.rend(); ++r)
      unmarked.erase(r->begin, r->end - r->begin);
    EXPECT_EQ(unmarked, "<<>>") << expression << ": " << chat->text;
    EXPECT_NE(chat->text, unmarked) << expression;
  }
}

TEST(Chat, WhatATemplatePutsIntoTextIsItsOwn) {
  const auto chat =
      Render("{{ messages[0].content.replace('@', '<|im_end|>') }}", {{"user", "a@b", ""}});
  ASSERT_TRUE(chat.ok());
  EXPECT_EQ(chat->text, "a<|im_end|>b");
  EXPECT_EQ(Plain(*chat), "[a][b]");
}

TEST(Chat, VariablesAreThoseOfTransformers) {
  EXPECT_EQ(Text("{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}"), "<s></s>False");
  EXPECT_EQ(Text("{{ tools is none }}{{ tools is defined }}{{ documents }}"), "TrueTrueNone");
  EXPECT_EQ(Text("{{ add_generation_prompt }}{{ messages | length }}"), "True1");
  const auto chat = Render("{{ tools[0].name }}{{ thinking }}", {{"user", "x", ""}},
                           {.tools = R"([{"name": "f"}])", .variables = R"({"thinking": false})"});
  ASSERT_TRUE(chat.ok());
  EXPECT_EQ(chat->text, "fFalse");
}

TEST(Chat, BadConversationsAreErrors) {
  EXPECT_FALSE(Render(kChatMl, {}).ok());
  EXPECT_FALSE(Render(kChatMl, {{"", "x", ""}}).ok());
  EXPECT_FALSE(Render(kChatMl, {{"user<|im_end|>", "x", ""}}).ok());
  EXPECT_FALSE(Render(kChatMl, {{"user", "x", "[1]"}}).ok());
  EXPECT_FALSE(Render(kChatMl, {{"user", "x", "{"}}).ok());
  EXPECT_FALSE(Render(kChatMl, {{"user", "x", ""}}, {.tools = "{}", .variables = ""}).ok());
  EXPECT_FALSE(Render(kChatMl, {{"user", "x", ""}}, {.tools = "", .variables = "[]"}).ok());
  const std::string deep = std::string(5000, '[') + std::string(5000, ']');
  EXPECT_FALSE(Render(kChatMl, {{"user", "x", ""}}, {.tools = deep, .variables = ""}).ok());
}

std::string Repeat(const std::string& text, int n) {
  std::string all;
  while (n-- > 0) all += text;
  return all;
}

// Templates come from downloaded files, so they may be malicious.
TEST(Chat, HostileTemplatesEnd) {
  for (const std::string& jinja : {
           Repeat("{{ ", 10000),
           "{{ " + Repeat("(", 10000),
           "{{ " + Repeat("[", 10000),
           "{{ " + Repeat("not ", 5000) + "1 }}",
           "{{ " + Repeat("-", 5000) + "1 }}",
           "{{ 1" + Repeat(" + 1", 5000) + " }}",
           "{{ 'a'" + Repeat("|trim", 1000) + " }}",
           "{{ a" + Repeat(".b", 5000) + " }}",
           "{{ f" + Repeat("()", 5000) + " }}",
           Repeat("{% if 1 %}", 3000),
           Repeat("{% set a %}", 3000),
           Repeat("{% for a in b %}", 3000),
           "{% if 0 %}" + Repeat("{% elif 0 %}", 3000) + "{% endif %}",
           Repeat("{% filter upper %}", 3000),
           Repeat("{% macro a() %}", 3000),
           Repeat("{% call a() %}", 3000),
           std::string("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
           std::string("{% for a in range(10 ** 9) %}{% endfor %}"),
           std::string("{% for a in range(1000000000000) %}{% endfor %}"),
           std::string(
               "{% for a in range(10000) %}{% for b in range(10000) %}x{% endfor %}{% endfor %}"),
           std::string("{{ 'x' * 1000000000000 }}"),
           std::string("{{ 'x' | indent(1000000000) }}"),
           std::string(
               "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x "
               "%}{% endfor %}{{ ns.x }}"),
           std::string(
               "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x "
               "%}{% endfor %}{{ ns.x }}"),
           std::string("{{ 1 is divisibleby 0 }}"),
           std::string("{{ 1 % 0 }}"),
           std::string(300000, 'x'),
       }) {
    EXPECT_FALSE(Render(jinja).ok()) << jinja.substr(0, 60);
  }
}

TEST(Chat, OrdinaryDepthsAreRun) {
  EXPECT_EQ(Text("{{ 'a'" + Repeat(" + 'a'", 100) + " }}"), std::string(101, 'a'));
  EXPECT_EQ(Text(Repeat("{% if true %}", 40) + "x" + Repeat("{% endif %}", 40)), "x");
  EXPECT_EQ(
      Text(
          "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(9) }}"),
      "9876543210");
}

TEST(Chat, ALongConversationIsRun) {
  std::vector<ChatTurn> turns;
  for (int i = 0; i < 1000; ++i)
    turns.push_back({i % 2 ? "assistant" : "user", std::string(2000, 'x'), ""});
  const auto chat = Render(kChatMl, turns);
  ASSERT_TRUE(chat.ok()) << chat.error().ToString();
  EXPECT_GT(chat->text.size(), 2'000'000u);
}

}  // namespace
}  // namespace baton
