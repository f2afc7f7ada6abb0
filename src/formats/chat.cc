#include "formats/chat.h"

#include <string>
#include <utility>

#include "base/check.h"
#include "formats/printable.h"

namespace baton {
namespace {

bool Has(std::string_view text, std::string_view what) { return text.find(what) != text.npos; }

std::string_view Trim(std::string_view text) {
  constexpr std::string_view kSpaces = " \t\n\v\f\r";
  const size_t begin = text.find_first_not_of(kSpaces);
  if (begin == text.npos) return "";
  return text.substr(begin, text.find_last_not_of(kSpaces) - begin + 1);
}

// A string literal in the template may hold the escape or the character itself: GGUF writers
// differ.
std::string Unescaped(std::string_view literal) {
  std::string text;
  for (size_t i = 0; i < literal.size(); ++i) {
    if (literal[i] != '\\' || i + 1 == literal.size()) {
      text += literal[i];
      continue;
    }
    const char c = literal[++i];
    text += c == 'n' ? '\n' : c == 't' ? '\t' : c;
  }
  return text;
}

bool EndsLiteral(std::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '\'' || text[i] == '"' || text[i] == '{') {
      return true;
    }
  }
  return false;
}

// The text of a literal '<|im_start|>system\nTEXT<|im_end|>'. Where the template puts a variable
// there instead, a quote ends the literal first.
std::string DefaultSystem(std::string_view jinja) {
  constexpr std::string_view kOpen = "<|im_start|>system";
  constexpr std::string_view kClose = "<|im_end|>";
  for (size_t at = jinja.find(kOpen); at != jinja.npos; at = jinja.find(kOpen, at + 1)) {
    std::string_view rest = jinja.substr(at + kOpen.size());
    if (rest.starts_with("\\n")) {
      rest.remove_prefix(2);
    } else if (rest.starts_with('\n')) {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    const size_t end = rest.find(kClose);
    if (end == rest.npos || end == 0 || EndsLiteral(rest.substr(0, end))) continue;
    return Unescaped(rest.substr(0, end));
  }
  return "";
}

Status CheckRoles(const std::vector<ChatMessage>& messages) {
  if (messages.empty()) {
    return Error::InvalidArgument("conversation is empty, expected at least one user message");
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role != "system" && role != "user" && role != "assistant") {
      return Error::InvalidArgument("message {} has role '{}', expected system, user or assistant",
                                    i, Printable(role));
    }
    if (role == "system" && i != 0) {
      return Error::InvalidArgument("message {} has role system, expected it only as the first", i);
    }
  }
  return Status::Ok();
}

// user, assistant, user, ..., user behind an optional system message.
Status CheckTurns(const std::vector<ChatMessage>& messages) {
  const size_t first = messages[0].role == "system" ? 1 : 0;
  for (size_t i = first; i < messages.size(); ++i) {
    const char* want = (i - first) % 2 == 0 ? "user" : "assistant";
    if (messages[i].role != want) {
      return Error::InvalidArgument(
          "message {} has role {}, expected {}: this model's turns alternate", i, messages[i].role,
          want);
    }
  }
  if (messages.back().role != "user") {
    return Error::InvalidArgument("last message has role {}, expected user", messages.back().role);
  }
  return Status::Ok();
}

std::string RenderChatMl(const ChatTemplate& chat, const std::vector<ChatMessage>& messages) {
  std::string text;
  const auto put = [&](std::string_view role, std::string_view content) {
    text.append("<|im_start|>").append(role).append("\n").append(content).append("<|im_end|>\n");
  };
  if (messages[0].role != "system" && !chat.default_system.empty()) {
    put("system", chat.default_system);
  }
  for (const ChatMessage& m : messages) put(m.role, m.content);
  return text + "<|im_start|>assistant\n";
}

std::string RenderLlama3(const ChatTemplate& chat, const std::vector<ChatMessage>& messages) {
  std::string text;
  const auto open = [&](std::string_view role) {
    text.append("<|start_header_id|>").append(role).append("<|end_header_id|>\n\n");
  };
  const auto put = [&](std::string_view role, std::string_view content) {
    open(role);
    text.append(Trim(content)).append("<|eot_id|>");
  };
  if (messages[0].role != "system" && !chat.default_system.empty()) {
    put("system", chat.default_system);
  }
  for (const ChatMessage& m : messages) put(m.role, m.content);
  open("assistant");
  return text;
}

// The system message as the beginning of the first user turn.
std::string RenderGemma(const std::vector<ChatMessage>& messages) {
  std::string text;
  std::string system;
  for (const ChatMessage& m : messages) {
    if (m.role == "system") {
      system = std::string(Trim(m.content)) + "\n\n";
      continue;
    }
    text.append("<start_of_turn>").append(m.role == "user" ? "user" : "model").append("\n");
    text.append(std::exchange(system, "")).append(Trim(m.content)).append("<end_of_turn>\n");
  }
  return text + "<start_of_turn>model\n";
}

std::string RenderLlama2(const std::vector<ChatMessage>& messages) {
  std::string text;
  std::string system;
  bool first = true;
  for (const ChatMessage& m : messages) {
    const std::string_view content = Trim(m.content);
    if (m.role == "system") {
      system = "<<SYS>>\n" + m.content + "\n<</SYS>>\n\n";
    } else if (m.role == "user") {
      // The caller puts the first BOS.
      text.append(std::exchange(first, false) ? "" : "<s>").append("[INST] ");
      text.append(std::exchange(system, "")).append(content).append(" [/INST]");
    } else {
      text.append(" ").append(content).append(" </s>");
    }
  }
  return text;
}

std::string RenderMistral(const ChatTemplate& chat, const std::vector<ChatMessage>& messages) {
  std::string text;
  std::string system;
  for (const ChatMessage& m : messages) {
    if (m.role == "system") {
      system = m.content + "\n\n";
    } else if (m.role == "user") {
      text.append("[INST]").append(chat.space_before_user ? " " : "");
      text.append(std::exchange(system, "")).append(m.content);
      text.append(chat.space_after_user ? " " : "").append("[/INST]");
    } else {
      text.append(chat.space_before_user ? " " : "").append(Trim(m.content)).append("</s>");
    }
  }
  return text;
}

}  // namespace

Result<ChatTemplate> RecognizeChat(std::string_view jinja) {
  ChatTemplate chat;
  if (jinja.empty()) {
    return Error::NotFound("the model has no chat template")
        .Hint("use --raw to continue the prompt as plain text");
  }
  if (Has(jinja, "<|im_start|>")) {
    chat.format = ChatFormat::kChatMl;
    chat.default_system = DefaultSystem(jinja);
  } else if (Has(jinja, "<|start_header_id|>")) {
    chat.format = ChatFormat::kLlama3;
  } else if (Has(jinja, "<start_of_turn>")) {
    chat.format = ChatFormat::kGemma;
  } else if (Has(jinja, "[INST]")) {
    chat.format = Has(jinja, "<<SYS>>") ? ChatFormat::kLlama2 : ChatFormat::kMistral;
    chat.space_before_user = Has(jinja, "[INST] ");
    chat.space_after_user = Has(jinja, " [/INST]");
  } else {
    return Error::Unsupported(
               "chat template is of no known family (ChatML, Llama 2, Llama 3, Mistral, Gemma)")
        .Hint("use --raw to continue the prompt as plain text");
  }
  return chat;
}

Result<std::string> RenderChat(const ChatTemplate& chat, const std::vector<ChatMessage>& messages) {
  BATON_TRY(CheckRoles(messages));
  switch (chat.format) {
    case ChatFormat::kChatMl:
      return RenderChatMl(chat, messages);
    case ChatFormat::kLlama3:
      return RenderLlama3(chat, messages);
    case ChatFormat::kGemma:
      BATON_TRY(CheckTurns(messages));
      return RenderGemma(messages);
    case ChatFormat::kLlama2:
      BATON_TRY(CheckTurns(messages));
      return RenderLlama2(messages);
    case ChatFormat::kMistral:
      BATON_TRY(CheckTurns(messages));
      return RenderMistral(chat, messages);
  }
  BATON_CHECK(false);
}

}  // namespace baton
