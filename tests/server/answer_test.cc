// The bytes of answers.
#include "server/answer.h"

#include <gmock/gmock.h>

#include "server/http.h"
#include "server/openai.h"

namespace baton::server {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

// Token i is the letter 'a' + i; 25 is half a character.
Answer LettersAnswer(const Call& call, int choices = 1) {
  Answer a{.call = &call, .id = "id", .model = "m", .created = 7};
  a.token_bytes = [](int32_t t) {
    return t == 25 ? std::string("\xe2\x82") : std::string(1, static_cast<char>('a' + t));
  };
  for (int i = 0; i < choices; ++i) a.choices.push_back({.index = i, .prompt_tokens = 3});
  return a;
}

Generation::Logprobs Scored(int32_t token, double logprob) {
  return {.chosen = {token, logprob}, .top = {{token, logprob}, {token + 1, logprob - 1}}};
}

Generation Ended(Generation::Stop stop, int64_t tokens) {
  Generation g;
  g.stop = stop;
  g.stats = {.prompt_tokens = 3, .generated_tokens = tokens, .reused_tokens = 1};
  return g;
}

TEST(HttpTest, RepliesAreWholeMessages) {
  EXPECT_EQ(WriteReply({.body = "{}"}, true),
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: keep-alive\r\n"
            "Content-Length: 2\r\n\r\n{}");
  EXPECT_THAT(WriteReply({.status = 429, .retry_after_s = 2}, false),
              testing::AllOf(StartsWith("HTTP/1.1 429 Too Many Requests\r\n"),
                             HasSubstr("Retry-After: 2\r\n"), HasSubstr("Connection: close\r\n")));
  EXPECT_EQ(Chunk("abc"), "3\r\nabc\r\n");
  EXPECT_EQ(SseEvent("{}"), "data: {}\n\n");
  EXPECT_EQ(SseEvent("x", "{}"), "event: x\ndata: {}\n\n");
  EXPECT_THAT(WriteStreamHead(true, true), HasSubstr("Transfer-Encoding: chunked\r\n"));
  EXPECT_THAT(WriteStreamHead(true, false), HasSubstr("Connection: close\r\n"));
}

TEST(ApiErrorTest, ErrorsHaveOpenAisShape) {
  const Json e = Json::parse(WriteError({.status = 401, .message = "no \"key\"", .param = "p"}));
  EXPECT_EQ(e["error"]["message"], "no \"key\"");
  EXPECT_EQ(e["error"]["type"], "authentication_error");
  EXPECT_EQ(e["error"]["param"], "p");
  EXPECT_TRUE(e["error"]["code"].is_null());
}

TEST(AnswerTest, AChatStreamsItsTextThenItsEndThenItsUsage) {
  Call call{.stream = true, .include_usage = true};
  Answer a = LettersAnswer(call);
  const Writer& w = WriterOf(Api::kChat);
  std::string events = w.begin(a);
  events += w.piece(a, a.choices[0], {"hi", {}});
  a.choices[0].ended = Ended(Generation::Stop::kLength, 2);
  events += w.end_choice(a, a.choices[0]) + w.end(a);
  EXPECT_THAT(events, HasSubstr(R"("delta":{"role":"assistant","content":""})"));
  EXPECT_THAT(events,
              HasSubstr(R"("delta":{"content":"hi"},"logprobs":null,"finish_reason":null)"));
  EXPECT_THAT(events, HasSubstr(R"("delta":{},"logprobs":null,"finish_reason":"length")"));
  EXPECT_THAT(events,
              HasSubstr(R"("choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2)"
                        R"(,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1}})"));
  EXPECT_THAT(events, EndsWith("data: [DONE]\n\n"));
}

TEST(AnswerTest, ChatLogprobsHaveTokensAndTheirBytes) {
  Call call;
  call.base.logprobs = 2;
  Answer a = LettersAnswer(call);
  a.choices[0].tokens = {Scored(0, -0.5), Scored(25, -INFINITY)};
  a.choices[0].ended = Ended(Generation::Stop::kEndOfText, 2);
  const Json whole = Json::parse(WriterOf(Api::kChat).whole(a));
  const Json& content = whole["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), 2u);
  EXPECT_EQ(content[0]["token"], "a");
  EXPECT_EQ(content[0]["bytes"], Json::array({97}));
  EXPECT_EQ(content[0]["top_logprobs"][1]["token"], "b");
  EXPECT_EQ(content[1]["bytes"], Json::array({0xe2, 0x82}));
  EXPECT_EQ(content[1]["logprob"], -9999.0);
  EXPECT_EQ(whole["choices"][0]["finish_reason"], "stop");
}

TEST(AnswerTest, AnEchoScoresThePromptButForItsFirstToken) {
  Call call{.api = Api::kCompletions, .echo = true};
  call.base.logprobs = call.base.prompt_logprobs = 1;
  Answer a = LettersAnswer(call);
  Choice& c = a.choices[0];
  c.prompt_text = "abc", c.prompt_ids = {0, 1, 2};
  c.text = "d", c.tokens = {Scored(3, -0.25)};
  c.ended = Ended(Generation::Stop::kLength, 1);
  c.ended->prompt_logprobs = {Scored(1, -1), Scored(2, -2)};
  const Json whole = Json::parse(WriterOf(Api::kCompletions).whole(a));
  const Json& choice = whole["choices"][0];
  EXPECT_EQ(choice["text"], "abcd");
  EXPECT_EQ(choice["logprobs"]["tokens"], Json::array({"a", "b", "c", "d"}));
  EXPECT_EQ(choice["logprobs"]["token_logprobs"], Json::array({nullptr, -1.0, -2.0, -0.25}));
  EXPECT_EQ(choice["logprobs"]["text_offset"], Json::array({0, 1, 2, 3}));
  EXPECT_TRUE(choice["logprobs"]["top_logprobs"][0].is_null());
  EXPECT_EQ(choice["logprobs"]["top_logprobs"][1]["b"], -1.0);
}

TEST(AnswerTest, PromptsAreCountedOnceWhateverTheirAnswers) {
  Call call{.api = Api::kCompletions, .n = 2};
  Answer a = LettersAnswer(call, 4);
  for (Choice& c : a.choices) c.ended = Ended(Generation::Stop::kLength, 5);
  EXPECT_EQ(UsageOf(a).prompt, 6);
  EXPECT_EQ(UsageOf(a).completion, 20);
}

TEST(AnswerTest, BytesThatAreNoCharacterAreShownAsBytes) {
  EXPECT_EQ(ShownToken("\xc3\xa9"), "\xc3\xa9");
  EXPECT_EQ(ShownToken("\xe2\x82"), "bytes:\\xe2\\x82");
}

}  // namespace
}  // namespace baton::server
