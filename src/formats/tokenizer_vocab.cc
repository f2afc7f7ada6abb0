#include "formats/tokenizer_vocab.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <utility>

#include "base/check.h"
#include "formats/normalizer.h"
#include "formats/unicode.h"

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

TokenFinder::TokenFinder(std::vector<AddedToken> tokens, bool piece_spaces)
    : tokens_(std::move(tokens)), piece_spaces_(piece_spaces), index_(texts_) {
  index_.Reserve(tokens_.size());
  for (const AddedToken& t : tokens_) {
    texts_.Add(t.text, TokenType::kUserDefined);
    if (t.text.empty()) continue;
    index_.Add(texts_.size() - 1);
    lengths_[static_cast<unsigned char>(t.text[0])].push_back(static_cast<uint32_t>(t.text.size()));
  }
  for (std::vector<uint32_t>& lengths : lengths_) {
    std::sort(lengths.begin(), lengths.end(), std::greater<>());
    lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  }
}

TokenFinder::Hit TokenFinder::Next(std::string_view text, size_t from) const {
  if (tokens_.empty()) return {};
  for (size_t i = from; i < text.size(); ++i) {
    for (uint32_t length : lengths_[static_cast<unsigned char>(text[i])]) {
      if (length > text.size() - i) continue;
      const int32_t at = index_.Find(text.substr(i, length));
      if (at >= 0) return {i, i + length, &tokens_[static_cast<size_t>(at)]};
    }
  }
  return {};
}

bool TokenFinder::Place(std::string_view text, size_t after, const Hit& hit, Part& part) const {
  const auto last_before = [&](size_t end) {
    size_t begin = end - 1;
    while (begin > 0 && end - begin < 4 && (text[begin] & 0xC0) == 0x80) --begin;
    return DecodeUtf8(text.substr(begin, end - begin));
  };
  const auto is = [](const Utf8Char& c, bool (*what)(char32_t)) {
    return c.kind == Utf8Char::Kind::kValid && what(c.code);
  };
  part = {hit.begin, hit.end, hit.token->id};
  if (hit.token->single_word &&
      ((hit.begin > 0 && is(last_before(hit.begin), IsWordCharacter)) ||
       (hit.end < text.size() && is(DecodeUtf8(text.substr(hit.end)), IsWordCharacter)))) {
    return false;
  }
  while (hit.token->lstrip && part.begin > after) {
    const Utf8Char c = last_before(part.begin);
    if (!is(c, IsSpace) || (piece_spaces_ && c.code == ' ')) break;
    part.begin -= static_cast<size_t>(c.length);
  }
  while (hit.token->rstrip && part.end < text.size()) {
    const Utf8Char c = DecodeUtf8(text.substr(part.end));
    if (!is(c, IsSpace) || (piece_spaces_ && c.code == ' ')) break;
    part.end += static_cast<size_t>(c.length);
  }
  return true;
}

}  // namespace baton
