// Any bytes as the body of a request, to each path: an error of one line in valid JSON, or a call
// whose numbers are in their ranges.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "server/call.h"
#include "server/json.h"

namespace {

void CheckError(const baton::server::ApiError& error) {
  using baton::server::Json;
  const Json json = Json::parse(baton::server::WriteError(error), nullptr, false);
  BATON_CHECK(json.contains("error") && json["error"]["message"].is_string());
  BATON_CHECK(error.status >= 400 && error.status < 600);
  BATON_CHECK(error.message.find('\n') == std::string::npos);
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
    BATON_CHECK(api == Api::kCompletions ? !call.prompts.empty() : !call.chat.empty());
  }
  TokenCall tokens;
  if (const auto error = ParseTokenize(body, tokens)) CheckError(*error);
  if (const auto error = ParseDetokenize(body, tokens)) CheckError(*error);
  return 0;
}
