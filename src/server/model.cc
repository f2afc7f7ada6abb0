#include "server/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <random>
#include <utility>

#include "engine/engine_impl.h"

namespace baton::server {
namespace {

// The plan of a call, or its routing.
std::optional<ApiError> SetPlan(const Model& m, const Call& call, Request& request) {
  const std::string& name = call.plan.empty() ? m.plan : call.plan;
  if (call.plan.empty() && m.route) {
    request.route = m.route;
  } else if (!name.empty() && name != "dense") {
    const auto plan = m.plans.find(name);
    if (plan == m.plans.end()) {
      std::string names = "dense";
      for (const auto& [known, _] : m.plans) names += ", " + known;
      return ApiError{
          .message = fmt::format("plan: expected one of {}, got {}", names, name.substr(0, 100)),
          .param = "plan",
          .code = "plan_not_found"};
    }
    request.plan = plan->second;
  }
  if (call.exact) request.exact = ExactOptions{.lookup = !request.plan && !request.route};
  return std::nullopt;
}

// How many tokens there is room for, and by how much a prompt misses it.
std::optional<ApiError> FitIn(const Engine& engine, Request& request) {
  const auto prompt = std::ssize(request.tokens);
  const int64_t context = engine.options().context, cache = engine.options().kv_tokens;
  const int64_t room = std::min(context, cache);
  const auto too_long = [](std::string message) {
    return ApiError{.message = std::move(message), .code = "context_length_exceeded"};
  };
  if (prompt > room)
    return too_long(fmt::format("the prompt has {} tokens, {} more than the {} of the {}", prompt,
                                prompt - room, room, room == context ? "context" : "KV cache"));
  const int64_t most = std::max<int64_t>(1, room - prompt);
  if (request.max_tokens < 0) request.max_tokens = most;
  const int64_t wanted = prompt + std::min(request.max_tokens, context - prompt);
  if (wanted > cache)
    return too_long(fmt::format(
        "a prompt of {} tokens and an answer of {} need {} tokens of KV cache, {} more than the {} "
        "there are",
        prompt, wanted - prompt, wanted, wanted - cache, cache));
  request.max_tokens = std::min(request.max_tokens, std::max<int64_t>(1, context - prompt));
  return std::nullopt;
}

// What the answer's tokens must be, and how it is taken apart.
std::optional<ApiError> SetConstraint(const Model& m, const Call& call, Request& request,
                                      ToolStyle& style) {
  GrammarSpec grammar = call.grammar;
  const char* param = "response_format";
  if (call.tools.on()) {
    const std::string* chat = m.engine->impl().chat.Choose(/*tools=*/true);
    style = chat ? StyleOf(*chat) : ToolStyle::kNone;
    param = "tools";
    if (style == ToolStyle::kNone)
      return ApiError{
          .message =
              "tools: the model's chat template has no calls, or writes them in a way that "
              "is not read: Hermes (<tool_call>), Llama 3 (JSON) and Mistral ([TOOL_CALLS] and a "
              "list) are; serve it with --chat-template FILE",
          .param = param,
          .code = "unsupported_parameter"};
    grammar = GrammarOf(call.tools, style, call.grammar);
  }
  if (grammar.schema.empty()) return std::nullopt;
  Result<std::shared_ptr<const Constraint>> constraint = m.engine->CompileGrammar(grammar);
  if (!constraint.ok()) {
    // Of a form and of tools, the one that is wrong.
    if (!grammar.or_else.empty() && !m.engine->CompileGrammar(call.grammar).ok())
      param = "response_format";
    ApiError error = ApiError::From(constraint.error());
    error.message = fmt::format("{}: {}", param, error.message);
    error.param = param;
    return error;
  }
  request.constraint = *std::move(constraint);
  return std::nullopt;
}

std::vector<int32_t> TokensOf(const Model& m, const CallPrompt& prompt) {
  return prompt.tokens.empty() ? m.engine->Tokenize(prompt.text, /*bos=*/true, /*special=*/true)
                               : prompt.tokens;
}

std::optional<ApiError> TokensOfChat(const Model& m, const Call& call, Request& request) {
  Result<ChatPrompt> chat = m.engine->MakeChatPrompt(call.chat, call.chat_options);
  if (!chat.ok()) return ApiError::From(chat.error());
  request.tokens = std::move(chat->tokens);
  return std::nullopt;
}

std::optional<ApiError> TokensOfCall(const Model& m, const TokenCall& call,
                                     std::vector<int32_t>& tokens) {
  if (call.chat.empty()) {
    tokens = m.engine->Tokenize(call.text, call.special, /*special=*/true);
    return std::nullopt;
  }
  Result<ChatPrompt> chat = m.engine->MakeChatPrompt(call.chat, call.chat_options);
  if (!chat.ok()) return ApiError::From(chat.error());
  tokens = std::move(chat->tokens);
  return std::nullopt;
}

std::string EchoOf(const Model& m, const Call& call, const CallPrompt& prompt) {
  if (!call.echo) return "";
  return prompt.tokens.empty() ? prompt.text
                               : m.engine->Detokenize(prompt.tokens, /*special=*/true);
}

// One answer for each of the call's n, from the request of their prompt.
void AddChoices(const Request& request, std::string echo, ToolStyle style, Prepared& p) {
  const Call& call = p.call;
  for (int i = 0; i < call.n; ++i) {
    Choice choice{.index = static_cast<int>(p.choices.size()),
                  .prompt_tokens = std::ssize(request.tokens),
                  .prompt_text = echo};
    choice.parser = ToolParser(style, call.tools);
    if (request.prompt_logprobs >= 0) choice.prompt_ids = request.tokens;
    p.choices.push_back(std::move(choice));
    p.requests.push_back(request);
    Sampling& sampling = p.requests.back().sampling;
    sampling.seed = call.seeded ? sampling.seed + static_cast<uint64_t>(i)
                                : uint64_t{std::random_device()()} << 32 | std::random_device()();
  }
}

// Logprobs of whole answers are kept until the answer is written.
std::optional<ApiError> CheckLogprobs(const Prepared& p) {
  constexpr int64_t kMost = 4 << 20;
  int64_t entries = 0;
  for (const Request& r : p.requests) {
    if (r.logprobs >= 0 && !p.call.stream) entries += (r.logprobs + 1) * r.max_tokens;
    if (r.prompt_logprobs >= 0) entries += (r.prompt_logprobs + 1) * std::ssize(r.tokens);
  }
  if (entries <= kMost) return std::nullopt;
  return ApiError{
      .message = fmt::format("logprobs: the answer would hold up to {}, the most is {}; ask for "
                             "fewer, or for fewer tokens",
                             entries, kMost),
      .param = "logprobs"};
}

}  // namespace

std::optional<ApiError> Prepare(const Model& model, Call call, Prepared& p) {
  p.call = std::move(call);
  for (int i = 0; i < p.call.prompt_count(); ++i) {
    Request request = p.call.base;
    std::optional<ApiError> error;
    const CallPrompt* prompt =
        p.call.api == Api::kCompletions ? &p.call.prompts[static_cast<size_t>(i)] : nullptr;
    if (prompt) {
      request.tokens = TokensOf(model, *prompt);
    } else {
      error = TokensOfChat(model, p.call, request);
    }
    if (!error) error = FitIn(*model.engine, request);
    if (!error) error = SetPlan(model, p.call, request);
    ToolStyle style = ToolStyle::kNone;
    if (!error) error = SetConstraint(model, p.call, request, style);
    if (error) return error;
    if (const Status fits = model.engine->CheckRequest(request); !fits.ok())
      return ApiError::From(fits.error());
    AddChoices(request, prompt ? EchoOf(model, p.call, *prompt) : "", style, p);
  }
  p.call.prompts.clear();
  p.call.chat.clear();
  return CheckLogprobs(p);
}

std::optional<ApiError> Tokenize(const Model& model, const TokenCall& call, std::string& reply) {
  std::vector<int32_t> tokens;
  if (auto error = TokensOfCall(model, call, tokens)) return error;
  reply = Dump({{"tokens", tokens},
                {"count", tokens.size()},
                {"max_model_len", model.engine->options().context}});
  return std::nullopt;
}

std::optional<ApiError> CountTokens(const Model& model, const TokenCall& call, std::string& reply) {
  std::vector<int32_t> tokens;
  if (auto error = TokensOfCall(model, call, tokens)) return error;
  reply = Dump({{"input_tokens", tokens.size()}});
  return std::nullopt;
}

std::string TokenizerInfo(const Model& model) {
  const Engine::Impl& impl = model.engine->impl();
  const auto text = [&](int32_t token) {
    return token < 0 ? Json() : Json(impl.tokenizer->Bytes(token, /*special=*/true));
  };
  const std::string* chat = impl.chat.Choose(/*tools=*/false);
  return Dump({{"bos_token", text(impl.tokenizer->bos())},
               {"eos_token", text(impl.tokenizer->eos())},
               {"unk_token", text(impl.tokenizer->unknown())},
               {"vocab_size", impl.info.vocab},
               {"model_max_length", impl.options.context},
               {"chat_template", chat ? Json(*chat) : Json()}});
}

std::optional<ApiError> Detokenize(const Model& model, const TokenCall& call, std::string& reply) {
  const int64_t vocab = model.engine->info().vocab;
  for (const int32_t t : call.tokens)
    if (t >= vocab)
      return ApiError{
          .message = fmt::format("tokens: {} is outside the vocabulary of {}", t, vocab),
          .param = "tokens"};
  const std::string text = model.engine->Detokenize(call.tokens, /*special=*/true);
  reply = Dump({{"prompt", text}, {"content", text}});
  return std::nullopt;
}

}  // namespace baton::server
