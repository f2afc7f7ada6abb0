#include "formats/tokenizer.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace baton {
namespace {

std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class SmolLm2 : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const std::string file = ReadAll("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if (file.empty()) return;
    const auto gguf = ParseGguf(std::as_bytes(std::span(file)));
    ASSERT_TRUE(gguf.ok()) << gguf.error().ToString();
    auto made = Tokenizer::FromGguf(gguf->metadata);
    ASSERT_TRUE(made.ok()) << made.error().ToString();
    tokenizer_ = new Tokenizer(std::move(made).value());
  }
  static void TearDownTestSuite() { delete tokenizer_; }
  void SetUp() override {
    if (tokenizer_ == nullptr) {
      GTEST_SKIP() << "needs models/SmolLM2-135M-Instruct.Q4_1.gguf: scripts/get-model smollm2";
    }
  }
  static Tokenizer* tokenizer_;
};
Tokenizer* SmolLm2::tokenizer_ = nullptr;

TEST_F(SmolLm2, PromptsHaveTheGoldenIds) {
  const auto golden = nlohmann::json::parse(ReadAll("tests/golden/smollm2-135m-q4_1.json"));
  for (const auto& prompt : golden["prompts"]) {
    const std::string text = prompt["text"];
    const std::vector<int32_t> want = prompt["ids"];
    EXPECT_EQ(tokenizer_->Encode(text, {.bos = true, .special = true}), want) << text;
    EXPECT_EQ(tokenizer_->Decode(want, true), text);
    const std::vector<int32_t> greedy = prompt["greedy16"];
    EXPECT_EQ(tokenizer_->Decode(greedy), prompt["greedy_text"].get<std::string>());
  }
}

TEST_F(SmolLm2, LicenceHasTheGoldenIds) {
  const std::string text = ReadAll("/usr/share/common-licenses/GPL-3");
  const auto golden = nlohmann::json::parse(ReadAll("tests/golden/smollm2-135m-q4_1.json"))["gpl3"];
  if (text.size() != golden["chars"]) GTEST_SKIP() << "needs Debian's common-licenses/GPL-3";
  const std::vector<int32_t> ids = tokenizer_->Encode(text);
  ASSERT_EQ(ids.size(), golden["tokens"]);
  EXPECT_EQ(std::vector(ids.begin(), ids.begin() + 32), golden["first32"].get<std::vector<int>>());
  EXPECT_EQ(std::vector(ids.end() - 8, ids.end()), golden["last8"].get<std::vector<int>>());
  EXPECT_EQ(tokenizer_->Decode(ids), text);
}

}  // namespace
}  // namespace baton
