// Tool calls, forms of answers and the web page, over loopback: a model of random weights writes
// what it must.
#include <gmock/gmock.h>

#include <fstream>
#include <iterator>

#include "tests/server/server_test_util.h"

namespace baton::server::test {
namespace {

using testing::HasSubstr;

// One letter for every token, and tools as Qwen's templates have them.
constexpr const char* kHermes =
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}";

const Json kSchema{{"type", "object"},
                   {"properties",
                    {{"size", {{"enum", {"small", "large"}}}},
                     {"count", {{"type", "integer"}, {"minimum", 1}, {"maximum", 99}}}}},
                   {"required", {"size", "count"}},
                   {"additionalProperties", false}};

// White space is allowed, and a model of random weights would write much of it.
const Json kNoSpace{{"32", -100}, {"10", -100}, {"13", -100}, {"9", -100}};

bool Fits(const Json& value) {
  return value.is_object() && value.size() == 2 &&
         (value["size"] == "small" || value["size"] == "large") && value["count"] >= 1 &&
         value["count"] <= 99;
}

Json Chat(uint64_t seed) {
  return {{"messages", {{{"role", "user"}, {"content", "order"}}}},
          {"seed", seed},
          {"max_tokens", 300},
          {"logit_bias", kNoSpace}};
}

Json WithTools(Json body) {
  body["tools"] = Json::array(
      {{{"type", "function"}, {"function", {{"name", "order"}, {"parameters", kSchema}}}},
       {{"type", "function"}, {"function", {{"name", "stop"}}}}});
  body["tool_choice"] = "required";
  body["parallel_tool_calls"] = false;
  return body;
}

class ServeToolsTest : public ::testing::Test {
 protected:
  ServeToolsTest() { server_.Ready(); }
  static Result<Model> LoadHermes() {
    EngineOptions options;
    options.chat_template = kHermes;
    return LoadTiny(options);
  }
  TestServer server_{{}, LoadHermes};
};

TEST_F(ServeToolsTest, ARequiredCallIsMadeWholeAndStreamedAlike) {
  std::vector<std::string> names;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    Json body = WithTools(Chat(seed));
    const HttpAnswer whole = server_.Post("/v1/chat/completions", body);
    ASSERT_EQ(whole.status, 200) << whole.body;
    const Json choice = whole.json()["choices"][0];
    EXPECT_EQ(choice["finish_reason"], "tool_calls") << whole.body;
    EXPECT_TRUE(choice["message"]["content"].is_null());
    ASSERT_EQ(choice["message"]["tool_calls"].size(), 1u);
    const Json call = choice["message"]["tool_calls"][0];
    names.push_back(call["function"]["name"]);
    const std::string text = call["function"]["arguments"];
    const Json arguments = Json::parse(text, nullptr, false);
    EXPECT_TRUE(names.back() == "order" ? Fits(arguments) : arguments == Json::object()) << text;
    EXPECT_NE(call["id"], "");

    body["stream"] = true;
    std::string name, streamed, finish;
    int pieces = 0;
    for (const Json& event : server_.Post("/v1/chat/completions", body).events()) {
      const Json& c = event["choices"][0];
      if (!c["finish_reason"].is_null()) finish = c["finish_reason"];
      for (const Json& delta : c["delta"].value("tool_calls", Json::array())) {
        ++pieces;
        EXPECT_EQ(delta["index"], 0);
        if (delta.contains("id")) name += delta["function"]["name"].get<std::string>();
        streamed += delta["function"]["arguments"].get<std::string>();
      }
    }
    EXPECT_EQ(name, names.back());
    EXPECT_EQ(streamed, text);
    EXPECT_EQ(finish, "tool_calls");
    EXPECT_GT(pieces, name == "order" ? 5 : 0) << "arguments arrive as they are written";
  }
  EXPECT_THAT(names, testing::Contains("order"));
}

TEST_F(ServeToolsTest, ANamedCallIsOfThatFunctionInEveryApi) {
  Json body = WithTools(Chat(3));
  body["tool_choice"] = {{"type", "function"}, {"function", {{"name", "order"}}}};
  const Json chat = server_.Post("/v1/chat/completions", body).json();
  const std::string arguments =
      chat["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"];
  EXPECT_TRUE(Fits(Json::parse(arguments)));

  Json messages = Chat(3);
  messages["tools"] = Json::array(
      {{{"name", "order"}, {"input_schema", kSchema}},
       {{"name", "stop"},
        {"input_schema",
         {{"type", "object"}, {"properties", Json::object()}, {"additionalProperties", false}}}}});
  messages["tool_choice"] = {
      {"type", "tool"}, {"name", "order"}, {"disable_parallel_tool_use", true}};
  const Json message = server_.Post("/v1/messages", messages).json();
  EXPECT_EQ(message["stop_reason"], "tool_use") << message;
  ASSERT_EQ(message["content"].size(), 1u);
  EXPECT_EQ(message["content"][0]["type"], "tool_use");
  EXPECT_TRUE(Fits(message["content"][0]["input"])) << message;
  messages["stream"] = true;
  std::string streamed, order;
  for (const Json& event : server_.Post("/v1/messages", messages).events()) {
    const std::string type = event["type"];
    if (type.starts_with("content_block_") && type != "content_block_delta")
      order += type.substr(14) + event["index"].dump() + " ";
    if (type == "content_block_delta")
      streamed += event["delta"]["partial_json"].get<std::string>();
  }
  EXPECT_EQ(order, "start0 stop0 ");
  EXPECT_EQ(Json::parse(streamed, nullptr, false), message["content"][0]["input"]);

  Json responses{{"input", "order"},
                 {"seed", 3},
                 {"max_output_tokens", 300},
                 {"logit_bias", kNoSpace},
                 {"parallel_tool_calls", false}};
  responses["tools"] =
      Json::array({{{"type", "function"}, {"name", "order"}, {"parameters", kSchema}}});
  responses["tool_choice"] = {{"type", "function"}, {"name", "order"}};
  const Json response = server_.Post("/v1/responses", responses).json();
  ASSERT_EQ(response["output"].size(), 1u) << response;
  const Json item = response["output"][0];
  EXPECT_EQ(item["type"], "function_call");
  EXPECT_EQ(item["name"], "order");
  EXPECT_TRUE(Fits(Json::parse(item["arguments"].get<std::string>())));
  responses["stream"] = true;
  streamed.clear();
  Json completed;
  for (const Json& event : server_.Post("/v1/responses", responses).events()) {
    if (event["type"] == "response.function_call_arguments.delta")
      streamed += event["delta"].get<std::string>();
    if (event["type"] == "response.completed") completed = event["response"];
  }
  EXPECT_EQ(item["arguments"], streamed);
  ASSERT_EQ(completed["output"].size(), 1u);
  EXPECT_EQ(completed["output"][0]["arguments"], item["arguments"]);
}

// What the template writes of tools and of calls is part of the prompt.
TEST_F(ServeToolsTest, ToolsAndResultsStandInThePrompt) {
  Json body = Chat(1);
  const auto tokens = [&] { return server_.Post("/tokenize", body).json()["count"].get<int>(); };
  const int alone = tokens();
  body = WithTools(body);
  const int described = tokens();
  EXPECT_GT(described, alone + 100);
  body["messages"].push_back(
      {{"role", "assistant"},
       {"content", nullptr},
       {"tool_calls",
        {{{"id", "1"},
          {"type", "function"},
          {"function", {{"name", "order"}, {"arguments", R"({"size":"small"})"}}}}}}});
  body["messages"].push_back({{"role", "tool"}, {"tool_call_id", "1"}, {"content", "done"}});
  EXPECT_EQ(tokens(), described + 11 + 17 + 6 + 4) << "[assistant]{\"size\": \"small\"}[tool]done";
  EXPECT_EQ(server_.Post("/v1/chat/completions", body).status, 200);
}

TEST_F(ServeToolsTest, AnswersHaveTheFormThatIsAskedFor) {
  const Json format{{"type", "json_schema"},
                    {"json_schema", {{"name", "order"}, {"strict", true}, {"schema", kSchema}}}};
  for (const bool exact : {false, true}) {
    for (const char* plan : {"dense", "sparse"}) {
      Json body = Chat(5);
      body["response_format"] = format;
      body["plan"] = plan;
      body["exact"] = exact;
      const Json answer = server_.Post("/v1/chat/completions", body).json();
      EXPECT_TRUE(Fits(Json::parse(answer["choices"][0]["message"]["content"].get<std::string>(),
                                   nullptr, false)))
          << answer;
      EXPECT_EQ(answer["choices"][0]["finish_reason"], "stop");
      EXPECT_GT(answer["timings"]["grammar_ms"], 0.0);
    }
  }
  Json completion{{"prompt", "order"},      {"max_tokens", 300},        {"seed", 2}, {"n", 3},
                  {"logit_bias", kNoSpace}, {"response_format", format}};
  for (const Json& choice : server_.Post("/v1/completions", completion).json()["choices"])
    EXPECT_TRUE(Fits(Json::parse(choice["text"].get<std::string>(), nullptr, false))) << choice;
  Json response{
      {"input", "order"},
      {"max_output_tokens", 300},
      {"logit_bias", kNoSpace},
      {"text", {{"format", {{"type", "json_schema"}, {"name", "order"}, {"schema", kSchema}}}}}};
  const Json answer = server_.Post("/v1/responses", response).json();
  EXPECT_TRUE(Fits(
      Json::parse(answer["output"][0]["content"][0]["text"].get<std::string>(), nullptr, false)))
      << answer;
}

TEST(ServeToolsAloneTest, ATemplateWithoutCallsTakesNoTools) {
  TestServer server;
  server.Ready();
  const HttpAnswer none = server.Post("/v1/chat/completions", WithTools(Chat(1)));
  EXPECT_EQ(none.status, 400);
  EXPECT_EQ(none.json()["error"]["param"], "tools");
  EXPECT_THAT(none.body, HasSubstr("chat template"));
}

TEST_F(ServeToolsTest, WhatCannotBeServedIsSaid) {
  Json body = Chat(1);
  body["response_format"] = {{"type", "json_schema"},
                             {"json_schema", {{"schema", {{"type", "nonsense"}}}}}};
  const HttpAnswer bad = server_.Post("/v1/chat/completions", body);
  EXPECT_EQ(bad.status, 400);
  EXPECT_EQ(bad.json()["error"]["param"], "response_format");
  EXPECT_THAT(bad.body, HasSubstr("nonsense"));
  body["tools"] = WithTools(Chat(1))["tools"];
  EXPECT_EQ(server_.Post("/v1/chat/completions", body).json()["error"]["param"], "response_format");
  body["response_format"] = {{"type", "json_object"}};
  body["tools"][0]["function"]["parameters"] = {{"type", "nonsense"}};
  EXPECT_EQ(server_.Post("/v1/chat/completions", body).json()["error"]["param"], "tools");
}

// Whatever the model chooses.
TEST_F(ServeToolsTest, AFormBesideToolsIsOfWhatIsNoCall) {
  int calls = 0, forms = 0;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    Json body = WithTools(Chat(seed));
    body["tool_choice"] = "auto";
    body["response_format"] = {{"type", "json_schema"}, {"json_schema", {{"schema", kSchema}}}};
    const Json choice = server_.Post("/v1/chat/completions", body).json()["choices"][0];
    const Json message = choice["message"];
    if (choice["finish_reason"] == "tool_calls") {
      ++calls;
      EXPECT_TRUE(message["content"].is_null());
    } else {
      ++forms;
      EXPECT_TRUE(Fits(Json::parse(message["content"].get<std::string>(), nullptr, false)))
          << choice;
    }
  }
  EXPECT_GT(calls, 0);
  EXPECT_GT(forms, 0);
}

// Templates of Mistral, whose calls open with a control token and whose ids have nine characters.
TEST(ServeToolsAloneTest, AMistralIsAskedAgainWithWhatItWrote) {
  std::ifstream file("tests/golden/chat/templates/mistral-nemo.jinja");
  const std::string source{std::istreambuf_iterator<char>(file), {}};
  ASSERT_NE(source, "");
  TestServer server({}, [&] {
    EngineOptions options;
    options.chat_template = source;
    return LoadTiny(options);
  });
  server.Ready();
  Json body = WithTools(Chat(4));
  body["parallel_tool_calls"] = true;
  const HttpAnswer first = server.Post("/v1/chat/completions", body);
  ASSERT_EQ(first.status, 200) << first.body;
  const Json message = first.json()["choices"][0]["message"];
  ASSERT_FALSE(message["tool_calls"].empty()) << first.body;
  body["messages"].push_back(message);
  for (const Json& call : message["tool_calls"])
    body["messages"].push_back(
        {{"role", "tool"}, {"tool_call_id", call["id"]}, {"content", "done"}});
  const HttpAnswer second = server.Post("/v1/chat/completions", body);
  EXPECT_EQ(second.status, 200) << second.body;
}

TEST(WebPageTest, ThePageIsOpenAndTheStateIsNot) {
  TestServer server({.service = {.keys = {"secret"}}});
  server.Ready();
  const HttpAnswer page = Ask(server.port(), "GET", "/");
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.head, HasSubstr("Content-Type: text/html"));
  EXPECT_THAT(page.head,
              HasSubstr("Content-Security-Policy: default-src 'none'; script-src 'self'"));
  EXPECT_THAT(page.body, testing::EndsWith("</html>\n"));
  EXPECT_THAT(page.body, testing::Not(HasSubstr("://"))) << "nothing from elsewhere";
  EXPECT_THAT(page.body, testing::Not(HasSubstr("style="))) << "the policy forbids it";
  for (const char* file : {"/page.js", "/page.css"}) {
    const HttpAnswer part = Ask(server.port(), "GET", file);
    EXPECT_EQ(part.status, 200);
    EXPECT_THAT(part.body, testing::Not(HasSubstr("://")));
  }
  EXPECT_EQ(Ask(server.port(), "GET", "/state").status, 401);
  const Json state =
      Ask(server.port(), "GET", "/state", "", "Authorization: Bearer secret\r\n").json();
  EXPECT_EQ(state["model"], "tiny");
  ASSERT_EQ(state["plans"].size(), 2u);
  EXPECT_EQ(state["plans"][1]["layers"], Json::array({"select", "reuse"}));
}

// The watch's findings reach the page.
TEST(WebPageTest, TheStateTellsWhatPlansDid) {
  TestServer server;
  server.Ready();
  const Json body{{"prompt", baton::test::RandomTokens(300, 1)},
                  {"max_tokens", 140},
                  {"ignore_eos", true},
                  {"plan", "sparse"},
                  {"seed", 1}};
  ASSERT_EQ(server.Post("/v1/completions", body).status, 200);
  const Json state = Ask(server.port(), "GET", "/state").json();
  EXPECT_EQ(state["streamed_tokens"], 140);
  EXPECT_LT(state["kv_bytes_read"], state["kv_bytes_dense"]);
  const Json& watched = state["plans"][1]["watched"];
  ASSERT_EQ(watched.size(), 1u) << state;
  EXPECT_EQ(watched[0]["layer"], 1);
  EXPECT_GT(watched[0]["captured"], 0.0);
  EXPECT_EQ(state["cache"]["held_bytes"], 0);
}

}  // namespace
}  // namespace baton::server::test
