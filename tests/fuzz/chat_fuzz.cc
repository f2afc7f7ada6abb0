// The bytes are a template; what is recognised must render.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/check.h"
#include "formats/chat.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto chat = baton::RecognizeChat(text);
  if (!chat.ok()) return 0;
  BATON_CHECK(baton::RenderChat(*chat, {{"user", text}}).ok());
  BATON_CHECK(baton::RenderChat(*chat, {{"system", text}, {"user", "x"}}).ok());
  (void)baton::RenderChat(*chat, {{text, "x"}});
  return 0;
}
