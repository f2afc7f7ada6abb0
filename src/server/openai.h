// The words of /v1/chat/completions and /v1/completions.
#pragma once

#include "server/answer.h"

namespace baton::server {

extern const Writer kChatWriter, kCompletionWriter;

// {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"}
Json WriteUsage(const Usage& usage);
// A token's text as OpenAI's completions show it: bytes that are not whole characters as
// "bytes:\xe2\x80".
std::string ShownToken(const std::string& bytes);

}  // namespace baton::server
