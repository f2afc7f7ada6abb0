// Checks that the keys of a trained-sparse model agree, and builds the plan that they describe.
#include <algorithm>

#include "base/check.h"
#include "model/spec/native_config.h"

namespace baton {
namespace {

using Cache = BranchRule::Cache;
using Tokens = TokenSet::Kind;

constexpr Role kMemoryReaders[] = {Role::kCrossDense, Role::kCrossIndex, Role::kCrossIndexLocal};

std::string Layer(const NativeKeys& k, int l) {
  return fmt::format("layer {} ({})", l, k.kind[static_cast<size_t>(l)]->kind);
}

// A layer number, -1 or -2 as the keys have them.
std::string Named(int source) {
  return source == NativeKeys::kNone     ? "-2 (none)"
         : source == NativeKeys::kShared ? "-1 (the memory)"
                                         : fmt::format("{}", source);
}

// The layer whose cache the first branch reads: from the layer's kind, or `given`, the file's
// value.
int ExpectedSource(const NativeKeys& k, int l, int given) {
  const RoleRow& row = *k.kind[static_cast<size_t>(l)];
  if (row.role == Role::kWindow) return NativeKeys::kNone;
  if (row.branches[0].cache == Cache::kOwn) return l;
  return k.ReadsMemory(l) ? NativeKeys::kShared : given;
}

void CheckCaches(const NativeKeys& k, int l, Problems& problems) {
  const auto at = static_cast<size_t>(l);
  const int fed = k.kv_input[at], source = k.kv_source[at];
  const bool bridged = k.kind[at]->role == Role::kCrossFull;
  const int own_input = k.OwnsCache(l) ? l : NativeKeys::kNone;
  if (bridged ? fed < 0 || fed > l : fed != own_input)
    problems.Add("{}: plan.kv_input is {}, expected {}", Layer(k, l), Named(fed),
                 bridged ? fmt::format("a layer up to {}", l) : Named(own_input));
  if (bridged && fed == l && k.bridge_norm_own)
    problems.Add(
        "{}: plan.kv_input is the layer itself, expected an earlier layer, since bridge.norm is "
        "own",
        Layer(k, l));
  const int expected = ExpectedSource(k, l, source);
  if (source != expected) {
    problems.Add("{}: plan.kv_source is {}, expected {}", Layer(k, l), Named(source),
                 Named(expected));
  } else if (source == NativeKeys::kShared) {
    if (!k.has_memory)
      problems.Add("{}: plan.kv_source is -1, but the architecture has no memory", Layer(k, l));
    if (k.memory_layer && *k.memory_layer > l)
      problems.Add("{}: reads the memory, which memory.input_layer fills at layer {} only",
                   Layer(k, l), *k.memory_layer);
  } else if (source != l && source != NativeKeys::kNone) {
    if (source > l || !k.OwnsCache(source))
      problems.Add("{}: plan.kv_source is {}, expected an earlier layer with a cache of its own",
                   Layer(k, l), source);
    else if (k.rope[at] != k.rope[static_cast<size_t>(source)])
      problems.Add("{}: plan.rope is {}, expected that of layer {}, whose keys it reads",
                   Layer(k, l), k.rope[at] ? "true" : "false", source);
  } else if (source == NativeKeys::kNone && expected == source &&
             k.kind[at]->role != Role::kWindow) {
    problems.Add("{}: plan.kv_source is -2 (none), expected an earlier layer", Layer(k, l));
  }
}

void CheckRanking(const NativeKeys& k, int l, Problems& problems) {
  const auto at = static_cast<size_t>(l);
  const int index = k.index_source[at], source = k.kv_source[at];
  if (k.kind[at]->branches[0].tokens != Tokens::kIndex) {
    if (index != NativeKeys::kNone)
      problems.Add("{}: plan.index_source is {}, expected -2 (none)", Layer(k, l), Named(index));
  } else {
    if (index != source)
      problems.Add("{}: plan.index_source is {}, expected plan.kv_source {}", Layer(k, l),
                   Named(index), Named(source));
    else if (index == NativeKeys::kShared && k.indexers && !k.HasIndexer())
      problems.Add("{}: reads an indexer's list, but indexer.head_count is 0", Layer(k, l));
    else if (index >= 0 && k.publish[static_cast<size_t>(index)] == "none")
      problems.Add("{}: plan.index_source is {}, which publishes nothing", Layer(k, l), index);
    if (k.top_k && *k.top_k == 0)
      problems.Add("{}: reads a list, but select.top_k is 0", Layer(k, l));
  }
  const Role role = k.kind[at]->role;
  if (k.publish[at] == "none") return;
  if (role != Role::kFull && role != Role::kCrossFull)
    problems.Add("{}: plan.publish is {}, expected none", Layer(k, l), k.publish[at]);
  if (k.block && k.publish[at] != (*k.block == 1 ? "tokens" : "blocks"))
    problems.Add("{}: plan.publish is {}, but select.block_size is {}", Layer(k, l), k.publish[at],
                 *k.block);
}

void CheckBranches(const NativeKeys& k, int l, Problems& problems) {
  const auto at = static_cast<size_t>(l);
  const auto branches = k.kind[at]->Branches();
  if (k.ReadsMemory(l) && k.rope[at])
    problems.Add("{}: plan.rope is true, but the memory has no positions", Layer(k, l));
  if (branches.size() > 1 && k.gate[at] == Gate::kNone)
    problems.Add("{}: plan.gate is none, expected head or channel: two branches are a gated sum",
                 Layer(k, l));
  const bool window = std::any_of(branches.begin(), branches.end(),
                                  [](const BranchRule& b) { return b.tokens == Tokens::kWindow; });
  if (window && k.window && *k.window == 0)
    problems.Add("{}: has a window, but attention.sliding_window is 0", Layer(k, l));
}

// Rows that stop at the exit layer must have written every cache by then.
void CheckExit(const NativeKeys& k, Problems& problems) {
  if (!k.exit_layer || *k.exit_layer < 0) return;
  for (int l = 0; l < static_cast<int>(k.kind.size()); ++l) {
    if (k.OwnsCache(l) && k.kv_input[static_cast<size_t>(l)] >= *k.exit_layer)
      problems.Add("prefill.exit_layer is {}, but {} has a cache that layer {}'s input feeds",
                   *k.exit_layer, Layer(k, l), k.kv_input[static_cast<size_t>(l)]);
  }
  if (k.memory_layer && *k.memory_layer > *k.exit_layer)
    problems.Add("prefill.exit_layer is {}, but memory.input_layer is {}", *k.exit_layer,
                 *k.memory_layer);
}

class Builder {
 public:
  Builder(const NativeKeys& keys, ModelConfig& config) : k_(keys), c_(config) {}

  void Build() {
    AddCaches();
    for (int l = 0; l < c_.layers; ++l) AddLayer(l);
    for (int l = 0; l < c_.layers; ++l) Publishes(l);
  }

 private:
  // Only a window of this cache is ever read.
  bool Windowed(int l) const {
    const auto branches = k_.kind[static_cast<size_t>(l)]->Branches();
    return std::any_of(branches.begin(), branches.end(), [](const BranchRule& b) {
      return b.cache == Cache::kOwn && b.tokens == Tokens::kWindow;
    });
  }

  void AddCaches() {
    cache_of_.assign(static_cast<size_t>(c_.layers), -1);
    CacheSpec spec{.kv_heads = c_.kv_heads, .head_dim = c_.head_dim};
    for (int l = 0; l < c_.layers; ++l) {
      if (!k_.OwnsCache(l)) continue;
      cache_of_[static_cast<size_t>(l)] = static_cast<int>(c_.caches.size());
      spec.owner = l;
      spec.kv_input = k_.kv_input[static_cast<size_t>(l)];
      spec.sink = Windowed(l) ? *k_.sink_tokens : 0;
      spec.recent = Windowed(l) ? *k_.window : 0;
      c_.caches.push_back(spec);
    }
    if (!k_.has_memory) return;
    memory_ = static_cast<int>(c_.caches.size());
    c_.caches.push_back(
        {.kv_input = c_.memory_layer, .kv_heads = c_.kv_heads, .head_dim = c_.head_dim});
    if (!k_.HasIndexer()) return;
    c_.caches.push_back({.kv_input = c_.memory_layer,
                         .kv_heads = 1,
                         .head_dim = c_.indexer.key_length,
                         .values = false});
  }

  void AddLayer(int l) {
    const auto at = static_cast<size_t>(l);
    const RoleRow& row = *k_.kind[at];
    const bool window_only = row.role == Role::kWindow;
    c_.layer.push_back({.window = window_only ? *k_.window : 0,
                        .rope = k_.rope[at] ? 0 : -1,
                        .qk_norm = k_.ReadsMemory(l) ? c_.memory_qk_norm : k_.qk_norm});
    LayerPlan plan{.role = row.role,
                   .merge = row.branch_count > 1 ? Merge::kGatedSum : Merge::kSoftmax};
    for (const BranchRule& rule : row.Branches()) {
      Branch branch{.gate = k_.gate[at], .sink_logit = k_.sink_logit[at]};
      const int source = k_.kv_source[at];
      branch.cache = rule.cache == Cache::kOwn       ? cache_of_[at]
                     : source == NativeKeys::kShared ? memory_
                                                     : cache_of_[static_cast<size_t>(source)];
      BATON_CHECK_GE(branch.cache, 0);
      branch.set.kind = rule.tokens;
      if (rule.tokens == Tokens::kWindow) {
        branch.set.sink = *k_.sink_tokens;
        branch.set.recent = *k_.window;
      } else if (rule.tokens == Tokens::kIndex) {
        const int index = k_.index_source[at];
        branch.set.publisher = index == NativeKeys::kShared ? c_.memory_layer : index;
        branch.set.k = {.tokens = *k_.top_k};
      }
      plan.branches.push_back(branch);
    }
    c_.plan.push_back(std::move(plan));
  }

  // A ranking that no layer reads is not computed.
  void Publishes(int l) {
    const bool read = std::any_of(c_.plan.begin(), c_.plan.end(), [&](const LayerPlan& p) {
      return std::any_of(p.branches.begin(), p.branches.end(), [&](const Branch& b) {
        return b.set.kind == Tokens::kIndex && b.set.publisher == l;
      });
    });
    if (!read) return;
    Publish publish{.pool = k_.pool,
                    .block = *k_.block,
                    .sink = *k_.sink,
                    .recent = *k_.recent,
                    .forced_inside = false,
                    .budgets = {{.tokens = *k_.top_k}}};
    if (k_.HasIndexer() && l == c_.memory_layer) {
      publish.ranking = Publish::Ranking::kIndexer;
      publish.index_cache = memory_ + 1;
      publish.index_scale = c_.indexer.scale;
      publish.index_bf16 = c_.indexer.bf16;
    } else {
      publish.score = Publish::Score::kLogProbability;
      publish.scope = k_.scope;
    }
    c_.plan[static_cast<size_t>(l)].publish = std::move(publish);
  }

  const NativeKeys& k_;
  ModelConfig& c_;
  std::vector<int> cache_of_;  // [layers] the cache a layer owns; -1: none
  int memory_ = -1;            // K and V of the memory; the indexer's keys follow
};

}  // namespace

bool NativeKeys::OwnsCache(int l) const {
  const auto branches = kind[static_cast<size_t>(l)]->Branches();
  return std::any_of(branches.begin(), branches.end(),
                     [](const BranchRule& b) { return b.cache == Cache::kOwn; });
}

bool NativeKeys::ReadsMemory(int l) const {
  return std::find(std::begin(kMemoryReaders), std::end(kMemoryReaders),
                   kind[static_cast<size_t>(l)]->role) != std::end(kMemoryReaders);
}

void CheckNativePlan(const NativeKeys& k, Problems& problems) {
  if (k.block && (*k.block & (*k.block - 1)) != 0)
    problems.Add("select.block_size is {}, expected a power of two", *k.block);
  if (k.block && *k.block > 1 && (k.recent.value_or(0) > 0 || k.sink.value_or(0) > 0))
    problems.Add("select.recent {} and select.sink {}, expected 0 with blocks of {}",
                 k.recent.value_or(0), k.sink.value_or(0), *k.block);
  if (k.block && *k.block > 1 && k.HasIndexer())
    problems.Add("select.block_size is {}, expected 1: an indexer ranks single tokens", *k.block);
  for (int l = 0; l < static_cast<int>(k.kind.size()); ++l) {
    CheckCaches(k, l, problems);
    CheckRanking(k, l, problems);
    CheckBranches(k, l, problems);
  }
  CheckExit(k, problems);
}

void BuildNativePlan(const NativeKeys& keys, ModelConfig& config) { Builder(keys, config).Build(); }

}  // namespace baton
