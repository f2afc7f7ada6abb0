// The list kernel, in plain types: it is compiled without LibTorch's headers.
#pragma once

#include <cstdint>

namespace baton::train {

#ifdef BATON_TRAIN_CUDA
inline constexpr bool kHaveListKernel = true;
#else
inline constexpr bool kHaveListKernel = false;
#endif
// A row's keys lie in shared memory.
inline constexpr int64_t kMostListColumns = 49152;
inline constexpr int64_t kMostBiasColumns = 32 * kMostListColumns;  // a bit each

// All in device memory, contiguous, on the default stream.

// See LargestOf.
void SelectRowsCuda(const float* scores, int64_t rows, int64_t columns, int64_t k, int32_t* lists);

// Rows [first, first + rows) of sequences of n tokens, whose lists are ranked by scores of these
// rows: what Rank does behind its product, for Pool::kMax and one document a row.
struct RankRows {
  const float* scores;  // [batch, heads, rows, columns], columns = first + rows
  const float* lse;     // [batch, heads, n]; null: zeros
  int64_t batch, heads, groups, n, first, rows, columns;
  int64_t block, sink, recent;
  int64_t k;       // entries of a list
  int32_t* lists;  // [batch, groups, rows, k]
};
void RankRowsCuda(const RankRows& in);

// Visible::Bias of lists in rows [first, first + rows), for one document a row: 16-bit values, 0
// where a row sees a key and `never` elsewhere.
struct ListBias {
  const int32_t* lists;  // [sets, n, k]
  int64_t sets, n, k, first, rows, columns;
  int64_t block, sink, recent;
  uint16_t never;
  int64_t stride;  // of a row of the result, a multiple of 8, at least `columns`
  uint16_t* out;   // [sets, rows, stride]
};
void ListBiasCuda(const ListBias& in);

}  // namespace baton::train
