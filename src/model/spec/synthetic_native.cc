// Keys of synthetic models of the trained-sparse architectures.
#include <algorithm>
#include <cmath>

#include "model/spec/native_config.h"
#include "model/spec/synthetic.h"

namespace baton {
namespace {

struct Letter {
  char letter;
  Role role;
};
constexpr Letter kLetters[] = {
    {'F', Role::kFull},       {'W', Role::kWindow},          {'S', Role::kSparse},
    {'C', Role::kCrossFull},  {'R', Role::kSparseShared},    {'D', Role::kCrossDense},
    {'I', Role::kCrossIndex}, {'L', Role::kCrossIndexLocal},
};

bool In(std::string_view letters, char c) { return letters.find(c) != std::string_view::npos; }

// Layer l is the latest publisher before its readers.
bool Publishes(const SyntheticSpec& s, size_t l) {
  return s.layout[l] == (s.architecture == "baton-hysparse" ? 'F' : 'C') &&
         l + 1 < s.layout.size() && In("SR", s.layout[l + 1]);
}

void SetLayers(const SyntheticSpec& s, Metadata& m, const std::string& p) {
  std::vector<std::string> kinds, publish, gates;
  std::vector<int64_t> source, input, index, rope, sinks;
  int64_t last = NativeKeys::kNone;
  const size_t first = std::min(s.layout.find('F'), s.layout.size());
  const auto bridge = s.bridge >= 0 ? int64_t{s.bridge} : static_cast<int64_t>(first);
  for (size_t l = 0; l < s.layout.size(); ++l) {
    const char c = s.layout[l];
    const auto at = static_cast<int64_t>(l);
    const auto* row = std::find_if(std::begin(kLetters), std::end(kLetters),
                                   [&](const Letter& x) { return x.letter == c; });
    kinds.push_back(row == std::end(kLetters) ? std::string(1, c)
                                              : std::string(RowOf(row->role).kind));
    source.push_back(c == 'W'       ? NativeKeys::kNone
                     : In("FC", c)  ? at
                     : In("DIL", c) ? NativeKeys::kShared
                                    : last);
    input.push_back(In("FWSL", c) ? at : c == 'C' ? bridge : NativeKeys::kNone);
    index.push_back(In("IL", c) ? NativeKeys::kShared : In("SR", c) ? last : NativeKeys::kNone);
    publish.push_back(!Publishes(s, l) ? "none" : s.block == 1 ? "tokens" : "blocks");
    if (Publishes(s, l)) last = at;
    rope.push_back(In(s.rope, c));
    gates.push_back(!In(s.gated, c) ? "none" : s.gate == Gate::kHead ? "head" : "channel");
    sinks.push_back(In(s.sinks, c));
  }
  m.values[p + "plan.kind"] = kinds;
  m.values[p + "plan.kv_source"] = source;
  m.values[p + "plan.kv_input"] = input;
  m.values[p + "plan.index_source"] = index;
  m.values[p + "plan.publish"] = publish;
  m.values[p + "plan.rope"] = rope;
  m.values[p + "plan.gate"] = gates;
  m.values[p + "plan.sink_logit"] = sinks;
}

}  // namespace

Result<Metadata> NativeMetadata(const SyntheticSpec& s, const Architecture& a) {
  if (static_cast<int>(s.layout.size()) != s.layers)
    return Error::InvalidArgument("layout '{}' of {} layers, expected {}", s.layout,
                                  s.layout.size(), s.layers);
  Metadata m;
  const std::string p = s.architecture + ".";
  const auto set = [&](std::string_view key, MetaValue v) { m.values[p + std::string(key)] = v; };
  m.values["general.architecture"] = s.architecture;
  set("block_count", static_cast<int64_t>(s.layers));
  set("context_length", s.context);
  set("embedding_length", s.width);
  set("feed_forward_length", s.ffn_width);
  set("attention.head_count", static_cast<int64_t>(s.heads));
  set("attention.head_count_kv", static_cast<int64_t>(s.kv_heads));
  set("attention.key_length", s.head_dim);
  set("attention.value_length", s.head_dim);
  set("attention.layer_norm_rms_epsilon", 1e-5);
  const bool windows = s.layout.find_first_of("WSL") != std::string::npos;
  set("attention.sliding_window", windows ? s.window : 0);
  set("attention.sink_tokens", s.sink_tokens);
  set("attention.qk_norm", s.qk_norm);
  set("rope.freq_base", 10000.0);
  set("rope.dimension_count", s.rope_dims > 0 ? s.rope_dims : s.head_dim);
  set("rope.style", std::string("half"));
  set("embedding_scale", 1.0);
  if (s.smear) set("embedding_smear", true);
  set("plan.version", int64_t{1});
  SetLayers(s, m, p);
  set("prefill.exit_layer", static_cast<int64_t>(s.exit_layer));
  set("select.top_k", s.top_k);
  set("select.block_size", s.block);
  set("select.recent", s.recent);
  set("select.sink", s.sink);
  set("select.head_scope", std::string(s.scope == Scope::kGroup ? "group" : "all"));
  set("select.pool", std::string(s.pool == Pool::kSum ? "sum" : "max"));
  const auto memory = s.layout.find_first_of("DIL");
  for (std::string_view key : a.own_keys) {
    if (key == "residual.streams") set(key, int64_t{1});
    if (key == "bridge.norm") set(key, std::string("own"));
    if (key == "memory.input_layer")
      set(key, memory == std::string::npos ? int64_t{0} : static_cast<int64_t>(memory));
    if (key == "memory.qk_norm") set(key, s.memory_qk_norm);
    if (key == "indexer.head_count") set(key, static_cast<int64_t>(s.index_dim > 0));
    if (key == "indexer.key_length") set(key, s.index_dim);
    if (key == "indexer.scale")
      set(key, s.index_dim > 0 ? 1.0 / std::sqrt(static_cast<double>(s.index_dim)) : 0.0);
    if (key == "indexer.dtype") set(key, std::string("bf16"));
  }
  return m;
}

std::string LayoutOf(const ModelConfig& config) {
  std::string layout;
  for (const LayerPlan& l : config.plan) {
    for (const Letter& x : kLetters) {
      if (x.role == l.role) layout += x.letter;
    }
  }
  return layout;
}

}  // namespace baton
