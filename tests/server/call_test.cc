// Bodies of requests: what is read, and what a client is told of what is wrong.
#include "server/call.h"

#include <gmock/gmock.h>

#include "server/json.h"

namespace baton::server {
namespace {

using testing::HasSubstr;

Call Parsed(Api api, const std::string& body) {
  Call call;
  const auto error = ParseCall(api, body, call);
  EXPECT_FALSE(error) << error->message;
  return call;
}

ApiError Refused(Api api, const std::string& body) {
  Call call;
  const auto error = ParseCall(api, body, call);
  EXPECT_TRUE(error) << body;
  return error.value_or(ApiError{});
}

const std::string kChat = R"("messages": [{"role": "user", "content": "Hi"}])";

TEST(CallTest, AChatHasOpenAiDefaults) {
  const Call call = Parsed(Api::kChat, "{" + kChat + "}");
  EXPECT_EQ(call.base.sampling.temperature, 1);
  EXPECT_EQ(call.base.sampling.top_p, 1);
  EXPECT_LT(call.base.max_tokens, 0);
  EXPECT_LT(call.base.logprobs, 0);
  EXPECT_FALSE(call.seeded || call.stream || call.exact || call.echo);
  ASSERT_EQ(call.chat.size(), 1u);
  EXPECT_EQ(call.chat[0].role, "user");
  EXPECT_EQ(call.chat[0].content, "Hi");
  EXPECT_EQ(call.chat[0].members, "");
}

TEST(CallTest, EveryFieldOfAChatIsRead) {
  const Call call = Parsed(Api::kChat, "{" + kChat + R"(, "temperature": 0.5, "top_p": 0.9,
    "top_k": 40, "min_p": 0.1, "presence_penalty": 0.2, "frequency_penalty": -0.3, "seed": -7,
    "repetition_penalty": 1.1, "logit_bias": {"5": -100, "6": 2.5}, "n": 3, "stream": true,
    "stream_options": {"include_usage": true}, "stop": ["a", "b"], "logprobs": true,
    "top_logprobs": 4, "max_completion_tokens": 9, "plan": "p", "exact": true,
    "return_progress": true, "chat_template_kwargs": {"enable_thinking": false}})");
  const Sampling& s = call.base.sampling;
  EXPECT_FLOAT_EQ(s.temperature, 0.5f);
  EXPECT_FLOAT_EQ(s.top_p, 0.9f);
  EXPECT_EQ(s.top_k, 40);
  EXPECT_FLOAT_EQ(s.min_p, 0.1f);
  EXPECT_FLOAT_EQ(s.presence_penalty, 0.2f);
  EXPECT_FLOAT_EQ(s.frequency_penalty, -0.3f);
  EXPECT_FLOAT_EQ(s.repetition_penalty, 1.1f);
  EXPECT_EQ(s.seed, static_cast<uint64_t>(-7));
  ASSERT_EQ(s.logit_bias.size(), 2u);
  EXPECT_EQ(s.logit_bias[1].token, 6);
  EXPECT_FLOAT_EQ(s.logit_bias[1].bias, 2.5f);
  EXPECT_EQ(call.n, 3);
  EXPECT_TRUE(call.seeded && call.stream && call.include_usage && call.exact && call.progress);
  EXPECT_EQ(call.base.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(call.base.logprobs, 4);
  EXPECT_EQ(call.base.max_tokens, 9);
  EXPECT_EQ(call.plan, "p");
  EXPECT_EQ(call.chat_options.variables, R"({"enable_thinking":false})");
}

TEST(CallTest, PartsAreJoinedAndOtherMembersGoToTheTemplate) {
  const Call call = Parsed(Api::kChat, R"({"messages": [
    {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": null, "reasoning_content": [1], "refusal": null}]})");
  EXPECT_EQ(call.chat[0].role, "system");
  EXPECT_EQ(call.chat[0].content, "ab");
  EXPECT_EQ(call.chat[1].content, "");
  EXPECT_EQ(call.chat[1].members, R"({"reasoning_content":[1]})");
}

TEST(CallTest, PromptsAreTextsOrTokensOrSeveral) {
  EXPECT_EQ(Parsed(Api::kCompletions, R"({"prompt": "a"})").prompts[0].text, "a");
  EXPECT_EQ(Parsed(Api::kCompletions, R"({"prompt": ["a", "b"]})").prompts.size(), 2u);
  EXPECT_EQ(Parsed(Api::kCompletions, R"({"prompt": [1, 2]})").prompts[0].tokens,
            (std::vector<int32_t>{1, 2}));
  const Call several =
      Parsed(Api::kCompletions, R"({"prompt": [[1], [2, 3]], "echo": true, "logprobs": 1})");
  ASSERT_EQ(several.prompts.size(), 2u);
  EXPECT_EQ(several.prompts[1].tokens.size(), 2u);
  EXPECT_EQ(several.base.prompt_logprobs, 1);
  EXPECT_EQ(several.base.max_tokens, 16);
}

TEST(CallTest, FaultsNameTheFieldWhatWasExpectedAndWhatCame) {
  struct Case {
    std::string fields, param, message;
  };
  for (const auto& [fields, param, message] : std::vector<Case>{
           {R"("temperature": -1)", "temperature", "from 0 to 100, got -1"},
           {R"("temperature": "hot")", "temperature", "got a text"},
           {R"("top_p": 1.5)", "top_p", "from 0 to 1"},
           {R"("n": 0)", "n", "from 1 to 128"},
           {R"("n": 1.5)", "n", "a whole number"},
           {R"("max_tokens": 0)", "max_tokens", "from 1"},
           {R"("max_tokens": 1e300)", "max_tokens", "a whole number"},
           {R"("stop": [1])", "stop", "an array of up to 16"},
           {R"("stop": "")", "stop", "a text that is not empty"},
           {R"("stream": 1)", "stream", "true or false"},
           {R"("stream_options": {"include_usage": 3})", "stream_options.include_usage",
            "true or false"},
           {R"("logit_bias": {"x": 1})", "logit_bias", "token ids"},
           {R"("logit_bias": {"1": 101})", "logit_bias", "-100 to 100"},
           {R"("logprobs": 3)", "logprobs", "true or false"},
           {R"("top_logprobs": 3)", "top_logprobs", "logprobs: true"},
           {R"("logprobs": true, "top_logprobs": 21)", "top_logprobs", "from 0 to 20"},
           {R"("tools": [{}])", "tools", "of type function"},
           {R"("response_format": {"type": "grammar"})", "response_format", "json_schema"},
           {R"("functions": [{}])", "functions", "not supported"},
       }) {
    const ApiError error = Refused(Api::kChat, "{" + kChat + ", " + fields + "}");
    EXPECT_EQ(error.status, 400);
    EXPECT_EQ(error.param, param) << fields;
    EXPECT_THAT(error.message, HasSubstr(message)) << fields;
  }
}

TEST(CallTest, WhatAsksForNothingIsNoFault) {
  Parsed(Api::kChat, "{" + kChat + R"(, "tools": [], "tool_choice": "auto", "user": "me",
    "response_format": {"type": "text"}, "temperature": null, "metadata": {"a": "b"}})");
}

TEST(CallTest, BodiesThatAreNoRequestAreFaults) {
  for (const char* body :
       {"", "{", "[]", "7", "\"a\"", "{\"messages\": \"\xff\"}", "{}", R"({"messages": []})",
        R"({"messages": [1]})", R"({"messages": [{"content": "a"}]})",
        R"({"messages": [{"role": "user", "content": 1}]})",
        R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})"})
    EXPECT_EQ(Refused(Api::kChat, body).status, 400) << body;
  for (const char* prompt : {"1", "[]", "[1, \"a\"]", "[-1]", "[[]]", "[[1], 2]", "{}", "null"})
    EXPECT_EQ(Refused(Api::kCompletions, fmt::format(R"({{"prompt": {}}})", prompt)).param,
              "prompt")
        << prompt;
}

TEST(CallTest, NestingIsBounded) {
  const std::string deep(100000, '[');
  EXPECT_THAT(Refused(Api::kChat, R"({"x": )" + deep).message, HasSubstr("nests deeper"));
  EXPECT_THAT(Refused(Api::kChat, "{" + kChat + R"(, "x": ")" + deep).message,
              HasSubstr("not JSON"));
  std::string wide = "{";
  for (int i = 0; i < 2000; ++i) wide += fmt::format("\"{}\": 1, ", i);
  EXPECT_THAT(Refused(Api::kChat, wide + kChat + "}").message, HasSubstr("members"));
  // In texts that are JSON again.
  const std::string inside = std::string(100000, '[') + std::string(100000, ']');
  const Json call{{"function", {{"name", "f"}, {"arguments", R"({"a": )" + inside + "}"}}}};
  const Json turn{{"role", "assistant"}, {"tool_calls", Json::array({call})}};
  EXPECT_THAT(Refused(Api::kChat, Json{{"messages", Json::array({turn})}}.dump()).message,
              HasSubstr("messages[0]"));
  const std::string values = "[" + std::string(6 << 20, ',') + "]";
  EXPECT_THAT(Refused(Api::kCompletions, values).message, HasSubstr("values"));
}

TEST(CallTest, NumbersPastTheLargestAreRefused) {
  for (const char* seed : {"9223372036854775808.0", "9223372036854775808", "-1e19", "1e300", "0.5"})
    EXPECT_EQ(
        Refused(Api::kCompletions, fmt::format(R"({{"prompt": "a", "seed": {}}})", seed)).param,
        "seed")
        << seed;
}

TEST(CallTest, AnswersToOneCallAreBounded) {
  EXPECT_EQ(Refused(Api::kCompletions, R"({"prompt": ["a", "b"], "n": 65})").param, "n");
}

}  // namespace
}  // namespace baton::server
