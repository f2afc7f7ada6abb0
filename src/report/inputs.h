// The inputs of a report, read from the files of the other commands. Reading is tolerant: a number
// that is absent stays absent and its part of the page is left out; a file of another kind, or a
// table whose size contradicts its layers, is an error.
#pragma once

#include <cmath>
#include <concepts>
#include <optional>
#include <string>
#include <vector>

#include "baton/error.h"
#include "baton/plan.h"
#include "baton/profile.h"
#include "baton/report.h"
#include "results/records.h"
#include "results/train_log.h"

namespace baton {

using Maybe = std::optional<double>;
using results::BenchRecord;
using results::EvalRecord;
using results::InfoRecord;
using results::Origin;
using results::RunRecord;
using results::SearchRecord;

// A number of a record, which is NaN, or -1 for a count, where the file has none.
inline Maybe Known(double value) { return std::isfinite(value) ? Maybe(value) : std::nullopt; }
inline Maybe Known(std::integral auto count) {
  return count >= 0 ? Maybe(static_cast<double>(count)) : std::nullopt;
}

// A run of `baton-train`; of a run that was continued, each step once.
struct TrainingRun {
  results::TrainStart start;
  std::vector<results::LmLosses> lm;       // of a model
  std::vector<results::GateLosses> gates;  // of routers and lists
  std::vector<results::LmTest> tests;
};

struct ReportData {
  std::string title;
  std::optional<Profile> profile;
  Origin profile_origin;
  std::optional<Plan> plan;
  std::optional<SearchRecord> search;
  std::vector<EvalRecord> evals;  // of one plan each, ascending context
  std::vector<BenchRecord> benches;
  std::vector<RunRecord> runs;  // with a routing of as many layers as its lists have
  std::optional<InfoRecord> info;
  std::vector<TrainingRun> trainings;  // 8 at most
};

Result<ReportData> ReadInputs(const ReportInputs& inputs);

}  // namespace baton
