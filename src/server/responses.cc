#include "server/responses.h"

#include <fmt/format.h>

#include <limits>

#include "server/call_parts.h"
#include "server/http.h"

namespace baton::server {

void ReadResponses(Fields& f, Call& call) {
  call.n = 1;
  f.Read("max_output_tokens", int64_t{1}, std::numeric_limits<int32_t>::max(),
         call.base.max_tokens);
  if (const Json* text = f.ok() ? f.Find("text") : nullptr) {
    const Json* format =
        text->is_object() && text->contains("format") ? &(*text)["format"] : nullptr;
    if (format && (!format->is_object() || format->value("type", Json()) != "text"))
      f.Fail(ApiError{.message = "text.format: only the type text is supported",
                      .param = "text.format",
                      .code = "unsupported_parameter"});
  }
  std::string instructions, input;
  f.Read("instructions", instructions);
  const Json* given = f.ok() ? f.Find("input") : nullptr;
  if (given && given->is_string()) {
    call.chat.push_back({"user", given->get<std::string>(), ""});
  } else {
    call.chat = ReadTurns(f, "input");
    // What items have besides is of the API, not of the conversation.
    for (ChatTurn& turn : call.chat) turn.members.clear();
  }
  if (!instructions.empty()) call.chat.insert(call.chat.begin(), {"system", instructions, ""});
}

namespace {

Json Part(const std::string& text) {
  return {{"type", "output_text"},
          {"text", text},
          {"annotations", Json::array()},
          {"logprobs", Json::array()}};
}

Json Item(const Answer& a, const char* status, Json content) {
  return {{"type", "message"},
          {"id", "msg-" + a.id},
          {"status", status},
          {"role", "assistant"},
          {"content", std::move(content)}};
}

bool Cut(const Answer& a) {
  return a.choices[0].ended && FinishReason(*a.choices[0].ended) == "length";
}

Json Response(const Answer& a, const char* status, Json output) {
  const Sampling& s = a.call->base.sampling;
  Json r{{"id", a.id},
         {"object", "response"},
         {"created_at", a.created},
         {"status", status},
         {"error", nullptr},
         {"incomplete_details", Cut(a) ? Json{{"reason", "max_output_tokens"}} : Json()},
         {"instructions", nullptr},
         {"metadata", Json::object()},
         {"model", a.model},
         {"output", std::move(output)},
         {"parallel_tool_calls", false},
         {"temperature", s.temperature},
         {"tool_choice", "auto"},
         {"tools", Json::array()},
         {"top_p", s.top_p},
         {"previous_response_id", nullptr},
         {"text", {{"format", {{"type", "text"}}}}},
         {"store", false}};
  if (!a.choices[0].ended) return r;
  const Usage u = UsageOf(a);
  r["usage"] = {{"input_tokens", u.prompt},
                {"input_tokens_details", {{"cached_tokens", u.cached}}},
                {"output_tokens", u.completion},
                {"output_tokens_details", {{"reasoning_tokens", 0}}},
                {"total_tokens", u.prompt + u.completion}};
  r["timings"] = TimingsOf(a.choices[0].ended->stats);
  return r;
}

Json Finished(const Answer& a) {
  const char* status = Cut(a) ? "incomplete" : "completed";
  return Response(a, status,
                  Json::array({Item(a, status, Json::array({Part(a.choices[0].text)}))}));
}

std::string Event(Answer& a, const std::string& type, Json fields) {
  Json event{{"type", type}, {"sequence_number", a.events++}};
  event.update(fields);
  return SseEvent(type, Dump(event));
}

// Fields that say which part of the output an event is about: there is one.
Json InPart(const Answer& a, Json fields) {
  Json all{{"item_id", "msg-" + a.id}, {"output_index", 0}, {"content_index", 0}};
  all.update(fields);
  return all;
}

// One statement an event: they are numbered as they are written.
std::string Begin(Answer& a) {
  const Json response = Response(a, "in_progress", Json::array());
  std::string events = Event(a, "response.created", {{"response", response}});
  events += Event(a, "response.in_progress", {{"response", response}});
  events += Event(a, "response.output_item.added",
                  {{"output_index", 0}, {"item", Item(a, "in_progress", Json::array())}});
  events += Event(a, "response.content_part.added", InPart(a, {{"part", Part("")}}));
  return events;
}

std::string Progress(Answer& a, const Choice&, int64_t done, int64_t total) {
  return Event(a, "response.prompt_progress", {{"processed", done}, {"total", total}});
}

std::string WritePiece(Answer& a, Choice&, const Piece& p) {
  if (p.text.empty()) return "";
  return Event(a, "response.output_text.delta",
               InPart(a, {{"delta", p.text}, {"logprobs", Json::array()}}));
}

std::string EndChoice(Answer& a, const Choice& c) {
  const char* status = Cut(a) ? "incomplete" : "completed";
  std::string events = Event(a, "response.output_text.done",
                             InPart(a, {{"text", c.text}, {"logprobs", Json::array()}}));
  events += Event(a, "response.content_part.done", InPart(a, {{"part", Part(c.text)}}));
  events += Event(a, "response.output_item.done",
                  {{"output_index", 0}, {"item", Item(a, status, Json::array({Part(c.text)}))}});
  return events;
}

std::string End(Answer& a) {
  return Event(a, Cut(a) ? "response.incomplete" : "response.completed",
               {{"response", Finished(a)}});
}

std::string Fail(const ApiError& error) {
  return SseEvent("error", Dump({{"type", "error"},
                                 {"code", error.code},
                                 {"message", error.message},
                                 {"param", error.param}}));
}

std::string Whole(Answer& a) { return Dump(Finished(a)); }

}  // namespace

const Writer kResponsesWriter{Begin, Progress, WritePiece, EndChoice, End, Fail, Whole, WriteError};

}  // namespace baton::server
