// Offline part of a plan: measure which layers can use which layers' top-k sets, then search the
// cheapest plan whose measured quality meets a budget. Source: arXiv 2602.00777, docs/planning.md.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "baton/engine.h"
#include "baton/error.h"
#include "baton/plan.h"

namespace baton {

struct ProfileOptions {
  // PATH or KIND=PATH, files or folders (docs/planning.md#data); at least about 18,000 tokens
  // together. A profile lists its files, each with its kind.
  std::vector<std::string> texts;
  int64_t context = 8192;  // the context length the plan is for
  int probes = 24;  // retrieval probes generated into the profile split (as many again into search)
  uint64_t seed = 1;
  std::vector<int64_t> budgets = {128, 256, 512, 1024, 2048};
  std::vector<int64_t> windows = {512, 1024};  // sink included
  int64_t sink = 4, recent = 64;
  Scope scope = Scope::kAll;
  Pool pool = Pool::kSum;
  int64_t block = 1;

  // What needs no model to be seen: ranges, and how the numbers fit each other.
  Status Check() const;
};

// A row per probe kind and split; probes that dense fails are dropped from the measures.
struct SplitInfo {
  std::string name;     // profile, search, test
  int64_t context = 0;  // tokens of each context; less than was asked for where the text is short
  int64_t text_tokens = 0, scored_positions = 0;  // scored: in the profile split alone
  int probes = 0, probes_dense_finds = 0;
};

// What one kind of text loses, in the units of the profile's own tables.
struct KindLoss {
  std::string name;
  int64_t tokens = 0;                               // of the kind's text, in all splits
  std::vector<std::vector<float>> text, scan_text;  // [budget][i * L + j], [budget][j]
  std::vector<float> price_text, own_price_text;    // [L]
  std::vector<std::vector<float>> window_text;      // [window][L]
};

struct Profile {
  // Which model and data this belongs to.
  std::string model_path, architecture, fingerprint;
  int layers = 0, heads = 0, kv_heads = 0;
  int64_t head_dim = 0;
  std::vector<int64_t> model_window;  // [L]
  ProfileOptions options;
  std::vector<std::string> text_sha256;  // one per options.texts
  std::vector<std::string> warnings;     // about the texts; not in the file
  std::vector<SplitInfo> splits;
  std::vector<KindLoss> kinds;

  // Tables of text are means over the kinds, those of answers over all contexts.
  // [budget][i * L + j]: mass of layer j that layer i's top-k set misses. text: mean over heads and
  // text positions; answer: over answer positions of probes; worst: as answer, of the worst query
  // head. Diagonal: own exact set.
  std::vector<std::vector<float>> text, answer, worst;
  // [budget][j]: mass of layer j that its own low-bit ranking misses.
  std::vector<std::vector<float>> scan_text, scan_answer;
  // [i * L + j]: |Si & Sj| / k at k = 512, with and without the forced tokens.
  std::vector<float> overlap, overlap_unforced;
  std::vector<float> rnmse, own_kl;  // [L]: only this layer sparse, on its own top k = 256
  // [L] nats per unit of lost mass: of a borrowed set, and of the layer's own. A borrowed set
  // misses heavy keys, an own one only the tail, which costs less a unit.
  std::vector<float> price_text, price_answer;
  std::vector<float> own_price_text, own_price_answer;
  std::vector<std::vector<float>> window_text,
      window_answer;  // [window][L] nats when only this layer is windowed

  // Microseconds of one layer's attention in a decode step at `context`, by role, measured here.
  struct Costs {
    double full = 0, select = 0, rest_of_step = 0;  // rest: everything that is not attention
    std::vector<double> scan, reuse;                // [budget]
    std::vector<double> window;                     // [window]
  } costs;
  double seconds = 0;

  static Result<Profile> Load(const std::string& path);
  // `name` is what errors call it.
  static Result<Profile> Parse(const std::string& json, const std::string& name = "profile");
  std::string ToJson() const;
  Status Save(const std::string& path) const;
};

Result<Profile> MakeProfile(Engine& engine, const ProfileOptions& options,
                            const OnProgress& progress = nullptr);

struct PlanTarget {
  // Bounds of the text KL to dense; 0: none. max_kl holds for the worst kind of text and for the
  // worst that is left out (Candidate); with one kind of text there is but the mean.
  double max_kl = 0, max_kl_mean = 0;
  double min_retrieval = 0.97;  // what the plan finds over what dense finds
  double max_bytes = 0;         // share of dense KV bytes at the profile's context; 0: no bound
  // Share of the dense cache that is held after the prompt; 0: no bound. The plan evicts then.
  double max_held = 0;
  double min_speedup = 0;  // decode step, dense over planned, by measured costs; 0: no bound
};

enum class PlanObjective { kNats, kMass, kPaper };  // priced loss | lost mass | the paper's overlap

struct PlanOptions {
  PlanTarget target;
  PlanObjective objective = PlanObjective::kNats;
  std::vector<Role> roles = {Role::kSelect, Role::kScan, Role::kReuse,
                             Role::kWindow};  // besides full
  std::vector<int> forced;
  std::vector<std::string> kinds;  // kinds of text to plan for; empty: all of the profile
  int max_evaluations = 100;       // of the real sparse path on the search split
  bool local_search = true;
  bool cost_in_bytes = true;  // false: measured microseconds
  // The plan is to draft for exact answers (docs/exact.md): of those that meet the target, the one
  // with the least expected time per token. Its prompts are dense.
  bool for_exact = false;
  // Sparse prompts to try on the plan that was found, in this order: the first one is taken that
  // meets the target and adds at most half of what decoding under the plan loses. Otherwise, and if
  // empty, its prompts are dense.
  std::vector<PrefillMode> prefills = {{true, 64, 0.4, 1024}, {true, 64, 0.5, 1024}};
};

// One measured candidate.
struct Candidate {
  Plan plan;
  std::string origin;  // "0.0140 nats predicted", "local search: ...", "sparse prompts, ..."
  double predicted_nats = 0;
  double kv_bytes_share = 0, predicted_speedup = 0;
  double kv_held_share = 1;  // after the prompt, low-bit copies included
  double bounded_share = 0;  // the one of the two that the search lowers: held under max_held
  double kl = 0, answer_kl = 0, top1 = 0;  // kl: of text, the mean over its kinds
  std::vector<double> kind_kl;             // [kinds]
  // [kinds] What a plan loses on a kind that did not choose it: the KL, on this kind, of the
  // candidate that is best on the other kinds and reads no more bytes. Empty with one kind.
  std::vector<double> left_out_kl;
  // On as much other text of a kind the KL lies within this factor of the one measured, 8 times of
  // 10, by how contexts of one kind differ. 1: not known, there was one context of each.
  double spread = 1;
  int found = 0, dense_found = 0;
  bool on_front = false, meets_target = false;
  // Of exact answers that it drafts for: expected time per token over dense's, by passes timed and
  // by top1. 0: not timed.
  double exact_time = 0;
  double WorstKl() const;    // of the kinds
  double LeftOutKl() const;  // the worst of left_out_kl; 0 where there is none
};

struct PlanSearch {
  Candidate chosen;  // measured on the search split
  Candidate test;    // the same plan on the test split, once
  std::vector<std::string> kinds;
  // [kinds] The plans of chosen.left_out_kl, with its prompts. Empty with one kind.
  std::vector<Plan> left_out_plans;
  std::vector<Candidate> candidates;
  double seconds = 0;
};

// Searches on the profile's search split (rebuilt from the recorded texts and seeds) and reports on
// its test split. An error when nothing meets the target; it names the nearest candidate.
Result<PlanSearch> SearchPlan(Engine& engine, const Profile& profile, const PlanOptions& options,
                              const OnProgress& progress = nullptr);
// The front and the evidence as JSON, for reports.
std::string ToJson(const PlanSearch& search);

// Layers on a sink and a window without a trained router (arXiv 2604.07394, its training-free
// fallback): a static list of them.
enum class WindowRank {
  kHarm,     // KL to dense on text plus KL at probe answers, with one layer on its window; measured
  kEntropy,  // spectral entropy of the layer's normalised attention input, the paper's ranking
};

struct WindowOptions {
  double share = 0.5;  // of the layers that see the whole context; rounded down, at least one
  WindowRank rank = WindowRank::kHarm;
  int64_t sink = 64, window = 512;  // tokens that stay: the first, and the latest
  bool route = false;  // role route instead of window: a mask or a router decides at run time
  bool evict = false;  // windows give up what they do not read once the prompt is done
};

// One way to run the list, against dense on the test split.
struct WindowMeasure {
  bool in_prompt = false;     // windows hold for the prompt's rows too, not in decode alone
  double kv_bytes_share = 0;  // read by a decode step, of dense
  double kv_held_share = 0;   // held at the end of the context, of dense
  double kl = 0, kl_standard_error = 0, answer_kl = 0, top1 = 0;
  int found = 0, dense_found = 0, probes = 0;
};

struct WindowPlan {
  Plan plan;  // with evidence: its last measure
  // [layers] what they were ranked by, lowest first; NaN where the model has a window of its own.
  std::vector<double> score;
  std::vector<double> harm_text, harm_answer;  // [layers] nats, the parts of the harm; or empty
  // Of role window: in decode alone, as plans run. Of role route with a mask that makes all of them
  // windows: also in the prompt.
  std::vector<WindowMeasure> measures;
  double seconds = 0;
};

// Ranks on the profile split, measures on the test split. Harm is taken from the profile where it
// holds that sink and window, and measured otherwise. Errors: a share that leaves no layer, a
// window that covers the context, another model, texts that changed, a model with its own sparse
// attention.
Result<WindowPlan> PlanWindows(Engine& engine, const Profile& profile, const WindowOptions& options,
                               const OnProgress& progress = nullptr);

}  // namespace baton
