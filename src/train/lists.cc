#include "train/lists.h"

#include <limits>

#include "base/check.h"
#include "train/lists_cuda.h"

namespace baton::train {
namespace {

constexpr int64_t kTileRows = 512;
constexpr double kNever = -std::numeric_limits<double>::infinity();

// [B, H, rows, columns] -> [B, groups, rows, columns].
Tensor Pooled(const Tensor& z, int64_t groups, Pool pool) {
  if (z.size(1) == groups) return z;
  const Tensor split = z.reshape({z.size(0), groups, -1, z.size(2), z.size(3)});
  return pool == Pool::kMax ? split.amax(2) : torch::logsumexp(split, 2);
}

Tensor BlockMaxima(const Tensor& z, int64_t block) {
  const int64_t missing = (block - z.size(3) % block) % block;
  const Tensor whole = missing > 0 ? torch::constant_pad_nd(z, {0, missing}, kNever) : z;
  return whole.reshape({z.size(0), z.size(1), z.size(2), -1, block}).amax(4);
}

// Candidates of rows [first, end): [1 or B, 1, rows, end].
Tensor Candidates(const RankInput& in, int64_t first, int64_t end) {
  const auto options = in.q.options().dtype(torch::kInt64);
  const Tensor row = torch::arange(first, end, options).unsqueeze(1);
  const Tensor key = torch::arange(end, options).unsqueeze(0);
  const Tensor near = key <= row - in.recent;
  if (!in.starts.defined()) return (near & (key >= in.sink)).unsqueeze(0).unsqueeze(0);
  const Tensor start = in.starts.narrow(1, first, end - first).unsqueeze(1).unsqueeze(3);
  return near & (key - start >= in.sink);
}

// While it lives, products of f32 may round their inputs to TF32.
class TensorCores {
 public:
  explicit TensorCores(bool on) : before_(at::globalContext().allowTF32CuBLAS()) {
    at::globalContext().setAllowTF32CuBLAS(on || before_);
  }
  ~TensorCores() { at::globalContext().setAllowTF32CuBLAS(before_); }
  TensorCores(const TensorCores&) = delete;

 private:
  bool before_;
};

Tensor Stable(const Tensor& scores, int64_t k) {
  const auto [values, at] = torch::sort(scores, /*stable=*/true, 1, /*descending=*/true);
  const int64_t taken = std::min(k, scores.size(1));
  Tensor list =
      at.narrow(1, 0, taken)
          .masked_fill(values.narrow(1, 0, taken) == kNever, std::numeric_limits<int32_t>::max());
  list = std::get<0>(list.sort(1));
  list = list.masked_fill(list == std::numeric_limits<int32_t>::max(), -1).to(torch::kInt32);
  return taken < k ? torch::constant_pad_nd(list, {0, k - taken}, -1) : list;
}

bool ByKernel(const RankInput& in) {
  return kHaveListKernel && in.q.is_cuda() && in.q.scalar_type() != torch::kFloat64 &&
         in.pool == Pool::kMax && !in.starts.defined() && in.q.size(2) <= kMostListColumns;
}

// z: [B, H, end - first, end] f32.
Tensor RankedByKernel(const RankInput& in, const Tensor& z, int64_t first, int64_t end,
                      int64_t entries) {
  Tensor lists =
      torch::empty({z.size(0), in.groups, end - first, entries}, z.options().dtype(torch::kInt32));
  const Tensor lse = in.lse.defined() ? in.lse.detach().to(torch::kFloat32).contiguous() : Tensor();
  RankRowsCuda({.scores = z.contiguous().data_ptr<float>(),
                .lse = lse.defined() ? lse.data_ptr<float>() : nullptr,
                .batch = z.size(0),
                .heads = z.size(1),
                .groups = in.groups,
                .n = in.q.size(2),
                .first = first,
                .rows = end - first,
                .columns = end,
                .block = in.block,
                .sink = in.sink,
                .recent = in.recent,
                .k = entries,
                .lists = lists.data_ptr<int32_t>()});
  return lists;
}

}  // namespace

Tensor LargestOf(const Tensor& scores, int64_t k) {
  BATON_CHECK(scores.dim() == 2);
  if (!scores.is_cuda() || !kHaveListKernel || scores.size(1) > kMostListColumns)
    return Stable(scores, k);
  const Tensor rows = scores.to(torch::kFloat32).contiguous();
  Tensor lists = torch::empty({rows.size(0), k}, rows.options().dtype(torch::kInt32));
  SelectRowsCuda(rows.data_ptr<float>(), rows.size(0), rows.size(1), k, lists.data_ptr<int32_t>());
  return lists;
}

Tensor Rank(const RankInput& in) {
  const torch::NoGradGuard no_gradients;
  const auto sum = SumType(in.q);
  const int64_t n = in.q.size(2), batch = in.q.size(0), heads = in.q.size(1);
  const int64_t entries = (in.top_k + in.block - 1) / in.block;
  // Products of 16-bit values are exact in TF32 and wider types, so ties are ties of the scores.
  const TensorCores cores(in.q.is_cuda() && in.q.element_size() == 2);
  const Tensor q = in.q.detach().to(sum) * in.scale, k = in.k.detach().to(sum);
  const Tensor keys = k.repeat_interleave(heads / k.size(1), 1).transpose(2, 3);
  std::vector<Tensor> tiles;
  for (int64_t first = 0; first < n; first += kTileRows) {
    const int64_t end = std::min(first + kTileRows, n);
    Tensor z = torch::matmul(q.narrow(2, first, end - first), keys.narrow(3, 0, end));
    if (ByKernel(in)) {
      tiles.push_back(RankedByKernel(in, z, first, end, entries));
      continue;
    }
    if (in.lse.defined())
      z.sub_(in.lse.detach().narrow(2, first, end - first).to(sum).unsqueeze(3));
    const Tensor no_candidate = Candidates(in, first, end).logical_not();
    if (in.block > 1) {
      z = Pooled(BlockMaxima(z.masked_fill_(no_candidate, kNever), in.block), in.groups, in.pool);
    } else {
      z = Pooled(z, in.groups, in.pool).masked_fill(no_candidate, kNever);
    }
    const Tensor list = LargestOf(z.reshape({-1, z.size(3)}), entries);
    tiles.push_back(list.reshape({batch, in.groups, end - first, entries}));
  }
  return torch::cat(tiles, 2);
}

}  // namespace baton::train
