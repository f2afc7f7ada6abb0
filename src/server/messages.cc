#include "server/messages.h"

#include <fmt/format.h>

#include <limits>

#include "server/call_parts.h"
#include "server/http.h"

namespace baton::server {

namespace {

// One message as those of OpenAI's API: calls beside the content, and a message for each result.
// What is malformed stays as it is.
void AddMessage(const Json& message, Json& all) {
  const Json content = message.is_object() ? message.value("content", Json()) : Json();
  if (!content.is_array()) return all.push_back(message);
  Json rest = Json::array(), calls = Json::array();
  for (const Json& block : content) {
    const Json type = block.is_object() ? block.value("type", Json()) : Json();
    if (type == "tool_use") {
      calls.push_back({{"id", block.value("id", Json())},
                       {"type", "function"},
                       {"function",
                        {{"name", block.value("name", Json())},
                         {"arguments", block.value("input", Json::object())}}}});
    } else if (type == "tool_result") {
      all.push_back({{"role", "tool"},
                     {"tool_call_id", block.value("tool_use_id", Json())},
                     {"content", block.value("content", Json())}});
    } else if (type != "thinking" && type != "redacted_thinking") {
      rest.push_back(block);
    }
  }
  if (rest.empty() && calls.empty()) return;  // results alone
  Json turn{{"role", message.value("role", Json())}, {"content", std::move(rest)}};
  if (!calls.empty()) turn["tool_calls"] = std::move(calls);
  all.push_back(std::move(turn));
}

// Tools and the choice among them as OpenAI's chat API has them.
Json ToolFields(const Fields& f) {
  Json fields = Json::object();
  if (const Json* tools = f.Find("tools")) {
    fields["tools"] = *tools;
    for (Json& tool : fields["tools"]) {
      if (!tool.is_object() || (tool.contains("type") && tool["type"] != "custom")) continue;
      Json function{{"name", tool.value("name", Json())}};
      if (tool.contains("description")) function["description"] = tool["description"];
      function["parameters"] = tool.value("input_schema", Json());
      if (tool.contains("strict")) function["strict"] = tool["strict"];
      tool = {{"type", "function"}, {"function", std::move(function)}};
    }
  }
  const Json* choice = f.Find("tool_choice");
  if (!choice) return fields;
  const auto member = [&](const char* name) {
    return choice->is_object() ? choice->value(name, Json()) : Json();
  };
  fields["tool_choice"] = *choice;
  const Json type = member("type");
  if (type == "auto" || type == "none") fields["tool_choice"] = type;
  if (type == "any") fields["tool_choice"] = "required";
  if (type == "tool")
    fields["tool_choice"] = {{"type", "function"}, {"function", {{"name", member("name")}}}};
  if (member("disable_parallel_tool_use") == true) fields["parallel_tool_calls"] = false;
  return fields;
}

}  // namespace

void ReadMessagesTools(Fields& f, Tools& tools, std::string& described) {
  if (!f.ok()) return;
  const Json given = ToolFields(f);
  Fields chat(given);
  ReadTools(chat, tools, described);
  if (!chat.ok()) f.Fail(*chat.error());
}

std::vector<ChatTurn> ReadMessagesTurns(Fields& f) {
  const Json* messages = f.ok() ? f.Find("messages") : nullptr;
  Json all = Json::array();
  if (messages && messages->is_array())
    for (const Json& message : *messages) AddMessage(message, all);
  std::vector<ChatTurn> turns;
  if (f.ok()) turns = TurnsOf(f, "messages", all);
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
  ReadMessagesTools(f, call.tools, call.chat_options.tools);
  call.chat = ReadMessagesTurns(f);
}

namespace {

const char* StopReason(const Choice& c) {
  if (FinishReason(c) == "tool_calls") return "tool_use";
  switch (c.ended->stop) {
    case Generation::Stop::kEndOfText:
      return "end_turn";
    case Generation::Stop::kStopString:
      return "stop_sequence";
    default:
      return "max_tokens";
  }
}

// Which of several stop texts it was is not known.
Json StopFields(const Answer& a, const Choice& c) {
  const std::vector<std::string>& stop = a.call->base.stop;
  const bool known = c.ended->stop == Generation::Stop::kStopString && stop.size() == 1;
  return {{"stop_reason", StopReason(c)}, {"stop_sequence", known ? Json(stop[0]) : Json()}};
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
  return Event("message_start", {{"message", Message(a, Json::array())}});
}

std::string Progress(Answer&, const Choice&, int64_t done, int64_t total) {
  return Event("ping", {{"processed", done}, {"total", total}});
}

Json Block(const AnswerPart& part, Json input) {
  if (part.call < 0) return {{"type", "text"}, {"text", part.text}};
  return {{"type", "tool_use"}, {"id", part.id}, {"name", part.name}, {"input", std::move(input)}};
}

// Of the part that is being written, which is a block.
std::string InBlock(const Answer& a, const char* type, Json fields = Json::object()) {
  Json all{{"index", a.written - 1}};
  all.update(fields);
  return Event(type, std::move(all));
}

// Ends the block before it, if there is one.
std::string BeginBlock(Answer& a, const AnswerPart& empty) {
  std::string events = a.written > 0 ? InBlock(a, "content_block_stop") : "";
  ++a.written;
  return events +
         InBlock(a, "content_block_start", {{"content_block", Block(empty, Json::object())}});
}

std::string WritePiece(Answer& a, Choice&, const Piece& p) {
  std::string events;
  const AnswerPart& part = p.part;
  if (part.call < 0 && p.text.empty()) return events;
  if (p.at >= a.written)
    events = BeginBlock(a, {.call = part.call, .name = part.name, .id = part.id});
  if (!p.text.empty())
    events +=
        InBlock(a, "content_block_delta", {{"delta", {{"type", "text_delta"}, {"text", p.text}}}});
  if (!part.arguments.empty())
    events +=
        InBlock(a, "content_block_delta",
                {{"delta", {{"type", "input_json_delta"}, {"partial_json", part.arguments}}}});
  return events;
}

std::string EndChoice(Answer& a, Choice& c) {
  const std::string empty = a.written == 0 ? BeginBlock(a, {}) : "";
  return empty + InBlock(a, "content_block_stop") +
         Event("message_delta", {{"delta", StopFields(a, c)}, {"usage", WriteUsage(UsageOf(a))}});
}

std::string End(Answer&) { return Event("message_stop", Json::object()); }

std::string Fail(const ApiError& error) { return SseEvent("error", WriteMessagesError(error)); }

std::string Whole(Answer& a) {
  const Choice& c = a.choices[0];
  Json blocks = Json::array();
  for (const AnswerPart& part : c.parts) {
    Json input = Json::parse(part.arguments, nullptr, false);
    blocks.push_back(Block(part, input.is_object() ? std::move(input) : Json::object()));
  }
  if (blocks.empty()) blocks.push_back(Block({}, {}));
  Json message = Message(a, std::move(blocks));
  message.update(StopFields(a, c));
  return Dump(message);
}

}  // namespace

const Writer kMessagesWriter{Begin, Progress, WritePiece, EndChoice,
                             End,   Fail,     Whole,      WriteMessagesError};

}  // namespace baton::server
