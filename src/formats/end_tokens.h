// Which tokens end an answer: what the files of a model say, and texts that are known to.
#pragma once

#include <string>
#include <string_view>

#include "baton/error.h"
#include "formats/tokenizer_spec.h"

namespace baton {

// "<|im_end|>", "<end_of_turn>", "</s>", ...
bool IsEndText(std::string_view text);

// Tokens whose text can be nothing else ("<|im_end|>", but not "</s>", which is HTML) become
// control tokens that end an answer, whatever type the file gave them: converters get it wrong.
// Tokens that merges lead to keep their type.
void MarkEndTexts(TokenizerSpec& spec);

// Of a Hugging Face folder: eos_token_id of config.json and generation_config.json, a number or a
// list, and eos_token of special_tokens_map.json. Ids without a token are passed over.
Status AddEndsOfFolder(const std::string& folder, TokenizerSpec& spec);

}  // namespace baton
