// Layers routed to full or windowed attention, once per request, by what the prompt's first and
// last rows ask (arXiv 2604.07394); and the windows of plans that evict, which are decided.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/engine_impl.h"
#include "model/run/router_weights.h"
#include "plan/prefill_schedule.h"

namespace baton {

Status CheckRouteOptions(const RouteOptions& options, int layers);

// Every layer that sees the whole context routed, with the windows of the router's settings.
Plan RouteEveryLayer(const ModelShape& model, const RouterSettings& settings);

// What the sequence of a request whose layers are decided holds.
void CountHeld(const ResolvedPlan& plan, const KvSequence& kv, RoutingReport& report);

// What a prompt that was routed layer by layer leaves beside its caches, for those that begin like
// it.
struct RoutedPrefix {
  std::string bitmap;  // [layers] F full, S sparse
  // [layers] the stream that enters a layer that was asked, of the router's first rows: [pool, C].
  std::vector<std::vector<float>> rows;
};

class Routing {
 public:
  // `router` may be null where the mask decides every routed layer. `plan` is the request's own; it
  // and `kv` change as layers are decided. `tokens`: the whole prompt, which starts the sequence.
  Routing(Engine::Impl& engine, const Router* router, const RouteOptions& options,
          std::span<const int32_t> tokens, ResolvedPlan* plan, KvSequence* kv);

  // Layers that become windows keep their whole cache all the same.
  void KeepCaches() { keeps_caches_ = true; }
  bool open() const;  // some routed layer is not decided yet
  // The mask decides every routed layer: nothing has to wait for the prompt.
  bool forced() const;
  // Applies what the mask decides.
  void DecideForced();
  // Takes the decisions of a routing that ran ahead.
  void DecideAs(const Routing& other);

  // The prompt's rows below `done` are in the caches, as a prompt left them that was routed as
  // `prefix` says; the streams that Before gets begin at `done`. Where a layer is now decided
  // otherwise (prompts that attend fully aside), Before fails and diverged() tells the layer: the
  // prompt has to be processed from its start. `prefix` may be null where no layer is asked; else
  // the router's first rows lie below `done`, and its last rows do not.
  void Resume(int64_t done, std::shared_ptr<const RoutedPrefix> prefix);
  int diverged() const { return diverged_; }
  // Whether `prefix` has the rows of all layers that will be asked.
  bool CanResume(const RoutedPrefix& prefix) const;
  // What Before saw, if that was asked for.
  void Record() { record_ = true; }
  RoutedPrefix Recorded() const;

  // Before a layer-major pass: decides the layer if its turn has come. `kept`: [T, C] on the
  // device, the stream that enters it; the first layer's is embedded here. An error if a router's
  // answer is no number.
  Status Before(const Pass& pass, const float* kept);
  // After a pass: a layer that is a window from now on frees the rest of its cache.
  void After(const Pass& pass);

  // What was decided and by what; CountHeld adds what it keeps.
  RoutingReport Report() const;

 private:
  enum class Decision : uint8_t { kOpen, kFull, kSparse };
  bool Routed(int layer) const { return routed_[static_cast<size_t>(layer)]; }
  Decision Forced(int layer) const;
  Status Ask(int layer, const float* kept);
  void Decide(int layer, bool full);
  void Narrow(int layer);

  Engine::Impl& engine_;
  const Router* router_;
  const RouteOptions options_;
  std::span<const int32_t> tokens_;
  ResolvedPlan* plan_;
  KvSequence* kv_;
  std::vector<bool> routed_;                  // [layers]
  std::vector<Decision> decisions_;           // [layers]
  std::vector<std::array<float, 2>> logits_;  // [layers]
  bool asked_ = false, keeps_caches_ = false;
  int64_t rows_pooled_ = 0;
  int64_t done_ = 0;
  std::shared_ptr<const RoutedPrefix> prefix_;
  bool record_ = false;
  std::vector<std::vector<float>> rows_;  // as RoutedPrefix's
  int diverged_ = -1;
  Array<float> x_, q_, answer_;  // on the device
};

}  // namespace baton
