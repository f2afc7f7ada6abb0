// Headers of prefix cache files: any bytes are a header or an error, as they are and as the body of
// a file whose size and checksum are right. A header is written as it was read.
#include <cstring>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/checksum.h"
#include "kv/prefix_file.h"

namespace {

void Parse(std::span<const std::byte> bytes) {
  const auto header = baton::ParsePrefixFile(bytes);
  if (!header.ok()) return;
  const auto again = baton::ParsePrefixFile(baton::EncodePrefixFile(*header));
  BATON_CHECK(again.ok() && again->PayloadBytes() == header->PayloadBytes());
  BATON_CHECK(again->key == header->key && again->before == header->before);
  BATON_CHECK(again->blocks.size() == header->blocks.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto body = std::as_bytes(std::span(data, size));
  Parse(body);
  std::vector<std::byte> file = baton::EncodePrefixFile({});
  file.resize(baton::kPrefixFileStart);
  const uint64_t numbers[] = {size, baton::Checksum(body)};
  std::memcpy(file.data() + 16, numbers, sizeof(numbers));
  file.insert(file.end(), body.begin(), body.end());
  file.resize((file.size() + 63) / 64 * 64);
  Parse(file);
  return 0;
}
