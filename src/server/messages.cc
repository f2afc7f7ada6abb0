#include "server/messages.h"

#include <fmt/format.h>

#include <limits>

#include "server/call_parts.h"
#include "server/http.h"

namespace baton::server {

std::vector<ChatTurn> ReadMessagesTurns(Fields& f) {
  std::vector<ChatTurn> turns = ReadTurns(f, "messages");
  std::string system;
  const Json* given = f.ok() ? f.Find("system") : nullptr;
  if (given && !TextOfContent(*given, system))
    f.Fail("system", "a text, or an array of parts of type text");
  if (!system.empty()) turns.insert(turns.begin(), {"system", std::move(system), ""});
  return turns;
}

void ReadMessages(Fields& f, Call& call) {
  call.n = 1;
  if (!f.Read("max_tokens", int64_t{1}, std::numeric_limits<int32_t>::max(), call.base.max_tokens))
    f.Fail("max_tokens", "a whole number of at least 1");
  f.Read("stop_sequences", kMostStops, call.base.stop);
  call.chat = ReadMessagesTurns(f);
}

namespace {

const char* StopReason(const Generation& ended) {
  switch (ended.stop) {
    case Generation::Stop::kEndOfText:
      return "end_turn";
    case Generation::Stop::kStopString:
      return "stop_sequence";
    default:
      return "max_tokens";
  }
}

// Which of several stop texts it was is not known.
Json StopFields(const Answer& a, const Generation& ended) {
  const std::vector<std::string>& stop = a.call->base.stop;
  const bool known = ended.stop == Generation::Stop::kStopString && stop.size() == 1;
  return {{"stop_reason", StopReason(ended)}, {"stop_sequence", known ? Json(stop[0]) : Json()}};
}

Json WriteUsage(const Usage& u) {
  return {{"input_tokens", u.prompt - u.cached},
          {"cache_creation_input_tokens", 0},
          {"cache_read_input_tokens", u.cached},
          {"output_tokens", u.completion}};
}

Json Message(const Answer& a, Json content) {
  return {{"id", a.id},
          {"type", "message"},
          {"role", "assistant"},
          {"model", a.model},
          {"content", std::move(content)},
          {"stop_reason", nullptr},
          {"stop_sequence", nullptr},
          {"usage", WriteUsage(UsageOf(a))}};
}

std::string Event(const char* type, Json fields) {
  Json event{{"type", type}};
  event.update(fields);
  return SseEvent(type, Dump(event));
}

std::string Begin(Answer& a) {
  return Event("message_start", {{"message", Message(a, Json::array())}}) +
         Event("content_block_start",
               {{"index", 0}, {"content_block", {{"type", "text"}, {"text", ""}}}});
}

std::string Progress(Answer&, const Choice&, int64_t done, int64_t total) {
  return Event("ping", {{"processed", done}, {"total", total}});
}

std::string WritePiece(Answer&, Choice&, const Piece& p) {
  if (p.text.empty()) return "";
  return Event("content_block_delta",
               {{"index", 0}, {"delta", {{"type", "text_delta"}, {"text", p.text}}}});
}

std::string EndChoice(Answer& a, const Choice& c) {
  return Event("content_block_stop", {{"index", 0}}) +
         Event("message_delta",
               {{"delta", StopFields(a, *c.ended)}, {"usage", WriteUsage(UsageOf(a))}});
}

std::string End(Answer&) { return Event("message_stop", Json::object()); }

std::string Fail(const ApiError& error) { return SseEvent("error", WriteMessagesError(error)); }

std::string Whole(Answer& a) {
  const Choice& c = a.choices[0];
  Json message = Message(a, Json::array({{{"type", "text"}, {"text", c.text}}}));
  message.update(StopFields(a, *c.ended));
  return Dump(message);
}

}  // namespace

const Writer kMessagesWriter{Begin, Progress, WritePiece, EndChoice,
                             End,   Fail,     Whole,      WriteMessagesError};

}  // namespace baton::server
