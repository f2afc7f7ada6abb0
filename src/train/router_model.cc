#include "train/router_model.h"

#include "base/check.h"

namespace baton::train {
namespace {

constexpr int64_t kTeacherTokens = 65536;

// Rows [B, R] of a stream [B, n, C].
Tensor Taken(const Tensor& stream, const Tensor& rows) {
  return stream.gather(1, rows.unsqueeze(2).expand({rows.size(0), rows.size(1), stream.size(2)}));
}

}  // namespace

Routing RoutedModel::RoutingOf(const RouterBatch& batch, const GateFunction& gate) const {
  return {.pool = recipe_.settings.pool,
          .sink = recipe_.settings.sink,
          .window = recipe_.settings.window,
          .prompts = batch.prompts,
          .gate = gate};
}

Tensor RoutedModel::Dense(const RouterBatch& batch, Kept* kept) const {
  const Routing routing = RoutingOf(batch, {});
  const torch::NoGradGuard no_gradients;
  *kept = {};
  const ForwardInput in{.tokens = batch.tokens, .routing = &routing, .keep = kept};
  return Taken(model_.Forward(in).stream, batch.rows);
}

Tensor RoutedModel::Whole(const RouterBatch& batch, const GateFunction& gate) const {
  const Routing routing = RoutingOf(batch, gate);
  return model_.Forward({.tokens = batch.tokens, .routing = &routing}).stream;
}

Tensor RoutedModel::Rows(const RouterBatch& batch, const GateFunction& gate,
                         const Kept& kept) const {
  if (recipe_.mode == RouterRecipe::Mode::kExact) return Taken(Whole(batch, gate), batch.rows);
  const Routing routing = RoutingOf(batch, gate);
  return model_.ForwardRows(kept, batch.tokens.gather(1, batch.rows), batch.rows, routing);
}

Tensor RoutedModel::Logits(const RouterBatch& batch, const Tensor& rows) const {
  const Tensor logits = model_.Logits(rows.reshape({-1, rows.size(2)}).index_select(0, batch.at));
  return logits.to(SumType(logits));
}

Tensor PerSample(const RouterBatch& batch, const Tensor& values) {
  return torch::zeros({batch.prompts.size(0)}, values.options().requires_grad(false))
      .index_add(0, batch.sample, values * batch.share);
}

Tensor RoutedModel::Divergence(const RouterBatch& batch, const Tensor& dense,
                               const Tensor& rows) const {
  const Tensor from = Logits(batch, dense).log_softmax(-1),
               to = Logits(batch, rows).log_softmax(-1);
  return PerSample(batch, (from.exp() * (from - to)).sum(-1));
}

std::vector<std::vector<size_t>> BatchesOf(const RouterSamples& samples, int64_t tokens,
                                           const std::function<bool(size_t)>& wanted) {
  std::vector<std::vector<size_t>> batches;
  for (const int64_t length : samples.Lengths()) {
    std::vector<size_t> batch;
    const auto flush = [&] {
      if (!batch.empty()) batches.push_back(std::move(batch));
      batch.clear();
    };
    for (size_t i = 0; i < samples.all().size(); ++i) {
      if (samples.all()[i].length != length || !wanted(i)) continue;
      batch.push_back(i);
      if ((std::ssize(batch) + 1) * length > tokens) flush();
    }
    flush();
  }
  return batches;
}

Teacher Teach(const RoutedModel& model, const RouterSamples& samples, torch::Device device) {
  const torch::NoGradGuard no_gradients;
  Teacher teacher;
  const auto count = std::ssize(samples.all());
  teacher.answered.assign(samples.all().size(), true);
  for (const auto& which : BatchesOf(samples, kTeacherTokens, [](size_t) { return true; })) {
    const RouterBatch batch = samples.Batch(which, device);
    Kept kept;
    const Tensor rows = model.Dense(batch, &kept);
    const Tensor pooled = torch::stack(kept.pooled, 1);
    if (!teacher.stream.defined()) {
      teacher.stream = torch::empty({count, rows.size(1), rows.size(2)}, rows.options());
      teacher.pooled = torch::empty({count, pooled.size(1), pooled.size(2)}, pooled.options());
    }
    const Tensor right = model.Logits(batch, rows).argmax(-1) == batch.target;
    const Tensor share =
        PerSample(batch, right.to(batch.share.scalar_type())).to(torch::kCPU, torch::kFloat32);
    for (int64_t b = 0; b < std::ssize(which); ++b) {
      const size_t i = which[static_cast<size_t>(b)];
      teacher.stream[static_cast<int64_t>(i)].copy_(rows[b]);
      teacher.pooled[static_cast<int64_t>(i)].copy_(pooled[b]);
      if (samples.all()[i].answer) teacher.answered[i] = share[b].item<float>() > 0.999f;
    }
  }
  return teacher;
}

}  // namespace baton::train
