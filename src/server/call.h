// What a client asks for, read from the body of its request.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "baton/engine.h"
#include "server/api_error.h"
#include "server/tools.h"

namespace baton::server {

// Whose names a request and its answer use.
enum class Api { kChat, kCompletions, kResponses, kMessages };

// Of /v1/completions: a text, or tokens.
struct CallPrompt {
  std::string text;
  std::vector<int32_t> tokens;
};

struct Call {
  Api api = Api::kChat;
  // Completions have prompts, the others one conversation.
  std::vector<CallPrompt> prompts;
  std::vector<ChatTurn> chat;
  ChatOptions chat_options;
  Tools tools;          // functions that the answer may call
  GrammarSpec grammar;  // of response_format; no schema: any text
  // All but the prompt and the plan. max_tokens < 0: what the context leaves.
  Request base;
  bool seeded = false;  // base.sampling.seed was given
  int n = 1;            // answers to each prompt; answer i has the seed plus i
  std::string plan;     // a name that the server knows, or "dense"; empty: the server's own
  bool exact = false;
  bool stream = false, include_usage = false, echo = false;
  bool progress = false;  // events while the prompt is processed

  int prompt_count() const {
    return api == Api::kCompletions ? static_cast<int>(prompts.size()) : 1;
  }
};

// Limits of one request, whatever the model.
inline constexpr int kMostChoices = 128;
inline constexpr int kMostTop = 20;  // alternatives by logprob
inline constexpr size_t kMostStops = 16;

// A fault says which field, what was expected and what came. Fields that would change the answer
// and are not supported are faults, fields that nobody knows are not.
std::optional<ApiError> ParseCall(Api api, std::string_view body, Call& call);

// /tokenize: a text or turns; /detokenize: tokens.
struct TokenCall {
  std::string text;
  std::vector<ChatTurn> chat;
  ChatOptions chat_options;
  std::vector<int32_t> tokens;
  bool special = true;  // BOS where the model adds it
};
std::optional<ApiError> ParseTokenize(std::string_view body, TokenCall& call);
std::optional<ApiError> ParseDetokenize(std::string_view body, TokenCall& call);
// The turns of a body for /v1/messages.
std::optional<ApiError> ParseCountTokens(std::string_view body, TokenCall& call);

}  // namespace baton::server
