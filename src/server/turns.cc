// Conversations, and the form that an answer to them must have.
#include <fmt/format.h>

#include <utility>

#include "server/call_parts.h"

namespace baton::server {
namespace {

// Templates write the arguments of calls as JSON; clients send them as a text that is JSON.
bool OpenArguments(Json& calls) {
  if (!calls.is_array()) return false;
  for (Json& call : calls) {
    if (!call.is_object() || !call.value("function", Json()).is_object()) return false;
    Json& function = call["function"];
    if (!function.value("name", Json()).is_string()) return false;
    Json& arguments = function["arguments"];
    if (arguments.is_string()) {
      const auto text = arguments.get<std::string>();
      if (text.empty()) {
        arguments = Json::object();
      } else if (ParseObject(text, arguments)) {
        return false;
      }
    }
    if (!arguments.is_object()) return false;
  }
  return true;
}

}  // namespace

bool TextOfContent(const Json& content, std::string& text) {
  if (content.is_null()) return true;
  if (content.is_string()) return text = content.get<std::string>(), true;
  if (!content.is_array()) return false;
  for (const Json& part : content) {
    if (!part.is_object()) return false;
    const Json type = part.value("type", Json());
    const Json piece = part.value("text", Json());
    if ((type != "text" && type != "input_text" && type != "output_text") || !piece.is_string())
      return false;
    text += piece.get_ref<const std::string&>();
  }
  return true;
}

std::vector<ChatTurn> ReadTurns(Fields& f, std::string_view name) {
  const Json* messages = f.ok() ? f.Find(name) : nullptr;
  if (!f.ok()) return {};
  if (!messages) return f.Fail(name, "an array of messages"), std::vector<ChatTurn>();
  return TurnsOf(f, name, *messages);
}

std::vector<ChatTurn> TurnsOf(Fields& f, std::string_view name, const Json& messages) {
  std::vector<ChatTurn> turns;
  if (!messages.is_array() || messages.empty()) return f.Fail(name, "an array of messages"), turns;
  for (const Json& message : messages) {
    const std::string place = fmt::format("{}[{}]", name, turns.size());
    const auto fail = [&](std::string_view expected) {
      f.Fail(ApiError{.message = fmt::format("{}: expected {}", place, expected),
                      .param = std::string(name)});
      return std::vector<ChatTurn>();
    };
    if (!message.is_object()) return fail("an object, got " + KindOf(message));
    ChatTurn turn;
    Json members = Json::object();
    for (const auto& [key, value] : message.items()) {
      if (key == "role" && value.is_string()) {
        turn.role = value.get<std::string>();
      } else if (key == "content") {
        if (!TextOfContent(value, turn.content))
          return fail("a content that is a text, or an array of parts of type text");
      } else if (!value.is_null() && key != "role") {
        members[key] = value;
        if (key == "tool_calls" && !OpenArguments(members[key]))
          return fail("tool_calls of functions, with arguments that are a JSON object");
      }
    }
    if (turn.role.empty()) return fail("a role");
    if (turn.role == "developer") turn.role = "system";  // the name that templates know
    if (!members.empty()) turn.members = Dump(members);
    turns.push_back(std::move(turn));
  }
  return turns;
}

void SetResponseFormat(Fields& f, std::string_view name, const Json& format, Call& call) {
  const auto fail = [&](std::string_view expected) {
    f.Fail({.message = fmt::format("{}: expected {}", name, expected), .param = std::string(name)});
  };
  const Json type = format.is_object() ? format.value("type", Json()) : Json();
  if (format.is_object() && (format.empty() || type == "text")) return;
  if (type == "json_object") {
    call.grammar.schema = R"({"type": "object"})";
    return;
  }
  if (type != "json_schema") return fail("a type: text, json_object or json_schema");
  const Json& inner = format.contains("json_schema") ? format["json_schema"] : format;
  const Json schema = inner.is_object() ? inner.value("schema", Json()) : Json();
  if (!schema.is_object()) return fail("a schema that is a JSON object");
  call.grammar.schema = Dump(schema);
  call.grammar.strict = inner.value("strict", Json()) == true;
}

void ReadResponseFormat(Fields& f, std::string_view name, Call& call) {
  const Json* format = f.ok() ? f.Find(name) : nullptr;
  if (format) SetResponseFormat(f, name, *format, call);
}

}  // namespace baton::server
