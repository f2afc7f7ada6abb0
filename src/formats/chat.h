// Chat templates: the Jinja source that came with a model, run by a Jinja engine
// (scripts/get-jinja). A template is untrusted: it may fail with an error, and its steps and memory
// are limited.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "baton/engine.h"
#include "baton/error.h"
#include "formats/tokenizer.h"

namespace baton {

// What a template sees besides the conversation: the texts of special tokens (empty: the model has
// none), and the time of strftime_now (none: now).
struct ChatVariables {
  std::string bos, eos, unknown;
  std::optional<int64_t> unix_time;
};

struct TextRange {
  size_t begin = 0, end = 0;  // bytes [begin, end) of a text
};

struct ChatText {
  std::string text;
  // Ascending byte ranges that come from messages and tools: control tokens in them stay plain
  // text.
  std::vector<TextRange> plain;
};

// The tokens of a rendered conversation: control tokens are parsed, but not inside the plain
// ranges. `bos`: put BOS in front where the model does.
std::vector<int32_t> EncodeChat(const Tokenizer& tokenizer, const ChatText& chat, bool bos);

class ChatTemplate {
 public:
  // kUnsupported, naming the construct and its place, for what the engine cannot run.
  static Result<ChatTemplate> Parse(const std::string& jinja);

  // The conversation as the template writes it, BOS included where it does. Errors: no turns; a
  // role that is not a word; members or tools that are not JSON; raise_exception in the template,
  // with its message; a construct that the engine does not support.
  Result<ChatText> Render(const std::vector<ChatTurn>& turns, const ChatOptions& options,
                          const ChatVariables& variables) const;

 private:
  struct Program;
  std::shared_ptr<const Program> program_;
};

}  // namespace baton
