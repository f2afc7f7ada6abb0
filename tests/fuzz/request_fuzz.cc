// Any bytes as the body of a request, to each path: an error of one line in valid JSON, or a call
// whose numbers are in their ranges. The same bytes as an answer that may hold calls of functions.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "server/call.h"
#include "server/json.h"
#include "server/tool_parser.h"

namespace {

void CheckError(const baton::server::ApiError& error) {
  using baton::server::Json;
  const Json json = Json::parse(baton::server::WriteError(error), nullptr, false);
  BATON_CHECK(json.contains("error") && json["error"]["message"].is_string());
  BATON_CHECK(error.status >= 400 && error.status < 600);
  BATON_CHECK(error.message.find('\n') == std::string::npos);
}

// Any text as an answer, whole and byte by byte: taken apart alike, and none of it lost where there
// is no call.
void CheckParser(std::string_view text) {
  using namespace baton::server;
  Tools tools;
  tools.list = {{.name = "f", .parameters = Json::object()}};
  for (const ToolStyle style : {ToolStyle::kNone, ToolStyle::kHermes, ToolStyle::kLlama}) {
    std::string taken[2];
    bool called = false;
    for (const bool bytes : {false, true}) {
      ToolParser parser(style, tools);
      const auto add = [&](const std::vector<AnswerPart>& parts) {
        for (const AnswerPart& part : parts) {
          taken[bytes] += part.text + part.name + part.arguments;
          called |= part.call >= 0;
        }
      };
      for (size_t i = 0; bytes && i < text.size(); ++i) add(parser.Push(text.substr(i, 1)));
      if (!bytes) add(parser.Push(text));
      add(parser.End());
    }
    BATON_CHECK(taken[0] == taken[1]);
    BATON_CHECK(called || taken[0] == text);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace baton::server;
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  for (const Api api : {Api::kChat, Api::kCompletions, Api::kResponses, Api::kMessages}) {
    Call call;
    if (const auto error = ParseCall(api, body, call)) {
      CheckError(*error);
      continue;
    }
    BATON_CHECK(call.n >= 1 && call.prompt_count() * call.n <= kMostChoices);
    BATON_CHECK(call.base.logprobs <= kMostTop);
    BATON_CHECK(call.base.sampling.temperature >= 0 && call.base.sampling.top_p > 0);
    BATON_CHECK(call.tools.choice != Tools::Choice::kRequired || !call.tools.list.empty());
    (void)GrammarOf(call.tools, ToolStyle::kHermes);
    BATON_CHECK(api == Api::kCompletions ? !call.prompts.empty() : !call.chat.empty());
  }
  CheckParser(body);
  TokenCall tokens;
  if (const auto error = ParseTokenize(body, tokens)) CheckError(*error);
  if (const auto error = ParseDetokenize(body, tokens)) CheckError(*error);
  return 0;
}
