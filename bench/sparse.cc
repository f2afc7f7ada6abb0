// What the trained-sparse architectures cost against what they should, on random weights and
// synthetic caches of the papers' shapes; each comparison alternates both sides within one run.
//
//   sparse [--depth N] [--rounds N] [--layers N] [--threads N] [--folder PATH] [CASE...]
//
// decode-clsa, decode-hysparse: attention time of a decode step (gather, attend, mass, select,
// merge)
//   against the time per KV byte of a dense model of the same heads (4 layers of it, which no cache
//   of the processor holds) times the bytes that the step reads. Limit 1.3.
// exit-yoco, exit-clsa: a prompt with early exit against all rows through all layers, over the
//   share of layers and rows that are left. Limit 1.15.
// suffix-hysparse2: attention time of a 32K prompt over what its row-key pairs take at the speed of
//   full attention at that depth. Limit 1.2. Width and FFN are 256: products beside attention take
//   minutes and are not looked at.
//
// --layers N takes the first N layers of HySparse's decode, where memory or time are short.
//
// Models are written once into the folder (/tmp) and stay there.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "baton/engine.h"
#include "engine/prompt/prompt_run.h"
#include "engine/session.h"
#include "model/spec/synthetic.h"
#include "or_die.h"
#include "profile/measure.h"

namespace baton {
namespace {

struct Options {
  int64_t depth = 131072;
  int rounds = 9;
  int threads = 0;
  int layers = 0;  // 0: all
  std::string folder = "/tmp";
  std::vector<std::string> cases;
};

// A vocabulary of a few thousand words: the output layer is not looked at.
std::unique_ptr<Engine> LoadSpec(const Options& o, const std::string& name, SyntheticSpec spec) {
  spec.vocab = 4096;
  const std::string path = o.folder + "/baton-sparse-" + name + ".gguf";
  if (!std::filesystem::exists(path)) {
    std::fprintf(stderr, "writing %s\n", path.c_str());
    ThreadPool threads(o.threads);
    OrDie(WriteSyntheticGguf(path, spec, {.threads = &threads, .on_bytes = nullptr}));
  }
  return OrDie(Engine::Load(path, {.threads = o.threads}));
}

// The heads of a spec, dense.
SyntheticSpec DenseTwin(const SyntheticSpec& spec, int layers) {
  SyntheticSpec s = spec;
  s.architecture = "baton-dense";
  s.layers = layers;
  s.layout = std::string(static_cast<size_t>(layers), 'F');
  s.rope = "F";
  s.gated = s.sinks = "";
  s.exit_layer = -1;
  s.top_k = s.recent = s.index_dim = s.rope_dims = 0;
  s.block = 1;
  s.qk_norm = s.memory_qk_norm = false;
  s.scope = Scope::kAll;
  return s;
}

// Seconds of attention alone since tracing was last switched on, by operation.
struct AttentionTime {
  double attend = 0, mass = 0, select = 0, merge = 0;
  double total() const { return attend + mass + select + merge; }
};
AttentionTime TimeOf(const Engine& engine) {
  AttentionTime t;
  for (const OpTime& op : engine.OpTimes()) {
    if (op.name == "attend" || op.name == "gather") t.attend += op.seconds;
    if (op.name == "mass") t.mass += op.seconds;
    if (op.name == "select") t.select += op.seconds;
    if (op.name == "merge") t.merge += op.seconds;
  }
  return t;
}

class Filled {
 public:
  Filled(Engine& engine, int64_t depth, int64_t room)
      : engine_(engine),
        depth_(depth),
        session_(OrDie(Session::Create(engine, engine.impl().model_plan.caches, depth + room,
                                       {.store = {}, .rollback = room}))) {
    OrDie(session_.FillSynthetic(depth, 1));
  }

  // One decode step at the depth.
  AttentionTime Step() {
    engine_.SetTracing(true);
    const int32_t token = 7;
    OrDie(session_.Decode(std::span(&token, 1), {.on_logits = [](int64_t, View<const float>) {}}));
    const AttentionTime t = TimeOf(engine_);
    engine_.SetTracing(false);
    session_.Truncate(depth_);
    return t;
  }

  // A prompt at the depth, of which `wanted` rows are wanted: seconds, all and of attention.
  std::pair<double, double> Prompt(int64_t rows, int64_t wanted) {
    std::vector<int32_t> tokens(static_cast<size_t>(rows));
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 37 % 4000);
    engine_.SetTracing(true);
    PromptRun run(engine_.impl(), {.tokens = tokens,
                                   .kv = &session_.sequence(),
                                   .plan = &engine_.impl().model_plan,
                                   .on_logits = nullptr,
                                   .wanted = wanted});
    OrDie(run.RunAll());
    double all = 0;
    for (const OpTime& op : engine_.OpTimes()) all += op.seconds;
    const double attention = TimeOf(engine_).total();
    engine_.SetTracing(false);
    session_.Truncate(depth_);
    return {all, attention};
  }

 private:
  Engine& engine_;
  int64_t depth_;
  Session session_;
};

bool Verdict(const std::string& name, double ratio, double limit, const std::string& how) {
  std::printf("%-16s ratio %.3f, limit %.2f: %s  (%s)\n", name.c_str(), ratio, limit,
              ratio <= limit ? "met" : "MISSED", how.c_str());
  std::fflush(stdout);
  return ratio <= limit;
}

bool Decode(const Options& o, const std::string& name, const std::string& shape) {
  SyntheticSpec spec = OrDie(NamedShape(shape));
  if (o.layers > 0 && o.layers < spec.layers && spec.architecture == "baton-hysparse") {
    spec.layers = o.layers;
    spec.layout.resize(static_cast<size_t>(o.layers));
  }
  auto sparse = LoadSpec(o, fmt::format("{}-{}", shape, spec.layers), spec);
  auto dense = LoadSpec(o, shape + "-dense4", DenseTwin(spec, 4));
  Filled sparse_at(*sparse, o.depth, 2), dense_at(*dense, o.depth, 2);
  const auto bytes = [&](Engine& e) {
    return static_cast<double>(KvBytesPerToken(e.impl().model_plan, e.impl().shape(), o.depth + 1));
  };
  const double sparse_bytes = bytes(*sparse), dense_bytes = bytes(*dense);
  std::vector<double> ratios, dense_s, attend, mass, select, merge;
  for (int round = -1; round < o.rounds; ++round) {
    const double d = dense_at.Step().total();
    const AttentionTime s = sparse_at.Step();
    if (round < 0) continue;
    ratios.push_back(s.total() / (d * sparse_bytes / dense_bytes));
    dense_s.push_back(d);
    attend.push_back(s.attend), mass.push_back(s.mass);
    select.push_back(s.select), merge.push_back(s.merge);
  }
  const auto ms = [](const std::vector<double>& v) { return 1e3 * Median(v); };
  return Verdict(
      name, Median(ratios), 1.3,
      fmt::format(
          "{} layers, median of {} rounds, depth {}: {:.1f} MB in {:.2f} ms = attend {:.2f} "
          "+ mass {:.2f} + select {:.2f} + merge {:.2f}; dense {:.1f} GB/s",
          spec.layers, o.rounds, o.depth, sparse_bytes / 1e6,
          ms(attend) + ms(mass) + ms(select) + ms(merge), ms(attend), ms(mass), ms(select),
          ms(merge), dense_bytes / Median(dense_s) / 1e9));
}

bool Exit(const Options& o, const std::string& name, const std::string& shape) {
  constexpr int64_t kRows = 1024;
  auto engine = LoadSpec(o, shape, OrDie(NamedShape(shape)));
  Filled at(*engine, 0, kRows);
  const ModelShape& model = engine->impl().shape();
  const PrefillSchedule schedule = MakePrefillSchedule(
      model,
      {.begin = 0, .end = kRows, .wanted = kRows - 1, .chunk = engine->options().prompt_chunk});
  double left = 0;
  for (const Pass& p : schedule.passes)
    left += static_cast<double>(p.rows() * (p.end_layer - p.first_layer));
  left /= static_cast<double>(kRows * model.layers);
  std::vector<double> ratios, all_s, exit_s;
  const int rounds = std::max(1, o.rounds / 3);  // each takes many seconds
  for (int round = 0; round < rounds; ++round) {
    const double exit = at.Prompt(kRows, 1).first, all = at.Prompt(kRows, kRows).first;
    ratios.push_back(exit / all / left);
    exit_s.push_back(exit), all_s.push_back(all);
  }
  return Verdict(
      name, Median(ratios), 1.15,
      fmt::format("{} tokens: {:.2f} s against {:.2f} s, {:.1f} % of layers and rows are "
                  "left; {} rounds",
                  kRows, Median(exit_s), Median(all_s), left * 100, rounds));
}

// Row-key pairs of a prompt under its schedule.
double Pairs(const ModelShape& model, const PrefillSchedule& schedule) {
  double pairs = 0;
  for (const Pass& p : schedule.passes) {
    for (int l = p.first_layer; l < p.end_layer; ++l) {
      for (const Branch& b : model.plan[static_cast<size_t>(l)].branches) {
        const auto mean = static_cast<double>(p.first_row + p.end_row + 1) / 2;
        const auto some =
            static_cast<double>(b.set.kind == TokenSet::Kind::kWindow  ? b.set.sink + b.set.recent
                                : b.set.kind == TokenSet::Kind::kIndex ? b.set.k.At(p.end_row) + 128
                                                                       : p.end_row);
        pairs += static_cast<double>(p.rows()) * std::min(mean, some);
      }
    }
  }
  return pairs;
}

bool Suffix(const Options& o, const std::string& name) {
  constexpr int64_t kPrompt = 32768, kDenseRows = 512;
  SyntheticSpec spec = OrDie(NamedShape("hysparse2-80b-dense-ffn"));
  spec.width = spec.ffn_width = 256;
  auto engine = LoadSpec(o, "hysparse2-narrow", spec);
  auto dense = LoadSpec(o, "hysparse2-narrow-dense1", DenseTwin(spec, 1));
  const ModelShape& model = engine->impl().shape();
  const double pairs =
      Pairs(model, MakePrefillSchedule(model, {.begin = 0,
                                               .end = kPrompt,
                                               .wanted = kPrompt - 1,
                                               .chunk = engine->options().prompt_chunk}));
  const double dense_pairs = static_cast<double>(kDenseRows) * (kPrompt - kDenseRows / 2);
  Filled at(*engine, 0, kPrompt), dense_at(*dense, kPrompt - kDenseRows, kDenseRows);
  std::vector<double> ratios, seconds;
  const int rounds = std::max(1, o.rounds / 9);
  for (int round = 0; round < rounds; ++round) {
    const double before = dense_at.Prompt(kDenseRows, 1).second;
    const double sparse = at.Prompt(kPrompt, 1).second;
    const double after = dense_at.Prompt(kDenseRows, 1).second;
    seconds.push_back(sparse);
    ratios.push_back(sparse / ((before + after) / 2 * pairs / dense_pairs));
  }
  int from = 0;
  return Verdict(
      name, Median(ratios), 1.2,
      fmt::format("prompt of {}: attention {:.2f} s for {:.0f} million row-key pairs, "
                  "suffix {} rows; {} rounds",
                  kPrompt, Median(seconds), pairs / 1e6, SuffixRows(model, 1, &from), rounds));
}

int Main(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const auto value = [&]() -> std::string { return i + 1 < argc ? argv[++i] : ""; };
    if (arg == "--depth") {
      o.depth = std::atoll(value().c_str());
    } else if (arg == "--rounds") {
      o.rounds = std::max(1, std::atoi(value().c_str()));
    } else if (arg == "--layers") {
      o.layers = std::max(1, std::atoi(value().c_str()));
    } else if (arg == "--threads") {
      o.threads = std::atoi(value().c_str());
    } else if (arg == "--folder") {
      o.folder = value();
    } else {
      o.cases.push_back(arg);
    }
  }
  if (o.cases.empty())
    o.cases = {"decode-clsa", "decode-hysparse", "exit-yoco", "exit-clsa", "suffix-hysparse2"};
  bool met = true;
  for (const std::string& c : o.cases) {
    if (c == "decode-clsa") {
      met &= Decode(o, c, "clsa-4b");
    } else if (c == "decode-hysparse") {
      met &= Decode(o, c, "hysparse-7b");
    } else if (c == "decode-hysparse-80b") {
      met &= Decode(o, c, "hysparse-80b-dense-ffn");
    } else if (c == "exit-yoco") {
      met &= Exit(o, c, "yoco-4b");
    } else if (c == "exit-clsa") {
      met &= Exit(o, c, "clsa-4b");
    } else if (c == "suffix-hysparse2") {
      met &= Suffix(o, c);
    } else {
      std::fprintf(stderr, "sparse: no case %s\n", c.c_str());
      return 2;
    }
  }
  return met ? 0 : 1;
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) { return baton::Main(argc, argv); }
