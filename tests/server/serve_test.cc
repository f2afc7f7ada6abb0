// The server over loopback: what many clients get is what each would get alone, and whatever they
// do, the cache is free again and the server goes on.
#include <gmock/gmock.h>

#include "tests/server/server_test_util.h"

namespace baton::server::test {
namespace {

using namespace std::chrono_literals;
using baton::test::RandomTokens;
using testing::HasSubstr;
using testing::StartsWith;

Json Completion(int64_t prompt, uint64_t seed, int max_tokens) {
  return {{"prompt", RandomTokens(prompt, seed)},
          {"max_tokens", max_tokens},
          {"seed", seed},
          {"ignore_eos", true}};
}

// An answer that goes on for long.
Json Endless() {
  Json body = Completion(20, 1, 3000);
  body["stream"] = true;
  return body;
}

Json UserSays(const std::string& text) {
  return {{"messages", {{{"role", "user"}, {"content", text}}}}, {"max_tokens", 5}};
}

TEST(ServeTest, HealthSaysLoadingUntilTheModelIsThere) {
  std::promise<void> go;
  TestServer server({}, [gate = go.get_future().share()] {
    gate.wait();
    return LoadTiny();
  });
  const HttpAnswer loading = Ask(server.port(), "GET", "/health");
  EXPECT_EQ(loading.status, 503);
  EXPECT_EQ(loading.json()["status"], "loading");
  const HttpAnswer early = server.Post("/v1/chat/completions", UserSays("a"));
  EXPECT_EQ(early.status, 503);
  EXPECT_EQ(early.json()["error"]["code"], "loading");
  EXPECT_THAT(early.head, HasSubstr("Retry-After: "));
  go.set_value();
  server.Ready();
  EXPECT_EQ(Ask(server.port(), "GET", "/health").status, 200);
  EXPECT_EQ(Ask(server.port(), "GET", "/v1/models").json()["data"][0]["id"], "tiny");
}

TEST(ServeTest, AModelThatDoesNotLoadEndsTheServer) {
  TestServer server({}, [] { return Result<Model>(Error::NotFound("no such model")); });
  const Status status = server.Wait();
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().message(), "no such model");
}

// Many clients at once, streams and whole answers, dense and planned, greedy and sampled.
TEST(ServeTest, EveryAnswerIsThatOfItsRequestAlone) {
  std::vector<Json> bodies;
  for (int i = 0; i < 12; ++i) {
    Json body = Completion(5 + 37 * i, static_cast<uint64_t>(i), 8 + i);
    body["temperature"] = i % 3 ? 0.8 : 0.0;
    if (i % 4 == 1) body["plan"] = "sparse";
    if (i % 4 == 2) body["exact"] = true;
    if (i % 5 == 2) body["presence_penalty"] = 0.5, body["logit_bias"] = {{"65", 3}};
    bodies.push_back(body);
  }
  std::vector<HttpAnswer> alone, whole(bodies.size()), streamed(bodies.size());
  {
    TestServer server;
    server.Ready();
    for (const Json& body : bodies) alone.push_back(server.Post("/v1/completions", body));
  }
  TestServer server({.service = {.parallel = 5}});
  server.Ready();
  std::vector<std::thread> clients;
  for (size_t i = 0; i < bodies.size(); ++i) {
    clients.emplace_back([&, i] { whole[i] = server.Post("/v1/completions", bodies[i]); });
    clients.emplace_back([&, i] {
      Json body = bodies[i];
      body["stream"] = true;
      streamed[i] = server.Post("/v1/completions", body);
    });
  }
  for (std::thread& c : clients) c.join();
  for (size_t i = 0; i < bodies.size(); ++i) {
    ASSERT_EQ(alone[i].status, 200) << alone[i].body;
    ASSERT_EQ(whole[i].status, 200) << whole[i].body;
    const Json expected = alone[i].json(), got = whole[i].json();
    EXPECT_EQ(got["choices"], expected["choices"]) << i;
    EXPECT_EQ(got["usage"], expected["usage"]);
    EXPECT_EQ(got["timings"]["logits_hash"], expected["timings"]["logits_hash"]) << i;
    EXPECT_EQ(expected["choices"][0]["text"], streamed[i].text()) << i;
    EXPECT_EQ(streamed[i].events().back()["timings"]["logits_hash"],
              expected["timings"]["logits_hash"]);
    EXPECT_THAT(streamed[i].body, testing::EndsWith("data: [DONE]\n\n"));
  }
  EXPECT_TRUE(server.Becomes("baton_kv_held_bytes", 0));
}

TEST(ServeTest, AnEchoScoresPromptsOfTokensAndLeavesTheAnswerAsItIs) {
  TestServer server;
  server.Ready();
  Json body = Completion(30, 3, 1);
  body["temperature"] = 0;
  const Json plain = server.Post("/v1/completions", body).json();
  body["prompt"] = Json::array({RandomTokens(30, 3), RandomTokens(9, 4)});
  body["echo"] = true;
  body["logprobs"] = 1;
  const Json scored = server.Post("/v1/completions", body).json();
  ASSERT_EQ(scored["choices"].size(), 2u);
  const Json& logprobs = scored["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"].size(), 31u);
  EXPECT_EQ(scored["choices"][1]["logprobs"]["tokens"].size(), 10u);
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  for (size_t i = 1; i < 31; ++i) EXPECT_LE(logprobs["token_logprobs"][i], 0.0);
  EXPECT_EQ(scored["timings"]["logits_hash"], plain["timings"]["logits_hash"]);
  body["max_tokens"] = 0;
  const Json prompt_alone = server.Post("/v1/completions", body).json();
  EXPECT_EQ(prompt_alone["choices"][0]["logprobs"]["tokens"].size(), 30u);
  EXPECT_EQ(prompt_alone["choices"][0]["logprobs"]["token_logprobs"][29],
            logprobs["token_logprobs"][29]);
  EXPECT_EQ(prompt_alone["usage"]["completion_tokens"], 0);
}

TEST(ServeTest, AChatStreamsWhatItAnswersWhole) {
  TestServer server;
  server.Ready();
  Json body = UserSays("Hello");
  body["seed"] = 3;
  body["n"] = 2;
  body["logprobs"] = true;
  body["top_logprobs"] = 2;
  const Json whole = server.Post("/v1/chat/completions", body).json();
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  const HttpAnswer stream = server.Post("/v1/chat/completions", body);
  EXPECT_THAT(stream.head, HasSubstr("Content-Type: text/event-stream"));
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(whole["choices"][i]["message"]["content"], stream.text(i));
    Json tokens = Json::array();
    for (const Json& e : stream.events())
      for (const Json& c : e["choices"])
        if (c["index"] == i && !c["logprobs"].is_null())
          for (const Json& t : c["logprobs"]["content"]) tokens.push_back(t);
    EXPECT_EQ(tokens, whole["choices"][i]["logprobs"]["content"]);
  }
  EXPECT_EQ(stream.events().back()["usage"], whole["usage"]);
}

// The same conversation in the words of each API has the same answer, whole and streamed.
TEST(ServeTest, EveryApiGivesTheSameAnswer) {
  TestServer server;
  server.Ready();
  const Json turns = {{{"role", "system"}, {"content", "s"}},
                      {{"role", "user"}, {"content", "Hi"}}};
  Json body{{"messages", turns}, {"max_tokens", 6}, {"temperature", 0}};
  const Json chat = server.Post("/v1/chat/completions", body).json();
  const Json text = chat["choices"][0]["message"]["content"];
  EXPECT_EQ(chat["usage"]["completion_tokens"], 6);

  Json responses{
      {"instructions", "s"}, {"input", "Hi"}, {"max_output_tokens", 6}, {"temperature", 0}};
  Json whole = server.Post("/v1/responses", responses).json();
  EXPECT_EQ(whole["output"][0]["content"][0]["text"], text) << whole;
  EXPECT_EQ(whole["status"], "incomplete");
  EXPECT_EQ(whole["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
  responses["stream"] = true;
  std::string streamed;
  std::vector<Json> events = server.Post("/v1/responses", responses).events();
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i]["sequence_number"], i);
    if (events[i]["type"] == "response.output_text.delta")
      streamed += events[i]["delta"].get<std::string>();
  }
  EXPECT_EQ(Json(streamed), text);
  EXPECT_EQ(events.front()["type"], "response.created");
  EXPECT_EQ(events.back()["type"], "response.incomplete");
  EXPECT_EQ(events.back()["response"]["output"][0]["content"], whole["output"][0]["content"]);

  Json messages{
      {"system", "s"},
      {"messages", {{{"role", "user"}, {"content", {{{"type", "text"}, {"text", "Hi"}}}}}}},
      {"max_tokens", 6},
      {"temperature", 0}};
  whole = server.Post("/v1/messages", messages).json();
  EXPECT_EQ(whole["content"][0]["text"], text) << whole;
  EXPECT_EQ(whole["stop_reason"], "max_tokens");
  EXPECT_EQ(server.Post("/v1/messages/count_tokens", messages).json()["input_tokens"],
            chat["usage"]["prompt_tokens"]);
  messages["stream"] = true;
  streamed.clear();
  events = server.Post("/v1/messages", messages).events();
  for (const Json& e : events)
    if (e["type"] == "content_block_delta") streamed += e["delta"]["text"].get<std::string>();
  EXPECT_EQ(Json(streamed), text);
  EXPECT_EQ(events.front()["type"], "message_start");
  EXPECT_EQ(events.back()["type"], "message_stop");
  messages.erase("max_tokens");
  const HttpAnswer refused = server.Post("/v1/messages", messages);
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(refused.json()["type"], "error");
}

TEST(ServeTest, TokensComeAndGo) {
  TestServer server;
  server.Ready();
  const Json tokens = server.Post("/tokenize", {{"prompt", "abc"}}).json();
  EXPECT_GE(tokens["count"], 3);
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  const Json text = server.Post("/detokenize", {{"tokens", {97, 98}}}).json();
  EXPECT_EQ(text["prompt"], "ab");
  EXPECT_EQ(server.Post("/detokenize", {{"tokens", {5000}}}).status, 400);
}

TEST(ServeTest, WhatCannotBeServedIsAnErrorAndTheServerGoesOn) {
  TestServer server({.body_bytes = 100000, .header_bytes = 2000});
  server.Ready();
  const auto error = [&](const HttpAnswer& a, int status, const std::string& part) {
    EXPECT_EQ(a.status, status) << a.body;
    EXPECT_THAT(a.json()["error"]["message"].dump(), HasSubstr(part));
  };
  error(server.Post("/v1/completions", Completion(5000, 1, 4)), 400,
        "5000 tokens, 904 more than the 4096 of the context");
  error(server.Post("/v1/completions", {{"prompt", {299, 300}}}), 400, "outside the vocabulary");
  error(server.Post("/v1/completions", {{"prompt", "a"}, {"plan", "fast"}}), 400,
        "expected one of dense, sparse, got fast");
  error(Ask(server.port(), "POST", "/v1/completions", "{\"prompt"), 400, "not JSON");
  error(Ask(server.port(), "GET", "/v1/completions"), 405, "expected POST");
  error(Ask(server.port(), "POST", "/v2", "{}"), 404, "no such path");
  error(Ask(server.port(), "POST", "/v1/completions", std::string(100001, ' ')), 413, "larger");
  error(Ask(server.port(), "GET", "/health", "", "X: " + std::string(3000, 'x') + "\r\n"), 431,
        "header");
  Client garbage(server.port());
  garbage.Send("\x16\x03\x01 hello\r\n\r\n");
  error(garbage.Read(), 400, "HTTP");
  Json no_prompt = UserSays("a");
  no_prompt["messages"] = Json::array();
  error(server.Post("/v1/chat/completions", no_prompt), 400, "messages");
  EXPECT_EQ(server.Post("/v1/chat/completions", UserSays("a")).status, 200);
}

TEST(ServeTest, AKeyIsAskedForWhereThereIsOne) {
  TestServer server({.service = {.keys = {"one", "two"}}});
  server.Ready();
  EXPECT_EQ(Ask(server.port(), "GET", "/v1/models").status, 401);
  EXPECT_EQ(Ask(server.port(), "GET", "/v1/models", "", "Authorization: Bearer on\r\n").status,
            401);
  EXPECT_EQ(Ask(server.port(), "GET", "/v1/models", "", "Authorization: Bearer two\r\n").status,
            200);
  EXPECT_EQ(Ask(server.port(), "GET", "/v1/models", "", "x-api-key: one\r\n").status, 200);
  EXPECT_EQ(Ask(server.port(), "GET", "/health").status, 200);
}

TEST(ServeTest, AConnectionServesRequestsInTheirOrder) {
  TestServer server;
  server.Ready();
  Client client(server.port());
  const std::string body = Completion(4, 1, 3).dump();
  client.Ask("POST", "/v1/completions", body);
  client.Ask("GET", "/health");
  client.Ask("POST", "/v1/completions", body);
  const Json first = client.Read().json();
  EXPECT_EQ(client.Read().json()["status"], "ok");
  EXPECT_EQ(client.Read().json()["choices"], first["choices"]);
}

TEST(ServeTest, APromptGoesOnFromTheOneBeforeAndSaysSo) {
  TestServer server({}, [] { return LoadTiny({.prefix_cache_tokens = -1}); });
  server.Ready();
  Json body = Completion(200, 1, 4);
  const Json first = server.Post("/v1/completions", body).json();
  const Json second = server.Post("/v1/completions", body).json();
  body["cache_prompt"] = false;
  const Json without = server.Post("/v1/completions", body).json();
  const auto cached = [](const Json& answer) {
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"].get<int64_t>();
  };
  EXPECT_EQ(cached(first), 0);
  EXPECT_EQ(first["timings"]["cache"]["miss"], "nothing is cached");
  EXPECT_EQ(cached(second), 192);
  EXPECT_EQ(second["timings"]["cache"], Json({{"hit_tokens", 192}}));
  EXPECT_EQ(cached(without), 0);
  EXPECT_EQ(without["timings"]["cache"], Json({{"hit_tokens", 0}}));
  for (const Json& answer : {second, without}) {
    EXPECT_EQ(answer["choices"], first["choices"]);
    EXPECT_EQ(answer["timings"]["logits_hash"], first["timings"]["logits_hash"]);
  }
  const int64_t tokens = first["usage"]["prompt_tokens"].get<int64_t>();
  EXPECT_EQ(server.Metric("vllm:prefix_cache_queries_total"), 2 * tokens);
  EXPECT_EQ(server.Metric("vllm:prefix_cache_hits_total"), 192);
  EXPECT_EQ(server.Metric("baton_prefix_cache_tokens"), 192);
  EXPECT_TRUE(server.Becomes("baton_kv_held_bytes", 0));
}

TEST(ServeTest, AClientThatLeavesFreesTheCache) {
  TestServer server({.service = {.parallel = 2}});
  server.Ready();
  {
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < 6; ++i) {  // two run, four wait
      clients.push_back(std::make_unique<Client>(server.port()));
      clients.back()->Ask("POST", "/v1/completions", Endless().dump());
      ASSERT_TRUE(clients.back()->ReadUntil("HTTP/1.1 200 OK"));
    }
    ASSERT_TRUE(clients[0]->ReadUntil("data: "));
    EXPECT_EQ(server.Metric("vllm:num_requests_running"), 2);
    EXPECT_EQ(server.Metric("vllm:num_requests_waiting"), 4);
  }
  EXPECT_TRUE(server.Becomes("baton_kv_held_bytes", 0));
  EXPECT_TRUE(server.Becomes("vllm:num_requests_running", 0));
  EXPECT_EQ(server.Metric("vllm:num_requests_waiting"), 0);
  EXPECT_EQ(server.Metric("baton_disconnects_total"), 6);
}

TEST(ServeTest, WhoWaitsHearsComments) {
  TestServer server({.service = {.parallel = 1, .keep_alive = 100ms}});
  server.Ready();
  Client first(server.port()), second(server.port());
  first.Ask("POST", "/v1/completions", Endless().dump());
  ASSERT_TRUE(first.ReadUntil("data: "));
  Json body = Completion(3, 1, 2);
  body["stream"] = true;
  second.Ask("POST", "/v1/completions", body.dump());
  EXPECT_TRUE(second.ReadUntil(": keep-alive\n\n"));
  first.Close();
  EXPECT_TRUE(second.ReadUntil("[DONE]"));
}

TEST(ServeTest, AFullQueueSaysSo) {
  TestServer server({.service = {.parallel = 1, .queue = 1}});
  server.Ready();
  Client first(server.port()), second(server.port());
  first.Ask("POST", "/v1/completions", Endless().dump());
  ASSERT_TRUE(first.ReadUntil("data: "));
  second.Ask("POST", "/v1/completions", Endless().dump());
  ASSERT_TRUE(second.ReadUntil("200 OK"));
  const HttpAnswer third = server.Post("/v1/completions", Completion(3, 1, 2));
  EXPECT_EQ(third.status, 429);
  EXPECT_EQ(third.json()["error"]["type"], "rate_limit_error");
  EXPECT_EQ(third.json()["error"]["code"], "queue_full");
}

TEST(ServeTest, NoQueueLeavesThePlacesInTheEngine) {
  TestServer server({.service = {.parallel = 1, .queue = 0}});
  server.Ready();
  EXPECT_EQ(server.Post("/v1/completions", Completion(3, 1, 2)).status, 200);
  EXPECT_EQ(server.Post("/tokenize", Json{{"prompt", "a"}}).status, 200);
  Client first(server.port());
  first.Ask("POST", "/v1/completions", Endless().dump());
  ASSERT_TRUE(first.ReadUntil("data: "));
  EXPECT_EQ(server.Post("/v1/completions", Completion(3, 1, 2)).status, 429);
  EXPECT_EQ(server.Post("/tokenize", Json{{"prompt", "a"}}).status, 429);
}

TEST(ServeTest, AReaderThatDoesNotReadIsLeftBehind) {
  TestServer server({.unread_bytes = 20000});
  server.Ready();
  Client slow(server.port(), /*receive_buffer=*/4096);
  Json body = Endless();
  body["max_tokens"] = 4000;
  body["logprobs"] = 20;
  body["n"] = 4;
  slow.Ask("POST", "/v1/completions", body.dump());
  EXPECT_TRUE(server.Becomes("baton_slow_readers_total", 1));
  EXPECT_TRUE(server.Becomes("baton_kv_held_bytes", 0));
}

TEST(ServeTest, ARequestThatDoesNotArriveIsGivenUp) {
  TestServer server({.header = 1s});
  server.Ready();
  Client client(server.port());
  client.Send("POST /v1/completions HTTP/1.1\r\nHost");
  EXPECT_EQ(client.Read().status, 408);
  EXPECT_TRUE(client.Closed());
}

TEST(ServeTest, ConnectionsAreBounded) {
  TestServer server({.connections = 1});
  server.Ready();
  Client first(server.port());
  first.Ask("GET", "/health");
  EXPECT_EQ(first.Read().status, 200);
  Client second(server.port());
  EXPECT_EQ(second.Read().status, 503);
}

TEST(ServeTest, AStopFinishesWhatIsInProgress) {
  TestServer server;
  server.Ready();
  Client client(server.port()), idle(server.port());
  Json body = Completion(20, 1, 200);
  body["stream"] = true;
  client.Ask("POST", "/v1/completions", body.dump());
  ASSERT_TRUE(client.ReadUntil("data: "));
  server.Signal();
  EXPECT_TRUE(idle.Closed());
  EXPECT_TRUE(client.ReadUntil(R"("finish_reason":"length")"));
  EXPECT_TRUE(server.Wait().ok());
  EXPECT_FALSE(Client(server.port()).connected());
}

TEST(ServeTest, AStopDoesNotWaitForever) {
  TestServer server({.grace = 0s});
  server.Ready();
  Client client(server.port());
  client.Ask("POST", "/v1/completions", Endless().dump());
  ASSERT_TRUE(client.ReadUntil("data: "));
  server.Signal();
  EXPECT_TRUE(client.ReadUntil("the server is stopping"));
  EXPECT_TRUE(server.Wait().ok());
}

}  // namespace
}  // namespace baton::server::test
