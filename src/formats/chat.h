// Chat templates of the supported model families, recognised by their markers; Baton runs no
// template language.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "baton/error.h"

namespace baton {

struct ChatMessage {
  std::string role;  // system, user or assistant
  std::string content;
};

enum class ChatFormat { kChatMl, kLlama2, kLlama3, kMistral, kGemma };

struct ChatTemplate {
  ChatFormat format = ChatFormat::kChatMl;
  std::string default_system;  // sent when the conversation has no system message (SmolLM2 and
                               // Qwen2 ship one)
  // Mistral's versions differ in spaces: "[INST] x [/INST]", "[INST] x[/INST]", "[INST]x[/INST]".
  bool space_before_user = true;
  bool space_after_user = true;
};

// An unknown or missing template is an error whose hint names --raw.
Result<ChatTemplate> RecognizeChat(std::string_view jinja);

// The conversation as text for Encode(special = true), without BOS, ending where the assistant's
// turn begins. Contents are put in as they are: a control token's text in a message acts as that
// token. Errors: no message, a role other than the three, a system message that is not the first;
// for Llama 2, Mistral and Gemma also turns that do not alternate from user to user.
Result<std::string> RenderChat(const ChatTemplate& chat, const std::vector<ChatMessage>& messages);

}  // namespace baton
