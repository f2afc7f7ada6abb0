// Trains gates of a frozen model: routers, or one list for all requests (arXiv 2604.07394).
#pragma once

#include <array>
#include <map>
#include <string>
#include <vector>

#include "train/gates.h"
#include "train/optimizer.h"
#include "train/router_model.h"

namespace baton::train {

// Means over samples since the last report.
struct RouterLosses {
  ByKind loss, windows;           // the loss without penalty; the share of windows
  double answers = 0, texts = 0;  // samples of each kind
};

class RouterTrainer {
 public:
  // Learns from text and from what `teacher` answers. Everything given must outlive it.
  RouterTrainer(const RoutedModel& model, const RouterSamples& samples, const Teacher& teacher,
                Gates& gates, torch::Device device);

  void Step();
  bool done() const { return step_ == model_.recipe().steps; }
  int64_t step() const { return step_; }
  int64_t tokens() const { return tokens_; }
  // Whether dense attention answers enough samples of any task; without, there is no step to take.
  bool usable() const { return !usable_.empty(); }
  RouterLosses TakeLosses();
  // By task: nats for a share of 1 of full layers; or the paper's lambda1 and lambda2.
  const std::map<std::string, std::array<double, 2>>& prices() const { return prices_; }
  // Shifts the gates so that their mean share of windows on training samples, tasks counting
  // equally, is the target's mean over tasks. Decisions of exact mode depend on those of layers
  // below, so there it holds nearly.
  void MeetTarget();

  // One step's loss on a batch of one length, with its penalty, as it is differentiated. `noise`,
  // [L, B, 2], is added to the gates' logits.
  Tensor Loss(const std::vector<size_t>& which, const Tensor& noise);

 private:
  std::vector<size_t> Choose() const;
  // The paper's: [B], of every token that follows one which windows affect.
  Tensor CrossEntropy(const std::vector<size_t>& which, const RouterBatch& batch,
                      const GateFunction& gate, const Kept& kept) const;

  const RoutedModel& model_;
  const RouterSamples& samples_;
  const Teacher& teacher_;
  Gates& gates_;
  const torch::Device device_;
  Optimizer optimizer_;
  std::vector<std::map<std::string, std::vector<size_t>>> usable_;  // by length, by task
  std::map<std::string, std::array<double, 2>> prices_;
  RouterLosses losses_;
  int64_t step_ = 0, tokens_ = 0;
};

}  // namespace baton::train
