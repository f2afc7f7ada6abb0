// Headers of prefix cache files: any bytes give a header or an error; a header is written as it was
// read, up to padding.
#include <span>

#include "base/check.h"
#include "kv/prefix_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto header = baton::ParsePrefixFile(bytes);
  if (!header.ok()) return 0;
  const auto again = baton::ParsePrefixFile(baton::EncodePrefixFile(*header));
  BATON_CHECK(again.ok() && again->PayloadBytes() == header->PayloadBytes());
  BATON_CHECK(again->key == header->key && again->blocks.size() == header->blocks.size());
  return 0;
}
