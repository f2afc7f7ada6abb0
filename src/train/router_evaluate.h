// Routers and lists on a test set, beside dense attention.
#pragma once

#include <string>
#include <vector>

#include "train/gates.h"
#include "train/router_model.h"

namespace baton::train {

// What decides: gates, of which a window needs a difference of `margin`; or one letter a layer, F
// or S (sink and window).
struct RouterSubject {
  std::string name;
  const Gates* gates = nullptr;
  double margin = 0;
  std::string mask;
};

struct RouterItem {
  size_t sample = 0;
  bool kept = false;      // every scored token is the likeliest; of text: unused
  double divergence = 0;  // nats to dense, a mean over scored tokens
  double top1 = 0;        // share of scored tokens whose likeliest is that of dense
  std::string layers;     // F or S each
  double windows() const;
};

struct RouterResult {
  std::string name;
  std::vector<RouterItem> items;  // in order of samples
};

// Of the samples that `wanted` allows.
std::vector<RouterResult> EvaluateRouters(const RoutedModel& model, const RouterSamples& samples,
                                          const Teacher& teacher,
                                          const std::vector<RouterSubject>& subjects,
                                          const std::function<bool(size_t)>& wanted,
                                          torch::Device device);

// Nats lost when one layer alone has a window, for each layer: the mean over tasks with answers
// plus the mean over tasks of text, on up to `count` samples of each task, of the greatest length
// up to `most`.
std::vector<double> LayerHarm(const RoutedModel& model, const RouterSamples& samples,
                              const Teacher& teacher, size_t count, int64_t most,
                              torch::Device device);

// One JSON object: means, standard errors, a table by task, and every item.
std::string ToJson(const RouterResult& result, const RouterSamples& samples,
                   const RouterSettings& settings);

}  // namespace baton::train
