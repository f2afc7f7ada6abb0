#include "train/distil.h"

#include <limits>

namespace baton::train {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();
// A key that the teacher looks at and the indexer thinks impossible costs this many nats at most.
constexpr double kLeastLog = -60;

// [B or 1, R, n]: keys that a row must not see.
Tensor Hidden(const DistilInput& in) {
  const Tensor key = torch::arange(in.keys.size(2), in.rows.options());
  const Tensor row = in.rows.unsqueeze(1);
  const Tensor later = (key > row).unsqueeze(0);
  if (!in.starts.defined()) return later;
  return later | (key < in.starts.index_select(1, in.rows).unsqueeze(2));
}

// [B, R, n]; one layer at a time.
Tensor Teacher(const DistilInput& in, const Tensor& hidden) {
  const torch::NoGradGuard no_gradients;
  const int64_t heads = in.queries[0].size(1);
  const Tensor keys = in.keys.repeat_interleave(heads / in.keys.size(1), 1).transpose(2, 3);
  Tensor sum;
  for (const Tensor& q : in.queries) {
    const Tensor z = torch::matmul(q.index_select(2, in.rows), keys).to(SumType(q)) * in.scale;
    const Tensor map = z.masked_fill(hidden.unsqueeze(1), kNever).softmax(3).mean(1);
    sum = sum.defined() ? sum + map : map;
  }
  return sum / static_cast<double>(in.queries.size());
}

}  // namespace

Tensor Distil(const DistilInput& in, Coverage* coverage) {
  const Tensor hidden = Hidden(in);
  const Tensor teacher = Teacher(in, hidden);
  const auto sum = SumType(in.index_q);
  const Tensor z = torch::matmul(in.index_q.index_select(1, in.rows).to(sum),
                                 in.index_k.to(sum).transpose(1, 2)) *
                   in.index_scale;
  const Tensor scores = z.masked_fill(hidden, kNever);
  const Tensor log_p = scores.log_softmax(2).clamp_min(kLeastLog);
  if (coverage != nullptr) {
    const int64_t k = std::min(in.top_k, scores.size(2));
    const Tensor chosen = std::get<1>(scores.detach().topk(k, 2));
    coverage->held = teacher.gather(2, chosen).sum(2).mean().item<double>();
    coverage->best = std::get<0>(teacher.topk(k, 2)).sum(2).mean().item<double>();
  }
  return (torch::xlogy(teacher, teacher) - teacher * log_p).sum(2).mean();
}

}  // namespace baton::train
