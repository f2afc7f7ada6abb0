#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace baton::train {
namespace {

using enum TensorRole;

bool OfIndexer(TensorRole role) { return role == kIndexerQ || role == kIndexerK; }

bool IsTable(TensorRole role) { return role == kEmbedding || role == kOutput; }

Tensor Gradient(const Tensor& value) {
  return value.grad().defined() ? value.grad() : torch::zeros_like(value);
}

// Singular values of about 1, by five steps of a quintic whose coefficients favour speed over a
// limit of exactly 1.
Tensor Orthogonal(const Tensor& matrices) {
  const bool tall = matrices.size(1) > matrices.size(2);
  const auto type = matrices.is_cuda() ? torch::kBFloat16 : matrices.scalar_type();
  Tensor x = matrices.to(type);
  if (tall) x = x.transpose(1, 2);
  x = x / (x.square().sum(torch::IntArrayRef{1, 2}, true).sqrt() + 1e-7);
  for (int i = 0; i < 5; ++i) {
    const Tensor a = torch::bmm(x, x.transpose(1, 2));
    const Tensor b = torch::baddbmm(a, a, a, -4.7750, 2.0315);
    x = torch::baddbmm(x, b, x, 3.4445, 1.0);
  }
  return tall ? x.transpose(1, 2) : x;
}

}  // namespace

Optimizer::Optimizer(const Parameters& parameters, const OptimizerOptions& options)
    : options_(options) {
  for (const Parameter& p : parameters.all()) {
    const TensorRole role = p.slot.rule->role;
    const bool matrix = p.value.dim() == 2;
    if (options.muon && matrix && !IsTable(role)) {
      muon_[fmt::format("{}x{}", p.value.size(0), p.value.size(1))].values.push_back(p.value);
      continue;
    }
    adam_.push_back({p.name, p.value, torch::zeros_like(p.value), torch::zeros_like(p.value),
                     matrix, !OfIndexer(role)});
  }
  for (auto& [shape, m] : muon_) {
    m.momentum = torch::zeros({std::ssize(m.values), m.values[0].size(0), m.values[0].size(1)},
                              m.values[0].options().requires_grad(false));
  }
}

Optimizer::Optimizer(const std::vector<Tensor>& values, const OptimizerOptions& options)
    : options_(options) {
  for (const Tensor& v : values)
    adam_.push_back({fmt::format("{}", adam_.size()), v, torch::zeros_like(v), torch::zeros_like(v),
                     v.dim() == 2, true});
}

void Optimizer::Step(double rate) {
  const torch::NoGradGuard no_gradients;
  ++steps_;
  if (options_.clip > 0) Clip();
  StepAdam(rate);
  StepMuon(rate);
}

// Muon's update has no length of its own, so its gradients only count in the norm.
void Optimizer::Clip() {
  std::vector<Tensor> gradients;
  for (const Adam& a : adam_)
    if (a.clipped && a.value.grad().defined()) gradients.push_back(a.value.grad());
  for (const auto& [shape, m] : muon_) {
    for (const Tensor& v : m.values)
      if (v.grad().defined()) gradients.push_back(v.grad());
  }
  if (gradients.empty()) return;
  const Tensor norm = torch::stack(torch::_foreach_norm(gradients, 2)).norm();
  const Tensor factor = (options_.clip / (norm + 1e-6)).clamp_max(1.0);
#if BATON_TORCH_FUSED
  torch::_foreach_mul_(gradients, factor);
#else
  for (Tensor& g : gradients) g.mul_(factor);
#endif
}

void Optimizer::StepAdam(double rate) {
  std::vector<Tensor> values, gradients, means, squares, decaying;
  for (const Adam& a : adam_) {
    values.push_back(a.value);
    gradients.push_back(Gradient(a.value));
    means.push_back(a.mean);
    squares.push_back(a.square);
    if (a.decays) decaying.push_back(a.value);
  }
  if (values.empty()) return;
  const double steps = static_cast<double>(steps_);
  const double mean_share = 1 - std::pow(options_.beta1, steps);
  const double square_share = 1 - std::pow(options_.beta2, steps);
  if (!decaying.empty()) torch::_foreach_mul_(decaying, 1 - rate * options_.weight_decay);
  torch::_foreach_mul_(means, options_.beta1);
  torch::_foreach_add_(means, gradients, 1 - options_.beta1);
  torch::_foreach_mul_(squares, options_.beta2);
  torch::_foreach_addcmul_(squares, gradients, gradients, 1 - options_.beta2);
  std::vector<Tensor> root = torch::_foreach_sqrt(squares);
  torch::_foreach_div_(root, std::sqrt(square_share));
  torch::_foreach_add_(root, options_.eps);
  torch::_foreach_addcdiv_(values, means, root, -rate / mean_share);
}

void Optimizer::StepMuon(double rate) {
  for (auto& [shape, m] : muon_) {
    std::vector<Tensor> gradients;
    for (const Tensor& v : m.values) gradients.push_back(Gradient(v));
    const Tensor g = torch::stack(gradients);
    m.momentum.mul_(options_.momentum).add_(g);
    const Tensor update = Orthogonal(g + options_.momentum * m.momentum).to(g.scalar_type());
    const double size = 0.2 * std::sqrt(static_cast<double>(std::max(g.size(1), g.size(2))));
    torch::_foreach_mul_(m.values, 1 - rate * options_.weight_decay);
    torch::_foreach_add_(m.values, update.unbind(), -rate * size);
  }
}

std::vector<std::pair<std::string, Tensor>> Optimizer::State() const {
  std::vector<std::pair<std::string, Tensor>> state;
  for (const Adam& a : adam_) {
    state.emplace_back("mean." + a.name, a.mean);
    state.emplace_back("square." + a.name, a.square);
  }
  for (const auto& [shape, m] : muon_) state.emplace_back("momentum." + shape, m.momentum);
  state.emplace_back("steps", torch::full({1}, static_cast<double>(steps_)));
  return state;
}

Status Optimizer::Restore(const std::map<std::string, Tensor>& state) {
  for (auto& [name, value] : State()) {
    const auto it = state.find(name);
    if (it == state.end() || it->second.sizes() != value.sizes())
      return Error::Corrupt("the state holds no {} of this model", name);
    if (name == "steps") {
      steps_ = it->second.item().toLong();
    } else {
      value.copy_(it->second);
    }
  }
  return Status::Ok();
}

}  // namespace baton::train
