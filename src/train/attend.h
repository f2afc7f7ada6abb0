// Softmax attention with gradients, for every set of keys that a branch may read.
#pragma once

#include "train/visible.h"

namespace baton::train {

struct AttendInput {
  Tensor q;     // [B, Hq, n, D]
  Tensor k, v;  // [B, Hkv, n, D]
  c10::intrusive_ptr<Visible> visible;
  Tensor sink;  // [Hq], a learned term in the softmax denominator; undefined: none
  double scale = 1;
};

struct AttendOutput {
  Tensor o;    // [B, Hq, n, D]
  Tensor lse;  // [B, Hq, n], natural log, without the sink where there is none; no gradient
};

// lse is undefined unless `need_lse`: most kernels do not return it.
AttendOutput Attend(const AttendInput& in, bool need_lse = false);

// Of rows that need not be the last: each sees the keys whose bias [B, 1, n, N] is 0 and not -inf.
// q: [B, Hq, n, D]; k, v: [B, Hkv, N, D].
Tensor AttendBiased(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                    double scale);

}  // namespace baton::train
