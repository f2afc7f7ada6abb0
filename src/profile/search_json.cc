// A plan search as JSON, for reports and as evidence inside plans.
#include "profile/search_json.h"

#include <nlohmann/json.hpp>

namespace baton {
namespace {

using nlohmann::json;

std::string Letters(const Plan& plan) {
  std::string s;
  for (const LayerRole& l : plan.layers) s += "FSCRW"[static_cast<int>(l.role)];
  return s;
}

json Figures(const Candidate& c) {
  const PrefillMode& prefill = c.plan.prefill;
  return {{"origin", c.origin},
          {"roles", Letters(c.plan)},
          {"prompt_share", prefill.sparse ? prefill.fraction : 1.0},
          {"predicted_nats", c.predicted_nats},
          {"kv_bytes_share", c.kv_bytes_share},
          {"predicted_speedup", c.predicted_speedup},
          {"kl", c.kl},
          {"answer_kl", c.answer_kl},
          {"top1", c.top1},
          {"found", c.found},
          {"dense_found", c.dense_found},
          {"on_front", c.on_front},
          {"meets_target", c.meets_target}};
}

}  // namespace

std::string ToJson(const PlanSearch& search) {
  json candidates = json::array();
  for (const Candidate& c : search.candidates) candidates.push_back(Figures(c));
  return json{{"format", "baton-search"},         {"version", 1},
              {"chosen", Figures(search.chosen)}, {"test", Figures(search.test)},
              {"candidates", candidates},         {"seconds", search.seconds}}
      .dump();
}

std::string EvidenceDetails(const PlanSearch& search, const Profile& profile) {
  json front = json::array();
  for (const Candidate& c : search.candidates) {
    if (c.on_front)
      front.push_back({{"kv_bytes_share", c.kv_bytes_share}, {"kl", c.kl}, {"found", c.found}});
  }
  return json{{"seed", profile.options.seed},
              {"search", Figures(search.chosen)},
              {"test", Figures(search.test)},
              {"front", front}}
      .dump();
}

}  // namespace baton
