// What the commands print with --json and a report is drawn from. Each record lists its fields once
// (results/fields.h); their order is the order in the file. Longer than other headers because it is
// nothing but these lists: one place to look a key up.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "baton/engine.h"
#include "baton/eval.h"
#include "baton/plan.h"
#include "baton/profile.h"
#include "plan/roles.h"
#include "results/fields.h"

namespace baton::results {

struct TextFile {
  std::string path;
  int64_t bytes = 0;
  std::string sha256;
};

// Where a result came from; every result starts with it.
struct Origin {
  std::string format;  // "baton-eval"
  int version = 1;
  std::string command, cpu, kv;
  ModelInfo model;
  std::vector<TextFile> texts;  // of the commands that read text; written where their lists say
};

void Fields(auto& v, TextFile& t) {
  v("path", t.path);
  v("bytes", t.bytes);
  v("sha256", t.sha256);
}

void Fields(auto& v, Origin& o) {
  v("format", o.format);
  v("version", o.version);
  v("command", o.command);
  v.Object("machine", [&](auto& machine) {
    machine("cpu", o.cpu);
    machine("backend", o.model.backend);
    machine("threads", o.model.threads);
    machine("kv", o.kv);
  });
  v.Object("model", [&](auto& model) {
    model("path", o.model.path);
    model("name", o.model.name);
    model("architecture", o.model.architecture);
    model("fingerprint", o.model.fingerprint);
    model("layers", o.model.layers);
    model("weight_types", o.model.weight_types);
  });
}

// `baton info`.
struct InfoRecord {
  struct Share {
    int64_t tokens = 0;
    double kv_bytes_share = 0;
    int64_t read = 0, held = 0;
  };
  Origin origin;
  std::string plan;                // summary; empty: none was given
  std::vector<Share> decode_step;  // what one reads under the plan, at some lengths
};

void Fields(auto& v, InfoRecord::Share& s) {
  v("tokens", s.tokens);
  v("kv_bytes_share", s.kv_bytes_share);
  v("read", s.read, 0);
  v("held", s.held, 0);
}

void Fields(auto& v, ModelInfo::CacheBytes& c) {
  v("tokens", c.tokens);
  v("read", c.read);
  v("held", c.held);
  v("dense", c.dense);
}

void Fields(auto& v, LayerInfo& l) {
  v("kind", l.kind);
  v("branches", l.branches);
  v("cache", l.cache);
  v.NonEmpty("publishes", l.publishes);
  v("rope", l.rope);
  v("gated", l.gated);
  v("sink_logits", l.sink_logits);
}

void Fields(auto& v, InfoRecord& r) {
  ModelInfo& m = r.origin.model;
  Fields(v, r.origin);
  v("heads", m.heads);
  v("kv_heads", m.kv_heads);
  v("head_dim", m.head_dim);
  v("width", m.width);
  v("ffn_width", m.ffn_width);
  v("vocab", m.vocab);
  v("context", m.context);
  v("parameters", m.parameters);
  v("weight_bytes", m.weight_bytes);
  v("kv_bytes_per_token", m.kv_bytes_per_token);
  v("window", m.window);
  v("cache_bytes", m.cache_bytes);
  v("layers_table", m.layer);
  v("trained_sparse", m.trained_sparse, false);
  v("exit_layer", m.exit_layer, -1);
  v("suffix_rows", m.suffix_rows, -1);
  v.NonEmpty("router", m.router);
  v("has_tokenizer", m.has_tokenizer, true);
  v("has_chat_template", m.has_chat_template);
  v("ignored_keys", m.ignored_keys, std::vector<std::string>{});
  v("load_seconds", m.load_seconds);
  v.Object("plan", !r.plan.empty(), [&](auto& plan) {
    plan("summary", r.plan);
    plan("decode_step", r.decode_step);
  });
}

// A generated token, or one of the likeliest in its place (without `top`).
struct TokenRecord {
  int32_t token = 0;
  std::string text;
  double logprob = 0;
  std::vector<TokenRecord> top;
};

// `baton run`.
struct RunRecord {
  Origin origin;
  Generation generation;
  uint64_t seed = 0;
  std::vector<TokenRecord> logprobs;
  double prompt_tokens_per_s = 0, decode_tokens_per_s = 0;
  MemoryUse memory;
};

void Fields(auto& v, LayerWatch& w) {
  v("layer", w.layer);
  v("captured", w.captured);
  v("promoted", w.promoted);
}

void Fields(auto& v, TokenRecord& t) {
  v("token", t.token);
  v("text", t.text);
  v("logprob", t.logprob);
  v.NonEmpty("top", t.top);
}

void Fields(auto& v, MemoryUse& m) {
  v("bytes", m.anonymous_bytes);
  v("huge_page_bytes", m.huge_bytes);
  v("huge_pages_allowed", m.huge_pages_allowed);
}

// By value of Generation::Stop.
constexpr std::initializer_list<const char*> kStopNames = {"end_of_text", "stop_string", "length",
                                                           "context", "cancelled"};
constexpr const char* StopName(Generation::Stop stop) {
  return kStopNames.begin()[static_cast<size_t>(stop)];
}

void Fields(auto& v, RoutingReport& r) {
  v("bitmap", r.bitmap);
  v("logits", r.logits);
  v("source", r.source);
  v("rows_pooled", r.rows_pooled);
  v("held_token_equivalents", r.held_token_equivalents);
  v("dense_token_equivalents", r.dense_token_equivalents);
}

void Fields(auto& v, ExactReport& r) {
  v("drafted", r.drafted);
  v("looked_up", r.looked_up);
  v("accepted", r.accepted);
  v("verifications", r.verifications);
  v("drafted_at", r.drafted_at);
  v("accepted_at", r.accepted_at);
  v("draft_seconds", r.draft_seconds);
  v("verify_seconds", r.verify_seconds);
  v("dense_pass_seconds", r.dense_pass_seconds, 0.0);
}

void Fields(auto& v, RunRecord& r) {
  Generation& g = r.generation;
  RequestStats& s = g.stats;
  Fields(v, r.origin);
  v("text", g.text);
  v("tokens", g.tokens);
  v("prompt_tokens", s.prompt_tokens);
  v.Word("stop", g.stop, kStopNames);
  v("seed", r.seed);
  v.NonEmpty("logprobs", r.logprobs);
  v("prompt_seconds", s.prompt_seconds);
  v("prompt_tokens_per_s", r.prompt_tokens_per_s);
  v("decode_seconds", s.decode_seconds);
  v("decode_tokens_per_s", r.decode_tokens_per_s);
  v("kv_bytes_per_token", s.kv_bytes_per_token);
  v("kv_bytes_per_token_dense", s.kv_bytes_per_token_dense);
  v("kv_bytes_held", s.kv_bytes_held);
  v("logits_hash", s.logits_hash);
  v("watched", s.watched);
  v.NonEmpty("routing", s.routing);
  v.NonEmpty("exact", s.exact);
  v("memory", r.memory);
}

// `baton perplexity`.
struct PerplexityRecord {
  Origin origin;
  int64_t context = 0;
  std::string score, plan;  // plan: its summary, or "dense"
  PerplexityResult result;
};

void Fields(auto& v, PerplexityRecord& r) {
  Fields(v, r.origin);
  v("text", r.origin.texts);
  v("context", r.context);
  v("score", r.score);
  v("plan", r.plan);
  v("perplexity", r.result.perplexity);
  v("standard_error", r.result.standard_error);
  v("mean_nll", r.result.mean_nll);
  v("tokens_scored", r.result.tokens_scored);
  v("chunks", r.result.chunks);
  v.NonEmpty("logprobs", r.result.logprobs);
}

// `baton eval`. One plan's figures stand in the record itself, those of several in a list "plans".
struct PlanEval {
  std::string plan, file;  // summary; file: named where there are several
  EvalResult result;
};
struct EvalRecord {
  Origin origin;
  EvalOptions options;                         // context, rows, seed
  std::vector<PlanEval> plans = {PlanEval()};  // when reading, their number says which form
  const EvalResult& result() const { return plans.front().result; }
};

void Fields(auto& v, NeedleResult& n) {
  v("length", n.length);
  v("depth", n.depth, 0);
  v("kind", n.kind);
  v("dense_found", n.dense_found);
  v("found", n.found);
  v.NonEmpty("found_later", n.found_later);
  v("kl", n.kl);
}

void Fields(auto& v, PlanEval& e) {
  EvalResult& r = e.result;
  v("plan", e.plan);
  v.NonEmpty("file", e.file);
  v("kl_mean", r.kl_mean);
  v("kl_standard_error", r.kl_standard_error);
  v("top1_agreement", r.top1_agreement);
  v("nll_delta", r.nll_delta);
  v("dense_nll", r.dense_nll);
  v("positions", r.positions);
  v("windows", r.windows);
  v("retrieval_found", r.retrieval_found, -1);
  v("retrieval_dense_found", r.retrieval_dense_found, -1);
  v("retrieval_total", r.retrieval_total);
  v("answer_kl", r.answer_kl);
  v("kv_bytes_share", r.kv_bytes_share);
  v.NonEmpty("kv_held_share", r.kv_held_share);
  v.NonEmpty("retrieval_found_later", r.retrieval_found_later);
  v("predicted_nats", r.predicted_nats);
  v("needles", r.needles);
  v("grid", r.grid);
  v.Object("self", r.self_generated > 0, [&](auto& self) {
    self("tokens", r.self_generated);
    self("first_difference", r.self_first_difference, -1);
    self("nll_plan", r.self_nll_plan);
    self("nll_dense", r.self_nll_dense);
  });
}

void Fields(auto& v, EvalRecord& r) {
  Fields(v, r.origin);
  v("text", r.origin.texts);
  v("context", r.options.context);
  v("rows", r.options.rows);
  v("seed", r.options.seed);
  if (r.plans.size() == 1) {
    Fields(v, r.plans.front());
  } else {
    v("plans", r.plans);
  }
}

// `baton bench`.
struct BenchRecord {
  Origin origin;
  std::string shape;     // of --shape
  std::string note;      // what of the shape is not published, and what stands in for it
  BenchOptions options;  // prompt, decode, repeats, whole_prompt
  BenchResult result;
};

void Fields(auto& v, OpTime& o) {
  v("name", o.name);
  v("calls", o.calls);
  v("seconds", o.seconds);
  v("bytes", o.bytes);
  v("flops", o.flops);
}

void Fields(auto& v, RowsTime& r) {
  v("rows", r.rows);
  v("seconds", r.seconds);
}

void Fields(auto& v, ExactBench::Expected& e) {
  v("depth", e.depth);
  v("drafts", e.drafts);
  v("time", e.time);
}

void Fields(auto& v, ExactBench& e) {
  v("depth", e.depth);
  v("prompts", e.prompts);
  v("tokens", e.tokens);
  v("different", e.different);
  v("dense_seconds_per_token", e.dense_seconds_per_token);
  v("exact_seconds_per_token", e.exact_seconds_per_token);
  v("accepted_share", e.accepted);
  v("expected", e.expected);
  Fields(v, e.report);
}

void Fields(auto& v, BenchRow& r) {
  v("depth", r.depth);
  v("plan", r.plan);
  v("batch", r.batch);
  v("prompt_tokens_per_s", r.prompt_tokens_per_s);
  v("decode_tokens_per_s", r.decode_tokens_per_s);
  v("kv_bytes_per_token", r.kv_bytes_per_token);
  v("kv_bytes_held", r.kv_bytes_held, 0);
  v("weight_bytes_per_token", r.weight_bytes_per_token);
  v("decode_bytes_per_s", r.decode_bytes_per_s);
  v("read_bandwidth", r.read_bandwidth);
  v("share_of_read_bandwidth", r.share_of_read_bandwidth);
  v("logits_hash", r.logits_hash);
  v("aliased", r.aliased);
  v.NonEmpty("ops", r.ops);
  v.NonEmpty("prompt_ops", r.prompt_ops);
  v.NonEmpty("verify", r.verify);
}

void Fields(auto& v, BenchRecord& r) {
  Fields(v, r.origin);
  v.NonEmpty("shape", r.shape);
  v.NonEmpty("shape_note", r.note);
  v("load_seconds", r.origin.model.load_seconds);
  v("peak_memory_bytes", r.result.peak_memory_bytes);
  v("expected_memory_bytes", r.result.expected_memory_bytes);
  v("read_bandwidth", r.result.read_bandwidth);
  v("prompt", r.options.prompt);
  v("decode", r.options.decode);
  v("repeats", r.options.repeats);
  v("rows", r.result.rows);
  v.NonEmpty("exact", r.result.exact);
  v.Object("whole_prompt", r.options.whole_prompt > 0, [&](auto& whole) {
    whole("tokens", r.options.whole_prompt);
    whole("seconds_dense", r.result.whole_prompt_seconds_dense);
    whole("seconds_plan", r.result.whole_prompt_seconds_plan);
  });
}

// `baton plan`.
struct SearchRecord {
  Origin origin;
  PlanSearch search;
  PlanTarget target;
};

// One letter per layer.
inline std::string Letters(const Plan& plan) {
  std::string letters;
  for (const LayerRole& layer : plan.layers) letters += RowOf(layer.role).letter;
  return letters;
}
// A plan of these roles and nothing else; without layers if a letter is none of them.
inline Plan PlanOfLetters(const std::string& letters) {
  Plan plan;
  for (const char letter : letters) {
    const RoleRow* row = RoleByLetter(letter);
    if (row == nullptr) return Plan();
    plan.layers.push_back({.role = row->role});
  }
  return plan;
}

// Of a candidate's plan the file has the roles and the prompts' share of the keys.
void Fields(auto& v, Candidate& c) {
  std::string roles = Letters(c.plan);
  PrefillMode& prefill = c.plan.prefill;
  double prompt_share = prefill.sparse ? prefill.fraction : 1.0;
  v("answer_kl", c.answer_kl);
  v("dense_found", c.dense_found, -1);
  v("found", c.found, -1);
  v.NonEmpty("kind_kl", c.kind_kl);
  v("kl", c.kl);
  v("kv_bytes_share", c.kv_bytes_share);
  v("kv_held_share", c.kv_held_share, 1);
  v.NonEmpty("left_out_kl", c.left_out_kl);
  v("spread", c.spread, 1.0);
  v("meets_target", c.meets_target);
  v("on_front", c.on_front);
  v("origin", c.origin);
  v("predicted_nats", c.predicted_nats);
  v("predicted_speedup", c.predicted_speedup);
  v("prompt_share", prompt_share);
  v("roles", roles);
  v("top1", c.top1);
  v("exact_time", c.exact_time, 0.0);
  if constexpr (std::remove_reference_t<decltype(v)>::kReads) {
    c.plan = PlanOfLetters(roles);
    prefill = {.sparse = prompt_share < 1, .fraction = prompt_share};
  }
}

void Fields(auto& v, PlanSearch& s) {
  v("candidates", s.candidates);
  v("chosen", s.chosen);
  v.NonEmpty("kinds", s.kinds);
  v("seconds", s.seconds);
  v("test", s.test);
}

void Fields(auto& v, SearchRecord& r) {
  Fields(v, r.origin);
  Fields(v, r.search);
  v.Object("target", [&](auto& target) {
    target("max_kl", r.target.max_kl);
    target("max_kl_mean", r.target.max_kl_mean, 0);
    target("max_bytes", r.target.max_bytes);
    target("max_held", r.target.max_held, 0);
    target("min_retrieval", r.target.min_retrieval);
    target("min_speedup", r.target.min_speedup);
  });
}

// `baton plan --windows-only`.
struct WindowRecord {
  Origin origin;
  WindowOptions options;
  WindowPlan list;
};

void Fields(auto& v, WindowOptions& o) {
  v("share", o.share);
  v.Word("rank", o.rank, {"harm", "entropy"});
  v("sink", o.sink);
  v("window", o.window);
  v("route", o.route);
}

void Fields(auto& v, WindowMeasure& m) {
  v("in_prompt", m.in_prompt);
  v("kv_bytes_share", m.kv_bytes_share);
  v("kv_held_share", m.kv_held_share);
  v("kl", m.kl);
  v("kl_standard_error", m.kl_standard_error);
  v("answer_kl", m.answer_kl);
  v("top1", m.top1);
  v("found", m.found, -1);
  v("dense_found", m.dense_found, -1);
  v("probes", m.probes);
}

void Fields(auto& v, WindowPlan& p) {
  std::string roles = Letters(p.plan);
  v("roles", roles);
  v("score", p.score);
  v.NonEmpty("harm_text", p.harm_text);
  v.NonEmpty("harm_answer", p.harm_answer);
  v("measures", p.measures);
  v("seconds", p.seconds);
  if constexpr (std::remove_reference_t<decltype(v)>::kReads) p.plan = PlanOfLetters(roles);
}

void Fields(auto& v, WindowRecord& r) {
  Fields(v, r.origin);
  Fields(v, r.options);
  Fields(v, r.list);
}

}  // namespace baton::results
