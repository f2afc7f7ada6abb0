// Any bytes as config.json: refused, or a config whose sizes and rotary frequencies are usable.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "formats/hf_config.h"
#include "model/spec/architectures.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace baton;
  const auto metadata = ParseHfConfig(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!metadata.ok()) return 0;
  const auto architecture = FindArchitecture(FileKind::kHuggingFace, *metadata);
  if (!architecture.ok()) return 0;
  const auto config = ReadConfig(FileKind::kHuggingFace, **architecture, *metadata);
  if (!config.ok()) return 0;
  BATON_CHECK_EQ(static_cast<int>(config->layer.size()), config->layers);
  for (const LayerConfig& l : config->layer)
    BATON_CHECK(l.rope < static_cast<int>(config->rope.size()));
  for (const RopeConfig& r : config->rope) {
    for (float f : RopeFrequencies(r, config->head_dim)) BATON_CHECK(std::isfinite(f));
  }
  return 0;
}
