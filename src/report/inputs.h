// What a report is drawn from, read from the files of the other commands. Reading is tolerant:
// a number that is absent stays absent and its part of the page is left out; a file of another
// kind, or a table whose size contradicts its layers, is an error.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "baton/error.h"
#include "baton/plan.h"
#include "baton/report.h"

namespace baton {

using Maybe = std::optional<double>;

// Where a result came from, as the commands write it.
struct Origin {
  std::string command, cpu, backend, model_name, model_path, fingerprint;
  int threads = 0;
  std::vector<std::pair<std::string, std::string>> texts;  // path, sha256
};

struct ProfileData {
  Origin origin;
  std::string architecture;
  int layers = 0, heads = 0, kv_heads = 0;
  int64_t head_dim = 0, context = 0, probes = 0, seed = 0, sink = 0, recent = 0;
  std::vector<int64_t> model_window;  // [L] or empty
  std::vector<int64_t> budgets, windows;
  std::vector<std::vector<double>> text, answer;  // [budget][i * L + j] lost mass; may be empty
  std::vector<double> own_kl, rnmse, price_text, price_answer;  // [L] or empty
  Maybe seconds;
};

struct CandidateData {
  std::string origin, roles;
  Maybe predicted_nats, kv_bytes_share, speedup, kl, answer_kl, top1, found, dense_found;
  bool on_front = false, meets_target = false;
};

struct SearchData {
  Origin origin;
  CandidateData chosen;
  std::optional<CandidateData> test;
  std::vector<CandidateData> candidates;
  Maybe seconds, max_kl, max_bytes;
};

struct NeedleData {
  int64_t length = 0;
  double depth = 0;
  bool dense_found = false, found = false;
};

struct EvalData {
  Origin origin;
  int64_t context = 0, rows = 0, seed = 0;
  Maybe kl, kl_error, top1, nll_delta, found, dense_found, total, answer_kl, kv_bytes_share,
      predicted_nats, positions;
  std::vector<NeedleData> grid;
};

struct BenchRowData {
  int64_t depth = 0;
  bool planned = false;
  Maybe prompt, decode, kv_bytes, share_of_bandwidth;  // tokens/s, tokens/s, bytes per token
};

struct BenchData {
  Origin origin;
  Maybe read_bandwidth;
  std::vector<BenchRowData> rows;
};

struct ReportData {
  std::string title;
  std::optional<ProfileData> profile;
  std::optional<Plan> plan;
  std::optional<SearchData> search;
  std::vector<EvalData> evals;  // ascending context
  std::vector<BenchData> benches;
};

Result<ReportData> ReadInputs(const ReportInputs& inputs);

}  // namespace baton
