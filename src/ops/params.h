// Parameters of the operations on rows of the batch, one struct each, with shapes in the letters of
// ops.h. Those of attention are in attention_params.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/dtype.h"
#include "base/view.h"

namespace baton {

// A weight matrix in the layout of one backend. Made by Ops::Pack, used only with the Ops that made
// it.
class Matrix {
 public:
  virtual ~Matrix() = default;
  int64_t rows = 0, cols = 0;  // [out, in]
  int64_t bytes = 0;           // what one use of the whole matrix reads
};

// A weight matrix as a file holds it.
struct RawMatrix {
  DType dtype = DType::kF32;
  const std::byte* data = nullptr;
  int64_t rows = 0, cols = 0;
};

// y = (norm(x)) W^T (+ bias) for several matrices that share x; norm(x) = x / rms(x) * norm_weight.
struct LinearParams {
  View<const float> x;                 // [T, in]
  const float* norm_weight = nullptr;  // [in]; null: no norm
  float norm_eps = 0;
  struct Out {
    const Matrix* w = nullptr;    // [out, in]
    const float* bias = nullptr;  // [out] or null
    View<float> y;                // [T, out]
  };
  std::span<const Out> outs;
  bool accumulate = false;  // y += instead of y =
  // The matrices of the next product (all its outs, or gate). A hint: their first weights may be
  // prefetched while threads wait for each other.
  std::span<const Matrix* const> then;
  // A backend that quantises x keeps 16 bits of it instead of 8. Decode sets it: the time of its
  // products is that of reading the weights, and plans are evaluated by its distributions.
  bool fine = false;
};

enum class GluActivation { kSilu, kGeluTanh };

// y = act(norm(x) gate^T) * (norm(x) up^T)
struct GluParams {
  View<const float> x;  // [T, in]
  const float* norm_weight = nullptr;
  float norm_eps = 0;
  const Matrix* gate = nullptr;  // [out, in]
  const Matrix* up = nullptr;    // [out, in]
  GluActivation activation = GluActivation::kSilu;
  View<float> y;                        // [T, out]
  std::span<const Matrix* const> then;  // see LinearParams
  bool fine = false;                    // see LinearParams
};

// y (+)= x / rms(x) * weight, row by row.
struct NormParams {
  View<const float> x;  // [T, C]
  const float* weight = nullptr;
  float eps = 0;
  View<float> y;  // [T, C]; may be x when not accumulating
  bool accumulate = false;
};

// x[t] = scale * (row tokens[t] of the table + smear * row previous[t]).
struct EmbedParams {
  const RawMatrix* table = nullptr;  // [vocab, C]
  std::span<const int32_t> tokens;   // [T], each below vocab
  float scale = 1;
  View<float> x;                      // [T, C]
  std::span<const int32_t> previous;  // [T], each below vocab, or -1: none; empty without smear
  std::span<const float> smear;       // [C], on the host; empty: none
};

// Row t of a lookup, for backends that expand rows on the host.
void EmbedRow(const EmbedParams& p, int64_t t, float* row);

// to[i] = from[rows[i]]. A row may be copied more than once.
struct CopyRowsParams {
  View<const float> from;         // [T, C]
  std::span<const int64_t> rows;  // [n], each below T
  View<float> to;                 // [n, C]; no part of `from`
};

// What changes one token's logit before tokens are picked: its bias is added, then come the
// penalties if the token occurred.
struct SampleEntry {
  int32_t token = 0;
  float bias = 0;
  int32_t count = 0;  // occurrences that the penalties see
};

// How a token is picked from a row of logits: entries, then those of `mask`, then temperature,
// top-k, top-p, min-p. Temperature 0 takes the largest logit, the lower id on ties.
//
// Otherwise a token's weight is e^((logit - largest) / temperature). Without cuts tokens are summed
// in the order of ids. With cuts they are summed in descending order of their logits, the lower id
// first on ties; the first top_k stay, of these those before which the sum is below top_p of the
// sum of all of them, and of these those that weigh at least min_p. The token is picked at which
// the sum passes `uniform` times the sum of those that stay.
struct SampleRow {
  float temperature = 0;
  int32_t top_k = 0;   // 0: off
  float top_p = 1;     // 1: off
  float min_p = 0;     // 0: off
  double uniform = 0;  // in [0, 1)
  // Of a token that occurred, a positive logit is divided by repetition_penalty and another is
  // multiplied with it; then presence_penalty and count * frequency_penalty are subtracted.
  float repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  std::span<const SampleEntry> entries;  // ascending tokens, each once
  std::span<const uint32_t> mask;  // bit t % 32 of mask[t / 32]: token t may be picked; or empty
};

struct SampledRow {
  int32_t token = 0;
  uint32_t hash = 0;  // HashLogits (ops/sample.h) of the logits as they are given

  static constexpr int32_t kNoNumber = -1;     // none of the logits is above -inf
  static constexpr int32_t kNoneAllowed = -2;  // none is after entries and mask
};

// Picks a token from each row of logits, which stay as they are. A logit that is not a number is
// never picked. Where the sum passes within rounding of the edge between two tokens, backends may
// pick different ones.
struct SampleParams {
  View<const float> logits;         // [n, vocab], contiguous
  std::span<const SampleRow> rows;  // [n]
  SampledRow* sampled = nullptr;    // [n]
};

// x += y, any equal shapes, contiguous.
struct AddParams {
  View<float> x;
  View<const float> y;
};

// Rows of one sequence in a batch: `rows` consecutive positions from `position` on, at row `first`
// of the batch tensors.
struct Rows {
  int64_t first = 0;
  int64_t count = 0;
  int64_t position = 0;
};

// cos[t, i] = gain * cos(position of row t * frequencies[i]), and sin likewise. Angles in double:
// at position 10^6 a float has no digits left for the fraction of a turn.
struct RotaryTableParams {
  std::span<const float> frequencies;  // [n/2]
  float gain = 1;
  std::span<const Rows> segments;  // rows of no segment stay as they are
  View<float> cos, sin;            // [T, n/2]
};

// The layer router of Flux Attention (arXiv 2604.07394), d = D: the mean query, an encoder of two
// products and a head of three, SiLU between the products of each.
struct RouterWeights {
  struct Layer {
    View<const float> weight;     // [out, in]
    const float* bias = nullptr;  // [out]
  };
  Layer encoder[2];  // cls_feat_extractor.0 [8d, d], .2 [2d, 8d]
  Layer head[3];     // cls_router_head_agnostic.0 [4d, 2d], .2 [d, 4d], .4 [2, d]
};

// logits = head(encoder(u)), u [D] the mean over rows and heads of q. f32 with sums in double.
struct RouteParams {
  View<const float> q;  // [n, Hq, D], n > 0: the pooled rows; a row may occur twice
  const RouterWeights* weights =
      nullptr;              // the struct on the host, what it points at on the device
  float* logits = nullptr;  // [2]: sparse, full
};

}  // namespace baton
