#include "formats/end_tokens.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "formats/byte_tokenizer.h"
#include "formats/chat_source.h"
#include "formats/tokenizer.h"

namespace baton {
namespace {

// <s> 256, </s> 257, then <unused0>...
class EndFolder : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "baton-ends";
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_ + "/additional_chat_templates");
    Write("tokenizer.json", ByteTokenizerJson(270));
    Write("tokenizer_config.json", ByteTokenizerConfigJson());
  }
  void TearDown() override { std::filesystem::remove_all(path_); }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(path_ + "/" + name) << text;
  }
  std::vector<int> Ends() {
    const auto t = Tokenizer::FromFolder(path_);
    EXPECT_TRUE(t.ok()) << t.error().ToString();
    std::vector<int> ends;
    for (int32_t id = 0; t.ok() && id < t->vocab_size(); ++id)
      if (t->IsEndOfGeneration(id)) ends.push_back(id);
    return ends;
  }
  std::string path_;
};

using Ids = std::vector<int>;

TEST_F(EndFolder, EveryFileIsAsked) {
  EXPECT_EQ(Ends(), (Ids{257}));
  Write("config.json", R"({"eos_token_id": 260})");
  EXPECT_EQ(Ends(), (Ids{257, 260}));
  Write("generation_config.json", R"({"eos_token_id": [261, 262]})");
  EXPECT_EQ(Ends(), (Ids{257, 260, 261, 262}));
  Write("special_tokens_map.json", R"({"eos_token": {"content": "<unused5>"}})");
  EXPECT_EQ(Ends(), (Ids{257, 260, 261, 262, 263}));
  Write("special_tokens_map.json", R"({"eos_token": "<unused6>"})");
  EXPECT_EQ(Ends(), (Ids{257, 260, 261, 262, 264}));
}

TEST_F(EndFolder, OddIdsChangeNothing) {
  Write("config.json", R"({"eos_token_id": [99999, -1, "x", null, 1e9, [260], "261"]})");
  EXPECT_EQ(Ends(), (Ids{257, 260, 261}));
}

TEST_F(EndFolder, BrokenFilesAreErrors) {
  for (const std::string name : {"generation_config.json", "special_tokens_map.json"}) {
    Write(name, "{broken");
    const auto t = Tokenizer::FromFolder(path_);
    ASSERT_FALSE(t.ok()) << name;
    EXPECT_NE(t.error().ToString().find(name), std::string::npos) << t.error().ToString();
    Write(name, "{}");
  }
}

TEST_F(EndFolder, TemplatesAreFoundInEveryPlace) {
  const auto choose = [&](bool tools) {
    const auto source = ChatSourceOfFolder(path_);
    EXPECT_TRUE(source.ok());
    const std::string* chosen = source->Choose(tools);
    return chosen ? *chosen : "none";
  };
  EXPECT_EQ(choose(false), "none");
  Write("tokenizer_config.json", R"({"chat_template": "one"})");
  EXPECT_EQ(choose(false), "one");
  EXPECT_EQ(choose(true), "one");
  Write("tokenizer_config.json", R"({"chat_template": [{"name": "default", "template": "a"},
        {"name": "tool_use", "template": "b"}]})");
  EXPECT_EQ(choose(false), "a");
  EXPECT_EQ(choose(true), "b");
  Write("chat_template.jinja", "new");
  Write("additional_chat_templates/tool_use.jinja", "new tools");
  EXPECT_EQ(choose(false), "new");
  EXPECT_EQ(choose(true), "new tools");
}

TEST(EndTexts, AreControlTokensWhateverTheFileSays) {
  const auto type = [](const std::string& text, TokenType given,
                       std::vector<std::pair<std::string, std::string>> merges = {}) {
    TokenizerSpec spec;
    spec.tokens = {{.text = text, .type = given}};
    spec.merges = std::move(merges);
    MarkEndTexts(spec);
    return spec.tokens[0].type;
  };
  EXPECT_EQ(type("<|im_end|>", TokenType::kNormal), TokenType::kControl);
  EXPECT_EQ(type("<|im_end|>", TokenType::kUserDefined), TokenType::kControl);
  EXPECT_EQ(type("<end_of_turn>", TokenType::kUserDefined), TokenType::kControl);
  // HTML, and a word that merges can produce.
  EXPECT_EQ(type("</s>", TokenType::kNormal), TokenType::kNormal);
  EXPECT_EQ(type("<|end|>", TokenType::kNormal, {{"<|end", "|>"}}), TokenType::kNormal);
  EXPECT_EQ(type("<|im_start|>", TokenType::kNormal), TokenType::kNormal);
}

}  // namespace
}  // namespace baton
