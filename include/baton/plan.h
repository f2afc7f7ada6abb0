// The attention plan: which layers attend to the whole context, which pass their top-k positions
// on, which reuse them, and which keep a window. A plan is a value: parsed once, checked once
// against a model, then only read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "baton/error.h"

namespace baton {

// What a layer does; src/plan/roles.cc is the table. A user's plan gives the first six; the others
// belong to models that are trained for them.
enum class Role {
  kFull,
  kSelect,
  kScan,
  kReuse,
  kWindow,
  kRoute,
  kCrossFull,
  kCrossDense,
  kCrossIndex,
  kCrossIndexLocal,
  kSparse,
  kSparseShared,
};

enum class Scope {
  kAll,
  kGroup,
  kHeadMap
};  // one set per layer | one per KV head | one per KV head, source head mapped
enum class Pool { kSum, kMax };  // over the query heads of a scope, after the softmax

// Number of tokens a set may hold: a count, or a share of the visible keys.
struct Budget {
  int64_t tokens = 0;
  double fraction = 0;  // used when > 0
  int64_t At(int64_t visible) const {
    if (fraction <= 0) return tokens;
    const auto k = static_cast<int64_t>(fraction * static_cast<double>(visible) + 0.5);
    return k < 1 ? 1 : k;
  }
  bool operator==(const Budget&) const = default;
};

struct LayerRole {
  Role role = Role::kFull;
  int source = -1;               // reuse: the publisher; -1 = latest earlier publisher
  Budget k;                      // reuse and scan; {0, 0} = the plan's budget
  int bits = 4;                  // scan
  int64_t sink = 0, recent = 0;  // window and route
  bool operator==(const LayerRole&) const = default;
};

// How prompts are processed. Sparse: queries in tiles, one set per tile of max(min, fraction *
// visible) keys.
struct PrefillMode {
  bool sparse = false;
  int64_t tile = 64;
  double fraction = 0.10;
  int64_t min = 512;
  bool operator==(const PrefillMode&) const = default;
};

struct Evidence {
  bool present = false;
  int64_t context = 0;
  double kv_bytes_share = 0, kl = 0, answer_kl = 0, top1 = 0, predicted_nats = 0, latency_ratio = 0;
  int retrieval_found = 0, retrieval_dense_found = 0, retrieval_total = 0;
  std::vector<std::string> text_sha256;
  std::string details;  // JSON object, kept: splits, seeds, the front the plan was chosen from
  bool operator==(const Evidence&) const = default;
};

struct Plan {
  std::string architecture;  // of the model the plan was made for
  std::string fingerprint;   // "sha256:<hex>"; empty = not bound to one model
  Budget budget{512, 0};
  int64_t sink = 4, recent = 64;  // forced members of every published set, counted inside k
  Scope scope = Scope::kAll;
  Pool pool = Pool::kSum;
  int64_t block = 1;         // unit of selection in tokens; 1 = single tokens
  int64_t min_context = -1;  // at or below this many visible keys every layer runs as the model
                             // defines it; -1 = budget
  std::vector<int> forced;   // layers that must stay full or select
  std::vector<std::vector<int>>
      head_map;  // scope kHeadMap: [layers][kv_heads] -> KV head of the source
  PrefillMode prefill;
  bool evict = false;  // after a request's first prompt, windows keep only what they read
  std::vector<LayerRole> layers;
  Evidence evidence;

  static Plan Dense(int layers);
  // Parses and checks the form of the JSON; whether it fits a model is checked when a model is
  // given a plan.
  static Result<Plan> Parse(const std::string& json);
  static Result<Plan> Load(const std::string& path);
  std::string ToJson() const;
  Status Save(const std::string& path) const;  // atomic: a full disk leaves no half file

  // "30 layers: 9 full, 0 select, 5 scan, 10 reuse, 6 window | 512 tokens, sink 4, recent 64, scope
  // all, sum"
  std::string Summary() const;
  bool operator==(const Plan&) const = default;
};

std::string ToString(Role role);

}  // namespace baton
