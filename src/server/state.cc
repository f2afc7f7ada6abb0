#include "server/state.h"

#include <utility>

#include "server/page.h"

namespace baton::server {
namespace {

// A plan's layers by role, and what the latest answer under it was seen to do.
Json PlanState(const std::string& name, Json layers, const Metrics& m) {
  Json watched = Json::array(), routed;
  if (const auto seen = m.plans.find(name); seen != m.plans.end()) {
    for (const LayerWatch& w : seen->second.watched)
      watched.push_back({{"layer", w.layer}, {"captured", w.captured}, {"promoted", w.promoted}});
    if (!seen->second.routed.empty()) routed = seen->second.routed;
  }
  return {{"name", name},
          {"layers", std::move(layers)},
          {"watched", std::move(watched)},
          {"routed", std::move(routed)}};
}

}  // namespace

std::string WriteState(const Model& model, const Metrics& m, const Gauges& g) {
  const ModelInfo& info = model.engine->info();
  Json dense = Json::array(), plans = Json::array();
  for (const LayerInfo& layer : info.layer) dense.push_back(layer.kind);
  plans.push_back(PlanState("dense", dense, m));
  // Requests that name no plan are routed: every layer that sees the whole context.
  if (model.route) {
    for (size_t l = 0; l < dense.size(); ++l)
      if (info.window[l] == 0) dense[l] = "route";
    plans.push_back(PlanState("", std::move(dense), m));
  }
  for (const auto& [name, plan] : model.plans) {
    Json layers = Json::array();
    for (const LayerRole& layer : plan.layers) layers.push_back(ToString(layer.role));
    plans.push_back(PlanState(name, std::move(layers), m));
  }
  return Dump({{"model", model.name},
               {"layers", info.layers},
               {"context", model.engine->options().context},
               {"plan", model.plan.empty() && !model.route ? "dense" : model.plan},
               {"plans", std::move(plans)},
               {"running", g.running},
               {"waiting", g.waiting},
               {"cache",
                {{"requests", g.cache.requests},
                 {"claimed_tokens", g.cache.claimed_tokens},
                 {"most_tokens", g.cache.most_tokens},
                 {"held_bytes", g.cache.held_bytes}}},
               {"kv_bytes_read", m.kv_bytes_read},
               {"kv_bytes_dense", m.kv_bytes_dense},
               {"prompt_tokens", m.prompt_tokens},
               {"cached_tokens", g.prefix.hits},
               {"streamed_tokens", m.streamed_tokens},
               {"promotions", m.promotions}});
}

HttpReply PageReply(std::string_view body, std::string_view type) {
  return {.body = std::string(body),
          .type = std::string(type),
          .policy =
              "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
              "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"};
}

}  // namespace baton::server
