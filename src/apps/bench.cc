// baton bench: prompt and decode speed at any depth, dense and under a plan.
#include <algorithm>
#include <filesystem>

#include "apps/command.h"
#include "apps/exact.h"
#include "base/thread_pool.h"
#include "baton/eval.h"
#include "model/spec/checkpoint.h"
#include "model/spec/synthetic.h"

namespace baton::apps {
namespace {

struct BenchFlags {
  EngineFlags engine;
  std::string plan, shape;
  BenchOptions options;
  ExactFlags exact;
  std::vector<std::string> texts;
  bool json = false;
};

void AddOptions(CLI::App* command, BenchFlags& o) {
  o.engine.AddModel(command);
  AddPlanFlag(command, o.plan);
  command
      ->add_option(
          "--shape", o.shape,
          fmt::format("MODEL has this shape ({}); a missing file is made, of random weights",
                      ShapeNames()))
      ->check([](const std::string& name) {
        const auto shape = NamedShape(name);
        return shape.ok() ? std::string() : shape.error().message();
      });
  BenchOptions& b = o.options;
  command->add_option("-d,--depth", b.depths, "Tokens already in the cache, for example 0,7168")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(AtLeast(0));
  const auto count = [&](const std::string& name, auto& value, const std::string& help, int least) {
    command->add_option(name, value, help)->check(AtLeast(least))->capture_default_str();
  };
  count("-p,--prompt", b.prompt, "Prompt tokens timed at each depth; 0: none", 0);
  count("--prompt-chunk", o.engine.options.prompt_chunk,
        "Prompt tokens per pass; 0: 512, on a GPU 2,048", 0);
  count("-n,--decode", b.decode, "Decode steps timed at each depth", 1);
  count("-r,--repeats", b.repeats, "Repetitions; medians are reported", 1);
  command->add_option("--batch", b.batches, "Sequences decoded together, for example 1,8")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(AtLeast(1))
      ->capture_default_str();
  count("--whole", b.whole_prompt, "Also time a whole prompt of N tokens; 0: no", 0);
  command->add_flag("--ops", b.ops,
                    "Time of each operation in a prompt chunk and in a decode step");
  o.exact.Add(command);
  command
      ->add_option("--text", o.texts,
                   "With --exact: dense and exact answers of -n tokens to -r prompts out of these "
                   "files, as long as the largest depth that fits")
      ->group("Exact answers");
  AddJsonFlag(command, o.json);
  o.engine.Add(command);
}

std::string OpsTable(const BenchRow& row, std::string_view what, std::vector<OpTime> ops) {
  double total = 0;
  for (const OpTime& op : ops) total += op.seconds;
  std::stable_sort(ops.begin(), ops.end(),
                   [](const OpTime& a, const OpTime& b) { return a.seconds > b.seconds; });
  Table table({"operation", "calls", "us", "share", "GB/s", "GFLOP/s"});
  for (const OpTime& op : ops) {
    const auto rate = [&](double amount) {
      return Number(op.seconds > 0 ? amount / op.seconds / 1e9 : 0);
    };
    table.Row({op.name, Count(op.calls), Number(op.seconds * 1e6),
               Percent(total > 0 ? op.seconds / total : 0), rate(op.bytes), rate(op.flops)});
  }
  return fmt::format("\n{} at depth {}, {}:\n{}", what, Count(row.depth), row.plan,
                     table.ToString());
}

// The model file of --shape: made if there is none, checked otherwise, before anything is loaded.
Status PrepareShape(const BenchFlags& o) {
  const std::string& path = o.engine.model;
  BATON_ASSIGN(const SyntheticSpec shape, NamedShape(o.shape));
  std::error_code ignored;
  if (std::filesystem::exists(path, ignored)) {
    BATON_ASSIGN(const Checkpoint model, Checkpoint::Open(path));
    Status fits = CheckShape(model.config, shape);
    if (fits.ok()) return fits;
    return std::move(fits)
        .error()
        .At(fmt::format("{} is no {}", path, o.shape))
        .Hint("name a file that does not exist yet, or leave out --shape");
  }
  const InterruptGuard guard(nullptr);
  Progress progress;
  const OnProgress draw = progress.Callback();
  ThreadPool threads(o.engine.options.threads);
  const auto on_bytes = [&](int64_t done, int64_t total) {
    if (draw)
      draw(static_cast<double>(done) / static_cast<double>(total), "writing random weights");
    return !guard.Interrupted();
  };
  BATON_TRY(WriteSyntheticGguf(path, shape, {.threads = &threads, .on_bytes = on_bytes}));
  if (guard.Interrupted()) return Error::Cancelled();  // too late to stop the writing
  return Status::Ok();
}

// What of the shape is not published, and what stands in for it.
std::string NoteOf(const BenchFlags& o) {
  const auto shape = NamedShape(o.shape);
  return shape.ok() ? shape->note : "";
}

// Dense passes by their rows, in passes of one row; and what exact answers took.
std::string ExactText(const BenchResult& r) {
  std::string out;
  for (const BenchRow& row : r.rows) {
    if (row.verify.empty()) continue;
    out += fmt::format("dense passes at depth {} over that of one row:", Count(row.depth));
    for (const RowsTime& t : row.verify)
      out += fmt::format("  {} rows {:.2f}", t.rows, t.seconds * row.decode_tokens_per_s);
    out += "\n";
  }
  if (!r.exact) return out;
  const ExactBench& e = *r.exact;
  out += fmt::format(
      "exact answers to {} prompts of {} tokens: {} ms/token, dense {}: {:.2f} of its time; {}\n",
      e.prompts, Count(e.depth), Number(e.exact_seconds_per_token * 1e3),
      Number(e.dense_seconds_per_token * 1e3),
      e.exact_seconds_per_token / e.dense_seconds_per_token,
      e.different > 0 ? fmt::format("{} DIFFER", e.different) : "all are dense's own");
  for (const std::string& line : ExactLines(e.report, e.tokens)) out += line + "\n";
  for (const ExactBench::Expected& x : e.expected) {
    out += fmt::format("expected at depth {}, {} accepted: {:.2f} of dense's time with {} drafts\n",
                       Count(x.depth), Percent(e.accepted), x.time, x.drafts);
  }
  return out;
}

std::string ToText(const BenchResult& r, const BenchFlags& o, const ModelInfo& model) {
  Table table({"attention", "depth", "batch", "prompt tok/s", "decode tok/s", "ms/token",
               "KV/token", "KV held", "GB/s", "limit", "share", "logits"});
  bool aliased = false;
  for (const BenchRow& row : r.rows) {
    aliased |= row.aliased;
    table.Row(
        {row.plan == "dense" ? "dense" : "plan", Count(row.depth) + (row.aliased ? "*" : ""),
         Count(row.batch), row.prompt_tokens_per_s > 0 ? Number(row.prompt_tokens_per_s) : "-",
         Number(row.decode_tokens_per_s),
         row.decode_tokens_per_s > 0 ? Number(1e3 / row.decode_tokens_per_s * row.batch) : "-",
         Bytes(row.kv_bytes_per_token), Bytes(static_cast<double>(row.kv_bytes_held)),
         Number(row.decode_bytes_per_s / 1e9), Number(row.read_bandwidth / 1e9),
         Percent(row.share_of_read_bandwidth), row.logits_hash});
  }
  std::string out = table.ToString();
  if (const std::string note = NoteOf(o); !note.empty())
    out += fmt::format("{}: {}\n", o.shape, note);
  out +=
      "limit: what memory reads (a GPU's: reads and writes of a copy), measured beside each "
      "depth\n";
  out += fmt::format("loaded in {:.2f} s; memory: peak {}, weights and largest cache {}\n",
                     model.load_seconds, Bytes(static_cast<double>(r.peak_memory_bytes)),
                     Bytes(static_cast<double>(r.expected_memory_bytes)));
  if (aliased)
    out += "* layers share synthetic caches, 1 GiB or more of them: too large for memory or time\n";
  const auto whole = [&](double seconds, std::string_view what) {
    if (seconds <= 0) return;
    out +=
        fmt::format("prompt of {} tokens, {}: {:.2f} s, {} tok/s\n", Count(o.options.whole_prompt),
                    what, seconds, Number(static_cast<double>(o.options.whole_prompt) / seconds));
  };
  whole(r.whole_prompt_seconds_dense, "dense");
  whole(r.whole_prompt_seconds_plan, "plan");
  out += ExactText(r);
  for (const BenchRow& row : r.rows) {
    const std::string prompt = fmt::format("a prompt of {} tokens", Count(o.options.prompt));
    if (!row.prompt_ops.empty()) out += OpsTable(row, prompt, row.prompt_ops);
    if (!row.ops.empty()) out += OpsTable(row, "one decode step", row.ops);
  }
  return out;
}

Result<int> Run(const BenchFlags& o, const Invocation& invocation) {
  if (!o.shape.empty()) BATON_TRY(PrepareShape(o));
  BATON_ASSIGN(auto engine, o.engine.Load());
  BenchOptions options = o.options;
  BATON_ASSIGN(options.plan, LoadPlan(*engine, o.plan));
  options.exact = o.exact.Given();
  if (options.exact) {
    options.exact->plan = options.exact->plan && options.plan;
    if (!options.exact->plan && !options.exact->lookup)
      UsageError("--exact", "needs --plan FILE or --draft lookup");
  }
  if (!o.texts.empty()) {
    BATON_ASSIGN(Texts texts, ReadTexts(o.texts));
    options.text = std::move(texts.all);
  }
  if (options.plan) {
    std::vector<int64_t> visible;
    for (const int64_t depth : options.depths) visible.push_back(std::max<int64_t>(depth, 1));
    BATON_ASSIGN(const std::string line, PlanLine(*engine, *options.plan, visible));
    Note(line);
  }
  InterruptGuard guard(*engine);
  Progress progress;
  BATON_ASSIGN(const BenchResult r, RunBench(*engine, options, progress.Callback()));
  if (!o.json) {
    BATON_TRY(Print(ToText(r, o, engine->info())));
    return 0;
  }
  BATON_TRY(PrintJson(
      results::ToJson(results::BenchRecord{.origin = OriginOf("bench", *engine, invocation),
                                           .shape = o.shape,
                                           .note = NoteOf(o),
                                           .options = options,
                                           .result = r})));
  return 0;
}

}  // namespace

void AddBench(CLI::App& app, Action& action) {
  CLI::App* command = AddCommand(app, "bench", "Prompt and decode speed at any depth of context",
                                 "  baton bench model.gguf --depth 0,7168\n"
                                 "  baton bench model.gguf --plan plan.json --depth 7168 --ops\n"
                                 "  baton bench model.gguf --depth 131072 -p 0 -n 16 --json\n"
                                 "  baton bench model.gguf --plan plan.json --exact --depth 7168 "
                                 "--text book.txt -n 128\n"
                                 "  baton bench llama-8b.gguf --shape llama-8b --depth 32768 -p 0");
  AddCommandWith<BenchFlags>(command, action, AddOptions, Run);
}

}  // namespace baton::apps
