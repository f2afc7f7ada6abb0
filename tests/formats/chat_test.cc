#include "formats/chat.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace baton {
namespace {

using Messages = std::vector<ChatMessage>;
const Messages kHello = {{"user", "Hi"}};
const Messages kTalk = {
    {"system", "Be brief."}, {"user", "Hi"}, {"assistant", "Ho"}, {"user", "?"}};

std::string Render(std::string_view jinja, const Messages& messages) {
  const auto chat = RecognizeChat(jinja);
  EXPECT_TRUE(chat.ok()) << chat.error().ToString();
  const auto text = RenderChat(*chat, messages);
  EXPECT_TRUE(text.ok()) << text.error().ToString();
  return *text;
}

// The head of SmolLM2's template, with the newline as a character and as an escape.
constexpr std::string_view kSmol =
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI "
    "assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}";
constexpr std::string_view kEscaped =
    R"({{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}{%- else %})"
    R"({{- '<|im_start|>system\nYou\'re a helpful assistant.<|im_end|>\n' }})";

TEST(ChatMl, DefaultSystemComesFromTheTemplate) {
  EXPECT_EQ(RecognizeChat(kSmol)->default_system,
            "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
  EXPECT_EQ(RecognizeChat(kEscaped)->default_system, "You're a helpful assistant.");
  EXPECT_EQ(RecognizeChat("'<|im_start|>' + role")->default_system, "");
  EXPECT_EQ(Render(kEscaped, kHello),
            "<|im_start|>system\nYou're a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatMl, OwnSystemMessageReplacesTheDefault) {
  EXPECT_EQ(Render(kSmol, kTalk),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>user\n?<|im_end|>\n"
            "<|im_start|>assistant\n");
}

TEST(Llama3, TurnsHaveHeaders) {
  EXPECT_EQ(Render("<|start_header_id|>", {{"user", " Hi\n"}}),
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

TEST(Llama2, SystemSitsInTheFirstTurn) {
  EXPECT_EQ(Render("[INST] <<SYS>>", kTalk),
            "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Ho </s><s>[INST] ? [/INST]");
}

TEST(Mistral, SpacesFollowTheTemplate) {
  const Messages talk = {{"user", "Hi"}, {"assistant", "Ho"}, {"user", "?"}};
  EXPECT_EQ(Render("'[INST] ' + m + ' [/INST]'", talk), "[INST] Hi [/INST] Ho</s>[INST] ? [/INST]");
  EXPECT_EQ(Render("'[INST] ' + m + '[/INST]'", talk), "[INST] Hi[/INST] Ho</s>[INST] ?[/INST]");
  EXPECT_EQ(Render("'[INST]' + m + '[/INST]'", talk), "[INST]Hi[/INST]Ho</s>[INST]?[/INST]");
}

TEST(Gemma, SystemIsFoldedIntoTheFirstUserTurn) {
  EXPECT_EQ(Render("<start_of_turn>", kTalk),
            "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHo"
            "<end_of_turn>\n<start_of_turn>user\n?<end_of_turn>\n<start_of_turn>model\n");
}

TEST(Recognize, UnknownAndMissingTemplatesPointToRaw) {
  for (const char* jinja : {"", "{{ messages }}"}) {
    const auto chat = RecognizeChat(jinja);
    ASSERT_FALSE(chat.ok());
    EXPECT_NE(chat.error().hint().find("--raw"), std::string::npos);
  }
}

TEST(Roles, AreCheckedAsTheFamilyDemands) {
  const std::vector<Messages> bad = {
      {}, {{"tool", "x"}}, {{"user", "x"}, {"system", "y"}}, {{"system", "x"}, {"system", "y"}}};
  const std::vector<Messages> unordered = {{{"user", "x"}, {"user", "y"}},
                                           {{"assistant", "x"}},
                                           {{"system", "x"}},
                                           {{"user", "x"}, {"assistant", "y"}}};
  for (ChatFormat format : {ChatFormat::kChatMl, ChatFormat::kLlama2, ChatFormat::kLlama3,
                            ChatFormat::kMistral, ChatFormat::kGemma}) {
    const ChatTemplate chat{.format = format};
    const bool free = format == ChatFormat::kChatMl || format == ChatFormat::kLlama3;
    for (const Messages& m : bad) EXPECT_FALSE(RenderChat(chat, m).ok());
    for (const Messages& m : unordered) EXPECT_EQ(RenderChat(chat, m).ok(), free);
  }
}

}  // namespace
}  // namespace baton
