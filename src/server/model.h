// The model that is served, and what turns a client's call into requests of the engine.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "baton/engine.h"
#include "server/answer.h"
#include "server/call.h"

namespace baton::server {

struct Model {
  std::unique_ptr<Engine> engine;
  std::string name;
  std::map<std::string, Plan, std::less<>> plans;  // by the name that requests may give
  std::string plan;                                // of requests that name none; empty: dense
  std::optional<RouteOptions> route;               // of requests that name no plan
};

struct Prepared {
  Call call;
  std::vector<Choice> choices;
  std::vector<Request> requests;  // [choices]
};

// Renders, tokenizes and checks: afterwards the engine takes every request. Safe from any thread.
std::optional<ApiError> Prepare(const Model& model, Call call, Prepared& prepared);

// {"tokens", "count", ...}, {"prompt", "content"} and {"input_tokens"}
std::optional<ApiError> Tokenize(const Model& model, const TokenCall& call, std::string& reply);
std::optional<ApiError> Detokenize(const Model& model, const TokenCall& call, std::string& reply);
std::optional<ApiError> CountTokens(const Model& model, const TokenCall& call, std::string& reply);

// {"bos_token", "eos_token", "chat_template", ...}, for evaluation harnesses.
std::string TokenizerInfo(const Model& model);

}  // namespace baton::server
