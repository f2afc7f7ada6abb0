#include "server/tools.h"

#include <fmt/format.h>

#include <algorithm>

namespace baton::server {
namespace {

constexpr size_t kMostTools = 256;

bool IsName(const Json& name) {
  if (!name.is_string()) return false;
  const auto& text = name.get_ref<const std::string&>();
  return !text.empty() && text.size() <= 128 && std::ranges::all_of(text, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  });
}

// A function without parameters takes none.
Json ParametersOf(const Json& function) {
  const auto given = function.find("parameters");
  if (given != function.end() && !given->is_null()) return *given;
  return {{"type", "object"}, {"properties", Json::object()}, {"additionalProperties", false}};
}

bool AddTool(Fields& f, const Json& tool, size_t at, Tools& tools) {
  const auto bad = [&](std::string_view expected) {
    f.Fail({.message = fmt::format("tools[{}]: expected {}", at, expected), .param = "tools"});
    return false;
  };
  if (!tool.is_object() || tool.value("type", Json()) != "function")
    return bad("an object of type function");
  const Json function = tool.value("function", Json());
  if (!function.is_object() || !IsName(function.value("name", Json())))
    return bad("a function with a name of up to 128 letters, digits, _, - and .");
  Tool read{.name = function["name"].get<std::string>(), .parameters = ParametersOf(function)};
  if (!read.parameters.is_object()) return bad("parameters that are a JSON Schema");
  const Json strict = function.value("strict", Json());
  read.strict = strict.is_boolean() && strict.get<bool>();
  if (std::ranges::any_of(tools.list, [&](const Tool& t) { return t.name == read.name; }))
    return bad("a name that no other function has");
  tools.list.push_back(std::move(read));
  return true;
}

void ReadChoice(Fields& f, Tools& tools) {
  const Json* choice = f.ok() ? f.Find("tool_choice") : nullptr;
  if (!choice) return;
  using Choice = Tools::Choice;
  if (*choice == "none" || *choice == "auto") {
    tools.choice = *choice == "none" ? Choice::kNone : Choice::kAuto;
    return;
  }
  tools.choice = Choice::kRequired;
  if (*choice != "required") {
    const Json function = choice->is_object() && choice->value("type", Json()) == "function"
                              ? choice->value("function", Json::object())
                              : Json::object();
    const Json name = function.is_object() ? function.value("name", Json()) : Json();
    if (!name.is_string())
      return f.Fail("tool_choice", "none, auto, required, or a function by its name");
    tools.only = name.get<std::string>();
  }
  const bool known =
      tools.only.empty()
          ? !tools.list.empty()
          : std::ranges::any_of(tools.list, [&](const Tool& t) { return t.name == tools.only; });
  if (!known)
    f.Fail({.message = fmt::format("tool_choice: expected one of tools, got {}",
                                   tools.only.empty() ? "no tools" : tools.only.substr(0, 100)),
            .param = "tool_choice"});
}

// References within a schema, for the place at which it stands in another.
void MoveReferences(Json& schema, const std::string& place) {
  if (schema.is_structured()) {
    for (auto& [key, value] : schema.items()) {
      if (key == "$ref" && value.is_string() &&
          value.get_ref<const std::string&>().starts_with('#'))
        value = place + value.get<std::string>().substr(1);
      else
        MoveReferences(value, place);
    }
  }
}

// A call of one of the functions.
Json SchemaOf(const Tools& tools, ToolStyle style) {
  const char* arguments = style == ToolStyle::kLlama ? "parameters" : "arguments";
  Json calls = Json::array(), schemas = Json::object();
  for (const Tool& tool : tools.list) {
    if (!tools.only.empty() && tool.name != tools.only) continue;
    const std::string key = fmt::format("tool_{}", calls.size());
    Json parameters = tool.parameters;
    MoveReferences(parameters, "#/$defs/" + key);
    schemas[key] = std::move(parameters);
    Json members = {{"name", {{"const", tool.name}}}, {arguments, {{"$ref", "#/$defs/" + key}}}};
    if (style == ToolStyle::kMistral)  // which some of its models write
      members["id"] = {{"type", "string"}, {"pattern", "^[a-zA-Z0-9]{9}$"}};
    calls.push_back({{"type", "object"},
                     {"properties", std::move(members)},
                     {"required", Json::array({"name", arguments})},
                     {"additionalProperties", false}});
  }
  Json schema = calls.size() == 1 ? std::move(calls[0]) : Json{{"anyOf", std::move(calls)}};
  schema["$defs"] = std::move(schemas);
  return schema;
}

}  // namespace

ToolStyle StyleOf(std::string_view chat_template) {
  const auto has = [&](std::string_view text) { return chat_template.find(text) != text.npos; };
  if (!has("tools")) return ToolStyle::kNone;
  // Calls in XML look alike from outside.
  if (has("<tool_call>")) return has("<function=") ? ToolStyle::kNone : ToolStyle::kHermes;
  // Later templates have the name and [ARGS] in place of a list.
  if (has("[TOOL_CALLS]")) return has("[ARGS]") ? ToolStyle::kNone : ToolStyle::kMistral;
  return has("\"parameters\": ") && has("ipython") ? ToolStyle::kLlama : ToolStyle::kNone;
}

void ReadTools(Fields& f, Tools& tools, std::string& described) {
  const Json* given = f.ok() ? f.Find("tools") : nullptr;
  if (given && (!given->is_array() || given->size() > kMostTools))
    return f.Fail("tools", fmt::format("an array of up to {}", kMostTools));
  for (size_t i = 0; given && i < given->size(); ++i)
    if (!AddTool(f, (*given)[i], i, tools)) return;
  if (!tools.list.empty()) described = Dump(*given);
  ReadChoice(f, tools);
  f.Read("parallel_tool_calls", tools.parallel);
}

GrammarSpec GrammarOf(const Tools& tools, ToolStyle style, const GrammarSpec& format) {
  GrammarSpec spec;
  if (!tools.on() || style == ToolStyle::kNone) return spec;
  const bool required = tools.choice == Tools::Choice::kRequired;
  const bool formed = !required && !format.schema.empty();
  // Text is free where neither a call nor a form is asked for.
  const bool free = !required && !formed;
  if (style == ToolStyle::kLlama && free) return spec;
  spec.schema = Dump(SchemaOf(tools, style));
  spec.strict = std::ranges::any_of(tools.list, [](const Tool& t) { return t.strict; });
  if (formed) spec.or_else.push_back(format);
  if (style == ToolStyle::kLlama) return spec;
  const bool several = tools.parallel && tools.only.empty();
  if (style == ToolStyle::kMistral) {
    const char* more = several ? " ([ \\n]{0,2} \",\" [ \\n]{0,2} root)*" : "";
    const auto list =
        fmt::format("[ \\n]{{0,2}} \"[\" [ \\n]{{0,2}} root{} [ \\n]{{0,2}} \"]\"", more);
    spec.around =
        fmt::format("calls ::= {}\nanswer ::= {}\n", list,
                    free ? "TagDispatch((\"[TOOL_CALLS]\", calls), loop_after_dispatch=false)"
                         : "\"[TOOL_CALLS]\" calls");
    return spec;
  }
  constexpr std::string_view kBody =
      "tool_call_body ::= [ \\n]{0,2} root [ \\n]{0,2} \"</tool_call>\"\n";
  if (free) {
    spec.around = fmt::format(
        "answer ::= TagDispatch((\"<tool_call>\", tool_call_body), loop_after_dispatch={})\n{}",
        tools.parallel, kBody);
  } else {
    spec.around = fmt::format("answer ::= \"<tool_call>\" tool_call_body{}\n{}",
                              several ? " more_calls*" : "", kBody);
    if (several) spec.around += "more_calls ::= [ \\n]{0,2} \"<tool_call>\" tool_call_body\n";
  }
  return spec;
}

}  // namespace baton::server
