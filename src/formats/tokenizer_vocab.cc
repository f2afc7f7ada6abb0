#include "formats/tokenizer_vocab.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "base/check.h"

namespace baton {
namespace {

uint32_t HashOf(std::string_view bytes) {
  const size_t h = std::hash<std::string_view>()(bytes);
  return static_cast<uint32_t>(h ^ h >> 32);
}

}  // namespace

void Vocab::Add(std::string_view bytes, TokenType type) {
  block_ += bytes;
  begins_.push_back(block_.size());
  types_.push_back(type);
}

void TokenIndex::Reserve(size_t tokens) {
  slots_.assign(std::bit_ceil(std::max<size_t>(2 * tokens, 2)), Slot{});
}

size_t TokenIndex::SlotOf(std::string_view bytes, uint32_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t i = hash & mask;
  while (slots_[i].id >= 0 && (slots_[i].hash != hash || vocab_->Bytes(slots_[i].id) != bytes)) {
    i = (i + 1) & mask;
  }
  return i;
}

void TokenIndex::Add(int32_t id) {
  const std::string_view bytes = vocab_->Bytes(id);
  const uint32_t hash = HashOf(bytes);
  Slot& slot = slots_[SlotOf(bytes, hash)];
  if (slot.id < 0) slot = {hash, id};
}

int32_t TokenIndex::Find(std::string_view bytes) const {
  if (slots_.empty()) return -1;
  return slots_[SlotOf(bytes, HashOf(bytes))].id;
}

TokenFinder::TokenFinder(const Vocab& vocab, const std::vector<int32_t>& ids) : index_(vocab) {
  index_.Reserve(ids.size());
  for (int32_t id : ids) {
    const std::string_view bytes = vocab.Bytes(id);
    if (bytes.empty()) continue;
    index_.Add(id);
    lengths_[static_cast<unsigned char>(bytes[0])].push_back(static_cast<uint32_t>(bytes.size()));
  }
  for (std::vector<uint32_t>& lengths : lengths_) {
    std::sort(lengths.begin(), lengths.end(), std::greater<>());
    lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  }
}

TokenFinder::Hit TokenFinder::Next(std::string_view text, size_t from) const {
  for (size_t i = from; i < text.size(); ++i) {
    for (uint32_t length : lengths_[static_cast<unsigned char>(text[i])]) {
      if (length > text.size() - i) continue;
      const int32_t id = index_.Find(text.substr(i, length));
      if (id >= 0) return {i, length, id};
    }
  }
  return {};
}

}  // namespace baton
