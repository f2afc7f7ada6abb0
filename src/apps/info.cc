// baton info: what a model file is, and what a plan makes of it.
#include <set>

#include "apps/command.h"
#include "formats/printable.h"

namespace baton::apps {
namespace {

struct InfoOptions {
  EngineFlags engine;
  std::string plan;
  bool json = false;
};

void AddOptions(CLI::App* command, InfoOptions& o) {
  o.engine.AddModel(command);
  AddPlanFlag(command, o.plan);
  AddJsonFlag(command, o.json);
  o.engine.Add(command);
}

// Powers of two up to the context, and the context itself.
std::vector<int64_t> Lengths(int64_t context) {
  std::vector<int64_t> lengths;
  for (int64_t n = 1024; n < context; n *= 2) lengths.push_back(n);
  lengths.push_back(context);
  return lengths;
}

// Where rows of a prompt go no further.
std::string PromptText(const ModelInfo& m) {
  std::string text =
      fmt::format("from layer {} on only rows whose logits are wanted", m.exit_layer);
  if (m.suffix_rows >= 0)
    text += fmt::format("; below it, behind the last cache that all rows feed, the last {} rows",
                        Count(m.suffix_rows));
  return text;
}

std::string LayerTable(const ModelInfo& m) {
  Table table({"layers", "kind", "reads", "cache", "publishes", "rope", "gate", "sink"}, 8);
  const auto yes = [](bool b) { return std::string(b ? "yes" : "-"); };
  for (size_t first = 0; first < m.layer.size();) {
    const LayerInfo& l = m.layer[first];
    size_t end = first + 1;
    while (end < m.layer.size() && m.layer[end] == l) ++end;
    table.Row({end == first + 1 ? fmt::format("{}", first) : fmt::format("{}-{}", first, end - 1),
               l.kind, l.branches, l.cache, l.publishes.empty() ? "-" : l.publishes, yes(l.rope),
               yes(l.gated), yes(l.sink_logits)});
    first = end;
  }
  return table.ToString();
}

std::string CacheTable(const ModelInfo& m) {
  Table table({"tokens", "read per step", "held", "dense model", "read / dense", "held / dense"},
              0);
  for (const ModelInfo::CacheBytes& c : m.cache_bytes) {
    const auto dense = static_cast<double>(c.dense);
    table.Row({Count(c.tokens), Bytes(static_cast<double>(c.read)),
               Bytes(static_cast<double>(c.held)), Bytes(dense),
               Percent(static_cast<double>(c.read) / dense),
               Percent(static_cast<double>(c.held) / dense)});
  }
  return table.ToString() + "dense model: a full cache of its own in every layer\n";
}

std::string WindowText(const ModelInfo& info) {
  if (info.trained_sparse) return "layers below";
  std::set<int64_t> widths;
  int limited = 0;
  for (const int64_t w : info.window)
    if (w > 0) ++limited, widths.insert(w);
  if (limited == 0) return "every layer sees the whole context";
  std::string text = fmt::format("{} of {} layers see a window of", limited, info.layers);
  for (const int64_t w : widths) text += " " + Count(w);
  return text + " tokens";
}

Result<results::InfoRecord> RecordOf(const Engine& engine, const std::optional<Plan>& plan,
                                     const Invocation& invocation) {
  results::InfoRecord record{.origin = OriginOf("info", engine, invocation)};
  if (!plan) return record;
  record.plan = plan->Summary();
  for (const int64_t n : Lengths(engine.info().context)) {
    BATON_ASSIGN(const double share, engine.KvBytesShare(*plan, n));
    BATON_ASSIGN(const ModelInfo::CacheBytes bytes, engine.CacheBytes(*plan, n));
    record.decode_step.push_back(
        {.tokens = n, .kv_bytes_share = share, .read = bytes.read, .held = bytes.held});
  }
  return record;
}

Status PrintText(const Engine& engine, const std::optional<Plan>& plan) {
  const ModelInfo& m = engine.info();
  std::string out;
  const auto line = [&](std::string_view what, const std::string& value) {
    out += fmt::format("{:<12} {}\n", what, value);
  };
  line("model", m.name.empty() ? m.path : m.name + " (" + m.path + ")");
  line("architecture", fmt::format("{}, {} layers of width {}, {} heads over {} KV heads of {}, "
                                   "FFN {}",
                                   m.architecture, m.layers, m.width, m.heads, m.kv_heads,
                                   m.head_dim, m.ffn_width));
  line("parameters", fmt::format("{} ({} of weights: {})", Count(m.parameters),
                                 Bytes(static_cast<double>(m.weight_bytes)), m.weight_types));
  line("context", fmt::format("{} tokens, {}", Count(m.context), WindowText(m)));
  line("KV cache", fmt::format("{} per token, {} for the whole context",
                               Bytes(static_cast<double>(m.kv_bytes_per_token)),
                               Bytes(static_cast<double>(m.cache_bytes.back().held))));
  line("vocabulary", fmt::format("{} tokens, {}", Count(m.vocab),
                                 !m.has_tokenizer      ? "no tokenizer"
                                 : m.has_chat_template ? "chat template"
                                                       : "no chat template"));
  if (m.trained_sparse) line("layers", LayersLine(m));
  if (m.exit_layer >= 0) line("prompts", PromptText(m));
  if (!m.router.empty()) line("router", m.router);
  if (!m.ignored_keys.empty())
    line("ignored", Displayable(fmt::format("{}", fmt::join(m.ignored_keys, ", "))));
  line("fingerprint", m.fingerprint);
  line("engine",
       fmt::format("{}, {} threads, loaded in {:.1f} s", m.backend, m.threads, m.load_seconds));
  if (plan) {
    line("plan", plan->Summary());
    for (const int64_t n : Lengths(m.context)) {
      BATON_ASSIGN(const double share, engine.KvBytesShare(*plan, n));
      BATON_ASSIGN(const ModelInfo::CacheBytes bytes, engine.CacheBytes(*plan, n));
      line("", fmt::format("a decode step at {:>9} tokens reads {:>7} of the KV bytes, {:>8}; "
                           "held {:>8}",
                           Count(n), Percent(share), Bytes(static_cast<double>(bytes.read)),
                           Bytes(static_cast<double>(bytes.held))));
    }
  }
  out += "\n" + LayerTable(m) + "\n" + CacheTable(m);
  return Print(out);
}

Result<int> Run(const InfoOptions& o, const Invocation& invocation) {
  EngineFlags flags = o.engine;
  flags.options.weights = false;
  BATON_ASSIGN(auto engine, flags.Load());
  BATON_ASSIGN(const auto plan, LoadPlan(*engine, o.plan));
  if (o.json) {
    BATON_ASSIGN(const auto record, RecordOf(*engine, plan, invocation));
    BATON_TRY(PrintJson(results::ToJson(record)));
  } else {
    BATON_TRY(PrintText(*engine, plan));
  }
  return 0;
}

}  // namespace

void AddInfo(CLI::App& app, Action& action) {
  CLI::App* command =
      AddCommand(app, "info", "What a model file is, and what a plan would read of its cache",
                 "  baton info model.gguf\n"
                 "  baton info model.gguf --plan plan.json --json");
  AddCommandWith<InfoOptions>(command, action, AddOptions, Run);
}

}  // namespace baton::apps
