// Functions that an answer may call: how a client describes them, and how a model writes a call.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "baton/constraint.h"
#include "server/fields.h"
#include "server/json.h"

namespace baton::server {

struct Tool {
  std::string name;
  Json parameters;      // JSON Schema of its arguments
  bool strict = false;  // a schema that cannot be enforced wholly is an error
};

struct Tools {
  // kNone: what looks like a call is text. kRequired: the answer is a call, or several.
  enum class Choice { kNone, kAuto, kRequired } choice = Choice::kAuto;
  std::vector<Tool> list;
  std::string only;      // the one that must be called; empty: any
  bool parallel = true;  // more than one call in an answer

  // Whether an answer may call.
  bool on() const { return !list.empty() && choice != Choice::kNone; }
};

// How a model's chat template has it write calls.
enum class ToolStyle {
  kNone,     // not at all, or in a way that nobody here reads
  kHermes,   // <tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number, text around
             // them
  kLlama,    // {"name": ..., "parameters": {...}}, one, in place of text
  kMistral,  // [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], behind text or in its place
};
ToolStyle StyleOf(std::string_view chat_template);

// `tools`, `tool_choice` and `parallel_tool_calls` as OpenAI's chat API has them. The tools as the
// template gets them go to `described`.
void ReadTools(Fields& fields, Tools& tools, std::string& described);

// What an answer must look like: the arguments of calls are what their schemas describe, and where
// a call is required there is one. No schema: nothing is enforced (a Llama that may as well answer
// with text, which may be JSON too). `format`: what an answer that calls nothing must look like.
GrammarSpec GrammarOf(const Tools& tools, ToolStyle style, const GrammarSpec& format = {});

}  // namespace baton::server
