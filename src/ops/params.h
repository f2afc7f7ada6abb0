// What the operations on rows of the batch take and give: one struct each, with shapes, in the
// letters of ops.h. Those of attention are in attention_params.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/dtype.h"
#include "base/view.h"

namespace baton {

// A weight matrix in the layout a backend wants. Made by Ops::Pack, used only with the Ops that
// made it.
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
  // What the next product multiplies with (all its outs, or gate): a hint, its first weights may be
  // fetched while threads wait for each other.
  std::span<const Matrix* const> then;
  // A backend that quantises x keeps 16 bits of it instead of 8. Decode asks for it: its products
  // wait for the weights, and its distributions are what plans are judged by.
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

}  // namespace baton
