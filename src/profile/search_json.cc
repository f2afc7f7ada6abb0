// A plan search as JSON, for reports and as evidence inside plans.
#include "profile/search_json.h"

#include "results/records.h"

namespace baton {

using results::Json;

std::string ToJson(const PlanSearch& search) {
  auto out = results::ToJson<Json>(search);
  out["format"] = "baton-search";
  out["version"] = 1;
  return out.dump();
}

std::string EvidenceDetails(const PlanSearch& search, const Profile& profile) {
  Json front = Json::array();
  for (const Candidate& c : search.candidates) {
    if (c.on_front)
      front.push_back({{"kv_bytes_share", c.kv_bytes_share},
                       {"kv_held_share", c.kv_held_share},
                       {"kl", c.kl},
                       {"worst_kl", c.WorstKl()},
                       {"left_out_kl", c.LeftOutKl()},
                       {"found", c.found}});
  }
  return Json{{"seed", profile.options.seed},
              {"kinds", search.kinds},
              {"worst_kl", search.test.WorstKl()},
              {"left_out_kl", search.test.LeftOutKl()},
              {"spread", search.test.spread},
              {"search", results::ToJson<Json>(search.chosen)},
              {"test", results::ToJson<Json>(search.test)},
              {"front", front}}
      .dump();
}

std::string EvidenceDetails(const WindowPlan& list, const WindowOptions& options,
                            const Profile& profile) {
  auto details = results::ToJson<Json>(options);
  details["seed"] = profile.options.seed;
  details["score"] = list.score;
  details["measures"] = results::ToJson<Json>(list)["measures"];
  return details.dump();
}

}  // namespace baton
