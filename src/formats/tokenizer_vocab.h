// The tokens of a model: their bytes in one block, compact indexes over them, and the search for
// special tokens in a text.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace baton {

// The numbers are those of GGUF's tokenizer.ggml.token_type and of SentencePiece's piece types.
enum class TokenType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

// Must not be copied, or moved once an index refers to it: indexes keep a pointer.
class Vocab {
 public:
  Vocab() = default;
  Vocab(const Vocab&) = delete;
  Vocab& operator=(const Vocab&) = delete;

  void Add(std::string_view bytes, TokenType type);
  int32_t size() const { return static_cast<int32_t>(types_.size()); }
  bool Has(int64_t id) const { return id >= 0 && id < size(); }
  std::string_view Bytes(int32_t id) const {
    return std::string_view(block_).substr(begins_[id], begins_[id + 1] - begins_[id]);
  }
  TokenType type(int32_t id) const { return types_[id]; }

 private:
  std::string block_;
  std::vector<uint64_t> begins_{0};
  std::vector<TokenType> types_;
};

// Bytes -> id for some tokens of a vocabulary, in two arrays: making 262,144 nodes of an
// std::unordered_map takes longer than all other steps of opening a Gemma file.
class TokenIndex {
 public:
  explicit TokenIndex(const Vocab& vocab) : vocab_(&vocab) {}
  void Reserve(size_t tokens);
  // The first of equal tokens wins. Reserve first.
  void Add(int32_t id);
  int32_t Find(std::string_view bytes) const;  // -1: none

 private:
  struct Slot {
    uint32_t hash = 0;
    int32_t id = -1;
  };
  size_t SlotOf(std::string_view bytes, uint32_t hash) const;
  const Vocab* vocab_;
  std::vector<Slot> slots_;  // a power of two
};

// A token that is found in the text before words are cut.
struct AddedToken {
  std::string text;
  int32_t id = -1;
  bool lstrip = false, rstrip = false, single_word = false;
};

// Finds the leftmost occurrence of any of a set of tokens, and the longest token there.
class TokenFinder {
 public:
  // `piece_spaces`: spaces in the text stand for U+2581, which is no white space to strip.
  explicit TokenFinder(std::vector<AddedToken> tokens, bool piece_spaces = false);

  // The text's parts in order. id -1: text between tokens. White space that a token absorbs is in
  // the token's part.
  struct Part {
    size_t begin = 0, end = 0;
    int32_t id = -1;
  };
  template <typename F>  // void(const Part&)
  void ForParts(std::string_view text, const F& each) const;

 private:
  struct Hit {
    size_t begin = std::string_view::npos;
    size_t end = 0;
    const AddedToken* token = nullptr;
  };
  Hit Next(std::string_view text, size_t from) const;
  // The part that a hit covers; false where the token's flags forbid it there.
  bool Place(std::string_view text, size_t after, const Hit& hit, Part& part) const;

  std::vector<AddedToken> tokens_;
  bool piece_spaces_;
  Vocab texts_;
  TokenIndex index_;
  // The lengths of the tokens with each first byte, longest first: Gemma has 6,400 such tokens,
  // nearly all of which begin with '<', but only about twenty different lengths.
  std::array<std::vector<uint32_t>, 256> lengths_;
};

template <typename F>
void TokenFinder::ForParts(std::string_view text, const F& each) const {
  size_t done = 0;
  for (size_t pos = 0; pos < text.size();) {
    const Hit hit = Next(text, pos);
    if (hit.token == nullptr) break;
    Part part;
    pos = hit.end;
    if (!Place(text, done, hit, part)) continue;
    if (part.begin > done) each(Part{done, part.begin, -1});
    each(part);
    pos = done = part.end;
  }
  if (done < text.size()) each(Part{done, text.size(), -1});
}

}  // namespace baton
