// What models are trained and tested on: text, and recall tasks that are generated in it. The
// tokens of keys and values are ordinary ids of the vocabulary, at random, so only the context
// tells which value a key has.
//
//   facts   text with <|fact|> k k v v <|stop|>, asked for later by <|ask|> k k v v <|stop|>
//   pairs   <|pairs|> k v k v ...: a value is asked for when its key came before (arXiv 2312.04927)
//   chains  text with <|set|> a b <|stop|>, b a value or an earlier variable; at the end <|get|> a
//   v
#pragma once

#include <cstdint>

#include "train/torch.h"

namespace baton::train {

// What the token at a position is: answers are those that the context determines.
enum TokenKind : int64_t { kRandomToken, kTextToken, kFactAnswer, kPairAnswer, kChainAnswer };
constexpr int kTokenKinds = 5;
constexpr int64_t kShortestRow = 96;  // holds the fewest facts and links that a task has

struct Samples {
  Tensor tokens;  // [B, n] int64
  Tensor kinds;   // [B, n] int64, TokenKind
  // [B, n] int64. Of an answer: tokens back to where it was stated; of a pair: keys of the row; of
  // a chain: the links from the value. Otherwise 0.
  Tensor distance;
};

class Tasks {
 public:
  // `text`: [tokens] of a file, on the device where samples are made. Task tokens are the first
  // eight ids.
  Tasks(Tensor text, int64_t vocab);

  // Random pieces of the text.
  Samples Text(int64_t rows, int64_t n, torch::Generator& g) const;
  // `width`: how many ids serve as keys, and as values.
  Samples Facts(int64_t rows, int64_t n, int64_t width, torch::Generator& g) const;
  // `keys` of a row; 0: at random, from 4 to `most_keys`, small numbers more often.
  Samples Pairs(int64_t rows, int64_t n, int64_t width, int64_t keys, int64_t most_keys,
                torch::Generator& g) const;
  Samples Chains(int64_t rows, int64_t n, int64_t width, torch::Generator& g) const;

  // The row'th piece of n tokens, in order.
  Tensor Piece(int64_t first_row, int64_t rows, int64_t n) const;

  int64_t most_width() const { return width_; }
  torch::Device device() const { return text_.device(); }

 private:
  Tensor Random(int64_t low, int64_t high, at::IntArrayRef shape, torch::Generator& g) const;
  Tensor Uniform(at::IntArrayRef shape, torch::Generator& g) const;
  Tensor Distinct(int64_t rows, int64_t of, int64_t count, torch::Generator& g) const;
  Tensor Slots(int64_t rows, int64_t n, int64_t size, int64_t count, double from, double to,
               torch::Generator& g) const;
  Tensor Range(int64_t n) const;

  Tensor text_;
  int64_t keys_, values_, width_;  // the first key id, the first value id, how many there are
};

}  // namespace baton::train
