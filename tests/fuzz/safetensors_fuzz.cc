// Any bytes as a safetensors file: parsed or refused, and every byte of every tensor it reports is
// readable.
#include <cstddef>
#include <cstdint>

#include "formats/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto tensors = baton::ParseSafetensors({reinterpret_cast<const std::byte*>(data), size});
  if (!tensors.ok()) return 0;
  uint8_t all = 0;
  for (const baton::TensorInfo& t : *tensors) {
    for (int64_t i = 0; i < t.bytes; ++i) all ^= static_cast<uint8_t>(t.data[i]);
  }
  volatile uint8_t keep = all;  // else the compiler drops the reads
  (void)keep;
  return 0;
}
