// Any bytes as a GGUF file: parsed or refused, and every byte of every tensor it reports is
// readable.
#include <cstddef>
#include <cstdint>

#include "formats/gguf.h"
#include "model/spec/architectures.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = baton::ParseGguf({reinterpret_cast<const std::byte*>(data), size});
  if (!file.ok()) return 0;
  uint8_t all = 0;
  for (const baton::TensorInfo& t : file->tensors) {
    for (int64_t i = 0; i < t.bytes; ++i) all ^= static_cast<uint8_t>(t.data[i]);
  }
  volatile uint8_t keep = all;  // else the compiler drops the reads
  (void)keep;
  const auto architecture = baton::FindArchitecture(baton::FileKind::kGguf, file->metadata);
  if (architecture.ok())
    (void)baton::ReadConfig(baton::FileKind::kGguf, **architecture, file->metadata);
  return 0;
}
