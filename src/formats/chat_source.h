// Where a model keeps its chat templates.
#pragma once

#include <map>
#include <string>

#include "baton/error.h"
#include "formats/gguf.h"

namespace baton {

struct ChatSource {
  std::map<std::string, std::string> by_name;  // Jinja source; "default" is the ordinary one

  // The choice of transformers: with tools the template named "tool_use" if there is one, otherwise
  // "default", or the only one. Null: none.
  const std::string* Choose(bool tools) const;
};

// tokenizer.chat_template, and tokenizer.chat_template.NAME.
ChatSource ChatSourceOfGguf(const Metadata& metadata);
// tokenizer_config.json (one, or a list by name), chat_template.json, chat_template.jinja and
// additional_chat_templates/NAME.jinja; later ones take precedence.
Result<ChatSource> ChatSourceOfFolder(const std::string& folder);

}  // namespace baton
