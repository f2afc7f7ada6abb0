// Any bytes as a profile: refused with one line, or a profile that is written and read back.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/check.h"
#include "baton/profile.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace baton;
  const auto profile = Profile::Parse(std::string(reinterpret_cast<const char*>(data), size));
  if (!profile.ok()) {
    BATON_CHECK(profile.error().ToString().find('\n') == std::string::npos);
    return 0;
  }
  BATON_CHECK_EQ(profile->model_window.size(), static_cast<size_t>(profile->layers));
  for (const auto& table : profile->text)
    BATON_CHECK_EQ(table.size(), static_cast<size_t>(profile->layers * profile->layers));
  const auto back = Profile::Parse(profile->ToJson());
  BATON_CHECK(back.ok());
  BATON_CHECK(back->ToJson() == profile->ToJson());
  return 0;
}
