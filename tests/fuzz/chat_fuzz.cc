// The bytes are a template, run over a conversation that holds them too: it renders or is an error
// of one line, and what the user wrote stays marked.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/check.h"
#include "formats/chat.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto chat = baton::ChatTemplate::Parse(text);
  if (!chat.ok()) {
    BATON_CHECK(chat.error().ToString().find('\n') == std::string::npos);
    return 0;
  }
  const baton::ChatOptions options{
      .tools = R"([{"function": {"name": "f", "parameters": {"a": 1.5}}}])", .variables = ""};
  const auto rendered =
      chat->Render({{"system", text, ""},
                    {"user", "Hi", R"({"tool_calls": [{"id": "abc"}]})"},
                    {"assistant", "", ""}},
                   options, {.bos = "<s>", .eos = "</s>", .unknown = "", .unix_time = 0});
  if (!rendered.ok()) {
    BATON_CHECK(rendered.error().ToString().find('\n') == std::string::npos);
    return 0;
  }
  size_t end = 0;
  for (const baton::TextRange& range : rendered->plain) {
    BATON_CHECK(range.begin >= end && range.begin < range.end);
    end = range.end;
  }
  BATON_CHECK(end <= rendered->text.size());
  return 0;
}
