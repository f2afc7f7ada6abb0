// A self-contained HTML page with SVG pictures: what was profiled, what was planned, what it costs
// and what it gains.
#pragma once

#include <string>
#include <vector>

#include "baton/error.h"
#include "baton/profile.h"

namespace baton {

// Contents of the files that `baton profile|plan|eval|bench|run|info --json` wrote; empty: absent.
struct ReportInputs {
  std::string profile_json;
  std::string plan_json;
  std::string search_json;
  std::vector<std::string> eval_json;  // one per context or plan
  std::vector<std::string> bench_json;
  std::vector<std::string> run_json;  // of routed requests, one each
  std::string info_json;
  std::vector<std::string> train_logs;  // JSON lines that `baton-train lm|router` wrote, one a run
  std::string title;
};

Result<std::string> RenderReport(const ReportInputs& inputs);

}  // namespace baton
