#include "server/call.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "base/parse.h"
#include "server/call_parts.h"

namespace baton::server {
namespace {

constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max();

bool Nothing(const Json& v) { return v.empty() || v == false || v == 0; }
bool NoTool(const Json& v) { return v == "none" || v == "auto"; }
bool One(const Json& v) { return v == 1; }
bool TextAlone(const Json& v) { return v == Json::array({"text"}); }

// Fields that would change the answer if they were supported, and the values that ask for nothing.
struct Refused {
  std::string_view name;
  bool (*harmless)(const Json&);
};
constexpr Refused kRefused[] = {
    {"functions", Nothing},
    {"function_call", NoTool},
    {"grammar", Nothing},
    {"json_schema", Nothing},
    {"guided_json", Nothing},
    {"guided_regex", Nothing},
    {"guided_choice", Nothing},
    {"guided_grammar", Nothing},
    {"structured_outputs", Nothing},
    {"suffix", Nothing},
    {"best_of", One},
    {"audio", Nothing},
    {"modalities", TextAlone},
    {"min_tokens", Nothing},
    {"stop_token_ids", Nothing},
    {"bad_words", Nothing},
    {"include_stop_str_in_output", Nothing},
    {"truncate_prompt_tokens", Nothing},
    {"use_beam_search", Nothing},
    {"web_search_options", Nothing},
    {"previous_response_id", Nothing},
    {"conversation", Nothing},
    {"background", Nothing},
};

void Refuse(Fields& f) {
  for (const auto& [name, harmless] : kRefused) {
    const Json* value = f.Find(name);
    if (value && !harmless(*value))
      f.Fail(ApiError{.message = fmt::format("{}: not supported by this server", name),
                      .param = std::string(name),
                      .code = "unsupported_parameter"});
  }
}

void ReadBias(Fields& f, std::vector<LogitBias>& bias) {
  const Json* value = f.ok() ? f.Find("logit_bias") : nullptr;
  if (!value) return;
  if (!value->is_object())
    return f.Fail("logit_bias", "an object of token ids and numbers from -100 to 100");
  for (const auto& [key, amount] : value->items()) {
    const auto token = ParseWhole<int32_t>(key);
    const double number = amount.is_number() ? amount.get<double>() : 1000;
    if (!token || !(number >= -100) || !(number <= 100))
      return f.Fail("logit_bias", "an object of token ids and numbers from -100 to 100");
    bias.push_back({*token, static_cast<float>(number)});
  }
}

void ReadSampling(Fields& f, Call& call) {
  Sampling& s = call.base.sampling;
  s.temperature = 1;  // as OpenAI's API has it
  f.Read("temperature", 0, 100, s.temperature);
  // 0 means the likeliest token alone.
  if (f.Read("top_p", 0, 1, s.top_p)) s.top_p = std::max(s.top_p, 1e-9f);
  if (f.Read("top_k", int64_t{-1}, kMostTokens, s.top_k)) s.top_k = std::max(0, s.top_k);
  f.Read("min_p", 0, 0.999999, s.min_p);
  f.Read("repeat_penalty", 0.01, 100, s.repetition_penalty);
  f.Read("repetition_penalty", 0.01, 100, s.repetition_penalty);
  f.Read("presence_penalty", -100, 100, s.presence_penalty);
  f.Read("frequency_penalty", -100, 100, s.frequency_penalty);
  // OpenAI's penalties look at the whole text.
  s.penalty_window = kMostTokens;
  f.Read("repeat_last_n", 0, kMostTokens, s.penalty_window);
  int64_t seed = 0;
  call.seeded = f.Read("seed", std::numeric_limits<int64_t>::min(),
                       std::numeric_limits<int64_t>::max(), seed);
  s.seed = static_cast<uint64_t>(seed);
  ReadBias(f, s.logit_bias);
}

std::optional<std::vector<int32_t>> TokensOf(const Json& array) {
  std::vector<int32_t> tokens;
  for (const Json& item : array) {
    if (!item.is_number_integer() || item < 0 || item > kMostTokens) return std::nullopt;
    tokens.push_back(item.get<int32_t>());
  }
  return tokens;
}

void ReadPrompts(Fields& f, Call& call) {
  const Json* value = f.ok() ? f.Find("prompt") : nullptr;
  constexpr std::string_view kExpected =
      "a text, an array of token ids, or an array of up to 128 of these";
  const auto add = [&](const Json& one) {
    if (one.is_string()) return call.prompts.push_back({one.get<std::string>(), {}}), true;
    if (!one.is_array() || one.empty()) return false;
    auto tokens = TokensOf(one);
    if (tokens) call.prompts.push_back({"", *std::move(tokens)});
    return tokens.has_value();
  };
  if (!f.ok()) return;
  if (!value) return f.Fail("prompt", kExpected);
  const bool several = value->is_array() && !value->empty() && !value->front().is_number();
  const bool good =
      several ? value->size() <= kMostChoices && std::all_of(value->begin(), value->end(), add)
              : add(*value);
  if (!good) f.Fail("prompt", kExpected);
  if (std::ssize(call.prompts) * call.n > kMostChoices)
    f.Fail(ApiError{.message = fmt::format("n: {} prompts with {} answers each are more than {}",
                                           call.prompts.size(), call.n, kMostChoices),
                    .param = "n"});
}

void ReadCompletion(Fields& f, Call& call) {
  call.base.max_tokens = 16;  // as OpenAI's API has it
  f.Read("max_tokens", int64_t{0}, kMostTokens, call.base.max_tokens);
  f.Read("echo", call.echo);
  f.Read("logprobs", 0, kMostTop, call.base.logprobs);
  if (call.echo) call.base.prompt_logprobs = call.base.logprobs;
  if (call.echo && call.stream && call.base.logprobs >= 0)
    f.Fail(ApiError{.message = "echo: with logprobs it cannot be streamed", .param = "echo"});
  ReadPrompts(f, call);
  ReadResponseFormat(f, "response_format", call);
}

void ReadVariables(Fields& f, ChatOptions& options) {
  const Json* variables = f.ok() ? f.Find("chat_template_kwargs") : nullptr;
  if (!variables) return;
  if (!variables->is_object()) return f.Fail("chat_template_kwargs", "an object");
  options.variables = Dump(*variables);
}

void ReadChat(Fields& f, Call& call) {
  f.Read("max_tokens", int64_t{1}, kMostTokens, call.base.max_tokens);
  f.Read("max_completion_tokens", int64_t{1}, kMostTokens, call.base.max_tokens);
  bool logprobs = false;
  int top = 0;
  f.Read("logprobs", logprobs);
  if (f.Read("top_logprobs", 0, kMostTop, top) && !logprobs)
    f.Fail("top_logprobs", "logprobs: true beside it");
  if (logprobs) call.base.logprobs = top;
  ReadVariables(f, call.chat_options);
  ReadTools(f, call.tools, call.chat_options.tools);
  ReadResponseFormat(f, "response_format", call);
  call.chat = ReadTurns(f, "messages");
}

}  // namespace

void ReadCommon(Fields& f, Call& call) {
  Refuse(f);
  ReadSampling(f, call);
  Request& base = call.base;
  base.max_tokens = -1;
  f.Read("stop", kMostStops, base.stop);
  f.Read("ignore_eos", base.ignore_end);
  f.Read("cache_prompt", base.prefix_cache);
  f.Read("n", 1, kMostChoices, call.n);
  f.Read("stream", call.stream);
  f.Read("plan", call.plan);
  f.Read("exact", call.exact);
  f.Read("return_progress", call.progress);
  if (const Json* options = f.ok() ? f.Find("stream_options") : nullptr) {
    if (!options->is_object()) return f.Fail("stream_options", "an object");
    Fields inner(*options);
    inner.Read("include_usage", call.include_usage);
    f.Adopt("stream_options", inner);
  }
}

std::optional<ApiError> ParseCall(Api api, std::string_view body, Call& call) {
  Json object;
  if (auto error = ParseObject(body, object)) return error;
  call.api = api;
  Fields f(object);
  ReadCommon(f, call);
  switch (api) {
    case Api::kChat:
      ReadChat(f, call);
      break;
    case Api::kCompletions:
      ReadCompletion(f, call);
      break;
    case Api::kResponses:
      ReadResponses(f, call);
      break;
    case Api::kMessages:
      ReadMessages(f, call);
      break;
  }
  return f.error();
}

std::optional<ApiError> ParseTokenize(std::string_view body, TokenCall& call) {
  Json object;
  if (auto error = ParseObject(body, object)) return error;
  Fields f(object);
  f.Read("add_special_tokens", call.special);
  f.Read("add_special", call.special);
  if (f.Find("messages")) {
    Tools tools;
    ReadTools(f, tools, call.chat_options.tools);
    call.chat = ReadTurns(f, "messages");
  } else if (!f.Read("content", call.text) && !f.Read("prompt", call.text)) {
    f.Fail("prompt", "a text, or messages");
  }
  return f.error();
}

std::optional<ApiError> ParseCountTokens(std::string_view body, TokenCall& call) {
  Json object;
  if (auto error = ParseObject(body, object)) return error;
  Fields f(object);
  Tools tools;
  ReadMessagesTools(f, tools, call.chat_options.tools);
  call.chat = ReadMessagesTurns(f);
  return f.error();
}

std::optional<ApiError> ParseDetokenize(std::string_view body, TokenCall& call) {
  Json object;
  if (auto error = ParseObject(body, object)) return error;
  Fields f(object);
  const Json* value = f.Find("tokens");
  auto tokens = value && value->is_array() ? TokensOf(*value) : std::nullopt;
  if (!tokens) f.Fail("tokens", "an array of token ids");
  if (tokens) call.tokens = *std::move(tokens);
  return f.error();
}

}  // namespace baton::server
