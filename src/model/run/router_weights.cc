#include "model/run/router_weights.h"

namespace baton {

Router Router::Load(const RouterFile& file, Device& device) {
  Router router{.settings = file.settings};
  for (const LayerRouter& layer : file.layers) {
    const auto load = [&](int i) {
      const RouterLinear& l = layer.linear[static_cast<size_t>(i)];
      const auto upload = [&](const std::vector<float>& values) {
        return router.storage.emplace_back(UploadArray<float>(values, device)).data();
      };
      const float* weight = upload(l.weight);
      return RouterWeights::Layer{View<const float>(weight, {l.outputs, l.inputs}), upload(l.bias)};
    };
    RouterWeights weights;
    for (int i = 0; i < 2; ++i) weights.encoder[i] = load(i);
    for (int i = 0; i < 3; ++i) weights.head[i] = load(2 + i);
    router.layers.push_back(weights);
  }
  return router;
}

}  // namespace baton
