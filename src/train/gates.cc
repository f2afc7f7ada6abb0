#include "train/gates.h"

#include <cmath>

#include "base/check.h"

namespace baton::train {
namespace {

// Outputs and inputs of the five products, in head sizes; 0: the two logits.
constexpr int kSizes[5][2] = {{8, 1}, {2, 8}, {4, 2}, {1, 4}, {0, 1}};
constexpr int kFirstOfHead = 2;

std::vector<float> Floats(const Tensor& t) {
  const Tensor values = t.detach().to(torch::kCPU, torch::kFloat32).contiguous();
  const float* data = values.data_ptr<float>();
  return {data, data + values.numel()};
}

Tensor Leaf(const Tensor& t, const torch::TensorOptions& options) {
  return t.to(options).clone().set_requires_grad(true);
}

}  // namespace

// The paper's start: uniform in 1 / sqrt(inputs), no biases in the head, a last matrix of zeros.
Gates Gates::Routers(int layers, int64_t head_dim, double bias, uint64_t seed,
                     const torch::TensorOptions& options) {
  Gates gates;
  auto generator = at::detail::createCPUGenerator(seed);
  const auto uniform = [&](at::IntArrayRef shape, double most) {
    return (torch::rand(shape, generator, torch::kFloat32) * 2 - 1) * most;
  };
  for (int l = 0; l < layers; ++l) {
    std::array<Linear, 5>& layer = gates.layers_.emplace_back();
    for (size_t i = 0; i < layer.size(); ++i) {
      const int64_t outputs = kSizes[i][0] == 0 ? 2 : kSizes[i][0] * head_dim,
                    inputs = kSizes[i][1] * head_dim;
      const double most = 1 / std::sqrt(static_cast<double>(inputs));
      const bool last = i + 1 == layer.size();
      layer[i].weight =
          Leaf(last ? torch::zeros({outputs, inputs}) : uniform({outputs, inputs}, most), options);
      layer[i].bias = Leaf(i < kFirstOfHead ? uniform({outputs}, most)
                           : last           ? torch::tensor({0.0, bias})
                                            : torch::zeros({outputs}),
                           options);
    }
  }
  return gates;
}

Gates Gates::List(int layers, double bias, const torch::TensorOptions& options) {
  Gates gates;
  gates.list_ = Leaf(torch::full({layers}, bias), options);
  return gates;
}

Gates Gates::Of(const RouterFile& file, const torch::TensorOptions& options) {
  Gates gates;
  for (const LayerRouter& router : file.layers) {
    std::array<Linear, 5>& layer = gates.layers_.emplace_back();
    for (size_t i = 0; i < layer.size(); ++i) {
      const RouterLinear& linear = router.linear[i];
      layer[i].weight =
          Leaf(torch::tensor(linear.weight).reshape({linear.outputs, linear.inputs}), options);
      layer[i].bias = Leaf(torch::tensor(linear.bias), options);
    }
  }
  return gates;
}

Tensor Gates::Logits(int layer, const Tensor& pooled) const {
  if (is_list()) {
    const Tensor full = list_[layer].expand({pooled.size(0)});
    return torch::stack({torch::zeros_like(full), full}, 1);
  }
  const std::array<Linear, 5>& m = layers_[static_cast<size_t>(layer)];
  Tensor x = pooled.to(m[0].weight.scalar_type());
  if (mean_.defined()) x = (x - mean_[layer]) / deviation_[layer];
  for (size_t i = 0; i < m.size(); ++i) {
    x = torch::matmul(x, m[i].weight.t()) + m[i].bias;
    if (i == 0 || i == 2 || i == 3) x = torch::silu(x);
  }
  return x;
}

void Gates::Standardise(const Tensor& mean, const Tensor& deviation) {
  BATON_CHECK(!is_list());
  mean_ = mean.to(layers_[0][0].weight.options().requires_grad(false));
  deviation_ = deviation.to(mean_.options());
}

void Gates::Shift(double by) {
  const torch::NoGradGuard no_gradients;
  if (is_list()) {
    list_.sub_(by);
    return;
  }
  for (std::array<Linear, 5>& layer : layers_) layer.back().bias.select(0, 0).add_(by);
}

std::vector<Tensor> Gates::values() const {
  if (is_list()) return {list_};
  std::vector<Tensor> all;
  for (const auto& layer : layers_) {
    for (const Linear& linear : layer) all.insert(all.end(), {linear.weight, linear.bias});
  }
  return all;
}

std::vector<double> Gates::Full() const {
  const std::vector<float> values = Floats(list_);
  return {values.begin(), values.end()};
}

RouterFile Gates::ToFile(const RouterSettings& settings) const {
  BATON_CHECK(!is_list());
  RouterFile file{.settings = settings, .head_dim = layers_[0][0].weight.size(1)};
  for (size_t l = 0; l < layers_.size(); ++l) {
    LayerRouter& out = file.layers.emplace_back();
    for (size_t i = 0; i < out.linear.size(); ++i) {
      Tensor weight = layers_[l][i].weight.detach(), bias = layers_[l][i].bias.detach();
      if (i == 0 && mean_.defined()) {
        weight = weight / deviation_[static_cast<int64_t>(l)];
        bias = bias - torch::mv(weight, mean_[static_cast<int64_t>(l)]);
      }
      out.linear[i] = {.outputs = weight.size(0),
                       .inputs = weight.size(1),
                       .weight = Floats(weight),
                       .bias = Floats(bias)};
    }
  }
  return file;
}

}  // namespace baton::train
