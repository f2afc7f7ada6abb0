#include "server/responses.h"

#include <fmt/format.h>

#include <limits>

#include "server/call_parts.h"
#include "server/http.h"

namespace baton::server {

namespace {

// Items as the messages of the chat API: neighbouring calls are one message's. What items have
// besides is of the API, not of the conversation.
Json MessagesOf(const Json& items) {
  if (!items.is_array()) return items;
  Json messages = Json::array();
  for (const Json& item : items) {
    const Json type = item.is_object() ? item.value("type", Json()) : Json();
    if (type == "function_call") {
      const bool more = !messages.empty() && messages.back().is_object() &&
                        messages.back().value("role", Json()) == "assistant";
      if (!more) messages.push_back({{"role", "assistant"}, {"content", ""}});
      messages.back()["tool_calls"].push_back({{"id", item.value("call_id", Json())},
                                               {"type", "function"},
                                               {"function",
                                                {{"name", item.value("name", Json())},
                                                 {"arguments", item.value("arguments", Json())}}}});
    } else if (type == "function_call_output") {
      messages.push_back({{"role", "tool"},
                          {"tool_call_id", item.value("call_id", Json())},
                          {"content", item.value("output", Json())}});
    } else if (item.is_object() && item.contains("role")) {
      messages.push_back({{"role", item["role"]}, {"content", item.value("content", Json())}});
    } else if (type != "reasoning") {
      messages.push_back(item);
    }
  }
  return messages;
}

void ReadResponsesTools(Fields& f, Tools& tools, std::string& described) {
  if (!f.ok()) return;
  Json fields = Json::object();
  for (const char* name : {"tools", "tool_choice", "parallel_tool_calls"})
    if (const Json* value = f.Find(name)) fields[name] = *value;
  // Descriptions stand beside the type here, in a member of its name in the chat API.
  const auto nest = [](Json& value) {
    if (!value.is_object() || value.value("type", Json()) != "function") return;
    Json function = value;
    function.erase("type");
    value = {{"type", "function"}, {"function", std::move(function)}};
  };
  if (fields.contains("tools"))
    for (Json& tool : fields["tools"]) nest(tool);
  if (fields.contains("tool_choice")) nest(fields["tool_choice"]);
  Fields chat(fields);
  ReadTools(chat, tools, described);
  if (!chat.ok()) f.Fail(*chat.error());
}

}  // namespace

void ReadResponses(Fields& f, Call& call) {
  call.n = 1;
  f.Read("max_output_tokens", int64_t{1}, std::numeric_limits<int32_t>::max(),
         call.base.max_tokens);
  const Json* text = f.ok() ? f.Find("text") : nullptr;
  if (text && text->is_object() && text->contains("format"))
    SetResponseFormat(f, "text.format", (*text)["format"], call);
  ReadResponsesTools(f, call.tools, call.chat_options.tools);
  std::string instructions;
  f.Read("instructions", instructions);
  const Json* given = f.ok() ? f.Find("input") : nullptr;
  if (given && given->is_string()) {
    call.chat.push_back({"user", given->get<std::string>(), ""});
  } else if (f.ok()) {
    call.chat = TurnsOf(f, "input", given ? MessagesOf(*given) : Json());
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

// A part of the answer, number `at`, as an item of the output.
Json Item(const Answer& a, const AnswerPart& part, size_t at, const char* status, bool whole) {
  if (part.call >= 0)
    return {{"type", "function_call"},     {"id", fmt::format("fc-{}-{}", a.id, at)},
            {"call_id", part.id},          {"name", part.name},
            {"arguments", part.arguments}, {"status", status}};
  return {{"type", "message"},
          {"id", fmt::format("msg-{}-{}", a.id, at)},
          {"status", status},
          {"role", "assistant"},
          {"content", whole ? Json::array({Part(part.text)}) : Json::array()}};
}

bool Cut(const Answer& a) { return a.choices[0].ended && FinishReason(a.choices[0]) == "length"; }

Json Response(const Answer& a, const char* status, Json output) {
  const Sampling& s = a.call->base.sampling;
  constexpr const char* kChoices[] = {"none", "auto", "required"};
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
         {"parallel_tool_calls", a.call->tools.parallel},
         {"temperature", s.temperature},
         {"tool_choice", kChoices[static_cast<int>(a.call->tools.choice)]},
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
  Json output = Json::array();
  for (const AnswerPart& part : a.choices[0].parts)
    output.push_back(Item(a, part, output.size(), status, true));
  if (output.empty()) output.push_back(Item(a, {}, 0, status, true));
  return Response(a, status, std::move(output));
}

std::string Event(Answer& a, const std::string& type, Json fields) {
  Json event{{"type", type}, {"sequence_number", a.events++}};
  event.update(fields);
  return SseEvent(type, Dump(event));
}

// Fields that say which item, the one that is being written, an event is about.
Json InItem(const Answer& a, const AnswerPart& part, Json fields) {
  const size_t at = a.written - 1;
  Json all{{"item_id", fmt::format("{}-{}-{}", part.call < 0 ? "msg" : "fc", a.id, at)},
           {"output_index", at}};
  if (part.call < 0) all["content_index"] = 0;
  all.update(fields);
  return all;
}

// One statement an event: they are numbered as they are written.
std::string Begin(Answer& a) {
  const Json response = Response(a, "in_progress", Json::array());
  std::string events = Event(a, "response.created", {{"response", response}});
  events += Event(a, "response.in_progress", {{"response", response}});
  return events;
}

std::string EndItem(Answer& a, const AnswerPart& part) {
  std::string events;
  if (part.call >= 0) {
    events += Event(a, "response.function_call_arguments.done",
                    InItem(a, part, {{"name", part.name}, {"arguments", part.arguments}}));
  } else {
    events += Event(a, "response.output_text.done",
                    InItem(a, part, {{"text", part.text}, {"logprobs", Json::array()}}));
    events += Event(a, "response.content_part.done", InItem(a, part, {{"part", Part(part.text)}}));
  }
  const size_t at = a.written - 1;
  events += Event(a, "response.output_item.done",
                  {{"output_index", at},
                   {"item", Item(a, part, at, Cut(a) ? "incomplete" : "completed", true)}});
  return events;
}

// Ends the item before it, if there is one.
std::string BeginItem(Answer& a, AnswerPart part) {
  std::string events = a.written > 0 ? EndItem(a, a.choices[0].parts[a.written - 1]) : "";
  const size_t at = a.written++;
  part.arguments.clear();
  events += Event(a, "response.output_item.added",
                  {{"output_index", at}, {"item", Item(a, part, at, "in_progress", false)}});
  if (part.call < 0)
    events += Event(a, "response.content_part.added", InItem(a, part, {{"part", Part("")}}));
  return events;
}

std::string Progress(Answer& a, const Choice&, int64_t done, int64_t total) {
  return Event(a, "response.prompt_progress", {{"processed", done}, {"total", total}});
}

std::string WritePiece(Answer& a, Choice&, const Piece& p) {
  std::string events;
  const AnswerPart& part = p.part;
  if (part.call < 0 && p.text.empty()) return events;
  if (p.at >= a.written) events = BeginItem(a, part);
  if (!p.text.empty())
    events += Event(a, "response.output_text.delta",
                    InItem(a, part, {{"delta", p.text}, {"logprobs", Json::array()}}));
  if (!part.arguments.empty())
    events += Event(a, "response.function_call_arguments.delta",
                    InItem(a, part, {{"delta", part.arguments}}));
  return events;
}

std::string EndChoice(Answer& a, Choice& c) {
  if (c.parts.empty()) c.parts.emplace_back();
  std::string events = a.written == 0 ? BeginItem(a, {}) : "";
  events += EndItem(a, c.parts[a.written - 1]);
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
