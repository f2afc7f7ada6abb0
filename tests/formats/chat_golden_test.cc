// Every template of tests/golden/chat over every conversation, against what jinja2 rendered
// (make.py there). Needs no Python.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "formats/chat.h"

namespace baton {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kNow = 1751328000;  // as in make.py

std::string ReadAll(const std::string& path) {
  std::ifstream file("tests/golden/chat/" + path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Talk {
  std::string name;
  std::vector<ChatTurn> turns;
  ChatOptions options;
};

std::vector<Talk> Talks() {
  std::vector<Talk> talks;
  for (const Json& j : Json::parse(ReadAll("conversations.json"))) {
    Talk talk{.name = j["name"], .turns = {}, .options = {}};
    for (Json turn : j["turns"]) {
      ChatTurn t{turn["role"], turn["content"], ""};
      turn.erase("role");
      turn.erase("content");
      if (!turn.empty()) t.members = turn.dump();
      talk.turns.push_back(t);
    }
    if (j.contains("tools")) talk.options.tools = j["tools"].dump();
    if (j.contains("variables")) talk.options.variables = j["variables"].dump();
    talks.push_back(talk);
  }
  return talks;
}

TEST(ChatGolden, PromptsAreThoseOfJinja2) {
  setenv("TZ", "UTC", 1);
  const ChatVariables variables{.bos = "<s>", .eos = "</s>", .unknown = "<unk>", .unix_time = kNow};
  const Json expected = Json::parse(ReadAll("expected.json"));
  const std::vector<Talk> talks = Talks();
  int compared = 0;
  for (const auto& [name, texts] : expected.items()) {
    const auto chat = ChatTemplate::Parse(ReadAll("templates/" + name + ".jinja"));
    ASSERT_TRUE(chat.ok()) << name << ": " << chat.error().ToString();
    for (const Talk& talk : talks) {
      const auto got = chat->Render(talk.turns, talk.options, variables);
      const Json& want = texts[talk.name];
      if (want.is_null()) {
        // Where Python stops at "text" + None, the engine may print nothing for the latter.
        EXPECT_TRUE(got.ok() || !got.error().hint().empty()) << name << ", " << talk.name;
        continue;
      }
      EXPECT_TRUE(got.ok()) << name << ", " << talk.name << ": " << got.error().ToString();
      if (!got.ok()) continue;
      EXPECT_EQ(got->text, want.get<std::string>()) << name << ", " << talk.name;
      ++compared;
    }
  }
  EXPECT_GT(compared, 550);
}

// Errors that a template raises keep its message.
TEST(ChatGolden, WhatATemplateRefusesIsAnError) {
  const auto chat = ChatTemplate::Parse(ReadAll("templates/gemma-2.jinja"));
  ASSERT_TRUE(chat.ok());
  const auto text = chat->Render({{"system", "x", ""}, {"user", "y", ""}}, {}, {});
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.error().message(),
            "the chat template refuses this conversation: System role not supported");
}

}  // namespace
}  // namespace baton
