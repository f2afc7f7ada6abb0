// tokenizer.model: SentencePiece's ModelProto, read straight from its protobuf wire format. Fields
// other than those below are skipped.
#include <bit>
#include <cstring>
#include <string>
#include <string_view>

#include "formats/printable.h"
#include "formats/tokenizer_spec.h"

namespace baton {
namespace {

enum ModelField { kPieces = 1, kTrainer = 2, kNormalizer = 3 };
enum PieceField { kPiece = 1, kScore = 2, kType = 3 };
enum TrainerField { kModelType = 3, kSpaceIsSuffix = 24, kUnkId = 40, kBosId = 41, kEosId = 42 };
enum NormalizerField { kCharsMap = 2, kDummyPrefix = 3, kExtraSpaces = 4, kEscapeSpaces = 5 };
constexpr uint64_t kBpe = 2;

enum class Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

struct Field {
  uint64_t number = 0;
  Wire wire = Wire::kVarint;
  uint64_t value = 0;      // kVarint, kFixed32, kFixed64
  std::string_view bytes;  // kBytes
  bool Is(uint64_t n, Wire w) const { return number == n && wire == w; }
};

class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : rest_(bytes), size_(bytes.size()) {}
  bool AtEnd() const { return rest_.empty(); }

  Result<Field> Next() {
    const size_t at = size_ - rest_.size();
    Field f;
    uint64_t tag = 0;
    uint64_t length = 0;
    bool ok = Varint(tag);
    f.number = tag >> 3;
    f.wire = static_cast<Wire>(tag & 7);
    switch (f.wire) {
      case Wire::kVarint:
        ok = ok && Varint(f.value);
        break;
      case Wire::kFixed64:
        ok = ok && Fixed(8, f.value);
        break;
      case Wire::kFixed32:
        ok = ok && Fixed(4, f.value);
        break;
      case Wire::kBytes:
        ok = ok && Varint(length) && length <= rest_.size();
        if (ok) {
          f.bytes = rest_.substr(0, length);
          rest_.remove_prefix(length);
        }
        break;
      default:
        ok = false;
    }
    if (!ok) return Error::Corrupt("not a SentencePiece model: broken field at byte {}", at);
    return f;
  }

 private:
  bool Varint(uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto b = static_cast<unsigned char>(rest_[0]);
      rest_.remove_prefix(1);
      value |= uint64_t{b & 0x7Fu} << shift;
      if (b < 0x80) return true;
    }
    return false;
  }
  bool Fixed(size_t bytes, uint64_t& value) {
    if (rest_.size() < bytes) return false;
    value = 0;
    for (size_t i = 0; i < bytes; ++i) {
      value |= uint64_t{static_cast<unsigned char>(rest_[i])} << 8 * i;
    }
    rest_.remove_prefix(bytes);
    return true;
  }

  std::string_view rest_;
  size_t size_;
};

Status ReadPiece(std::string_view bytes, TokenizerSpec& spec) {
  TokenSpec token;
  WireReader reader(bytes);
  while (!reader.AtEnd()) {
    BATON_ASSIGN(const Field f, reader.Next());
    if (f.Is(kPiece, Wire::kBytes)) token.text = f.bytes;
    if (f.Is(kScore, Wire::kFixed32)) {
      token.score = std::bit_cast<float>(static_cast<uint32_t>(f.value));
    }
    if (f.Is(kType, Wire::kVarint)) {
      if (f.value < 1 || f.value > 6) {
        return Error::Corrupt("piece '{}' has type {}, expected 1 to 6", Printable(token.text),
                              f.value);
      }
      token.type = static_cast<TokenType>(f.value);
    }
  }
  if (std::ssize(spec.tokens) == kMaxTokens) {
    return Error::Corrupt("more than {} pieces", kMaxTokens);
  }
  spec.tokens.push_back(std::move(token));
  return Status::Ok();
}

struct Trainer {
  uint64_t model_type = 1;  // protobuf default: unigram
  bool space_is_suffix = false;
  // int32 in the file: -1 comes as a varint of ten bytes.
  int64_t unknown = 0;
  int64_t bos = 1;
  int64_t eos = 2;
};

Result<Trainer> ReadTrainer(std::string_view bytes) {
  Trainer t;
  WireReader reader(bytes);
  while (!reader.AtEnd()) {
    BATON_ASSIGN(const Field f, reader.Next());
    if (f.wire != Wire::kVarint) continue;
    const auto id = static_cast<int32_t>(f.value);
    if (f.number == kModelType) t.model_type = f.value;
    if (f.number == kSpaceIsSuffix) t.space_is_suffix = f.value != 0;
    if (f.number == kUnkId) t.unknown = id;
    if (f.number == kBosId) t.bos = id;
    if (f.number == kEosId) t.eos = id;
  }
  return t;
}

struct Normalizer {
  bool maps_characters = false;
  bool dummy_prefix = true;
  bool drops_spaces = true;
  bool escapes_spaces = true;
};

Result<Normalizer> ReadNormalizer(std::string_view bytes) {
  Normalizer n;
  WireReader reader(bytes);
  while (!reader.AtEnd()) {
    BATON_ASSIGN(const Field f, reader.Next());
    if (f.Is(kCharsMap, Wire::kBytes)) n.maps_characters = !f.bytes.empty();
    if (f.Is(kDummyPrefix, Wire::kVarint)) n.dummy_prefix = f.value != 0;
    if (f.Is(kExtraSpaces, Wire::kVarint)) n.drops_spaces = f.value != 0;
    if (f.Is(kEscapeSpaces, Wire::kVarint)) n.escapes_spaces = f.value != 0;
  }
  return n;
}

}  // namespace

Result<TokenizerSpec> SpecFromSentencePiece(std::string_view model) {
  TokenizerSpec spec;
  Trainer trainer;
  Normalizer normalizer;
  WireReader reader(model);
  while (!reader.AtEnd()) {
    BATON_ASSIGN(const Field f, reader.Next());
    if (f.Is(kPieces, Wire::kBytes)) BATON_TRY(ReadPiece(f.bytes, spec));
    if (f.Is(kTrainer, Wire::kBytes)) {
      BATON_ASSIGN(trainer, ReadTrainer(f.bytes));
    }
    if (f.Is(kNormalizer, Wire::kBytes)) {
      BATON_ASSIGN(normalizer, ReadNormalizer(f.bytes));
    }
  }
  if (trainer.model_type != kBpe) {
    return Error::Unsupported("SentencePiece model type is {}, expected {} (BPE)",
                              trainer.model_type, kBpe);
  }
  for (const auto& [given, what] : {std::pair{normalizer.maps_characters, "a precompiled_charsmap"},
                                    {normalizer.drops_spaces, "remove_extra_whitespaces"},
                                    {!normalizer.escapes_spaces, "no escape_whitespaces"},
                                    {trainer.space_is_suffix, "treat_whitespace_as_suffix"}}) {
    if (given)
      return Error::Unsupported(
                 "SentencePiece model has {}, expected the identity normaliser of Llama, Mistral "
                 "and Gemma",
                 what)
          .Hint("a tokenizer.json of the model may be read instead");
  }
  spec.kind = TokenizerSpec::Kind::kPieces;
  spec.by_score = true;
  spec.fuse_unknown = true;
  // SentencePiece adds the space in front of the text only, but its callers cut the text at control
  // tokens first.
  spec.prefix =
      normalizer.dummy_prefix ? TokenizerSpec::Prefix::kAlways : TokenizerSpec::Prefix::kNone;
  spec.unknown = trainer.unknown;
  spec.bos = trainer.bos;
  spec.eos = trainer.eos;
  spec.adds_bos = true;
  return spec;
}

}  // namespace baton
