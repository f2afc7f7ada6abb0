#include "kv/prefix_file.h"

#include <cstring>

#include "base/checksum.h"
#include "base/sha256.h"

namespace baton {
namespace {

constexpr char kMagic[9] = "BATONPFX";
constexpr uint32_t kVersion = 1;
constexpr int64_t kMostHeader = int64_t{1} << 30, kMostCaches = 1 << 16;
constexpr int64_t kMostPage = int64_t{1} << 40;
constexpr size_t kHashLength = 64;

int64_t Aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

class Writer {
 public:
  void Bytes(const void* data, size_t size) {
    const auto* from = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), from, from + size);
  }
  template <typename T>
  void Number(T value) {
    Bytes(&value, sizeof(value));
  }
  void Text(const std::string& text) {
    Number(static_cast<uint32_t>(text.size()));
    Bytes(text.data(), text.size());
  }
  std::vector<std::byte>& bytes() { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

// Reads in order; after a read past the end all values are zero and `ok` is false.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}

  void Bytes(void* to, size_t size) {
    ok_ = ok_ && size <= rest_.size();
    if (!ok_) return;
    std::memcpy(to, rest_.data(), size);
    rest_ = rest_.subspan(size);
  }
  template <typename T>
  T Number() {
    T value{};
    Bytes(&value, sizeof(value));
    return value;
  }
  std::string Text() {
    const auto size = Number<uint32_t>();
    ok_ = ok_ && size <= rest_.size();
    std::string text(ok_ ? size : 0, '\0');
    Bytes(text.data(), text.size());
    return text;
  }
  bool ok() const { return ok_; }
  size_t left() const { return rest_.size(); }

 private:
  std::span<const std::byte> rest_;
  bool ok_ = true;
};

Error Damaged(const char* what) { return Error::Corrupt("prefix cache file: {}", what); }

}  // namespace

int64_t PrefixFileHeader::PayloadBytes(size_t block) const {
  int64_t bytes = 0;
  for (size_t c = 0; c < page_bytes.size(); ++c) bytes += blocks[block].has[c] ? page_bytes[c] : 0;
  return bytes;
}

int64_t PrefixFileHeader::PayloadBytes() const {
  int64_t bytes = 0;
  for (size_t b = 0; b < blocks.size(); ++b) bytes += PayloadBytes(b);
  return bytes;
}

std::vector<std::byte> EncodePrefixFile(const PrefixFileHeader& h) {
  Writer body;
  body.Text(h.key);
  body.Text(h.before);
  body.Number(h.first_block);
  body.Number(static_cast<uint32_t>(h.page_bytes.size()));
  body.Number(static_cast<uint32_t>(h.blocks.size()));
  for (const int64_t bytes : h.page_bytes) body.Number(bytes);
  for (const PrefixFileBlock& b : h.blocks) {
    body.Bytes(b.tokens.data(), sizeof(b.tokens));
    body.Bytes(b.has.data(), b.has.size());
    body.Bytes(b.checksums.data(), b.checksums.size() * sizeof(uint64_t));
  }
  Writer file;
  file.Bytes(kMagic, 8);
  file.Number(kVersion);
  file.Number(uint32_t{0});
  file.Number(static_cast<uint64_t>(body.bytes().size()));
  file.Number(Checksum(body.bytes()));
  file.Bytes(body.bytes().data(), body.bytes().size());
  file.bytes().resize(static_cast<size_t>(Aligned(std::ssize(file.bytes()))));
  return std::move(file.bytes());
}

Result<int64_t> PrefixFilePayload(std::span<const std::byte> start) {
  Reader r(start);
  char magic[8] = {};
  r.Bytes(magic, sizeof(magic));
  if (!r.ok() || std::memcmp(magic, kMagic, 8) != 0) return Damaged("not one of Baton's");
  if (const auto version = r.Number<uint32_t>(); version != kVersion)
    return Error::Unsupported("prefix cache file: version {}, this build reads {}", version,
                              kVersion);
  r.Number<uint32_t>();
  const auto size = r.Number<uint64_t>();
  r.Number<uint64_t>();
  if (!r.ok() || size > static_cast<uint64_t>(kMostHeader)) return Damaged("header cut short");
  return Aligned(kPrefixFileStart + static_cast<int64_t>(size));
}

Result<PrefixFileHeader> ParsePrefixFile(std::span<const std::byte> bytes) {
  BATON_ASSIGN(const int64_t payload,
               PrefixFilePayload(bytes.first(std::min<size_t>(bytes.size(), kPrefixFileStart))));
  if (std::ssize(bytes) < payload) return Damaged("header cut short");
  Reader start(bytes.subspan(16));
  const auto size = static_cast<size_t>(start.Number<uint64_t>());
  const auto checksum = start.Number<uint64_t>();
  const auto body = bytes.subspan(kPrefixFileStart, size);
  if (Checksum(body) != checksum) return Damaged("header has another checksum");
  Reader r(body);
  PrefixFileHeader h;
  h.key = r.Text();
  h.before = r.Text();
  h.first_block = r.Number<int64_t>();
  const auto caches = r.Number<uint32_t>();
  const auto blocks = r.Number<uint32_t>();
  if (!r.ok() || h.first_block < 0 || h.first_block > kMostPage || caches < 1 ||
      caches > kMostCaches || h.before.size() != kHashLength)
    return Damaged("header out of range");
  const uint64_t per_block = sizeof(PrefixFileBlock::tokens) + caches * (1 + sizeof(uint64_t));
  if (r.left() != caches * sizeof(int64_t) + blocks * per_block)
    return Damaged("header of another length than its blocks");
  for (uint32_t c = 0; c < caches; ++c) {
    h.page_bytes.push_back(r.Number<int64_t>());
    if (h.page_bytes.back() < 1 || h.page_bytes.back() > kMostPage)
      return Damaged("page size out of range");
  }
  h.blocks.resize(blocks);
  for (PrefixFileBlock& b : h.blocks) {
    b.has.resize(caches);
    r.Bytes(b.tokens.data(), sizeof(b.tokens));
    r.Bytes(b.has.data(), caches);
    b.checksums.resize(caches);
    r.Bytes(b.checksums.data(), caches * sizeof(uint64_t));
    for (const uint8_t has : b.has)
      if (has > 1) return Damaged("block out of range");
  }
  return h;
}

std::string PrefixHash(const std::string& key) { return Sha256Hex(key); }

std::string PrefixHash(const std::string& before, std::span<const int32_t> tokens) {
  Sha256 hash;
  hash.Update(before);
  hash.Update(std::as_bytes(tokens));
  return hash.Hex();
}

}  // namespace baton
