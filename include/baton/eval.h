// Measure quality and speed: perplexity, a plan against dense, retrieval, timings at any depth.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "baton/engine.h"
#include "baton/error.h"
#include "baton/plan.h"

namespace baton {

struct PerplexityOptions {
  int64_t context = 1024;
  int64_t chunks = 0;        // 0: all
  bool score_all = false;    // every position instead of the second half of each chunk
  std::optional<Plan> plan;  // decode semantics for every scored position
  // One document of these tokens in place of a text: no BOS is added, and it is scored even where
  // it is shorter than the context.
  std::vector<int32_t> tokens;
  bool logprobs = false;  // keep those of the scored tokens
};
struct PerplexityResult {
  double perplexity = 0, standard_error = 0, mean_nll = 0;
  int64_t tokens_scored = 0, chunks = 0;
  std::vector<double> logprobs;  // nats, of the scored tokens in order; empty unless asked for
};
// llama.cpp's convention: text tokenised with BOS where the model adds one and one final newline
// dropped, disjoint chunks of `context` tokens, BOS in place of each chunk's first token for such
// models, targets ctx/2+1 .. ctx-1 scored.
Result<PerplexityResult> MeasurePerplexity(Engine& engine, const std::string& text,
                                           const PerplexityOptions& options,
                                           const OnProgress& progress = nullptr);

struct EvalOptions {
  std::vector<Plan> plans;  // each is compared with one dense run
  int64_t context = 8192;
  int64_t rows = 192;       // last positions of each window, decoded under the plan
  int64_t max_windows = 0;  // 0: as many as the text has
  int needles = 60;
  uint64_t seed = 7;
  int64_t self_generated = 0;  // tokens of a free-running decode compared with dense; 0: off
  std::vector<int64_t>
      grid_lengths;  // retrieval grid: needles by depth and these lengths; empty: off
};
struct NeedleResult {
  int64_t length = 0;
  double depth = 0;  // [0, 1) where the needle lies
  std::string kind;  // digits, key-value, several, variables
  bool dense_found = false, found = false;
  // Plans that evict: found by a question of a second turn, after the eviction.
  std::optional<bool> found_later;
  double kl = 0;  // KL to dense at the answer's tokens, mean
};
struct EvalResult {
  double kl_mean = 0, kl_standard_error = 0, top1_agreement = 0, nll_delta = 0, dense_nll = 0;
  int64_t positions = 0, windows = 0;
  int retrieval_found = 0, retrieval_dense_found = 0, retrieval_total = 0;
  double answer_kl = 0;
  double kv_bytes_share = 0;
  // Bytes held after the prompt, and how many of the probes a second turn finds: plans that evict.
  std::optional<double> kv_held_share;
  std::optional<int> retrieval_found_later;
  std::optional<double> predicted_nats;  // by the plan's evidence
  std::vector<NeedleResult> needles, grid;
  int64_t self_generated = 0, self_first_difference = -1;  // -1: none
  double self_nll_plan = 0,
         self_nll_dense = 0;  // of the planned text, under the plan and under dense
};
// One result for each plan, the same whatever the others are.
Result<std::vector<EvalResult>> Evaluate(Engine& engine, const std::string& text,
                                         const EvalOptions& options,
                                         const OnProgress& progress = nullptr);

struct BenchOptions {
  std::optional<Plan> plan;  // also measured besides dense
  std::vector<int64_t> depths = {0};
  int64_t prompt = 512;            // prompt tokens timed at each depth; 0: none
  int64_t decode = 32;             // decode steps timed at each depth
  int repeats = 3;                 // medians are reported
  std::vector<int> batches = {1};  // sequences decoded together, at each depth
  int64_t whole_prompt = 0;        // also time a whole prompt of this many tokens from depth 0
  bool ops = false;                // also time the operations of a prompt chunk and a decode step
  // Also what exact requests do: dense passes of several rows at each depth and, where a text is
  // given, answers of `decode` tokens to `repeats` prompts out of it, dense and exact.
  std::optional<ExactOptions> exact;
  std::string text;
};
struct RowsTime {
  int64_t rows = 0;
  double seconds = 0;
};
struct BenchRow {
  int64_t depth = 0;
  std::string plan;  // "dense" or the plan's summary
  int batch = 1;
  double prompt_tokens_per_s = 0, decode_tokens_per_s = 0;
  double kv_bytes_per_token = 0, weight_bytes_per_token = 0;
  int64_t kv_bytes_held = 0;  // of cache, per sequence, after the timed steps
  double decode_bytes_per_s = 0, share_of_read_bandwidth = 0;
  double read_bandwidth = 0;  // bytes/s, measured just before (MeasureReadBandwidth)
  std::string logits_hash;
  bool aliased = false;            // layers shared synthetic KV
  std::vector<OpTime> ops;         // of one decode step; empty unless asked for
  std::vector<OpTime> prompt_ops;  // of one prompt chunk; also empty where none is timed
  std::vector<RowsTime> verify;    // of dense rows with BenchOptions::exact: one pass by its rows
};
// Dense and exact answers to the same prompts, in turn.
struct ExactBench {
  int64_t depth = 0, prompts = 0, tokens = 0;  // of each prompt; how many; answered to all
  int64_t different = 0;                       // answers that are not dense's own
  double dense_seconds_per_token = 0, exact_seconds_per_token = 0;
  double accepted = 0;  // share of the drafts whose predecessors were accepted
  ExactReport report;   // of all answers
  // By depth of the rows: the drafts that pay best at that acceptance and the step times measured
  // there (0: none pay), and the expected time per token over dense's.
  struct Expected {
    int64_t depth = 0, drafts = 0;
    double time = 0;
  };
  std::vector<Expected> expected;
};
struct BenchResult {
  double read_bandwidth = 0;  // the best of the rows
  std::vector<BenchRow> rows;
  double whole_prompt_seconds_dense = 0, whole_prompt_seconds_plan = 0;
  // The most that was resident, loading included and the bandwidth's measurement left out, and what
  // there should be: packed weights and the largest cache.
  int64_t peak_memory_bytes = 0, expected_memory_bytes = 0;
  std::optional<ExactBench> exact;
};
Result<BenchResult> RunBench(Engine& engine, const BenchOptions& options,
                             const OnProgress& progress = nullptr);

// Bytes per second that the memory of the engine's device moves: reads by all threads on the host,
// reads and writes of a copy on a GPU. 0 where there is no memory to measure with.
double MeasureReadBandwidth(Engine& engine);

}  // namespace baton
