// Chat requests: turns, through the model's template, to tokens.
#include "formats/chat.h"

#include <string>
#include <utility>

#include "baton/engine.h"
#include "engine/engine_impl.h"

namespace baton {
namespace {

std::string TextOf(const Tokenizer& tokenizer, int32_t id) {
  return id < 0 ? "" : tokenizer.Bytes(id, /*special=*/true);
}

Result<ChatText> Rendered(const Engine::Impl& impl, const std::vector<ChatTurn>& turns,
                          const ChatOptions& options, bool* writes_bos) {
  const std::string* source = impl.chat.Choose(!options.tools.empty());
  if (source == nullptr)
    return Error::NotFound("{}: the model has no chat template", impl.info.path)
        .Hint("use --raw to continue the prompt as plain text, or --chat-template FILE");
  BATON_ASSIGN(const ChatTemplate chat, ChatTemplate::Parse(*source));
  const Tokenizer& t = *impl.tokenizer;
  const ChatVariables variables{.bos = TextOf(t, t.bos()),
                                .eos = TextOf(t, t.eos()),
                                .unknown = TextOf(t, t.unknown()),
                                .unix_time = {}};
  BATON_ASSIGN(ChatText text, chat.Render(turns, options, variables));
  if (writes_bos != nullptr) {
    *writes_bos = source->find("bos_token") != std::string::npos ||
                  (!variables.bos.empty() && source->find(variables.bos) != std::string::npos);
  }
  return text;
}

}  // namespace

Result<ChatPrompt> Engine::MakeChatPrompt(const std::vector<ChatTurn>& turns,
                                          const ChatOptions& options) const {
  bool writes_bos = false;
  BATON_ASSIGN(ChatText chat, Rendered(*impl_, turns, options, &writes_bos));
  ChatPrompt prompt;
  // A template that knows BOS decides alone; before one that does not, BOS stands where the model
  // has one before any text.
  prompt.tokens = EncodeChat(*impl_->tokenizer, chat, /*bos=*/!writes_bos);
  prompt.text = std::move(chat.text);
  return prompt;
}

Result<std::string> Engine::RenderChat(const std::vector<ChatTurn>& turns) const {
  BATON_ASSIGN(ChatText chat, Rendered(*impl_, turns, {}, nullptr));
  const Tokenizer& t = *impl_->tokenizer;
  const std::string bos = TextOf(t, t.bos());
  if (t.adds_bos() && !bos.empty() && chat.text.starts_with(bos)) chat.text.erase(0, bos.size());
  return std::move(chat.text);
}

}  // namespace baton
