#include "server/openai.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "server/http.h"

namespace baton::server {
namespace {

// Characters of UTF-8; a byte that begins none counts as part of the one before.
int64_t Characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

bool IsUtf8(const std::string& bytes) {
  try {
    (void)Json(bytes).dump();
    return true;
  } catch (const Json::type_error&) {
    return false;
  }
}

// JSON has no infinity: as small as OpenAI's own answers get.
double Finite(double logprob) { return std::isfinite(logprob) ? logprob : -9999.0; }

Json Head(const Answer& a, std::string_view object) {
  return {{"id", a.id}, {"object", object}, {"created", a.created}, {"model", a.model}};
}

// A chunk of a stream with one choice.
std::string ChunkEvent(const Answer& a, std::string_view object, Json choice, Json timings = {}) {
  Json chunk = Head(a, object);
  chunk["choices"] = Json::array({std::move(choice)});
  if (a.call->include_usage) chunk["usage"] = nullptr;
  if (!timings.is_null()) chunk["timings"] = std::move(timings);
  return SseEvent(Dump(chunk));
}

std::string ProgressEvent(const Answer& a, std::string_view object, const Choice& c, int64_t done,
                          int64_t total) {
  Json chunk = Head(a, object);
  chunk["choices"] = Json::array();
  chunk["prompt_progress"] = {{"index", c.index}, {"processed", done}, {"total", total}};
  return SseEvent(Dump(chunk));
}

std::string End(const Answer& a, std::string_view object) {
  std::string events;
  if (a.call->include_usage) {
    Json chunk = Head(a, object);
    chunk["choices"] = Json::array();
    chunk["usage"] = WriteUsage(UsageOf(a));
    events = SseEvent(Dump(chunk));
  }
  return events + SseEvent("[DONE]");
}

std::string Fail(const ApiError& error) { return SseEvent(WriteError(error)) + SseEvent("[DONE]"); }

Json Whole(const Answer& a, std::string_view object, Json choices) {
  Json whole = Head(a, object);
  whole["choices"] = std::move(choices);
  whole["usage"] = WriteUsage(UsageOf(a));
  if (!a.choices.empty() && a.choices[0].ended)
    whole["timings"] = TimingsOf(a.choices[0].ended->stats);
  return whole;
}

// --- chat

constexpr std::string_view kChatChunk = "chat.completion.chunk";

Json ChatToken(const Answer& a, const TokenLogprob& t) {
  const std::string bytes = a.token_bytes(t.token);
  Json values = Json::array();
  for (const char c : bytes) values.push_back(static_cast<unsigned char>(c));
  return {{"token", bytes}, {"logprob", Finite(t.logprob)}, {"bytes", std::move(values)}};
}

Json ChatLogprobs(const Answer& a, const std::vector<Generation::Logprobs>& tokens) {
  if (a.call->base.logprobs < 0) return nullptr;
  Json content = Json::array();
  for (const auto& t : tokens) {
    Json one = ChatToken(a, t.chosen);
    one["top_logprobs"] = Json::array();
    for (const TokenLogprob& top : t.top) one["top_logprobs"].push_back(ChatToken(a, top));
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

Json ChatDelta(const Choice& c, Json delta, Json logprobs, Json finish) {
  return {{"index", c.index},
          {"delta", std::move(delta)},
          {"logprobs", std::move(logprobs)},
          {"finish_reason", std::move(finish)}};
}

std::string ChatBegin(Answer& a) {
  std::string events;
  for (const Choice& c : a.choices)
    events += ChunkEvent(a, kChatChunk,
                         ChatDelta(c, {{"role", "assistant"}, {"content", ""}}, nullptr, nullptr));
  return events;
}

std::string ChatProgress(Answer& a, const Choice& c, int64_t done, int64_t total) {
  return ProgressEvent(a, kChatChunk, c, done, total);
}

// A call, or what a stream adds to it: its id and its name come once.
Json ToolCall(const AnswerPart& part) {
  Json call = Json::object(), function = Json::object();
  if (!part.name.empty()) {
    call = {{"id", part.id}, {"type", "function"}};
    function["name"] = part.name;
  }
  function["arguments"] = part.arguments;
  call["function"] = std::move(function);
  return call;
}

std::string ChatPiece(Answer& a, Choice& c, const Piece& p) {
  Json delta{{"content", p.text}};
  if (p.part.call >= 0) {
    Json call{{"index", p.part.call}};
    call.update(ToolCall(p.part));
    delta = {{"tool_calls", Json::array({std::move(call)})}};
  }
  return ChunkEvent(a, kChatChunk,
                    ChatDelta(c, std::move(delta), ChatLogprobs(a, p.tokens), nullptr));
}

std::string ChatEndChoice(Answer& a, Choice& c) {
  return ChunkEvent(a, kChatChunk, ChatDelta(c, Json::object(), nullptr, FinishReason(c)),
                    TimingsOf(c.ended->stats));
}

Json ChatMessage(const Choice& c) {
  Json message{{"role", "assistant"}, {"content", c.text}}, calls = Json::array();
  for (const AnswerPart& part : c.parts)
    if (part.call >= 0) calls.push_back(ToolCall(part));
  if (calls.empty()) return message;
  if (c.text.empty()) message["content"] = nullptr;
  message["tool_calls"] = std::move(calls);
  return message;
}

std::string ChatEnd(Answer& a) { return End(a, kChatChunk); }

std::string ChatWhole(Answer& a) {
  Json choices = Json::array();
  for (const Choice& c : a.choices)
    choices.push_back({{"index", c.index},
                       {"message", ChatMessage(c)},
                       {"logprobs", ChatLogprobs(a, c.tokens)},
                       {"finish_reason", FinishReason(c)}});
  return Dump(Whole(a, "chat.completion", std::move(choices)));
}

// --- completions

constexpr std::string_view kCompletion = "text_completion";

struct CompletionLogprobs {
  const Answer& answer;
  int64_t& offset;
  Json tokens = Json::array(), logprobs = Json::array(), top = Json::array(),
       offsets = Json::array();

  // The prompt's first token has no logprob: nothing precedes it.
  void AddFirst(int32_t token) { Add(token, nullptr, nullptr); }
  void Add(const Generation::Logprobs& t) {
    Json likeliest = Json::object();
    for (const TokenLogprob& l : t.top)
      likeliest[ShownToken(answer.token_bytes(l.token))] = Finite(l.logprob);
    likeliest[ShownToken(answer.token_bytes(t.chosen.token))] = Finite(t.chosen.logprob);
    Add(t.chosen.token, Finite(t.chosen.logprob), std::move(likeliest));
  }
  Json Done() {
    return {{"tokens", std::move(tokens)},
            {"token_logprobs", std::move(logprobs)},
            {"top_logprobs", std::move(top)},
            {"text_offset", std::move(offsets)}};
  }

 private:
  void Add(int32_t token, Json logprob, Json likeliest) {
    const std::string bytes = answer.token_bytes(token);
    tokens.push_back(ShownToken(bytes));
    logprobs.push_back(std::move(logprob));
    top.push_back(std::move(likeliest));
    offsets.push_back(offset);
    offset += Characters(bytes);
  }
};

Json CompletionChoice(const Choice& c, const std::string& text, Json logprobs, Json finish) {
  return {{"index", c.index},
          {"text", text},
          {"logprobs", std::move(logprobs)},
          {"finish_reason", std::move(finish)}};
}

std::string CompletionBegin(Answer& a) {
  std::string events;
  for (const Choice& c : a.choices) {
    if (a.call->echo)
      events += ChunkEvent(a, kCompletion, CompletionChoice(c, c.prompt_text, nullptr, nullptr));
  }
  return events;
}

std::string CompletionProgress(Answer& a, const Choice& c, int64_t done, int64_t total) {
  return ProgressEvent(a, kCompletion, c, done, total);
}

Json AnswerLogprobs(const Answer& a, Choice& c, const std::vector<Generation::Logprobs>& tokens) {
  if (a.call->base.logprobs < 0) return nullptr;
  CompletionLogprobs logprobs{a, c.characters_written};
  for (const auto& t : tokens) logprobs.Add(t);
  return logprobs.Done();
}

std::string CompletionPiece(Answer& a, Choice& c, const Piece& p) {
  return ChunkEvent(a, kCompletion,
                    CompletionChoice(c, p.text, AnswerLogprobs(a, c, p.tokens), nullptr));
}

std::string CompletionEndChoice(Answer& a, Choice& c) {
  return ChunkEvent(a, kCompletion, CompletionChoice(c, "", nullptr, FinishReason(c)),
                    TimingsOf(c.ended->stats));
}

std::string CompletionEnd(Answer& a) { return End(a, kCompletion); }

std::string CompletionWhole(Answer& a) {
  Json choices = Json::array();
  for (Choice& c : a.choices) {
    Json logprobs;
    if (a.call->echo && a.call->base.logprobs >= 0) {
      CompletionLogprobs all{a, c.characters_written};
      if (!c.prompt_ids.empty()) all.AddFirst(c.prompt_ids[0]);
      for (const auto& t : c.ended->prompt_logprobs) all.Add(t);
      for (const auto& t : c.tokens) all.Add(t);
      logprobs = all.Done();
    } else {
      logprobs = AnswerLogprobs(a, c, c.tokens);
    }
    choices.push_back(CompletionChoice(c, a.call->echo ? c.prompt_text + c.text : c.text,
                                       std::move(logprobs), FinishReason(c)));
  }
  return Dump(Whole(a, kCompletion, std::move(choices)));
}

}  // namespace

std::string ShownToken(const std::string& bytes) {
  if (IsUtf8(bytes)) return bytes;
  std::string shown = "bytes:";
  for (const char c : bytes) shown += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return shown;
}

Json WriteUsage(const Usage& u) {
  return {{"prompt_tokens", u.prompt},
          {"completion_tokens", u.completion},
          {"total_tokens", u.prompt + u.completion},
          {"prompt_tokens_details", {{"cached_tokens", u.cached}}}};
}

const Writer kChatWriter{ChatBegin, ChatProgress, ChatPiece, ChatEndChoice,
                         ChatEnd,   Fail,         ChatWhole, WriteError};
const Writer kCompletionWriter{CompletionBegin,     CompletionProgress, CompletionPiece,
                               CompletionEndChoice, CompletionEnd,      Fail,
                               CompletionWhole,     WriteError};

}  // namespace baton::server
