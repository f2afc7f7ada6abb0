// Prompts with the responses that routers and lists learn from and are tested on, as
// scripts/router-samples writes them.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/mapped_file.h"
#include "baton/error.h"
#include "train/torch.h"

namespace baton::train {

struct RouterSample {
  std::string task;
  bool answer = false;               // one that dense attention may get right; otherwise text
  int64_t length = 0;                // tokens of the row that it is padded to
  int64_t offset = 0;                // of its first token in the file
  int64_t prompt = 0, response = 0;  // tokens
  std::vector<std::pair<int64_t, int64_t>> scored;  // [first, end) of the response
  int64_t scored_tokens() const;
};

// Rows of one length. Scored tokens are numbered through the batch, [M] in all.
struct RouterBatch {
  Tensor tokens;   // [B, n] int64
  Tensor prompts;  // [B] int64
  Tensor rows;     // [B, R] int64: positions from a prompt's last token on
  Tensor at;       // [M] int64: the row, of B * R, whose logits predict the token
  Tensor target;   // [M] int64
  Tensor sample;   // [M] int64: 0 to B - 1
  Tensor share;    // [M] f32: one over the tokens that its sample has
};

class RouterSamples {
 public:
  static constexpr int64_t kResponse = 128;  // R, the longest response

  // FOLDER/SPLIT.jsonl and .u16. Errors: unknown keys, tokens outside the vocabulary, sizes that
  // disagree.
  static Result<RouterSamples> Read(const std::string& folder, const std::string& split,
                                    int64_t vocab);

  const std::vector<RouterSample>& all() const { return samples_; }
  std::vector<int64_t> Lengths() const;  // ascending
  // Samples of one length.
  RouterBatch Batch(const std::vector<size_t>& which, torch::Device device) const;

 private:
  std::vector<RouterSample> samples_;
  std::vector<uint16_t> tokens_;
};

}  // namespace baton::train
