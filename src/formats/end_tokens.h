// Which tokens end an answer: those that a model's files name, and those with well-known texts.
#pragma once

#include <string>
#include <string_view>

#include "baton/error.h"
#include "formats/tokenizer_spec.h"

namespace baton {

// "<|im_end|>", "<end_of_turn>", "</s>", ...
bool IsEndText(std::string_view text);

// Tokens whose text can only be an end marker ("<|im_end|>", but not "</s>", which is also HTML)
// become control tokens that end an answer, whatever type the file gives them, because converters
// get it wrong. Tokens that merges can produce keep their type.
void MarkEndTexts(TokenizerSpec& spec);

// Of a Hugging Face folder: eos_token_id of config.json and generation_config.json, a number or a
// list, and eos_token of special_tokens_map.json. Ids without a token are ignored.
Status AddEndsOfFolder(const std::string& folder, TokenizerSpec& spec);

}  // namespace baton
