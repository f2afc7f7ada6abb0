// What a client is told when its request cannot be served, in the shape of OpenAI's API.
#pragma once

#include <string>

#include "baton/error.h"
#include "server/http.h"

namespace baton::server {

struct ApiError {
  int status = 400;
  std::string message;
  std::string param;  // the field that is wrong; empty: none
  std::string code;   // "context_length_exceeded", ...; empty: none

  // By the error's kind: what the client may mend is 400.
  static ApiError From(const Error& error);
};

// The `type` of OpenAI's errors: by the status.
std::string_view TypeOf(const ApiError& error);
// {"error": {"message", "type", "param", "code"}}
std::string WriteError(const ApiError& error);
// {"type": "error", "error": {"type", "message"}}, as Anthropic's API has it.
std::string WriteMessagesError(const ApiError& error);
HttpReply ReplyOf(const ApiError& error);

}  // namespace baton::server
